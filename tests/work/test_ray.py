"""Exports on a Ray cluster: two workers on this machine, each with one processor."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from skim_export import export
from skim_export.cli.main import main
from skim_export.pipeline import calibration_text
from skim_export.work.ray_executor import connect
from skim_export.work.sealed import write_sealed
from skim_export.work.tasks import Task, do_tasks
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama
from ..tools import require_packages

require_packages("ray")
import ray  # noqa: E402

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TASK_MEMORY = 1 << 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two nodes, to which this process is connected."""
    found = f"127.0.0.1:{free_port()}"
    options = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats", "--block"]
    head = ["--head", "--port", found.rpartition(":")[2], "--include-dashboard", "false"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    before = signal.getsignal(signal.SIGTERM)  # Ray has one of its own
    nodes = []
    try:
        for count, role in enumerate((head, ["--address", found]), start=1):
            command = [*RAY, "start", *role, *options]
            nodes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            wait_for_nodes(found, count)
        yield found
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)
        for node in reversed(nodes):
            node.terminate()
            node.wait()


def wait_for_nodes(address, count):
    until = time.monotonic() + 60
    while True:
        try:
            if connect(address, 1).tasks_at_once == count:
                return
        except UserError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama") / "hf", hidden_size=256, intermediate_size=1024)


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 60)
    return path


def exported(llama, output, **options):
    export(str(llama), output / "model.onnx", bits=3, **options)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()}


def workers():
    """Process numbers of the workers that have a task."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:  # it has ended
            continue
        if re.match(rb"ray::[a-z_]+\.", title):  # the name of a layer follows
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"effort": "weights"}, id="weights"),
        pytest.param({"effort": "calibrated"}, id="calibrated", marks=pytest.mark.slow),
        pytest.param({"effort": "calibrated", "head_bits": "auto"}, id="with the vocabulary", marks=pytest.mark.slow),
    ],
)
def test_the_result_is_that_of_one_machine(address, llama, calib, tmp_path, monkeypatch, options):
    monkeypatch.setattr(calibration_text, "SEQUENCES", 20)
    options = {**options, "calib": calib}
    assert exported(llama, tmp_path / "ray", ray=address, **options) == exported(llama, tmp_path / "one", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "ray"]


class KillWorkers(Progress):
    """Kills the workers, some times, as soon as they are at work."""

    def __init__(self, times):
        self.killed = []
        self._times = times

    def start(self, stage, total):
        if stage == "quantizing":
            threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self):
        until = time.monotonic() + 60
        while len(self.killed) < self._times and time.monotonic() < until:
            for number in workers():
                os.kill(number, signal.SIGKILL)
                self.killed.append(number)
            time.sleep(0.01)


def test_killed_workers_cost_only_their_layers(address, llama, tmp_path):
    killer = KillWorkers(2)
    found = exported(llama, tmp_path / "ray", effort="weights", ray=address, progress=killer)
    assert len(killer.killed) >= 2
    assert found == exported(llama, tmp_path / "one", effort="weights")


def test_both_workers_work_and_a_task_is_done_again(address, tmp_path):
    """The first two tasks wait for each other; the third kills its worker the first time."""

    def meet(mine, other):
        (tmp_path / mine).touch()
        while not (tmp_path / other).exists():
            time.sleep(0.01)
        write_sealed(tmp_path / f"{mine}.out", lambda path: path.write_text(mine))

    def die_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write_sealed(tmp_path / "c.out", lambda path: path.write_text("c"))

    work = {"a": lambda: meet("a", "b"), "b": lambda: meet("b", "a"), "c": die_once}
    tasks = [Task(name, work[name], (tmp_path / f"{name}.out",), TASK_MEMORY) for name in work]
    executor = connect(address, None)
    assert executor.resources.threads == 1
    assert executor.tasks_at_once == 2
    do_tasks("stage", tasks, executor, Progress())
    assert all(task.is_done for task in tasks)


def test_a_task_that_always_kills_its_worker_is_given_up(address, tmp_path):
    task = Task("fatal", lambda: os.kill(os.getpid(), signal.SIGKILL), (tmp_path / "out",), TASK_MEMORY)
    with pytest.raises(UserError, match="fatal is given up after 4 attempts"):
        list(connect(address, 1).run([task]))


def test_mistakes_of_a_task_are_told_with_its_worker(address, tmp_path):
    def mistaken():
        raise UserError("weight at row 3 is nan")

    with pytest.raises(UserError, match=r"^worker [0-9.]+: weight at row 3 is nan$"):
        list(connect(address, 1).run([Task("t", mistaken, (tmp_path / "out",), TASK_MEMORY)]))


def test_a_full_disk_of_a_worker_looks_like_one_here(address, tmp_path):
    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        list(connect(address, 1).run([Task("t", full, (tmp_path / "out",), TASK_MEMORY)]))
    assert caught.value.errno == 28


def test_files_that_are_not_shared(address, tmp_path):
    executor = connect(address, 1)
    with pytest.raises(UserError, match=r"absent is not the same on worker .* shared file system"):
        list(executor.run([Task("t", lambda: None, (tmp_path / "absent" / "out",), TASK_MEMORY)]))
    with pytest.raises(UserError, match=r"is not the same on worker .* shared file system"):
        list(executor.run([Task("t", lambda: None, (tmp_path / "out",), TASK_MEMORY)]))


def test_no_worker_is_large_enough(address, tmp_path):
    task = Task("large", lambda: None, (tmp_path / "out",), 1 << 60)
    with pytest.raises(UserError, match=r"large takes \d+\.\d GB memory, workers have at most \d+\.\d GB"):
        list(connect(address, 1).run([task]))
    with pytest.raises(UserError, match="large takes 64 CPU, workers have at most 1"):
        list(connect(address, 64).run([task]))
    with pytest.raises(UserError, match="large takes 1 GPU, workers have at most 0"):
        list(connect(address, 1, torch.device("cuda", 1)).run([task]))


@pytest.mark.parametrize(
    ("place", "words"),
    [("cluster", "must be HOST:PORT"), ("127.0.0.1:", "must be HOST:PORT"), (None, "nobody answers there")],
)
def test_no_cluster(capsys, llama, tmp_path, place, words):
    place = place or f"127.0.0.1:{free_port()}"
    arguments = ["--model", str(llama), "--effort", "weights", "--ray", place, "-o", str(tmp_path / "o" / "m.onnx")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--ray {place}: " in line
    assert words in line
    assert list(tmp_path.iterdir()) == []
