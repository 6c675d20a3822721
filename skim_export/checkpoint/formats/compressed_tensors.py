"""The formats of the package compressed-tensors that keep each number of a weight by itself, or pack them.

`weight_packed` int32 `[N, ceil(K * bits / 32)]` with `weight_shape`, or `weight` int8 or F8_E4M3 `[N, K]`;
`weight_scale`, and unless the weight is symmetric `weight_zero_point`, which is packed like the weight, its columns.
Which modules have what is said by groups in config.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from skim_export.checkpoint.tensors import FLOAT_TYPES
from skim_runtime.errors import UserError

from .format import Format
from .numbers import WORD, Numbers, PackedColumns, PackedRows, Plain
from .quantized_tensor import QuantizedTensor
from .stored_module import Settings, StoredModule

__all__ = ["COMPRESSED_TENSORS"]

PACKED = "pack-quantized"
FORMATS = (PACKED, "int-quantized", "float-quantized", "naive-quantized")
PACKED_WIDTHS = (4, 8)
TYPES = {"int": "I8", "float": "F8_E4M3"}
COMPRESSED = "compressed"


@dataclass(frozen=True)
class _Scheme:
    """How the weights of some modules are stored."""

    targets: tuple[str, ...]
    format: str
    weights: Settings

    def named(self, module: str) -> bool:
        """Whether it is for this module by its name."""
        for target in self.targets:
            if target.startswith("re:"):
                if re.match(target.removeprefix("re:"), module):
                    return True
            elif target == module:
                return True
        return False

    @property
    def of_kinds(self) -> bool:
        """Whether it is for all modules of a kind, such as "Linear"."""
        return any("." not in target and not target.startswith("re:") for target in self.targets)

    def blocks(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        size = self.weights.get("group_size")
        strategy = self.weights.one_of(
            "strategy", choices=("tensor", "channel", "group", "block"), default="group" if size else "tensor"
        )
        if strategy == "group":
            return 1, self.weights.whole("group_size")
        if strategy == "block":
            block = self.weights.get("block_structure")
            if not isinstance(block, list) or len(block) != 2 or any(type(b) is not int or b < 1 for b in block):
                raise self.weights.error("block_structure", block, "expected two whole numbers from 1")
            return block[0], block[1]
        return 1 if strategy == "channel" else rows, columns


def _described(settings: Settings) -> str:
    """What to call the format.

    Raises:
        UserError: it is a variant that cannot be read.
    """
    settings.one_of("quantization_status", choices=(COMPRESSED,), default=COMPRESSED)
    settings.within("sparsity_config").one_of("format", choices=("dense",), default="dense")
    if transform := settings.get("transform_config"):
        raise settings.error("transform_config", transform, "models with transforms cannot be read")
    schemes = _schemes(settings)
    if not schemes:
        raise settings.error("config_groups", settings.get("config_groups"), "expected groups with weights")
    formats = sorted({scheme.format for scheme in schemes})
    widths = sorted({scheme.weights.whole("num_bits", default=8) for scheme in schemes})
    return f"compressed-tensors, {' and '.join(formats)}, {' and '.join(map(str, widths))} bits"


def _weight(module: StoredModule, settings: Settings) -> QuantizedTensor:
    """The weight of a module."""
    scheme = _scheme_of(module, settings)
    symmetric = scheme.weights.one_of("symmetric", choices=(True, False), default=True)
    zeros: Numbers | None = None
    if scheme.format != PACKED:
        codes = module.part("weight", (TYPES[_type(scheme)],))
        rows, columns = codes.shape
        blocks = scheme.blocks(rows, columns)
        grid = -(-rows // blocks[0]), -(-columns // blocks[1])
        numbers: Numbers = Plain(codes)
        if not symmetric:
            zeros = Plain(module.grid("weight_zero_point", ("I8", *FLOAT_TYPES), *grid))
        offset = 0
    else:
        bits = scheme.weights.one_of("num_bits", choices=PACKED_WIDTHS)
        rows, columns = _shape(module)
        codes = module.part("weight_packed", ("I32",), (rows, -(-columns * bits // WORD)))
        blocks = scheme.blocks(rows, columns)
        grid = -(-rows // blocks[0]), -(-columns // blocks[1])
        numbers = PackedColumns(codes, bits, columns)
        offset = 1 << (bits - 1)  # signed numbers are stored from 0 on
        if not symmetric:
            packed = (-(-grid[0] * bits // WORD), grid[1])
            zeros = PackedRows(module.part("weight_zero_point", ("I32",), packed), bits)
            offset = 0  # that of the zero points is the same
    scales = module.grid("weight_scale", FLOAT_TYPES, *grid)
    ordered = module.has("weight_g_idx")
    return QuantizedTensor(
        codes.file,
        (rows, columns),
        numbers,
        Plain(scales),
        *blocks,
        zeros=zeros,
        offset=offset,
        groups=module.part("weight_g_idx", ("I32", "I64"), (columns,)) if ordered else None,
    )


def _schemes(settings: Settings) -> list[_Scheme]:
    """Those that say something of weights, in order."""
    return list(_read_schemes(settings))


def _read_schemes(settings: Settings) -> Iterator[_Scheme]:
    groups = settings.within("config_groups")
    for name in groups.entries:
        group = groups.within(name)
        targets = group.get("targets")
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise group.error("targets", targets, "expected a list of names")
        for target in targets:
            try:
                re.compile(target.removeprefix("re:"))
            except re.error as error:
                raise group.error("targets", target, f"is no regular expression: {error}") from error
        weights = group.within("weights")
        if weights.entries:
            formats = group if group.get("format") else settings
            scheme = _Scheme(tuple(targets), formats.one_of("format", choices=FORMATS), weights)
            if _type(scheme) == "float":
                weights.one_of("num_bits", choices=(8,))
            yield scheme


def _type(scheme: _Scheme) -> str:
    kinds = ("int",) if scheme.format == PACKED else tuple(TYPES)
    kind: str = scheme.weights.one_of("type", choices=kinds, default="int")
    return kind


def _scheme_of(module: StoredModule, settings: Settings) -> _Scheme:
    """That of a module: by its name, or else by its kind, as the package decides."""
    schemes = _schemes(settings)
    for scheme in schemes:
        if scheme.named(module.name):
            return scheme
    for scheme in schemes:
        if scheme.of_kinds:
            return scheme
    raise UserError(f"{settings.file}: no group of {settings.name}.config_groups is for {module.name}")


def _shape(module: StoredModule) -> tuple[int, int]:
    stored = module.part("weight_shape", ("I64", "I32"), (2,))
    rows, columns = map(int, stored.read_stored(slice(None)))
    if rows < 1 or columns < 1:
        raise UserError(f"tensor {stored.name} in {stored.file} is {[rows, columns]}; expected rows and columns")
    return rows, columns


COMPRESSED_TENSORS = Format(
    codes=("weight_packed", "weight"),
    parts=("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    described=_described,
    weight=_weight,
    # Of activations, and of keys and values.
    ignored=tuple(f"{what}_{kind}" for what in ("input", "output", "q", "k", "v") for kind in ("scale", "zero_point")),
)
