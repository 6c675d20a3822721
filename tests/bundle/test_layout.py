import hashlib

import numpy as np
import pytest

from skim_export.bundle.layout import HEADER_BYTES, MAGIC, TENSOR_ALIGNMENT, WeightsFile
from skim_export.packed import CLASSES, LevelKind, unpack_codes

from ..random_packed import random_packed


def tensor(data, offset, shape, dtype):
    count = int(np.prod(shape))
    assert offset + count * np.dtype(dtype).itemsize + TENSOR_ALIGNMENT <= len(data)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), count, offset).reshape(shape)


def dequantize(data, layout):
    """The weights that a layout describes, as the kernels' interface says it."""
    weight = np.full((layout.out_features, layout.in_features), np.nan, np.float32)
    for rows in layout.rows:
        bits, fields = rows.row_class.bits, rows.row_class.window_fields
        stored = tensor(data, rows.codes, (rows.count, rows.row_bytes), np.uint8)
        windows = unpack_codes(stored, bits, layout.in_features, fields)[:, : layout.in_features].astype(np.intp)
        if rows.row_class.kind == LevelKind.AFFINE:
            scale, offset = tensor(data, rows.row_scale, (rows.count, 2), np.float32).T[:, :, None]
            levels = offset + scale * (np.arange(1 << bits, dtype=np.float32) - np.float32(1 << (bits - 1)))
        else:
            levels = tensor(data, rows.codebook, (rows.count, rows.row_class.entries), rows.row_class.codebook).astype(
                np.float32
            )
            if rows.row_class.memory:
                levels = np.concatenate([levels, -levels[:, ::-1]], axis=1)
            if rows.row_class.codebook == "int8":
                levels = levels * tensor(data, rows.row_scale, (rows.count, 1), np.float32)
        row_index = tensor(data, rows.row_index, (rows.count,), np.int32)
        weight[row_index] = np.take_along_axis(levels, windows, axis=1)
    return weight * tensor(data, layout.column_scale, (layout.in_features,), np.float32)


@pytest.mark.parametrize("classes", [[2], [15], [1, 2, 3], [0, 7, 8, 11, 19], range(CLASSES)], ids=str)
@pytest.mark.parametrize("entries", [np.int8, np.float16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (37, 33), (64, 300)])
@pytest.mark.parametrize("column_scale", [False, True])
def test_what_is_written_is_what_was_packed(classes, entries, rows, columns, column_scale, tmp_path):
    rng = np.random.default_rng(3)
    packed = random_packed(rng, rows, columns, classes, entries, column_scale=column_scale, bias=column_scale)
    with WeightsFile(tmp_path / "weights.bin") as file:
        layout = file.add_linear(packed, gathered=True)
    data = (tmp_path / "weights.bin").read_bytes()
    np.testing.assert_array_equal(dequantize(data, layout), packed.dequantize())
    assert (layout.bias != 0) == column_scale
    if layout.bias:
        np.testing.assert_array_equal(tensor(data, layout.bias, (rows,), np.float32), packed.bias)
    assert (layout.stored_row != 0) == (len(layout.rows) > 1)
    if layout.stored_row:
        stored_row = tensor(data, layout.stored_row, (rows,), np.int32)
        np.testing.assert_array_equal(packed.row_order()[stored_row], np.arange(rows))


def test_tensors_are_aligned_and_equal_ones_shared(tmp_path):
    rng = np.random.default_rng(3)
    with WeightsFile(tmp_path / "weights.bin") as file:
        layouts = [file.add_linear(random_packed(rng, 40, 70, [1, 3, 10]), gathered=False) for _ in range(2)]
        odd = file.add(np.arange(3, dtype=np.uint8))
        after = file.add(np.arange(3, dtype=np.float32))
    first, second = layouts
    assert first.column_scale == second.column_scale
    offsets = [odd, after, first.column_scale]
    for layout in layouts:
        offsets += [layout.rows[0].codes, layout.rows[0].row_index]
        offsets += [offset for rows in layout.rows for offset in (rows.codebook, rows.row_scale)]
    assert all(offset % TENSOR_ALIGNMENT == 0 for offset in offsets)
    assert min(offset for offset in offsets if offset) >= HEADER_BYTES


def test_the_header_identifies_the_file(tmp_path):
    for name in ("one", "two"):
        with WeightsFile(tmp_path / name) as file:
            file.add_linear(random_packed(np.random.default_rng(3), 40, 70, [1, 3, 10]), gathered=False)
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    assert data[:HEADER_BYTES] == file.header
    assert len(data) == file.size
    assert data.startswith(MAGIC + hashlib.sha256(data[HEADER_BYTES:]).digest())
