"""The emulation of a GPU itself: it computes what a GPU does, and sees what a GPU would leave undefined."""

import ctypes
import re
import subprocess
import sys

import numpy as np
import pytest
from ml_dtypes import bfloat16

POISON = 0xFF


@pytest.fixture(scope="module")
def path(on_cpu):
    return on_cpu / "libskim_emulation_test.so"


@pytest.fixture(scope="module")
def kernels(path):
    return ctypes.CDLL(str(path))


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def abort_of(path, call):
    """What a process prints that makes a call of the library and must abort."""
    program = (
        "import ctypes, sys; import numpy as np; kernels = ctypes.CDLL(sys.argv[1]);"
        f"x = np.zeros(64, np.uint8); address = x.ctypes.data; address += -address % 16; {call}"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("CUDA on the CPU: ")
    return done.stderr


@pytest.mark.parametrize(("name", "dtype"), [("TryMultiply", np.float16), ("TryMultiplyBfloat16", bfloat16)])
def test_multiply_add(kernels, order, name, dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(16, 16)).astype(dtype)
    b = rng.normal(size=(16, 8)).astype(dtype)
    d = rng.normal(size=(16, 8)).astype(np.float32)
    # Rows and columns as device.cuh says, [lane, register, half].
    g, c = np.divmod(np.arange(32), 4)
    rows = np.stack([g, g + 8, g, g + 8], axis=1)[:, :, None]
    pair = 2 * c[:, None] + [0, 1]
    columns = np.stack([pair, pair, pair + 8, pair + 8], axis=1)
    a_parts = a[rows, columns]
    b_parts = b[columns[:, ::2], g[:, None, None]]
    d_places = rows[:, :2], pair[:, None]
    d_parts = d[d_places]
    getattr(kernels, name)(pointer(a_parts), pointer(b_parts), pointer(d_parts))
    got = np.empty_like(d)
    got[d_places] = d_parts
    np.testing.assert_allclose(got, d + a.astype(np.float64) @ b.astype(np.float64), rtol=0, atol=1e-5)


def test_shuffle(kernels, order):
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    y = np.empty_like(x)
    kernels.TryShuffle(3, pointer(x), pointer(y))
    np.testing.assert_allclose(y, np.broadcast_to(x.sum(axis=1, keepdims=True), y.shape), atol=1e-5)


def test_halves(kernels):
    """Differences and products are rounded once, subnormals and overflows included."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 1 << 16, 2 * 32 * 1000).astype(np.uint16).view(np.float16) for _ in range(2))
    difference, product = np.empty_like(a), np.empty_like(a)
    kernels.TryHalf2(1000, pointer(a), pointer(b), pointer(difference), pointer(product))
    with np.errstate(invalid="ignore", over="ignore"):
        np.testing.assert_array_equal(difference, (a.astype(np.float64) - b.astype(np.float64)).astype(np.float16))
        np.testing.assert_array_equal(product, (a.astype(np.float64) * b.astype(np.float64)).astype(np.float16))


def test_bfloat16(kernels):
    """Any float32 is rounded as ml_dtypes does it, and sums and products that float32 holds."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 2 * 32 * 1000).astype(np.uint32).view(np.float32)
    a, b, c = (rng.integers(-255, 256, len(x)).astype(bfloat16) for _ in range(3))
    rounded, total, relu = (np.empty_like(a) for _ in range(3))
    kernels.TryRound(1000, pointer(x), pointer(rounded))
    kernels.TryBfloat2(1000, *map(pointer, (a, b, c, total, relu)))
    exact = a.astype(np.float32) * b.astype(np.float32) + c.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for got, want in ((rounded, x), (total, exact), (relu, np.maximum(exact, 0))):
            np.testing.assert_array_equal(got.astype(np.float32), want.astype(bfloat16).astype(np.float32))


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_pipeline(kernels, order, threads):
    x = np.random.default_rng(0).integers(0, 255, (5, threads, 16)).astype(np.uint8)
    y = np.empty_like(x)
    assert kernels.TryPipeline(0, pointer(x), pointer(y), 5, threads) == 0
    np.testing.assert_array_equal(y, x)


def test_missing_wait(kernels, order):
    """Poison is read, as no byte of x is 255."""
    x = np.random.default_rng(0).integers(0, 255, (5, 64, 16)).astype(np.uint8)
    y = np.empty_like(x)
    assert kernels.TryPipeline(1, pointer(x), pointer(y), 5, 64) == 0
    assert (y == POISON).any()


@pytest.mark.parametrize("fault", [2, 3])
def test_missing_barrier(path, order, fault):
    call = f"x = np.zeros((5, 64, 16), np.uint8); kernels.TryPipeline({fault}, x.ctypes, x.ctypes, 5, 64)"
    assert re.search("threads [0-9]+ and [0-9]+ race for byte [0-9]+ of shared memory", abort_of(path, call))


def test_races_in_a_warp(path, kernels, order):
    """Neighbours read what each other writes: behind the block's barrier, the warp's, or none."""
    assert kernels.TryExchange(1) == 0
    assert kernels.TryExchange(2) == 0
    assert "race for byte" in abort_of(path, "kernels.TryExchange(0)")


NAMES = ["has ended", "waits at __syncthreads", "waits at __syncwarp", "waits at __shfl_xor_sync"]
NAMES += ["waits at MultiplyAdd"]


@pytest.mark.parametrize(("others", "last"), [(1, 0), (0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 0), (0, 4), (4, 1)])
def test_divergence_aborts(path, others, last):
    message = abort_of(path, f"kernels.TryDivergence({others}, {last})")
    assert NAMES[others] in message
    assert NAMES[last] in message


@pytest.mark.parametrize("barrier", [0, 1, 2, 3, 4])
def test_no_divergence(kernels, barrier, order):
    assert kernels.TryDivergence(barrier, barrier) == 0


def test_shared_memory_is_poisoned(kernels):
    content = np.zeros(32, np.uint8)
    assert kernels.TryShared(ctypes.c_size_t(100), 99, pointer(content)) == 0
    assert (content == POISON).all()


def test_too_much_shared_memory(kernels):
    content = np.zeros(32, np.uint8)
    assert kernels.TryShared(ctypes.c_size_t(65536), 0, pointer(content)) == 0
    assert kernels.TryShared(ctypes.c_size_t(232449), 0, pointer(content)) == 1


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        (4, 0, "CopyAsync from 0x"),
        (0, 8, "CopyAsync to 0x"),
        (0, 64, "CopyAsync to byte 64 of 64"),
        (0, -16, "CopyAsync to byte -16 of 64"),
    ],
)
def test_copy_aborts(path, source, destination, message):
    call = f"kernels.TryCopy(ctypes.c_void_p(address + {source}), {destination})"
    assert message in abort_of(path, call)


