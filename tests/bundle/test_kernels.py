"""The kernels of every CPU target against numpy: run here, or by an emulator."""

import numpy as np
import pytest

from skim_export.bundle.abi import Product
from skim_export.bundle.target import load_cpu_target, target_names
from skim_export.measure.running.program import Program
from skim_export.packed import LevelKind, RowClass, all_classes
from skim_runtime.operators import PLAIN_CLASSES

from ..random_packed import random_packed
from ..tools import require, require_packages

require_packages("tvm")

TABLES = [RowClass(LevelKind.TABLE, bits, "int8") for bits in range(1, 9)]
AFFINE = [RowClass(LevelKind.AFFINE, bits, None) for bits in range(1, 9)]
HALF_TABLES = [RowClass(LevelKind.TABLE, bits, "float16") for bits in range(1, 9)]
WINDOWS = all_classes("int8")[PLAIN_CLASSES:]
HALF_WINDOWS = all_classes("float16")[PLAIN_CLASSES:]
EVERY = TABLES + AFFINE + HALF_TABLES + WINDOWS + HALF_WINDOWS
MIXED = [TABLES[2], AFFINE[7]]
SOME = [*MIXED, HALF_TABLES[1], WINDOWS[4]]
COLUMNS = [1, 3, 31, 32, 33, 64, 100, 200, 231, 256, 257, 300, 512, 576, 1320]
TOKENS = [1, 2, 3, 5, 8, 16, 19]
POISON = np.frombuffer(b"\xff" * 4, np.float32)[0]


def has_arithmetic(row_class, integer):
    return not (integer and row_class.codebook == "float16")


def program(name, classes, directory):
    """The kernels of some classes for a target, in a program that runs here or in an emulator."""
    from skim_export.bundle.kernels.compile import compile_kernels

    target = load_cpu_target(name)
    if target.missing_here():
        if not target.emulator:
            pytest.skip(f"target {name}: {target.missing_here()}")
        require(target.emulator[0])
    require(target.compiler_name)
    products = [
        Product(c, integer, 100, 1320) for c in classes for integer in (False, True) if has_arithmetic(c, integer)
    ]
    kernels = compile_kernels(products, classes, target)
    functions = ["skim_prepare", "skim_prepare_integer", *kernels.matmuls.values()]
    functions += [f"skim_gather_{c.name}" for c in classes]
    return Program(kernels.object_file, functions, target, directory)


def segments(packed):
    """The rows of each class: class, codes, codebook, row scales, and their places."""
    order = packed.row_order().astype(np.int32)
    return [
        (
            section.row_class,
            section.codes.reshape(-1),
            section.codebook.reshape(-1),
            section.row_scale.astype(np.float32).reshape(-1),
            order[section.rows],
        )
        for section in packed.sections()
    ]


