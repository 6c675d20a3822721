"""Inputs with something wrong in them, many thousands of them: `make fuzz`."""
