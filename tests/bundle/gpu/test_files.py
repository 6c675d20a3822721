"""What lies in a bundle beside the kernels' code: kernels.json, and the limits of targets."""

import math
from dataclasses import replace

import numpy as np
import pytest

from skim_runtime.errors import UserError
from tests.random_packed import random_packed

LANGUAGES = ["cuda", "opencl", "metal", "webgpu"]
CLASSES = [2, 4, 11, 20]


@pytest.fixture(scope="module")
def packed():
    return random_packed(np.random.default_rng(0), 45, 300, CLASSES, column_scale=True)


@pytest.fixture(scope="module", params=LANGUAGES)
def directory(request, bundle, packed):
    return bundle(request.param, [section.row_class for section in packed.sections()])


@pytest.fixture
def kernels(directory):
    from skim_export.bundle.gpu.kernel_list import load_kernel_list

    return load_kernel_list(directory)


def elements(argument, scalars):
    return eval(argument.elements.replace("/", "//"), dict(scalars))


def test_sizes_of_buffers(kernels, packed):
    """The formulas of a class reach to where the next one begins, those of the last class to the end of the tensor."""
    from skim_export.bundle.gpu.launch import class_rows, device_tensors, gather, product

    N, K, M = 45, 300, 3
    tensors = device_tensors(packed)
    rows = class_rows(packed)
    for launches in (product(kernels, rows, N, K, M), gather(kernels, rows, K, M)):
        reached = {}
        for launch in launches:
            scalars = {**launch.scalars, "N": N}
            for argument in launch.kernel.arguments:
                if argument.name in tensors:
                    assert str(tensors[argument.name].dtype) == argument.dtype
                    reached[argument.name] = elements(argument, scalars)
                elif argument.elements:
                    size = {"prepared": M * 320, "x_sum": M, "ids": M, "y": M * scalars.get("y_stride", K)}
                    assert elements(argument, scalars) == size[argument.name]
        assert reached == {name: tensors[name].size for name in reached}
        assert set(reached) >= {"codes", "codebook", "row_scale"}


def test_kernel_for_a_number_of_tokens(kernels):
    names = [kernels.product("table3_int8", tokens).name for tokens in (1, 2, 3, 4, 5, 8, 9, 1000)]
    tiles = ["decode1", "decode2", "decode4", "decode4", "decode8", "decode8", "prefill", "prefill"]
    assert names == [f"skim_{tile}_table3_int8" for tile in tiles]


def test_source_agrees_with_kernels_json(directory, kernels):
    for entry in kernels.kernels:
        source = (directory / entry.source).read_text()
        buffers = [a for a in entry.arguments if a.elements is not None]
        if kernels.language == "webgpu":
            for i, argument in enumerate(buffers):
                access = "read_write" if argument.written else "read"
                assert f"@binding({i}) var<storage, {access}> {argument.name}_ptr" in source
            assert f"@binding({len(buffers)}) var<uniform>" in source
            assert f"@workgroup_size({', '.join(map(str, [*entry.workgroup, 1][:2]))}, 1)" in source
        else:
            signature = source[source.index(f"{entry.entry_point}(") :]
            places = [signature.index(f"{a.name}_ptr") for a in buffers]
            assert places == sorted(places)


def test_same_bytes_every_time(directory, kernels, bundle, packed):
    again = bundle(kernels.language, [section.row_class for section in packed.sections()])
    for path in sorted(directory.iterdir()):
        if path.suffix not in (".cpp", ".so"):
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_classes_fit_the_target(language, bundle):
    """`write_kernels` refuses a kernel that needs more than the target says."""
    from .products import AFFINE, TABLES, WINDOWS

    bundle(language, TABLES + AFFINE + WINDOWS)


def test_too_much_shared_memory(tmp_path):
    from skim_export.bundle.gpu.target import load_gpu_target
    from skim_export.bundle.gpu.write import write_kernels

    from .products import TABLES

    target = load_gpu_target("webgpu")
    greedy = replace(target.schedule, decode=(replace(target.schedule.decode[0], rows=16),))
    message = "target webgpu: skim_decode1_table8_int8 needs 36864 bytes of shared memory, more than max_shared_memory"
    with pytest.raises(UserError, match=message):
        write_kernels(tmp_path, replace(target, schedule=greedy), [TABLES[7]], [])


GOOD = """
description = "d"
kind = "gpu"
[target]
kind = "opencl"
max_num_threads = 256
max_shared_memory_per_block = 32768
[schedule]
decode = [{ tokens = 1, threads = 32, groups = 2, rows = 4 }]
prefill = { rows = 32, tokens = 32, blocks = 2, row_threads = 8, token_threads = 8 }
threads = 64
"""


def test_a_target_is_a_file(tmp_path):
    from skim_export.bundle.gpu.target import load_gpu_target

    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    target = load_gpu_target(str(path))
    assert (target.name, target.language, target.schedule.decode[0].rows) == ("mine", "opencl", 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "gpu"', 'kind = "cpu"', "is no GPU; these are: cuda"),
        ('description = "d"', "", "description is missing"),
        ('kind = "opencl"', 'kind = "vulkan"', "'vulkan' must be one of cuda, opencl"),
        ("max_num_threads = 256", "", "target.max_num_threads must say"),
        ("tokens = 1, threads = 32", "tokens = 1, threads = 24", "threads = 24 must be a power of 2"),
        ("rows = 4", "rows = 0", "rows = 0 must be a positive integer"),
        ("groups = 2, ", "", "must give tokens, threads, groups, rows; it gives tokens, threads, rows"),
        ("row_threads = 8", "row_threads = 5", "rows = 32 must be a multiple of row_threads"),
        ("\nthreads = 64", "", "must give decode, prefill, threads; it gives decode, prefill"),
    ],
)
def test_wrong_targets(tmp_path, old, new, message):
    from skim_export.bundle.gpu.target import load_gpu_target

    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_gpu_target(str(path))


def test_threads_of_workgroups_are_the_product(kernels):
    for entry in kernels.kernels:
        assert len(entry.grid) == len(entry.workgroup)
        assert math.prod(entry.workgroup) in (64, 128, 256)
