"""Where kernels are run and timed: this machine, or a board that runs TVM's RPC server; one way to use both."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Before TVM is imported, which reads them once: its threads are not bound to cores, since others use these, too.
os.environ.setdefault("TVM_BIND_THREADS", "0")

import tvm
from tvm import rpc
from tvm.support import cc

from skim_export.bundle.abi import prepared_bytes
from skim_export.bundle.kernels.compile import Kernel, compile_scheduled
from skim_export.bundle.target import CpuTarget
from skim_export.measure.running.calls import layers_call
from skim_export.measure.running.layers import Layers
from skim_runtime.errors import UserError

__all__ = ["Library", "Machine", "OnMachine", "board", "this_machine"]

READABLE_BEHIND = 64  # bytes that kernels may read behind the end of a tensor
CONNECT_SECONDS = 5
SESSION_SECONDS = 24 * 3600
BIG_CORES = 1  # as TVM's `config_threadpool` numbers them


def this_machine(target: CpuTarget, threads: int) -> Machine:
    """This machine.

    Raises:
        UserError: its CPU lacks what the target needs, or there is no compiler.
    """
    if missing := target.missing_here():
        raise UserError(f"target {target.name} does not run here: {missing}; --rpc HOST:PORT names a board")
    return Machine(rpc.LocalSession(), target, threads)


def board(target: CpuTarget, threads: int, address: str, key: str) -> Machine:
    """A board.

    Args:
        target: what it is.
        threads: to use.
        address: HOST:PORT of TVM's RPC tracker.
        key: under which boards of its kind are known to the tracker.

    Raises:
        UserError: there is no such tracker, or it knows no such board, or there is no compiler for it.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--rpc {address}: must be HOST:PORT")
    try:  # TVM itself would try for a minute
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--rpc {address}: there is no tracker: {error}") from error
    try:
        tracker = rpc.connect_tracker(host, int(port))
        known = sorted(server["key"].removeprefix("server:") for server in tracker.summary()["server_info"])
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"--rpc {address}: is no tracker of TVM: {error}") from error
    if key not in known:
        raise UserError(f"--rpc-key {key}: the tracker at {address} knows {', '.join(known) or 'no board'}")
    return Machine(tracker.request(key, session_timeout=SESSION_SECONDS), target, threads)


class Machine:
    """A machine that a session of TVM reaches.

    Attributes:
        target: what it is.
        threads: that its kernels use.
    """

    def __init__(self, session: Any, target: CpuTarget, threads: int) -> None:
        self.target, self.threads = target, threads
        self._session, self._compiler = session, target.require_compiler()
        self._names = (f"kernels{i}.so" for i in itertools.count())
        logging.getLogger("RPCServer").setLevel(logging.WARNING)
        session.get_function("runtime.config_threadpool")(BIG_CORES, threads)

    def load(self, kernels: Iterable[Kernel]) -> Library:
        """Compile kernels, put them there and load them."""
        object_file, names = compile_scheduled(kernels, [], self.target)
        calls = {kernel: f"call_{name}" for kernel, name in names.items()}
        functions = {
            call: layers_call(call, kernel.row_class, kernel.integer, names[kernel]) for kernel, call in calls.items()
        }
        name = next(self._names)
        with tempfile.TemporaryDirectory() as directory:
            linked = Path(directory) / "kernels.o"
            linked.write_bytes(object_file)
            path = Path(directory) / name
            executable = tvm.compile(tvm.IRModule(functions), tvm.target.Target(self.target.tvm))
            fcompile = cc.cross_compiler(self._compiler, options=list(self.target.compiler_flags))
            executable.export_library(str(path), fcompile=fcompile, addons=[str(linked)])
            self._session.upload(str(path))
        return Library(self._session.load_module(name), self._session.cpu(), calls, self.threads)

    def put(self, layers: Layers) -> OnMachine:
        """Copy layers there."""
        tensors = [_tensor(array, self._session.cpu()) for array in layers.tensors.values()]
        return OnMachine(layers, tensors)


class OnMachine:
    """Layers whose tensors are on a machine."""

    def __init__(self, layers: Layers, tensors: list[Any]) -> None:
        self.layers, self.tensors = layers, tensors


class Library:
    """Kernels that are loaded on a machine."""

    def __init__(self, module: Any, device: Any, calls: dict[Kernel, str], threads: int) -> None:
        self._module, self._device, self._calls, self._threads = module, device, calls, threads

    def run(self, kernel: Kernel, on: OnMachine, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The last layer's product with tokens `[M, K]`."""
        arguments, y = self._arguments(on, x, on.layers.count)
        self._module[self._calls[kernel]](*arguments)
        product: npt.NDArray[np.float32] = y.numpy()[: len(x) * on.layers.N].reshape(len(x), on.layers.N)
        return product

    def seconds(
        self, kernel: Kernel, on: OnMachine, x: npt.NDArray[np.float32], least: float, *, cold: bool = True
    ) -> float:
        """Seconds of the product with one layer, a mean over calls that take `least` seconds together.

        Args:
            kernel: to time.
            on: the layers; all of them are multiplied one after the other.
            x: tokens.
            least: seconds to measure for.
            cold: if not, only the first layer is multiplied, again and again.
        """
        timer = self._module.time_evaluator(
            self._calls[kernel], self._device, number=1, min_repeat_ms=max(1, round(1e3 * least))
        )
        count = on.layers.count if cold else 1
        arguments, _ = self._arguments(on, x, count)
        return float(timer(*arguments).mean) / count

    def _arguments(self, on: OnMachine, x: npt.NDArray[np.float32], count: int) -> tuple[list[Any], Any]:
        M, N, K = len(x), on.layers.N, on.layers.K
        prepared = _tensor(np.zeros(M * prepared_bytes(K), np.uint8), self._device)
        y = _tensor(np.full(M * N, np.nan, np.float32), self._device)
        tensors = [*on.tensors, _tensor(x, self._device), prepared, y]
        return [*tensors, M, K, N, count, self._threads], y


def _tensor(array: npt.NDArray[Any], device: Any) -> Any:
    padded = np.zeros(array.size + READABLE_BEHIND // array.itemsize, array.dtype)
    padded[: array.size] = array.reshape(-1)
    return tvm.runtime.tensor(padded, device)
