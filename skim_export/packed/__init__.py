"""The packed form of a linear layer, which everything shares: its format, its row classes, a model's layers on disk."""

from skim_export.packed.codes import COLUMNS, FIELDS, LANES, Field, lane_columns, pack_codes, row_bytes, unpack_codes
from skim_export.packed.levels import LevelKind, RowLevels, mirrored
from skim_export.packed.linear import FORMAT_VERSION, PackedFormatError, PackedLinear
from skim_export.packed.row_class import (
    CLASSES,
    CodebookType,
    RowClass,
    all_classes,
    class_bits,
    class_kind,
    class_memory,
    level_bytes,
)
from skim_export.packed.section import Section

__all__ = [
    "CLASSES",
    "COLUMNS",
    "FIELDS",
    "FORMAT_VERSION",
    "LANES",
    "CodebookType",
    "Field",
    "LevelKind",
    "PackedFormatError",
    "PackedLinear",
    "RowClass",
    "RowLevels",
    "Section",
    "all_classes",
    "class_bits",
    "class_kind",
    "class_memory",
    "lane_columns",
    "level_bytes",
    "mirrored",
    "pack_codes",
    "row_bytes",
    "unpack_codes",
]
