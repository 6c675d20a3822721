"""The formats of the package compressed-tensors that keep each number of a weight by itself, or pack them.

`weight_packed` int32 `[N, ceil(K * bits / 32)]` with `weight_shape`, or `weight` int8 or F8_E4M3 `[N, K]`;
`weight_scale`, and unless the weight is symmetric `weight_zero_point`, which is packed like the weight, its columns.
Which modules have what is said by groups in config.json.
"""

from __future__ import annotations

import re
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
PATTERN = "re:"  # before targets that are regular expressions


@dataclass(frozen=True)
class _Scheme:
    """How the weights of some modules are stored."""

    targets: tuple[str, ...]
    format: str
    weights: Settings

    def rank(self, module: str) -> int | None:
        """How it is for a module: 0 by its name, 1 by a pattern, 2 by a kind, such as "Linear"; None if it is not."""
        ranks = [0] * (module in self.targets)
        for target in self.targets:
            if target.startswith(PATTERN):
                ranks += [1] * bool(re.match(target.removeprefix(PATTERN), module))
            elif "." not in target:
                ranks.append(2)
        return min(ranks, default=None)

    def blocks(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        size = self.weights.get("group_size")
        strategy = self.weights.one_of(
            "strategy", choices=("tensor", "channel", "group", "block"), default="group" if size else "tensor"
        )
        if strategy == "group":
            return 1, self.weights.whole("group_size")
        if strategy == "block":
            return self.weights.pair("block_structure")
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
    packed, bits = scheme.format == PACKED, scheme.weights.whole("num_bits", default=8)
    if packed:
        scheme.weights.one_of("num_bits", choices=PACKED_WIDTHS)
        rows, columns = _shape(module)
        codes = module.part("weight_packed", ("I32",), (rows, -(-columns * bits // WORD)))
    else:
        codes = module.part("weight", (TYPES[_type(scheme)],))
        rows, columns = codes.shape
    block_rows, block_columns = scheme.blocks(rows, columns)
    grid = -(-rows // block_rows), -(-columns // block_columns)
    scales = module.grid("weight_scale", FLOAT_TYPES, *grid)
    symmetric = scheme.weights.one_of("symmetric", choices=(True, False), default=True)
    zeros: Numbers | None = None
    if not symmetric and packed:
        zeros = PackedRows(module.part("weight_zero_point", ("I32",), (-(-grid[0] * bits // WORD), grid[1])), bits)
    elif not symmetric:
        zeros = Plain(module.grid("weight_zero_point", ("I8", *FLOAT_TYPES), *grid))
    ordered = module.has("weight_g_idx")
    return QuantizedTensor(
        codes.file,
        (rows, columns),
        PackedColumns(codes, bits, columns) if packed else Plain(codes),
        Plain(scales),
        block_rows,
        block_columns,
        zeros=zeros,
        # Signed numbers are packed from 0 on; zero points, too, and then it makes no difference.
        offset=1 << (bits - 1) if packed and symmetric else 0,
        groups=module.part("weight_g_idx", ("I32", "I64"), (columns,)) if ordered else None,
    )


def _schemes(settings: Settings) -> list[_Scheme]:
    """Those that say something of weights, in order."""
    schemes, groups = [], settings.within("config_groups")
    for name in groups.entries:
        group = groups.within(name)
        targets = group.get("targets")
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise group.error("targets", targets, "expected a list of names")
        for target in targets:
            try:
                re.compile(target.removeprefix(PATTERN) if target.startswith(PATTERN) else "")
            except re.error as error:
                raise group.error("targets", target, f"is no regular expression: {error}") from error
        weights = group.within("weights")
        if weights.entries:
            formats = group if group.get("format") else settings
            scheme = _Scheme(tuple(targets), formats.one_of("format", choices=FORMATS), weights)
            if _type(scheme) == "float":
                weights.one_of("num_bits", choices=(8,))
            schemes.append(scheme)
    return schemes


def _type(scheme: _Scheme) -> str:
    kinds = ("int",) if scheme.format == PACKED else tuple(TYPES)
    kind: str = scheme.weights.one_of("type", choices=kinds, default="int")
    return kind


def _scheme_of(module: StoredModule, settings: Settings) -> _Scheme:
    """That which is for a module most closely."""
    ranked = [(rank, scheme) for scheme in _schemes(settings) if (rank := scheme.rank(module.name)) is not None]
    if not ranked:
        raise UserError(f"{settings.file}: no group of {settings.name}.config_groups is for {module.name}")
    return min(ranked, key=lambda one: one[0])[1]


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
