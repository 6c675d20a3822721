import pytest

from skim_runtime.library import kernel_name

# The fastest kernels that this CPU runs, and the reference. On a CPU without AVX2 they are the same.
KERNELS = list(dict.fromkeys([kernel_name(), "reference"]))


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """Name of the kernels that sessions made in the test use."""
    monkeypatch.setenv("SKIM_KERNEL", request.param)
    return request.param
