"""Products and gathers by a host that runs launches on numpy arrays, poisoned where kernels have to write."""

import numpy as np

from skim_export.bundle.gpu.launch import class_rows, device_tensors, gather, prepare, product
from skim_export.packed import LevelKind, RowClass, all_classes
from skim_runtime.operators import PLAIN_CLASSES

TABLES = [RowClass(LevelKind.TABLE, b, codebook) for codebook in ("int8", "float16") for b in range(1, 9)]
WINDOWS = [c for codebook in ("int8", "float16") for c in all_classes(codebook)[PLAIN_CLASSES:]]
AFFINE = [RowClass(LevelKind.AFFINE, b, None) for b in range(1, 9)]


def matmul(host, packed, x):
    """x `[M, K]` times the transposed weights."""
    (N, K), M = (packed.out_features, packed.in_features), len(x)
    arrays = tensors(packed)
    arrays |= {
        "x": x,
        "prepared": np.full((M, -(-K // 32) * 32), np.nan, np.float32),
        "x_sum": np.full(M, np.nan, np.float32),
        "y": np.full((M, N), np.nan, np.float32),
    }
    host.run(prepare(host.kernels, K, M), arrays)
    for launch in product(host.kernels, class_rows(packed), N, K, M):
        host.run(launch, arrays)
    return arrays["y"]


def rows_of(host, packed, ids):
    """Rows of the weights."""
    arrays = tensors(packed) | {"ids": ids, "y": np.full((len(ids), packed.in_features), np.nan, np.float32)}
    for launch in gather(host.kernels, class_rows(packed), packed.in_features, len(ids)):
        host.run(launch, arrays)
    return arrays["y"]


def tensors(packed):
    """Those of `device_tensors`, none of them empty."""
    return {name: t if t.size else np.zeros(1, t.dtype) for name, t in device_tensors(packed).items()}


def relative_error(y, expected):
    """Relative norm of the difference; infinite where y has a value that is not finite."""
    return np.linalg.norm(y - expected) / np.linalg.norm(expected) if np.isfinite(y).all() else np.inf


def check(run, packed, x):
    """A product against float64."""
    expected = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    error = relative_error(run(packed, x), expected)
    assert error < 1e-5, f"K={packed.in_features} M={len(x)} {packed.rows_per_class}: relative error {error}"
