"""CUDA and Metal kernels on the CPU: compiled by a C++ compiler, each GPU thread a fiber (on_cpu/fibers.h).

This shows that the source is well-formed and computes the right thing with the arguments of kernels.json in their
order. It shows nothing of what only a GPU can get wrong.
"""

import ctypes
import subprocess
from pathlib import Path

from skim_export.bundle.gpu.kernel_list import load_kernel_list

HEADERS = Path(__file__).parent / "on_cpu"
C_TYPES = {"uint32": "uint", "int32": "int", "float32": "float"}


class OnCpu:
    """The kernels of a bundle, in CUDA or Metal."""

    def __init__(self, directory, compiler):
        self.kernels = load_kernel_list(directory)
        self._directory, self._compiler = directory, compiler
        self._libraries = {}

    def run(self, launch, buffers):
        """Launch a kernel on numpy arrays, by the names of the arguments."""
        entry = launch.kernel
        pointers = [buffers[a.name].ctypes.data for a in entry.arguments if a.elements is not None]
        scalars = [launch.scalars[a.name] for a in entry.arguments if a.elements is None]
        arrays = [
            (ctypes.c_void_p * len(pointers))(*pointers),
            *((ctypes.c_int * len(v))(*v) for v in (scalars, filled(launch.workgroups), filled(entry.workgroup))),
        ]
        assert getattr(self._library(entry.source), f"run_{entry.name}")(*arrays), "threads part at a barrier"

    def _library(self, source):
        if source not in self._libraries:
            text = (self._directory / source).read_text()
            if self.kernels.language == "metal":
                # `threadgroup` is `static` in declarations, and must vanish in casts.
                text = text.replace("(threadgroup float4*)", "(float4*)")
            entries = [entry for entry in self.kernels.kernels if entry.source == source]
            text += "".join(self._entry(entry) for entry in entries)
            path = self._directory / f"{source}.cpp"
            path.write_text(text)
            library = path.with_suffix(".so")
            options = ["-std=c++20", "-O0", "-w", "-fno-strict-aliasing", "-fPIC", "-shared", f"-I{HEADERS}"]
            done = subprocess.run([self._compiler, *options, "-o", library, path], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:2000]
            self._libraries[source] = ctypes.CDLL(str(library))
        return self._libraries[source]

    def _entry(self, entry):
        buffers = [a for a in entry.arguments if a.elements is not None]
        arguments = [f"({C_TYPES[a.dtype]} *)pointers[{i}]" for i, a in enumerate(buffers)]
        count = len(entry.arguments) - len(buffers)
        if self.kernels.language == "cuda":
            arguments += [f"scalars[{i}]" for i in range(count)]
            before = ""
        else:
            # Metal: a struct of 8 bytes for each scalar.
            before = f"{entry.entry_point}_args_t slots; static_assert(sizeof(slots) == {8 * count});"
            before += f"for (int i = 0; i < {count}; i++) ((int *)&slots)[2 * i] = scalars[i];"
            arguments += ["slots", *(self._index(f"on_cpu::{what}", entry) for what in ("group", "on_thread"))]
        call = f"{entry.entry_point}({', '.join(arguments)})"
        return (
            f'\nextern "C" bool run_{entry.name}(void **pointers, const int *scalars, const int *grid, '
            f"const int *threads) {{ {before} return on_cpu::run(grid, threads, [&] {{ {call}; }}); }}\n"
        )

    @staticmethod
    def _index(name, entry):
        return f"{name}.x" if len(entry.workgroup) == 1 else f"uint2{{{name}.x, {name}.y}}"


def filled(extents):
    """Three extents."""
    return (*extents, *(1,) * (3 - len(extents)))
