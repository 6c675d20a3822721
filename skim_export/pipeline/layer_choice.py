"""What is asked for single layers: rows with a width of their own, and layers that keep their floats.

Patterns are shell-style. One matches a module if it matches its path in the checkpoint, or what of it follows a dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Linear, Model
from skim_runtime.errors import UserError

__all__ = ["excluding", "kept_widths"]

Places: TypeAlias = dict[str, tuple[Linear, slice]]  # of a module: its linear, and its rows there


def excluding(model: Model, patterns: Iterable[str]) -> Model:
    """The model, of which the linear layers that patterns match are not packed.

    Raises:
        UserError: a pattern matches nothing, or some modules only of those that are one matrix in the graph; or no
            linear layer is left.
    """
    places, excluded = _places(model), dict[str, str]()
    for pattern in patterns:
        excluded |= dict.fromkeys(_matches(places, pattern, f"--exclude {pattern}"), pattern)
    names = {places[module][0].name for module in excluded}
    for linear in model.architecture.all_linears:
        if linear.name not in names or len(linear.members) == 1:
            continue
        if missing := [member for member in linear.members if member not in excluded]:
            pattern = next(excluded[member] for member in linear.members if member in excluded)
            raise UserError(
                f"--exclude {pattern}: {_listed(linear.members, 'and')} are one matrix in the graph: exclude "
                f"{_listed(missing, 'and')}, too, or none of them"
            )
    model = model.excluding(names)
    if not model.architecture.linears:
        raise UserError(f"--exclude {' '.join(dict.fromkeys(excluded.values()))}: leaves no linear layer to quantize")
    return model


def kept_widths(model: Model, keep: Mapping[str, int]) -> dict[str, npt.NDArray[np.uint8]]:
    """The widths that rows of linear layers were given, uint8 `[N]` by the layer's name, 0 for rows without one.

    Args:
        model: which of its layers are excluded is known.
        keep: widths by pattern.

    Raises:
        UserError: a pattern matches nothing but what is excluded; or two give the same rows different widths.
    """
    places = _places(model)
    kept: dict[str, npt.NDArray[np.uint8]] = {}
    given: dict[tuple[str, int], str] = {}  # by layer and first row: the option
    for pattern, bits in keep.items():
        option = f"--keep {pattern}={bits}"
        found = _matches(places, pattern, option)
        packed = [module for module in found if places[module][0].name not in model.architecture.excluded]
        if not packed:
            raise UserError(f"{option}: {found[0]} is excluded by --exclude, and has no width")
        for module in packed:
            linear, rows = places[module]
            widths = kept.setdefault(linear.name, np.zeros(linear.out_features, np.uint8))
            if widths[rows.start] not in (0, bits):
                raise UserError(f"{option}: {module} has another width by {given[linear.name, rows.start]}")
            widths[rows] = bits
            given[linear.name, rows.start] = option
    return kept


def _places(model: Model) -> Places:
    """Every module by its path; where head and embedding are one matrix, both are it."""
    architecture, places = model.architecture, Places()
    for linear in architecture.all_linears:
        first = 0
        for member in linear.members:
            rows = model.checkpoint.shape(f"{member}.weight")[0]
            places[member] = linear, slice(first, first + rows)
            first += rows
    if architecture.tied:
        places[architecture.head] = places[architecture.embedding]
    return places


def _matches(places: Places, pattern: str, option: str) -> list[str]:
    found = [module for module in places if any(fnmatchcase(tail, pattern) for tail in _tails(module))]
    if not found:
        names = list(places)
        raise UserError(f"{option}: matches no layer; there are {_listed((names[0], names[3], names[-1]), 'and')}, ...")
    return found


def _tails(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def _listed(names: Iterable[str], word: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
