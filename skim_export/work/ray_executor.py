"""Tasks on the workers of a Ray cluster (Moritz et al., "Ray: A Distributed Framework", OSDI 2018).

Ray brings a task to a free worker, and again to another when that one dies. What the tasks read and write are files, on
a file system that all machines share.
"""

from __future__ import annotations

import logging
import platform
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skim_export.pipeline.report import versions
from skim_export.work.device import float32_products
from skim_export.work.resources import Resources
from skim_export.work.tasks import Task
from skim_runtime.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["RayExecutor", "connect"]

AUTO = "auto"
CLUSTER_SECONDS = 5.0  # for the cluster to answer, and between two looks at whether it still has workers
RETRIES = 3  # of a task whose worker died
WORKER_BYTES = 600 << 20  # what Python and torch take in a worker
MIXED = "the processors of the cluster differ ({}): what is calibrated may differ in its last digits from one machine's"


@dataclass(frozen=True)
class RayExecutor:
    """The workers of a Ray cluster to which this process is connected.

    Attributes:
        address: of the cluster, as the user gave it.
        resources: what a task may use.
    """

    address: str
    resources: Resources

    @property
    def tasks_at_once(self) -> int:
        """How many tasks the processors of the workers suffice for."""
        return sum(int(node.get("CPU", 0)) // self.resources.threads for node in _nodes())

    def using(self, resources: Resources) -> RayExecutor:
        """The same with other resources."""
        return replace(self, resources=resources)

    def run(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Do tasks, large ones first; the name of each as soon as its outputs are there.

        Raises:
            UserError: of a task; its workers died again and again; no worker is large enough, or sees the files.
        """
        import ray

        largest_first = sorted(tasks, key=lambda task: -task.memory)
        for task in largest_first[:1]:
            self._check_room(task)
        remote, expected = ray.remote(max_retries=RETRIES)(_do), versions()
        pending = {}
        for task in largest_first:
            demand = self._demand(task)
            on_worker = remote.options(
                name=task.name, num_cpus=demand["CPU"], num_gpus=demand.get("GPU", 0), memory=demand["memory"]
            )
            pending[on_worker.remote(task, expected)] = task
        kinds = {_processor()}
        try:
            while pending:
                ready, _ = ray.wait(list(pending), timeout=CLUSTER_SECONDS)
                if not ready:
                    self._check_room(next(iter(pending.values())))
                for reference in ready:
                    task = pending.pop(reference)
                    worker, kind = self._result(reference, task)
                    if not task.is_done:
                        raise UserError(_not_shared(worker, task))
                    if kind not in kinds:
                        kinds.add(kind)
                        warnings.warn(MIXED.format(", ".join(sorted(kinds))), stacklevel=2)
                    yield task.name
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _demand(self, task: Task) -> dict[str, int]:
        """What a task needs of a worker, as Ray calls it."""
        demand = {"CPU": self.resources.threads}
        if self.resources.device is not None:
            demand["GPU"] = 1
        return demand | {"memory": task.memory + WORKER_BYTES}

    def _check_room(self, task: Task) -> None:
        nodes = _nodes()
        for resource, amount in self._demand(task).items():
            fitting = [node for node in nodes if node.get(resource, 0) >= amount]
            if not fitting:
                most = max((node.get(resource, 0) for node in nodes), default=0)
                need, have = (f"{x / 1e9:.1f} GB" if resource == "memory" else f"{x:g}" for x in (amount, most))
                raise UserError(
                    f"--ray {self.address}: {task.name} takes {need} {resource}, workers have at most {have}"
                )
            nodes = fitting

    def _result(self, reference: Any, task: Task) -> tuple[str, str]:
        """The worker's address, and the kind of its processor."""
        import ray

        try:
            result: tuple[str, str] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # what the task raised is to look as if it were raised here
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise UserError(
                f"--ray {self.address}: {task.name} is given up after {RETRIES + 1} attempts, the last ended with "
                f"{type(error).__name__}: see the logs of Ray"
            ) from error
        return result


def connect(address: str, threads: int | None, device: torch.device | None = None) -> RayExecutor:
    """Connect this process to a cluster of which its machine is a part.

    Args:
        address: HOST:PORT of the head, or "auto" for the cluster that this machine is a part of.
        threads: of a task; None for all processors of the smallest worker.
        device: of this machine; if it is a GPU, every task gets one. None for the CPU.

    Raises:
        UserError: Ray is not installed, no cluster is there, or it has no worker with processors.
    """
    import torch

    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'skim-export[ray]'") from error
    _check_answer(address)
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--ray {address}: {reason}; if the cluster wants a token, set RAY_AUTH_MODE=token") from error
    smallest = min((int(node["CPU"]) for node in _nodes() if node.get("CPU", 0) >= 1), default=0)
    if smallest == 0:
        raise UserError(f"--ray {address}: the cluster has no worker with a processor")
    device = None if device is None else torch.device(device.type, 0)  # a worker sees no other than its own
    return RayExecutor(address, Resources.of(smallest if threads is None else threads, device))


def _check_answer(address: str) -> None:
    """Ray itself waits for minutes, and then ends the process."""
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray {address}: must be HOST:PORT of the head of a Ray cluster, or {AUTO}")
    try:
        with closing(socket.create_connection((host, int(port)), CLUSTER_SECONDS)):
            pass
    except OSError as error:
        raise UserError(f"--ray {address}: nobody answers there; `ray start --head` starts a Ray cluster") from error


def _nodes() -> list[dict[str, float]]:
    """The resources of the nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _do(task: Task, expected: dict[str, str]) -> tuple[str, str]:
    """Do a task, on a worker; the worker's address, and the kind of its processor."""
    import ray

    worker: str = ray.util.get_node_ip_address()
    for package, version in versions().items():
        if version != expected[package]:
            raise UserError(f"worker {worker} has {package} {version}, not {expected[package]}")
    if not task.outputs[0].parent.is_dir():
        raise UserError(_not_shared(worker, task))
    try:
        with float32_products():
            task.work()
    except UserError as error:
        raise UserError(f"worker {worker}: {error}") from error
    return worker, _processor()


def _processor() -> str:
    """What decides the last digits of torch's matrix products."""
    import torch

    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"


def _not_shared(worker: str, task: Task) -> str:
    directory = task.outputs[0].parent
    return f"{directory} is not the same on worker {worker} and here: model and output must lie on a shared file system"
