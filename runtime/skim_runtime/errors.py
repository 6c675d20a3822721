"""The error that a user can mend, and how it tells of others."""


class UserError(Exception):
    """A mistake in what the user gave: one line that names the file or parameter, its value and what would be right.

    Command lines print the message and exit with code 2.
    """


def reason(error: BaseException) -> str:
    """The message of an error of another library in one line, or its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
