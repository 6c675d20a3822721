"""The command lines: each parses and prints; all that is done between is in public functions of the same names."""
