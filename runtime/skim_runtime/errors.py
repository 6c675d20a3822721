"""The error that a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: one line that names the file or parameter, its value and what would be right.

    Command lines print the message and exit with code 2.
    """
