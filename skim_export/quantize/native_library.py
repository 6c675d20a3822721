"""The native solver as ctypes sees it: its functions, and what it says of itself. It is `native/solver.h` in Python."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from skim_runtime.installed import installed_file

__all__ = [
    "NativeRows",
    "cluster_floor",
    "most_bits",
    "refine_bytes",
    "refine_floor",
    "refine_ridge",
    "rows_together",
    "solver_library",
]


class NativeRows(ctypes.Structure):
    """`SkimRows`."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("column_scale", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("columns", ctypes.c_int32),
    )


def _array(dtype: type, ndim: int) -> type:
    return np.ctypeslib.ndpointer(dtype, ndim=ndim, flags="C_CONTIGUOUS")


@cache
def solver_library() -> ctypes.CDLL:
    """The library, its functions typed; those that work on rows return whether the memory sufficed."""
    library = ctypes.CDLL(str(installed_file("skim_export.quantize", "libskim_solver.so")))
    rows, number, flag = ctypes.POINTER(NativeRows), ctypes.c_int32, ctypes.c_bool
    floats, doubles, vector = _array(np.float32, 2), _array(np.float64, 2), _array(np.float64, 1)
    bits, codes, singles = _array(np.uint8, 1), _array(np.uint8, 2), _array(np.float32, 1)
    pointer = ctypes.c_void_p  # of an array that may be missing
    work = {
        "skim_error_curves": (rows, number, number, doubles),
        "skim_kmeans": (rows, bits, number, number, number, floats, floats, codes),
        "skim_assign": (rows, bits, floats, number, number, codes, vector),
        "skim_assign_affine": (rows, bits, singles, singles, number, codes, vector, vector, vector),
        "skim_refit": (rows, bits, codes, number, number, floats, vector, vector, vector),
        "skim_feedback": (rows, pointer, bits, pointer, floats, number, number, codes),
        "skim_refine": (rows, floats, bits, pointer, number, number, number, flag, number, floats, codes, vector),
    }
    for name, arguments in work.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_bool
    library.skim_refine_bytes.argtypes = (number, number, number)
    library.skim_refine_bytes.restype = ctypes.c_int64
    for name in ("skim_cluster_floor", "skim_refine_floor", "skim_refine_ridge"):
        getattr(library, name).restype = ctypes.c_double
    return library


def most_bits() -> int:
    """Of a row."""
    return int(solver_library().skim_most_bits())


def rows_together() -> int:
    """Rows that a thread feeds back or refines together at best."""
    return int(solver_library().skim_rows_together())


def refine_bytes(columns: int, bits: int, threads: int) -> int:
    """What refinement takes of the memory beside its arguments and results, at most, for rows of so many bits."""
    return int(solver_library().skim_refine_bytes(columns, bits, threads))


def cluster_floor() -> float:
    """What a weight counts at least in clustering, as part of its row's mean weight."""
    return float(solver_library().skim_cluster_floor())


def refine_floor() -> float:
    """What a weight counts at least in feedback and refinement, as part of its row's mean weight."""
    return float(solver_library().skim_refine_floor())


def refine_ridge() -> float:
    """Part of the mean diagonal that is added where levels are fitted: those that no code uses stay where they are."""
    return float(solver_library().skim_refine_ridge())