def test_permute(kernels, path):
    y = np.zeros(1, np.uint32)
    kernels.TryPermute(ctypes.c_uint32(0x7250), pointer(y))
    assert y[0] == 0x77225500
    assert "selector 0x8000" in abort_of(path, "kernels.TryPermute(0x8000, ctypes.c_void_p(address))")


def test_order(kernels, order):
    counts, orders = np.zeros(1, np.uint32), np.zeros((3, 2, 64), np.uint32)
    assert kernels.TryOrder(3, pointer(orders), pointer(counts)) == 0
    assert counts[0] == orders.size
    forward = np.arange(3)[:, None, None] * 64 + np.arange(64) + np.zeros((1, 2, 1), int)
    np.testing.assert_array_equal(np.sort(orders.ravel()), np.sort(forward.ravel()))
    if order == "shuffled":
        assert (orders[:, 0] != orders[:, 1]).any()
    else:
        np.testing.assert_array_equal(orders, forward if order == "forward" else forward[::-1, :, ::-1])


def test_unknown_order(path):
    call = "import os; os.environ['SKIM_CUDA_ORDER'] = 'random'; kernels.TryDivergence(0, 0)"
    assert "SKIM_CUDA_ORDER=random: must be" in abort_of(path, call)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setenv("SKIM_CUDA_CAPABILITY", "9.0")


def panel_of(b):
    """[64, tokens] as a warpgroup's multiplication reads them with a swizzle of 128 bytes, and the descriptor.

    Bits of the descriptor: 0-13 address, 16-29 leading offset (not used), 32-45 stride offset, from eight tokens to the
    next, all of them over 16; 62-63 swizzle.
    """
    panel = np.empty(b.T.shape, b.dtype)
    for token in range(len(panel)):
        for chunk in range(8):
            place = 8 * (chunk ^ token % 8)
            panel[token, place : place + 8] = b[8 * chunk : 8 * chunk + 8, token]
    return panel, 1 << 16 | (1024 >> 4) << 32 | 1 << 62


