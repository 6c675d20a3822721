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

Places: TypeAlias = dict[str, list[tuple[Linear, slice]]]  # of a module: its linears, and its rows there


def excluding(model: Model, patterns: Iterable[str]) -> Model:
    """The model, of which the linear layers that patterns match are not packed.

    Raises:
        UserError: a pattern matches nothing, or some modules only of those that are one matrix in the graph; or no
            linear layer is left.
    """
    places, excluded = _places(model), dict[str, str]()
    for pattern in patterns:
        excluded |= dict.fromkeys(_matches(places, pattern, f"--exclude {pattern}"), pattern)
    names = {linear.name for module in excluded for linear, _ in places[module]}
    for linear in model.architecture.all_linears:
        modules = [member.module for member in linear.members]
        if linear.name not in names or len(modules) == 1:
            continue
        if linear.of_experts:
            pattern = next(excluded[module] for module in modules if module in excluded)
            raise UserError(
                f"--exclude {pattern}: matches experts, which have no products with floats; --keep gives a width"
            )
        if missing := [module for module in modules if module not in excluded]:
            pattern = next(excluded[module] for module in modules if module in excluded)
            raise UserError(
                f"--exclude {pattern}: {_listed(modules, 'and')} are one matrix in the graph: exclude "
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
        packed = [
            (module, linear, rows)
            for module in found
            for linear, rows in places[module]
            if linear.name not in model.architecture.excluded
        ]
        if not packed:
            raise UserError(f"{option}: {found[0]} is excluded by --exclude, and has no width")
        for module, linear, rows in packed:
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
        for member, rows in linear.places():
            places.setdefault(member.module, []).append((linear, rows))
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
