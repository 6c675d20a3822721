"""Text that a user gives."""

from pathlib import Path

from skim_runtime.errors import UserError

__all__ = ["read_text"]


def read_text(path: Path, option: str) -> str:
    """The UTF-8 text in a file that was given with an option, such as `--text`.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read ({error.strerror}); give a text file") from None
