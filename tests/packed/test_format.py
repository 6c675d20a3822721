"""The packed format: exact round trips, and refusal of everything that docs/format.md forbids."""

from dataclasses import fields, replace

import numpy as np
import pytest

from skim_export.packed import (
    CLASSES,
    LevelKind,
    PackedFormatError,
    PackedLinear,
    RowClass,
    RowLevels,
    pack_codes,
    row_bytes,
    unpack_codes,
)

from ..random_packed import random_levels, random_packed

COLUMNS = [1, 31, 32, 33, 64, 192, 255, 256, 257, 480, 576, 1000, 1536]


of_every_class = pytest.mark.parametrize("number", range(CLASSES))


@of_every_class
def test_fields_cover_every_bit_once(number):
    row_class = RowClass.numbered(number, "int8")
    stored = sorted((f.vector, f.bit + i) for f in row_class.fields for i in range(f.length))
    assert stored == [(v, i) for v in range(row_class.bits) for i in range(8)]
    coded = sorted((f.code, f.code_bit + i) for f in row_class.fields for i in range(f.length))
    assert coded == [(j, t) for j in range(8) for t in range(row_class.bits)]


@of_every_class
@pytest.mark.parametrize("columns", COLUMNS)
def test_codes_round_trip(number, columns):
    row_class = RowClass.numbered(number, "int8")
    bits, fields = row_class.bits, row_class.fields
    codes = np.random.default_rng(columns).integers(0, 1 << bits, (5, columns)).astype(np.uint8)
    packed = pack_codes(codes, bits, fields)
    assert packed.shape == (5, row_bytes(bits, columns))
    unpacked = unpack_codes(packed, bits, columns, fields)
    np.testing.assert_array_equal(unpacked[:, :columns], codes)
    assert not unpacked[:, columns:].any()


