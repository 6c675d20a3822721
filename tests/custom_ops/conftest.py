import pytest

from skim_runtime.library import kernel_names


@pytest.fixture(params=kernel_names())
def kernel(request, monkeypatch):
    """Name of the kernels that sessions made in the test use."""
    monkeypatch.setenv("SKIM_KERNEL", request.param)
    return request.param
