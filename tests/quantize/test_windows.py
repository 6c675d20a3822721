"""Windows: the search against brute force, refinement against what the definitions say, and whole layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skim_export.packed import RowClass, lane_columns
from skim_export.quantize import METHODS, quantize_linear
from skim_export.quantize.level_fits import FreeLevels
from skim_export.quantize.solver import WeightRows, feedback, refine
from skim_export.quantize.windows import WINDOW_GAINS, worthwhile_memory
from skim_export.work.resources import Resources

from .reference import full_error
from .test_refinement import random_problem

KINDS = sorted(WINDOW_GAINS)  # width and memory
LANE = 8
WINDOWED = METHODS["skim+"]
PLAIN = replace(WINDOWED, levels=FreeLevels())


def all_windows(bits, memory):
    """The windows of every sequence of codes of a lane, `[2^(8 bits), 8]`."""
    codes = np.stack(np.meshgrid(*[np.arange(1 << bits)] * LANE, indexing="ij"), axis=-1).reshape(-1, LANE)
    stream = np.concatenate([(codes[:, j, None] >> np.arange(bits)) & 1 for j in range(LANE)], axis=1)
    windows = np.zeros_like(codes)
    for j in range(LANE):
        for t in range(bits + memory):
            windows[:, j] |= stream[:, (bits * j - memory + t) % (LANE * bits)] << t
    return windows


def random_levels(rng, width):
    """Of rows whose windows have so many bits; the upper half are the negatives of the lower one."""
    levels = np.zeros((len(width), 1 << int(width.max())), np.float32)
    for row, bits in enumerate(width.tolist()):
        lower = rng.normal(size=1 << (bits - 1)).astype(np.float32)
        levels[row, : 1 << bits] = [*lower, *(-level for level in reversed(lower))]
    return levels


def of_kind(rows, bits, memory):
    return np.full(rows, bits + memory, np.uint8), np.full(rows, memory, np.uint8)


def is_path(windows, bits, memory):
    """Whether each window's state is what the windows before it say, around the lane."""
    lanes = windows.reshape(len(windows), -1, LANE)
    codes = lanes >> memory
    stream = np.concatenate([(codes[..., j, None] >> np.arange(bits)) & 1 for j in range(LANE)], axis=-1)
    expected = np.zeros_like(lanes)
    for j in range(LANE):
        for t in range(bits + memory):
            expected[..., j] |= (stream[..., (bits * j - memory + t) % (LANE * bits)] << t).astype(np.uint8)
    return (expected == lanes).all()


@pytest.mark.parametrize(("bits", "memory"), [kind for kind in KINDS if kind[0] <= 2])
def test_without_coupling_the_search_is_exact(bits, memory):
    layer, _ = random_problem(5, 2 * LANE)
    rng = np.random.default_rng(bits)
    width, remembered = of_kind(5, bits, memory)
    levels = random_levels(rng, width)
    found = feedback(layer, None, width, levels, remembered)
    paths = all_windows(bits, memory)
    assert is_path(found, bits, memory)
    for row in range(5):
        for lane in (slice(0, LANE), slice(LANE, 2 * LANE)):
            stored = levels[row][paths] * layer.column_scale[lane]
            errors = (layer.weights[row, lane] * (layer.values[row, lane] - stored) ** 2).sum(axis=1)
            own = (paths == found[row, lane]).all(axis=1)
            assert own.sum() == 1
            assert errors[own][0] <= errors.min() * (1 + 1e-5)


@pytest.mark.parametrize(("coupling", "median", "mean"), [(0.3, 1.01, 1.05), (1.0, 1.2, 1.6)])
def test_with_coupling_the_search_is_nearly_exact(coupling, median, mean):
    """Of a single lane, error feedback is the search itself. Columns of real layers hardly go together."""
    ratios = []
    for seed in range(20):
        layer, correlation = random_problem(4, LANE, seed=seed)
        correlation = (coupling * correlation + (1 - coupling) * np.eye(LANE)).astype(np.float32)
        factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(correlation.astype(np.float64))).T, np.float32)
        width, remembered = of_kind(4, 2, 2)
        levels = random_levels(np.random.default_rng(seed), width)
        found = feedback(layer, factor, width, levels, remembered)
        paths = all_windows(2, 2)
        for row in range(4):
            root = np.sqrt(layer.weights[row].astype(np.float64))
            off = root * (layer.values[row] - levels[row][paths] * layer.column_scale)
            errors = np.einsum("pj,jk,pk->p", off, correlation.astype(np.float64), off)
            ratios.append(errors[(paths == found[row]).all(axis=1)][0] / errors.min())
    assert min(ratios) >= 1 - 1e-5
    assert np.median(ratios) < median
    assert np.mean(ratios) < mean


