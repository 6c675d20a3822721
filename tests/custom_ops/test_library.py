"""Loading the library: which kernels run, what it exports, and runtimes that it can't serve."""

import ctypes
import subprocess

import onnxruntime as ort
import pytest

from skim_runtime import library
from skim_runtime.errors import UserError


def test_the_environment_chooses_the_kernels(monkeypatch):
    monkeypatch.delenv("SKIM_KERNEL", raising=False)
    names = library.kernel_names()
    assert library.kernel_name() == names[0]
    assert names[-1] == "reference"
    for name in names:
        monkeypatch.setenv("SKIM_KERNEL", name)
        assert library.kernel_name() == name
    monkeypatch.setenv("SKIM_KERNEL", "abacus")
    with pytest.raises(UserError, match="SKIM_KERNEL"):
        library.kernel_name()
    with pytest.raises(Exception, match="SKIM_KERNEL must be unset or name a kernel"):
        ort.SessionOptions().register_custom_ops_library(str(library.library_path()))


def test_a_missing_library_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "installed_file", lambda package, name: tmp_path / name)
    with pytest.raises(UserError, match=r"libskim_ops\.so is missing: build it"):
        library.library_path()


def test_only_four_symbols_are_exported():
    table = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(library.library_path())], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in table.splitlines()} == {
        "RegisterCustomOps",
        "SkimCudaVersion",
        "SkimKernelName",
        "SkimKernelNames",
    }


def test_an_older_runtime_gets_an_error():
    """A stand-in for a runtime of API 17, of which only CreateStatus can be called."""
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)
    messages = []

    @create_status
    def status(code, message):
        messages.append(message.decode())
        return 1

    api = (ctypes.c_void_p * 1)(ctypes.cast(status, ctypes.c_void_p))
    version_text = ctypes.create_string_buffer(b"1.17.3")
    version = get_version(lambda: ctypes.addressof(version_text))
    api_of = get_api(lambda wanted: ctypes.addressof(api) if wanted <= 17 else None)
    base = (ctypes.c_void_p * 2)(ctypes.cast(api_of, ctypes.c_void_p), ctypes.cast(version, ctypes.c_void_p))
    register = ctypes.CDLL(str(library.library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, base) == 1
    assert messages == ["libskim_ops needs ONNX Runtime 1.18 or newer, this is 1.17.3"]
