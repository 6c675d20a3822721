"""The packed form of a linear layer, which everything shares: its format, its row classes, a model's layers on disk."""

from skim_export.packed.format import (
    CLASSES,
    COLUMNS,
    FIELDS,
    FORMAT_VERSION,
    LANES,
    Field,
    LevelKind,
    PackedFormatError,
    PackedLinear,
    RowLevels,
    class_bits,
    class_kind,
    level_bytes,
    pack_codes,
    row_bytes,
    unpack_codes,
)
from skim_export.packed.row_class import RowClass, row_classes

__all__ = [
    "CLASSES",
    "COLUMNS",
    "FIELDS",
    "FORMAT_VERSION",
    "LANES",
    "Field",
    "LevelKind",
    "PackedFormatError",
    "PackedLinear",
    "RowClass",
    "RowLevels",
    "class_bits",
    "class_kind",
    "level_bytes",
    "pack_codes",
    "row_bytes",
    "row_classes",
    "unpack_codes",
]