@pytest.mark.parametrize(("bits", "memory"), KINDS)
@pytest.mark.parametrize("columns", [8, 64, 72, 320])
def test_the_error_never_rises_and_is_that_of_the_definition(bits, memory, columns):
    layer, correlation = random_problem(11, columns)
    width, remembered = of_kind(11, bits, memory)
    levels = random_levels(np.random.default_rng(columns), width)
    windows = feedback(layer, None, width, levels, remembered)
    assert is_path(windows, bits, memory)
    before = full_error(layer, correlation, levels, windows)
    for fit in (False, True, True, True):
        given = levels, windows
        levels, windows, errors = refine(
            layer, correlation, width, levels, windows, rounds=1, sweeps=1, fit=fit, memory=remembered
        )
        assert fit or (levels == given[0]).all()
        assert (levels == -levels[:, ::-1]).all()
        assert is_path(windows, bits, memory)
        np.testing.assert_allclose(errors, full_error(layer, correlation, levels, windows), rtol=1e-3, atol=1e-5)
        assert (errors <= before * (1 + 1e-4) + 1e-6).all()
        before = errors
    once_more = refine(layer, correlation, width, levels, windows, rounds=2, sweeps=3, memory=remembered)[2]
    assert (once_more <= errors * (1 + 1e-4) + 1e-6).all()


def test_results_do_not_depend_on_threads_and_other_rows():
    rows, columns = 150, 72
    layer, correlation = random_problem(rows, columns, threads=1)
    kinds = np.array(KINDS, np.uint8)[np.sort(np.random.default_rng(0).integers(len(KINDS), size=rows))]
    width, memory = kinds.sum(axis=1).astype(np.uint8), np.ascontiguousarray(kinds[:, 1])
    levels = random_levels(np.random.default_rng(1), width)
    factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(correlation.astype(np.float64))).T, np.float32)

    def solved(some, threads):
        part = WeightRows(layer.values[some], layer.weights[some], layer.column_scale, Resources(threads))
        own = np.ascontiguousarray(levels[some, : 1 << int(width[some].max())])
        windows = feedback(part, factor, width[some], own, memory[some])
        return refine(part, correlation, width[some], own, windows, rounds=2, sweeps=2, memory=memory[some])

    expected = solved(slice(None), 1)
    for threads, step in ((3, rows), (2, 41), (1, 1)):
        for first in range(0, rows, step):
            some = slice(first, first + step)
            for got, wanted in zip(solved(some, threads), expected, strict=True):
                wanted = wanted[some]
                np.testing.assert_array_equal(got, wanted[:, : got.shape[1]] if got.ndim == 2 else wanted)


@pytest.mark.parametrize(
    ("width", "memory", "columns", "message"),
    [
        (4, 4, 64, "memory must be uint8 .2. from 1 to 3"),
        (3, 3, 64, "more bits than their memory"),
        (6, 1, 64, "at most 5"),
        (4, 1, 60, "lanes of 8, got 60"),
    ],
)
def test_refusals(width, memory, columns, message):
    layer, _ = random_problem(2, columns)
    levels = np.zeros((2, 1 << width), np.float32)
    with pytest.raises(ValueError, match=message):
        feedback(layer, None, np.full(2, width, np.uint8), levels, np.full(2, memory, np.uint8))


