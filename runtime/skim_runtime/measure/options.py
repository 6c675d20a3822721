"""What options of a measurement may be."""

from __future__ import annotations

import re

from skim_runtime.errors import UserError

__all__ = ["at_least", "parse_shape"]


def parse_shape(shape: str, multiple: int = 1, option: str = "--shapes") -> tuple[int, int]:
    """Rows N and columns K from `NxK`, the value of an option.

    Raises:
        UserError: it is something else, or K is no multiple of `multiple`.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", shape)
    if match is None:
        raise UserError(f"{option} {shape}: must be rows and columns, such as 4096x4096")
    if int(match[2]) % multiple:
        raise UserError(f"{option} {shape}: columns must be a multiple of {multiple}")
    return int(match[1]), int(match[2])


def at_least(option: str, least: int, *values: int) -> None:
    """Refuse values of an option that are too small.

    Raises:
        UserError: naming the option and the value.
    """
    for value in values:
        if value < least:
            raise UserError(f"{option} {value}: must be at least {least}")
