"""A compiled decoder in TVM's Relax virtual machine."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tvm
import tvm_ffi
from tvm import relax

from relax_model.compile import Description, compile_model
from relax_model.importer import ENTRY
from relax_model.parameters import Tensors
from skim_export.work.files import sha256
from skim_runtime.cache import DecoderCache
from skim_runtime.errors import UserError
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.states import State
from skim_runtime.step import as_batch

__all__ = ["RelaxSession"]

SHARED_CORES = -3  # of TVM's AffinityMode: any thread on any of the cores, none is pinned


class RelaxSession:
    """A decoder that skim-export wrote, with its key/value cache; batch size 1. An `Engine` for `generate`.

    Weights are mapped into memory from the model directory.

    Attributes:
        vocabulary: number of logits of a token, V.

    Args:
        model_dir: what skim-export wrote.
        library: what `compile_model` made of it.
        threads: of TVM's thread pool, which all sessions of the process share; by default one for each core.
            Neither here nor later can there be more than at first.

    Raises:
        UserError: a file is missing or damaged, or does not belong to the others.
    """

    def __init__(self, model_dir: str | Path, library: Path, *, threads: int | None = None) -> None:
        self._directory = ModelDirectory.open(model_dir)
        description = Description.read(library)
        if description.model_sha256 != sha256(self._directory.model_file):
            raise UserError(f"{library}: not compiled from {self._directory.model_file}; compile the model again")
        _use_threads(threads)
        self._machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        model = onnx.load(self._directory.model_file, load_external_data=False)
        tensors = Tensors(model, self._directory.path)
        self._parameters = [tvm_ffi.from_dlpack(tensors.derive(parameter)) for parameter in description.parameters]
        self._step = self._machine[ENTRY]
        logits = next(value for value in model.graph.output if value.name == "logits")
        self.vocabulary = logits.type.tensor_type.shape.dim[2].dim_value
        past = [value for value in model.graph.input if value.name.startswith("past_key_values.")]
        self._cache = DecoderCache([self._state(value) for value in past])
        self._past: list[Any] = []

    @classmethod
    def compile(cls, model_dir: str | Path, target: str, *, threads: int | None = None) -> RelaxSession:
        """Compile the model, for a CPU of `skim_export/bundle/targets`, and open it.

        Raises:
            UserError: like `compile_model`.
        """
        with TemporaryDirectory() as directory:
            library = Path(directory) / "model.so"
            compile_model(model_dir, target, library)
            return cls(model_dir, library, threads=threads)

    def _state(self, value: onnx.ValueInfoProto) -> State:
        """What an input with keys or values is."""
        heads = value.type.tensor_type.shape.dim[1].dim_value
        present = value.name.replace("past_key_values.", "present.")
        return State(value.name, present, (1, heads, 1, self._directory.head_size), onnx.TensorProto.FLOAT, grows=True)

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self._directory.context_length

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self._directory.eos_token_ids

    @property
    def length(self) -> int:
        """Tokens in the key/value cache."""
        return self._cache.length

    def reset(self, capacity: int = 0) -> None:
        """Forget all tokens; room for `capacity` tokens spares the cache from growing later."""
        self._cache.clear(capacity)
        self._past = []

    def step(self, input_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Append tokens `[S]` to those before and return their logits, float32 `[S, V]`.

        Raises:
            UserError: what is given are no tokens of the model, or more than fit its context.
        """
        ids = as_batch(input_ids, self._cache.length, self.context_length, self.vocabulary)
        if self._cache.reserve(ids.shape[1]) or not self._past:
            self._past = [tvm_ffi.from_dlpack(buffer) for buffer, _ in self._cache.buffers]
        total = self._cache.length + ids.shape[1]
        mask = np.ones((1, total), np.int64)
        (logits,) = self._step(tvm.runtime.tensor(ids), tvm.runtime.tensor(mask), *self._past, *self._parameters)
        self._cache.advance(ids.shape[1])
        values: npt.NDArray[np.float32] = np.asarray(np.from_dlpack(logits)[0], np.float32)
        return values


def _use_threads(threads: int | None) -> None:
    """Configure TVM's thread pool, which otherwise takes half of the cores.

    Raises:
        UserError: there are to be none, or more than the pool can have.
    """
    cores = sorted(os.sched_getaffinity(0))
    wanted = len(cores) if threads is None else threads
    if wanted < 1:
        raise UserError(f"threads must be at least 1, got {wanted}")
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    # The pool never grows beyond its first size, so that is made as large as can be; then it is cut down.
    for size in (max(wanted, len(cores)), wanted):
        configure(SHARED_CORES, size, [str(cores[i % len(cores)]) for i in range(size)])
    if (size := tvm_ffi.get_global_func("runtime.NumThreads")()) != wanted:
        raise UserError(f"threads must be at most {size}, the size of this process's pool, got {wanted}")