def test_codes_alone_need_a_coupling():
    layer, _ = random_problem(2, 64)
    with pytest.raises(ValueError, match="factor must be given"):
        feedback(layer, None, np.full(2, 2, np.uint8), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("columns", [32, 256, 288, 576])
def test_lanes_are_those_of_the_packed_format(columns):
    lanes = lane_columns(columns)
    assert sorted(lanes.reshape(-1).tolist()) == list(range(columns))
    for lane in lanes.tolist():
        first = lane[0] // 256 * 256
        width = min(columns - first, 256) // 8
        assert lane == [lane[0] + j * width for j in range(8)]


@pytest.mark.parametrize(("bits", "memory"), KINDS)
def test_levels_are_the_best_for_their_windows(bits, memory):
    """As least squares of the definition finds them: a column for each level of the lower half, -1 for its negative."""
    rows, columns = 5, 64
    layer, correlation = random_problem(rows, columns)
    width, remembered = of_kind(rows, bits, memory)
    start = random_levels(np.random.default_rng(0), width)
    windows = feedback(layer, None, width, start, remembered)
    fitted, _, _ = refine(layer, correlation, width, start, windows, rounds=1, sweeps=0, memory=remembered)
    root = np.linalg.cholesky(correlation.astype(np.float64)).T
    for row in range(rows):
        sensitivity = np.sqrt(layer.weights[row].astype(np.float64))
        signs = (windows[row, :, None] == np.arange(1 << width[row])).astype(np.float64)
        free = signs[:, : 1 << (width[row] - 1)] - signs[:, : (1 << (width[row] - 1)) - 1 : -1]
        design = root @ ((sensitivity * layer.column_scale)[:, None] * free)
        used = np.abs(free).sum(axis=0) > 0
        best = np.linalg.lstsq(design[:, used], root @ (sensitivity * layer.values[row]), rcond=None)[0]
        np.testing.assert_allclose(fitted[row, : free.shape[1]][used], best, rtol=1e-2, atol=1e-3)


def test_a_memory_must_earn_its_levels():
    assert [worthwhile_memory(b, 64) for b in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert [worthwhile_memory(b, 576) for b in (1, 2, 3, 4)] == [2, 1, 1, 1]
    assert [worthwhile_memory(b, 4096) for b in range(1, 9)] == [3, 2, 1, 1, 0, 0, 0, 0]
    assert worthwhile_memory(3, 4095) == 0  # not in whole lanes


@pytest.mark.parametrize("codebook", ["int8", "float16"])
@pytest.mark.parametrize(("rows", "columns"), [(40, 256), (19, 576)])
def test_layers(rows, columns, codebook):
    """Rows of all widths: what is stored has the errors that are told, and less than without windows."""
    layer, correlation = random_problem(rows, columns)
    bits = np.resize(np.arange(1, 9), rows).astype(np.uint8)
    found = {
        name: quantize_linear(
            layer.values, layer.weights, bits, method, correlation=correlation.copy(), codebook=codebook
        )
        for name, method in (("plain", PLAIN), ("windows", WINDOWED))
    }
    packed = found["windows"].pack()
    classes = [RowClass.numbered(number, codebook) for number in packed.row_classes().tolist()]
    assert [c.bits for c in classes] == bits.tolist()
    assert [c.memory for c in classes] == [worthwhile_memory(b, columns) for b in bits.tolist()]
    root = np.sqrt(layer.weights.astype(np.float64))
    errors = {}
    damping = 0.9 * correlation + 0.1 * np.eye(columns)  # `damped` once more, as the method does it
    for name, quantized in found.items():
        off = root * (layer.values - quantized.pack().dequantize())
        errors[name] = np.einsum("nj,jk,nk->n", off, damping, off)
    coupled = bits < 7
    np.testing.assert_allclose(errors["windows"][coupled], found["windows"].errors[coupled], rtol=1e-3)
    windowed = np.array([c.memory > 0 for c in classes])
    assert errors["windows"][windowed].sum() < 0.85 * errors["plain"][windowed].sum()


def in_torch(layer):
    return WeightRows(layer.values, layer.weights, layer.column_scale, Resources(device=torch.device("cpu")))


@pytest.mark.parametrize("columns", [8, 136, 320])
def test_torch_finds_the_same(columns):
    """All kinds at once; where two paths cost about as much, the other one may be taken."""
    rows = 3 * len(KINDS)
    layer, correlation = random_problem(rows, columns)
    kinds = np.array(sorted(KINDS * 3), np.uint8)
    width, memory = kinds.sum(axis=1).astype(np.uint8), np.ascontiguousarray(kinds[:, 1])
    levels = random_levels(np.random.default_rng(columns), width)
    factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(correlation.astype(np.float64))).T, np.float32)
    for given in (None, factor):
        found = [feedback(one, given, width, levels, memory) for one in (layer, in_torch(layer))]
        assert (found[0] == found[1]).mean() > 0.97
        lost = [full_error(layer, correlation, levels, windows).sum() for windows in found]
        assert lost[1] == pytest.approx(lost[0], rel=0.02)
    for fit in (False, True):
        options = {"rounds": 2, "sweeps": 2, "fit": fit, "memory": memory}
        _, _, expected = refine(layer, correlation, width, levels, found[0], **options)
        own, windows, errors = refine(in_torch(layer), correlation, width, levels, found[0], **options)
        assert errors.sum() == pytest.approx(expected.sum(), rel=0.02)
        np.testing.assert_allclose(errors, full_error(layer, correlation, own, windows), rtol=1e-3, atol=1e-5)
        for kind in KINDS:
            assert is_path(windows[(kinds == kind).all(axis=1)], *kind)


def test_layers_in_torch():
    layer, correlation = random_problem(24, 256)
    bits = np.resize(np.arange(1, 7), 24).astype(np.uint8)
    lost = [
        quantize_linear(
            layer.values, layer.weights, bits, WINDOWED, correlation=correlation.copy(), resources=resources
        ).errors
        for resources in (Resources(), Resources(device=torch.device("cpu")))
    ]
    assert lost[1].sum() == pytest.approx(lost[0].sum(), rel=0.01)


def test_all_of_it_is_on_the_device(second_device):
    layer, correlation = random_problem(len(KINDS), 72)
    kinds = np.array(KINDS, np.uint8)
    width, memory = kinds.sum(axis=1).astype(np.uint8), np.ascontiguousarray(kinds[:, 1])
    levels = random_levels(np.random.default_rng(3), width)
    factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(correlation.astype(np.float64))).T, np.float32)
    found = []
    for device in (torch.device("cpu"), second_device):
        one = WeightRows(layer.values, layer.weights, layer.column_scale, Resources(device=device))
        start = feedback(one, None, width, levels, memory)
        windows = feedback(one, factor, width, levels, memory)
        refined = refine(one, correlation, width, levels, windows, rounds=2, sweeps=2, memory=memory)
        found.append([start, windows, *refined])
    for got, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_array_equal(got, expected)
