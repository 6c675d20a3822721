"""Text that a user gives."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError

__all__ = ["read_stdin", "read_text", "text_facts"]


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


def read_stdin() -> str:
    """The UTF-8 text on stdin.

    Raises:
        UserError: it is something else.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"stdin: not UTF-8 text (byte {error.start})") from None


def text_facts(path: Path) -> dict[str, Any]:
    """What tells a text from others, beside figures that were measured on it: name, bytes and SHA-256 of its file."""
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
