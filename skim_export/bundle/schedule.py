"""How kernels are laid out for a machine: a few numbers, stated in a target's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar

from skim_export.packed import COLUMNS, LANES, RowClass
from skim_runtime.errors import UserError

__all__ = ["Override", "Prefill", "Schedule", "Tile"]

T = TypeVar("T")


@dataclass(frozen=True)
class Tile:
    """Rows that are multiplied while they are decoded.

    Attributes:
        rows: decoded at once, so that their multiplications are independent.
        lanes: of a superblock that are decoded at once, a power of 2 up to 32.
        vector: columns that are multiplied and added at once, a power of 2 up to `lanes`.
        tokens: multiplied at once.
        ahead: bytes from the codes that are decoded to those that are prefetched into the cache; 0 for none.
    """

    rows: int
    lanes: int
    vector: int
    tokens: int
    ahead: int = 0

    def check(self, where: str) -> None:
        """Raises UserError where a number can't be."""
        _check_lanes(self.lanes, self.vector, where)
        _check_positive(where, rows=self.rows, tokens=self.tokens, ahead=self.ahead + 1)


@dataclass(frozen=True)
class Prefill:
    """Rows that are decoded into a tile, which is then multiplied with all tokens.

    Attributes:
        rows: of the tile.
        columns: of the tile, a multiple of 256; it lies on the stack.
        lanes: of a superblock that are decoded at once, a power of 2 up to 32.
        vector: columns that are multiplied and added at once, a power of 2 up to 32.
        tokens: multiplied at once.
        least_tokens: the least number of tokens that are multiplied in this way.
    """

    rows: int
    columns: int
    lanes: int
    vector: int
    tokens: int
    least_tokens: int

    def check(self, where: str) -> None:
        """Raises UserError where a number can't be."""
        _check_lanes(self.lanes, min(self.vector, self.lanes), where)
        _check_lanes(LANES, self.vector, where)
        _check_positive(where, rows=self.rows, tokens=self.tokens, least_tokens=self.least_tokens - 1)
        if self.columns < 1 or self.columns % COLUMNS:
            raise UserError(f"{where}: columns = {self.columns} must be a multiple of {COLUMNS}")


@dataclass(frozen=True)
class Schedule:
    """The three ways to multiply: one token, a few, many."""

    decode: Tile
    batch: Tile
    prefill: Prefill

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str) -> Schedule:
        """From a target's file."""
        names = [field.name for field in fields(cls)]
        _check_keys(table, names, where, required=names)
        kinds = {"decode": Tile, "batch": Tile, "prefill": Prefill}
        parts: dict[str, Any] = {name: _numbers(kind, table[name], f"{where} {name}") for name, kind in kinds.items()}
        return cls(**parts).checked(where)

    def checked(self, where: str) -> Schedule:
        """Itself.

        Raises:
            UserError: a number can't be; `where` is named.
        """
        for field in fields(self):
            getattr(self, field.name).check(f"{where} {field.name}")
        if self.decode.tokens != 1:
            raise UserError(f"{where} decode: tokens = {self.decode.tokens} must be 1")
        return self

    def changed(self, changes: Mapping[str, Mapping[str, int]], where: str) -> Schedule:
        """With some numbers replaced, such as `{"decode": {"rows": 2}}`."""
        _check_keys(changes, [field.name for field in fields(self)], where)
        for part, values in changes.items():
            old = getattr(self, part)
            _check_keys(values, [field.name for field in fields(old)], f"{where} {part}")
        parts = {part: replace(getattr(self, part), **values) for part, values in changes.items()}
        return replace(self, **parts).checked(where)


@dataclass(frozen=True)
class Override:
    """What is different for some products.

    Attributes:
        when: the products, by `arithmetic` ("float", "integer"), `kind` of the rows ("table", "affine"), `bits`, `N`
            and `K`; a list names several values.
        changes: numbers of a schedule.
    """

    when: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str) -> Override:
        """From a target's file."""
        changes = dict(table)
        when = changes.pop("when", None)
        if not isinstance(when, dict):
            raise UserError(f"{where}: needs a table `when`, such as when = {{ bits = [7, 8] }}")
        _check_keys(when, ["arithmetic", "kind", "bits", "N", "K"], f"{where} when")
        return cls(when, changes)

    def applies(self, row_class: RowClass, integer: bool, N: int, K: int) -> bool:
        """Whether it is for a product with the rows of a class in a matrix of N rows and K columns."""
        found = {
            "arithmetic": "integer" if integer else "float",
            "kind": row_class.kind.name.lower(),
            "bits": row_class.bits,
            "N": N,
            "K": K,
        }
        return all(found[key] in (value if isinstance(value, list) else [value]) for key, value in self.when.items())


def _numbers(cls: type[T], table: Any, where: str) -> T:
    """A dataclass of integers from a table that names all without a default.

    Raises:
        UserError: a key is missing or unknown, or a value is no integer.
    """
    known = fields(cls)  # type: ignore[arg-type]
    required = [field.name for field in known if field.default is MISSING]
    _check_keys(table, [field.name for field in known], where, required=required)
    for name, value in table.items():
        if type(value) is not int:
            raise UserError(f"{where}: {name} = {value!r} must be an integer")
    return cls(**table)


def _check_keys(table: Any, names: Sequence[str], where: str, *, required: Sequence[str] = ()) -> None:
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: must be a table with {', '.join(names)}")
    if unknown := [key for key in table if key not in names]:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(names)}")
    if missing := [name for name in required if name not in table]:
        raise UserError(f"{where}: {missing[0]} is missing")


def _check_lanes(lanes: int, vector: int, where: str) -> None:
    powers = [1 << i for i in range(LANES.bit_length())]
    if lanes not in powers:
        raise UserError(f"{where}: lanes = {lanes} must be one of {powers}")
    if vector not in powers or vector > lanes:
        raise UserError(f"{where}: vector = {vector} must be one of {powers[: powers.index(lanes) + 1]}")


def _check_positive(where: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{where}: {name} is too small")