def warpgroup_operands(tokens=128, dtype=np.float16):
    """a, b, d; a and d as the threads hold them, with the places that their parts have in d."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(64, 64)).astype(dtype)
    b = rng.normal(size=(64, tokens)).astype(dtype)
    d = rng.normal(size=(64, tokens)).astype(np.float32)
    warp, lane = np.divmod(np.arange(128), 32)
    row, c = 16 * warp + lane // 4, lane % 4
    rows = np.stack([row, row + 8, row, row + 8], axis=1)[:, :, None]
    pair = 2 * c[:, None] + [0, 1]
    columns = np.stack([pair, pair, pair + 8, pair + 8], axis=1)
    a_parts = np.stack([a[rows, columns + 16 * step] for step in range(4)])
    places = rows[:, None, :2], (8 * np.arange(tokens // 8)[:, None, None] + pair[:, None, None])
    return a, b, d, np.ascontiguousarray(a_parts), np.ascontiguousarray(d[places]), places


def try_warpgroup(kernels, a_parts, b, d_parts, fault):
    panel, descriptor = panel_of(b)
    operands = pointer(a_parts), pointer(panel), ctypes.c_uint64(descriptor), pointer(d_parts)
    return kernels.TryWarpgroup(b.dtype != np.float16, b.shape[1], *operands, fault)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [64, 128])
def test_warpgroup(kernels, order, hopper, tokens, dtype):
    a, b, d, a_parts, d_parts, places = warpgroup_operands(tokens, dtype)
    assert try_warpgroup(kernels, a_parts, b, d_parts, 0) == 0
    got = np.empty_like(d)
    got[places] = d_parts
    np.testing.assert_allclose(got, d + a.astype(np.float64) @ b.astype(np.float64), rtol=0, atol=1e-4)


def warpgroup_call(fault=0, descriptor=None):
    descriptor = panel_of(np.zeros((64, 128)))[1] if descriptor is None else descriptor
    return (
        "a, b, d = np.zeros((4, 128, 4), np.uint32), np.zeros((64, 128), np.float16), np.zeros((64, 128), np.float32);"
        f"kernels.TryWarpgroup(False, 128, a.ctypes, b.ctypes, ctypes.c_uint64({descriptor}), d.ctypes, {fault})"
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (2, "thread 0 multiplies registers that it has written since FenceMultiplies"),
        (3, "thread 0 multiplies registers that it has written since FenceMultiplies"),
        (5, "thread 77 has changed sums that are on their way"),
        (6, "thread 77 has changed registers that are multiplied"),
        (8, "ends, but threads 0 and on still multiply"),
        (9, "ends, but threads 0 and on still multiply"),
        (10, "thread 0 waits at FenceMultiplies, but thread 96 has ended"),
    ],
)
def test_faults_of_a_warpgroup(path, hopper, fault, message):
    assert message in abort_of(path, warpgroup_call(fault))


@pytest.mark.parametrize(
    ("fault", "message"),
    [(1, "multiplies byte 0 of shared memory, which thread 0 has not fenced"), (7, "race for byte 16000")],
)
def test_races_of_a_warpgroup(path, order, hopper, fault, message):
    assert message in abort_of(path, warpgroup_call(fault))


def test_sums_that_are_read_early(kernels, order, hopper):
    _, b, _, a_parts, d_parts, _ = warpgroup_operands()
    assert try_warpgroup(kernels, a_parts, b, d_parts, 4) == 0
    assert np.isnan(d_parts[:, 0, 0, 0]).all()
    assert np.isfinite(d_parts[:, 1:]).all()


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (1 << 62, "swizzle 2: only"),  # 1 becomes 2
        (1 << 49, "base offset 1: only"),
        (128 >> 4, "a matrix at byte 128: eight tokens begin at no multiple of 1024"),
        (1024 >> 4, "reads byte 16399 of 16384"),
        (1 << 46, "bits that must be 0 are not"),
    ],
)
def test_faults_of_a_descriptor(path, hopper, bits, message):
    assert message in abort_of(path, warpgroup_call(descriptor=panel_of(np.zeros((64, 128)))[1] + bits))


def test_other_gpus_have_no_warpgroups(path):
    assert "on a GPU that is no Hopper" in abort_of(path, warpgroup_call())


def test_numbered_barriers(kernels, path, order):
    y = np.zeros(128, np.uint32)
    assert kernels.TryNumbered(1, 64, 64, True, pointer(y)) == 0
    np.testing.assert_array_equal(y, 7 * (np.arange(128) >= 32))
    call = "kernels.TryNumbered({}, np.zeros(128, np.uint32).ctypes)"
    for arguments, message in [
        ("1, 64, 64, False", "race for byte 0"),
        ("1, 64, 96, True", "barrier 3 is for "),
        ("1, 96, 96, True", "waits at a numbered barrier"),
        ("0, 64, 64, True", "barrier 0: there are 1..15"),
        ("1, 33, 33, True", "33 threads: no whole warps"),
    ]:
        assert message in abort_of(path, call.format(arguments))


def test_registers(kernels, path, order, hopper):
    assert kernels.TryRegisters(0) == 0
    assert "waits for registers" in abort_of(path, "kernels.TryRegisters(1)")
    assert "176 registers in place of 168 are not fewer" in abort_of(path, "kernels.TryRegisters(2)")
    assert "100 registers: no multiple of 8" in abort_of(path, "kernels.TryRegisters(3)")


def test_shared_memory_of_a_hopper(kernels, hopper):
    content = np.zeros(32, np.uint8)
    assert kernels.TryShared(ctypes.c_size_t(232448), 0, pointer(content)) == 0
    assert kernels.TryShared(ctypes.c_size_t(232449), 0, pointer(content)) == 1


def test_unknown_gpu(path, monkeypatch):
    monkeypatch.setenv("SKIM_CUDA_CAPABILITY", "6.1")
    assert "SKIM_CUDA_CAPABILITY=6.1: must be 7.5, 8.0 or 9.0" in abort_of(path, "kernels.TryDivergence(0, 0)")
