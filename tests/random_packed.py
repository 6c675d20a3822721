"""Random packed linears for tests."""

from dataclasses import replace

import numpy as np

from skim_export.checkpoint import linear_bias
from skim_export.packed import LevelKind, PackedLinear, RowLevels, class_bits, class_kind, class_memory


def random_levels(rng, rows, columns, classes, entries=np.int8):
    """Random codes `[rows, columns]` and levels; the rows get the given classes in turn, shuffled."""
    row_classes = rng.permutation(np.resize(classes, rows))
    bits = np.array([class_bits(c) for c in row_classes], np.uint8)
    kind = np.array([class_kind(c) for c in row_classes], np.uint8)
    memory = np.array([class_memory(c) for c in row_classes], np.uint8)
    codes = (rng.integers(0, 256, (rows, columns)) & ((1 << bits.astype(np.int64)) - 1)[:, None]).astype(np.uint8)
    if entries == np.int8:
        table = rng.integers(-127, 128, (rows, 256)).astype(np.int8)
        scale = rng.uniform(1e-3, 1e-2, rows)
    else:
        table = rng.normal(0, 0.5, (rows, 256)).astype(np.float16)
        scale = np.zeros(rows)
    scale = np.where(kind == LevelKind.AFFINE, rng.uniform(1e-3, 1e-2, rows), scale).astype(np.float16)
    offset = np.where(kind == LevelKind.AFFINE, rng.normal(0, 0.02, rows), 0).astype(np.float16)
    return codes, RowLevels(bits, kind, table, scale, offset, memory)


def random_packed(rng, rows, columns, classes, entries=np.int8, *, column_scale=False, bias=False):
    """A random packed linear."""
    codes, levels = random_levels(rng, rows, columns, classes, entries)
    scale = rng.uniform(0.5, 2, columns).astype(np.float16) if column_scale else None
    return PackedLinear.pack(codes, levels, scale, rng.normal(size=rows).astype(np.float32) if bias else None)


def random_units(model, classes=(1, 2, 3), vocabulary_classes=(15,), entries=np.int8):
    """Packed weights with the magnitudes of real ones and the checkpoint's biases, for every unit."""
    rng = np.random.default_rng(1)
    units = {}
    architecture = model.architecture
    for linear in (linear for block in architecture.blocks for linear in block):
        packed = random_packed(rng, linear.out_features, linear.in_features, classes, entries, column_scale=True)
        bias = linear_bias(model.checkpoint, linear)
        units[linear.name] = packed if bias is None else replace(packed, bias=bias)
    for name in {architecture.embedding} | (set() if architecture.tied else {architecture.head}):
        rows, columns = architecture.vocabulary_size, architecture.hidden_size
        units[name] = random_packed(rng, rows, columns, vocabulary_classes, entries)
    return units
