from dataclasses import replace

import pytest

from tests.tools import missing, require, require_packages


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A function: language -> directory with the kernels for some classes."""
    require_packages("tvm")
    from skim_export.bundle.gpu.target import load_gpu_target
    from skim_export.bundle.gpu.write import write_kernels

    def write(language, classes):
        directory = tmp_path_factory.mktemp(language)
        target = replace(load_gpu_target(language), architectures=())
        write_kernels(directory, target, classes, classes)
        return directory

    return write


@pytest.fixture(scope="session")
def opencl_context():
    """PoCL's."""
    require_packages("pyopencl")
    import pyopencl as cl

    try:
        platforms = [p for p in cl.get_platforms() if p.name == "Portable Computing Language"]
    except cl.Error:  # no platform at all
        platforms = []
    if not platforms:
        missing("PoCL (Debian: pocl-opencl-icd)")
    return cl.Context(platforms[0].get_devices()[:1])


@pytest.fixture(scope="session")
def wgpu_device():
    """Any; without a GPU that of Mesa's software driver for Vulkan."""
    require_packages("wgpu")
    import wgpu

    adapters = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["backend_type"] == "Vulkan"]
    if not adapters:
        missing("a Vulkan driver (Debian: mesa-vulkan-drivers)")
    return adapters[0].request_device_sync()


@pytest.fixture(scope="session")
def cpp_compiler():
    require("g++")
    return "g++"


@pytest.fixture(scope="session")
def nvcc():
    require("nvcc")
    return "nvcc"