def prepared_floats(columns):
    return -(-(-(-columns // 32) * 32 + 1) // 16) * 16


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def rounded_tokens(x, scale):
    """What tokens are in integer arithmetic (docs/format.md, "Arithmetic")."""
    scaled = x * scale
    unit = np.abs(scaled).max(axis=1, keepdims=True) / np.float32(32512)
    return np.rint(scaled * (1 / unit)).astype(np.float64) * unit / scale


def check(machine, rng, cases, *, bound=1e-5):
    """Products of random matrices in both arithmetics; a case is classes, rows, columns, tokens."""
    calls, wanted = [], []
    for classes, rows, columns, tokens in cases:
        entries = np.float16 if any(c.codebook == "float16" for c in classes) else np.int8
        packed = random_packed(rng, rows, columns, [c.number for c in classes], entries, column_scale=columns % 2 == 0)
        x = rng.normal(size=(tokens, columns)).astype(np.float32)
        scale = packed.column_scale.astype(np.float32) if packed.column_scale.size else np.ones(columns, np.float32)
        for integer in (False, True):
            suffix = "_integer" if integer else ""
            shape = (tokens, prepared_floats(columns))
            (prepared,) = machine.run([(f"skim_prepare{suffix}", x, scale, shape, tokens, columns)])
            meant = rounded_tokens(x, scale) if integer else x.astype(np.float64)
            expected = meant @ packed.dequantize().astype(np.float64).T
            for row_class, codes, codebook, row_scale, places in segments(packed):
                if not has_arithmetic(row_class, integer):
                    continue
                middle = len(places) // 3  # two calls: neither begins at the first row and ends at the last
                for begin, end in ((0, middle), (middle, len(places))):
                    arrays = (codes, codebook, row_scale, places, prepared, (tokens, rows))
                    name = f"skim_matmul_{row_class.name}{suffix}"
                    calls.append((name, *arrays, tokens, columns, rows, begin, end))
                    wanted.append((expected, places[begin:end]))
    for call, y, (expected, places) in zip(calls, machine.run(calls), wanted, strict=True):
        others = np.delete(y, places, axis=1)
        assert np.isnan(others).all(), (call[0], "wrote a row that is not its own")
        if len(places):
            # Against the norm of all rows: that of a single one may be nearly 0 by chance.
            size = np.linalg.norm(expected) * np.sqrt(len(places) / expected.shape[1])
            error = np.linalg.norm(y[:, places] - expected[:, places]) / size
            assert error < bound, (call[0], call[-5:], error)


SLOW = ("armv7", "jetson-orin-cpu", "riscv64", "rpi4", "x86-avx512")  # much like others
MACHINES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in target_names("cpu")]


@pytest.fixture(scope="module", params=MACHINES)
def machine(request, tmp_path_factory):
    return program(request.param, SOME, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=target_names("cpu"))
def complete_machine(request, tmp_path_factory):
    return program(request.param, EVERY, tmp_path_factory.mktemp(request.param))


def some_cases(rng, classes):
    """Every class with every number of columns, the numbers of tokens in turn."""
    tokens = 0
    for row_class in classes:
        for columns in COLUMNS:
            tokens += 1
            yield [row_class], 5, columns, TOKENS[tokens % len(TOKENS)]
        for count in TOKENS:
            yield [row_class], 7, 300, count


def test_products(machine):
    rng = np.random.default_rng(0)
    check(machine, rng, some_cases(rng, SOME))
    check(machine, rng, [(MIXED, 23, 300, 1), (MIXED, 23, 2100, 17), (MIXED, 9, 4500, 17)])


def test_gather(machine):
    rng = np.random.default_rng(1)
    check_gather(machine, rng, SOME)


def check_gather(machine, rng, classes):
    calls, wanted = [], []
    for row_class in classes:
        for columns in COLUMNS:
            packed = random_packed(
                rng, 3, columns, [row_class.number], np.float16 if row_class.codebook == "float16" else np.int8
            )
            ((_, codes, codebook, row_scale, _),) = segments(packed)
            for row in (0, 2):
                shape = (-(-columns // 32) * 32,)
                calls.append((f"skim_gather_{row_class.name}", codes, codebook, row_scale, shape, columns, row))
                wanted.append(packed.dequantize()[row])
    for call, y, expected in zip(calls, machine.run(calls), wanted, strict=True):
        assert relative_error(y[: len(expected)], expected.astype(np.float64)) < 1e-6, call[0]


@pytest.mark.slow
def test_products_of_every_class(complete_machine):
    rng = np.random.default_rng(2)
    check(complete_machine, rng, some_cases(rng, EVERY))
    check(complete_machine, rng, [(TABLES + AFFINE + WINDOWS, 100, columns, 1) for columns in COLUMNS])
    check(complete_machine, rng, [(HALF_TABLES + HALF_WINDOWS, 40, 1320, tokens) for tokens in TOKENS])
    check_gather(complete_machine, rng, EVERY)