@pytest.mark.parametrize("columns", [576, 300, 33])
@of_every_class
def test_code_place_follows_the_formula(number, columns):
    """One code at a time, by the formula of docs/format.md, independent of the vectorised packer."""
    row_class = RowClass.numbered(number, "int8")
    rng, bits, fields = np.random.default_rng(number), row_class.bits, row_class.fields
    for k in rng.integers(0, columns, 20):
        code = int(rng.integers(1, 1 << bits))
        codes = np.zeros((1, columns), np.uint8)
        codes[0, k] = code
        packed = pack_codes(codes, bits, fields)[0]
        block = k // 256
        lanes = 32 if columns - 256 * block >= 256 else 4 * -(-(columns % 256) // 32)
        start = block * bits * 32
        j, lane = divmod(k - 256 * block, lanes)
        got = 0
        for f in fields:
            if f.code == j:
                byte = int(packed[start + f.vector * lanes + lane])
                got |= ((byte >> f.bit) & ((1 << f.length) - 1)) << f.code_bit
        assert got == code


def windows_of(packed, row):
    """The windows of a row's columns, by the formula of docs/format.md: bits of a lane, around its end."""
    number = int(packed.row_classes()[row])
    bits, memory = ((1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (4, 1))[number - 16]
    section = next(s for s in packed.sections() if s.row_class.number == number)
    stored = section.codes[list(packed.row_order()[section.rows]).index(row)]
    windows = []
    for k in range(packed.in_features):
        block = k // 256
        lanes = 32 if packed.in_features - 256 * block >= 256 else 4 * -(-(packed.in_features % 256) // 32)
        j, lane = divmod(k - 256 * block, lanes)
        of_lane = [int(stored[block * bits * 32 + v * lanes + lane]) for v in range(bits)]
        stream = sum(byte << (8 * v) for v, byte in enumerate(of_lane))
        place = [(bits * j - memory + t) % (8 * bits) for t in range(bits + memory)]
        windows.append(sum(((stream >> at) & 1) << t for t, at in enumerate(place)))
    return np.array(windows)


@pytest.mark.parametrize("columns", [1, 33, 64, 256, 300, 576])
@pytest.mark.parametrize("number", range(16, CLASSES))
def test_windows_are_the_definition(number, columns):
    packed = random_packed(np.random.default_rng(columns), 3, columns, [number, 2], np.int8)
    windows = packed.windows()
    codes, levels = packed.unpack()
    for row in np.flatnonzero(packed.row_classes() == number):
        np.testing.assert_array_equal(windows[row], windows_of(packed, row))
        np.testing.assert_array_equal(windows[row] >> levels.memory[row], codes[row])
    plain = packed.row_classes() == 2
    np.testing.assert_array_equal(windows[plain], codes[plain])


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("number", range(16, CLASSES))
def test_opposite_windows_have_opposite_levels(number, entries):
    packed = random_packed(np.random.default_rng(number), 4, 64, [number], entries)
    levels = packed.unpack()[1]
    count = 2 * packed.codebook.size // 4
    for row in range(4):
        table = levels.table(row)
        assert len(table) == count
        np.testing.assert_array_equal(table, -table[::-1])
        stored = packed.codebook.reshape(4, -1)[row].astype(np.float32)
        np.testing.assert_array_equal(
            table[: count // 2], stored * np.float32(levels.scale[row] if entries == np.int8 else 1)
        )


def test_windows_of_a_memory_of_one_take_no_more_bytes():
    rng = np.random.default_rng(0)
    for bits, number in ((2, 18), (3, 20), (4, 21)):
        plain, windows = (random_packed(rng, 8, 64, [c], np.int8) for c in (bits - 1, number))
        assert windows.nbytes == plain.nbytes


def test_an_entry_without_a_negative_is_refused():
    packed = random_packed(np.random.default_rng(0), 4, 64, [2, 20], np.int8)
    section = packed.sections()[1]
    for at, refused in ((section.codebook_start - 1, False), (section.codebook_start, True)):
        codebook = packed.codebook.copy()
        codebook[at] = -128
        changed = replace(packed, codebook=codebook)
        if refused:
            with pytest.raises(PackedFormatError, match="-128"):
                changed.validate()
        else:
            changed.validate()


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("classes", [[2], [9], [0, 1, 2, 3], [20], [2, 16, 21], list(range(CLASSES))])
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (64, 576)])
def test_dequantize_is_the_definition(entries, classes, shape):
    rng = np.random.default_rng(3)
    codes, levels = random_levels(rng, *shape, classes, entries)
    scale = rng.uniform(0.5, 2, shape[1]).astype(np.float16)
    packed = PackedLinear.pack(codes, levels, scale)
    looked_up = [windows_of(packed, r) if levels.memory[r] else codes[r] for r in range(shape[0])]
    weight = np.stack([levels.table(r)[at] for r, at in enumerate(looked_up)]) * scale.astype(np.float32)
    np.testing.assert_array_equal(packed.dequantize(), weight)
    np.testing.assert_array_equal(packed.row_bits(), levels.bits)


def test_effective_bits_counts_every_tensor():
    rng = np.random.default_rng(0)
    packed = random_packed(rng, 64, 256, [2], np.int8, column_scale=True)
    assert packed.code_bits == 3
    assert packed.nbytes == 64 * (96 + 8 + 2) + 2 * 256
    assert packed.effective_bits == pytest.approx(8 * packed.nbytes / (64 * 256))


def test_a_code_above_its_width_is_refused():
    rng = np.random.default_rng(0)
    codes, levels = random_levels(rng, 4, 32, [1], np.int8)
    codes[2, 5] = 4
    with pytest.raises(PackedFormatError, match="row 2 has code 4, above its 2 bits"):
        PackedLinear.pack(codes, levels)


def _with(packed, **changes):
    with pytest.raises(PackedFormatError) as error:
        replace(packed, **changes).validate()
    return str(error.value)


def test_invalid_tensors_are_refused():
    rng = np.random.default_rng(1)
    p = random_packed(rng, 8, 40, [0, 2, 20, 15], np.int8, column_scale=True)
    assert "codes must be uint8" in _with(p, codes=p.codes[:-1])
    assert "codebook must be int8 of" in _with(p, codebook=p.codebook[:-1])
    assert "row_scale must be float16" in _with(p, row_scale=p.row_scale.astype(np.float32))
    assert "row_class" in _with(p, row_class=p.row_class[:0])
    assert "row_class does not agree" in _with(p, row_class=np.zeros_like(p.row_class))
    assert "rows_per_class" in _with(p, rows_per_class=(8,))
    assert "column_scale has a value that is not positive" in _with(p, column_scale=-p.column_scale)
    assert "row_scale has a value that is not finite" in _with(p, row_scale=p.row_scale * np.float16(np.inf))
    assert "bias must be float32" in _with(p, bias=np.zeros(7, np.float32))
    codes = p.codes.copy()
    codes[-1] = 255
    assert "padding code" in _with(p, codes=codes)


def test_kinds_are_told_apart():
    rng = np.random.default_rng(2)
    codes, levels = random_levels(rng, 6, 32, [7, 15], np.int8)
    assert set(levels.kind) == {LevelKind.TABLE, LevelKind.AFFINE}
    assert PackedLinear.pack(codes, levels).rows_per_class[7] == int((levels.kind == LevelKind.TABLE).sum())


@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize("options", [{}, {"column_scale": True, "bias": True}], ids=str)
@pytest.mark.parametrize("sizes", [[40], [7, 1, 32]])
def test_rows_packed_in_parts_are_the_whole(entries, options, sizes):
    whole = random_packed(np.random.default_rng(3), 40, 70, [0, 2, 3, 9, 15, 17, 20], entries, **options)
    codes, levels = whole.unpack()
    parts, start = [], 0
    for rows in sizes:
        part = slice(start, start + rows)
        of_part = RowLevels(*(getattr(levels, field.name)[part] for field in fields(levels)))
        scale = whole.column_scale if whole.column_scale.size else None
        parts.append(PackedLinear.pack(codes[part], of_part, scale, whole.bias[part] if whole.bias.size else None))
        start += rows
    joined = PackedLinear.concatenate(parts)
    assert joined.rows_per_class == whole.rows_per_class
    for name in PackedLinear.TENSORS:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
        assert getattr(joined, name).dtype == getattr(whole, name).dtype


def test_parts_of_different_matrices_are_refused():
    rng = np.random.default_rng(0)
    parts = [random_packed(rng, 4, 70, [2], column_scale=True) for _ in range(2)]
    with pytest.raises(PackedFormatError, match="column_scale"):
        PackedLinear.concatenate(parts)
