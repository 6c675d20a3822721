"""Row classes and sections: what a packed linear stores for the rows of each class, and where."""

import numpy as np
import pytest

from skim_export.packed import (
    CLASSES,
    LevelKind,
    PackedLinear,
    RowClass,
    Section,
    all_classes,
    class_bits,
    class_kind,
    class_memory,
    level_bytes,
)

from ..random_packed import random_packed

TYPES = {"int8": np.int8, "float16": np.float16}


def random_rows(rng, number, columns, entries):
    """What docs/format.md says a row of a class has: random elements of codes, codebook and row_scale."""
    table, bits = not 8 <= number < 16, class_bits(number)
    code_bytes = bits * 4 * int(np.ceil(columns / 32))
    scales = (1 if entries == np.int8 else 0) if table else 2
    stored = 2 ** (bits + max(0, class_memory(number) - 1)) if table else 0
    return {
        "codes": rng.integers(0, 256, code_bytes).astype(np.uint8),
        "codebook": rng.integers(-127, 128, stored).astype(entries),
        "row_scale": rng.uniform(1e-3, 1e-2, scales).astype(np.float16),
    }


def random_counts(rng):
    """Rows of each class: none of most, at times of all but one."""
    counts = rng.integers(1, 6, CLASSES) * (rng.random(CLASSES) < rng.choice([0.1, 0.5, 0.9]))
    counts[rng.integers(CLASSES)] += 1
    return counts


@pytest.mark.parametrize("columns", [1, 32, 33, 250, 256, 300, 1000])
@pytest.mark.parametrize("codebook", TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_sections_are_the_rows_of_each_class(codebook, columns, seed):
    rng = np.random.default_rng([seed, columns])
    entries, counts = TYPES[codebook], random_counts(rng)
    rows = [(number, random_rows(rng, number, columns, entries)) for number in np.repeat(np.arange(CLASSES), counts)]
    tensors = {name: np.concatenate([row[name] for _, row in rows]) for name in ("codes", "codebook", "row_scale")}
    row_class = rng.permutation(np.repeat(np.arange(CLASSES, dtype=np.uint8), counts))
    packed = PackedLinear(
        out_features=len(rows),
        in_features=columns,
        rows_per_class=tuple(counts.tolist()),
        row_class=row_class,
        column_scale=np.zeros(0, np.float16),
        bias=np.zeros(0, np.float32),
        **tensors,
    )
    sections = packed.sections()
    assert [s.row_class.number for s in sections] == np.flatnonzero(counts).tolist()
    order, stored = packed.row_order(), 0
    for section in sections:
        number = section.row_class.number
        assert section.count == counts[number]
        assert section.row_class.codebook == (None if 8 <= number < 16 else codebook)
        assert (section.rows.start, section.row_start) == (stored, stored)
        np.testing.assert_array_equal(order[section.rows], np.flatnonzero(row_class == number))
        for of_class, row in rows[section.rows]:
            assert of_class == number
            for name in tensors:
                part = getattr(section, name)
                np.testing.assert_array_equal(part[stored - section.row_start], row[name])
                assert part.dtype == tensors[name].dtype
            stored += 1
    assert stored == len(rows)


@pytest.mark.parametrize("columns", [1, 288, 700])
@pytest.mark.parametrize("codebook", TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_sections_tile_the_tensors(codebook, columns, seed):
    rng = np.random.default_rng([seed, columns])
    classes = np.repeat(np.arange(CLASSES), random_counts(rng))
    packed = random_packed(rng, len(classes), columns, classes, TYPES[codebook])
    for name in Section.TENSORS:
        tensor, end = getattr(packed, name), 0
        for section in packed.sections():
            part = getattr(section, name)
            assert getattr(section, f"{name}_start") == end
            np.testing.assert_array_equal(part.reshape(-1), tensor[end : end + part.size])
            assert part.size == 0 or np.shares_memory(part, tensor)
            end += part.size
        assert end == tensor.size


@pytest.mark.parametrize("codebook", TYPES)
def test_numbers_kinds_and_widths_are_the_same_classes(codebook):
    classes = all_classes(codebook)
    kinds = [(kind, bits, 0) for kind in (LevelKind.TABLE, LevelKind.AFFINE) for bits in range(1, 9)]
    windows = ((1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (4, 1))
    kinds += [(LevelKind.TABLE, bits, memory) for bits, memory in windows]
    assert [(c.kind, c.bits, c.memory) for c in classes] == kinds
    numbers = range(CLASSES)
    assert [(class_kind(number), class_bits(number), class_memory(number)) for number in numbers] == kinds
    for number, row_class in enumerate(classes):
        kind, bits, memory = kinds[number]
        assert row_class.number == number
        assert row_class == RowClass.numbered(number, codebook) == RowClass.of(kind, bits, codebook, memory)


@pytest.mark.parametrize("columns", [31, 256, 300])
@pytest.mark.parametrize("codebook", TYPES)
@pytest.mark.parametrize("number", range(CLASSES))
def test_a_row_takes_the_bytes_of_its_class(number, codebook, columns):
    packed = random_packed(np.random.default_rng(number), 3, columns, [number], TYPES[codebook])
    row_class = RowClass.numbered(number, codebook)
    assert packed.codes.nbytes == 3 * row_class.row_bytes(columns)
    assert packed.codebook.nbytes + packed.row_scale.nbytes == 3 * row_class.level_bytes
    assert level_bytes(row_class.bits, codebook, 8 <= number < 16, class_memory(number)) == row_class.level_bytes
