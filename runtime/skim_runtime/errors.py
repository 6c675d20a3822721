"""The error that a user can mend, and how it tells of others."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["UserError", "foreign_errors", "reason"]

LONGEST = 1000  # characters of a message


class UserError(Exception):
    """A mistake in what the user gave: one line that names the file or parameter, its value and what would be right.

    Command lines print the message and exit with code 2. Line breaks, as in the name of a file, become spaces; of a
    message that is very long, as where it quotes a file, the middle is left out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST * 3 // 4]} [...] {line[-LONGEST // 4 :]}"
        super().__init__(line)


def reason(error: BaseException) -> str:
    """The message of an error of another library in one line, or its type if it says nothing."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text}".strip() if not text or isinstance(error, KeyError) else text


@contextmanager
def foreign_errors(what: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever another library raises becomes a `UserError` that begins with `what`: a panic in Rust is no Exception.

    Those in `but` pass.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (UserError, KeyboardInterrupt, SystemExit, *but)):
            raise
        raise UserError(f"{what}: {reason(error)}") from error
