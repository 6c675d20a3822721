"""Ctrl-C ends what takes long: within two seconds, whatever native code is doing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from skim_runtime import Session, UserError, session
from skim_runtime.interruptible import THREADS, interruptible, left_running

MOST_SECONDS = 2
TOKENS = np.arange(2, 22)


@pytest.fixture
def ctrl_c():
    """Comes after a short while."""
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()


def test_results_and_errors_come_through():
    assert interruptible(lambda: 7) == 7
    with pytest.raises(UserError, match="no"):
        interruptible(lambda: (_ for _ in ()).throw(UserError("no")))
    assert not left_running()


@pytest.mark.usefixtures("ctrl_c")
def test_a_call_that_can_be_stopped_has_ended():
    stopped = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        interruptible(stopped.wait, stopped.set)
    time.sleep(0.1)  # until its thread is gone, too
    assert not left_running()


@pytest.mark.usefixtures("ctrl_c")
def test_a_call_that_cannot_be_stopped_goes_on():
    end = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        interruptible(end.wait)
    assert left_running()
    end.set()
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join()


class Endless:
    """An onnxruntime session whose runs end only if they are told to."""

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def run_with_iobinding(self, binding, options):
        while not options.terminate:
            time.sleep(0.01)
        raise RuntimeError("terminated")


@pytest.mark.usefixtures("ctrl_c")
def test_a_long_run_ends_and_the_session_is_as_it_was(packed, monkeypatch):
    monkeypatch.setattr(session, "LONG_BYTES", 1)
    used, fresh = Session(packed), Session(packed)
    used.step(TOKENS)
    want = fresh.logits(np.concatenate([TOKENS, TOKENS]))[len(TOKENS) :]
    real = used._session
    used._session = Endless(real)
    with pytest.raises(KeyboardInterrupt):
        used.step(TOKENS)
    used._session = real
    assert used.length == len(TOKENS)
    np.testing.assert_allclose(used.step(TOKENS), want, rtol=1e-4, atol=1e-4)


def ended(code, number=signal.SIGINT):
    """Exit code and stderr of a program that is interrupted when it prints a line."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < MOST_SECONDS
    return process.returncode, err


COMMAND = "import sys; from skim_runtime.command import run_command; sys.exit(run_command('skim-x', lambda: {call}))"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_does_not_wait_for_its_threads(number, code):
    work = (
        "import time; from skim_export.calibration.workers import workers, in_order\n"
        "def work():\n"
        "    with workers(2) as pool:\n"
        "        in_order(pool, lambda _: (print('ready', flush=True), time.sleep(60)), range(1))\n"
    )
    assert ended(work + COMMAND.format(call="work()"), number) == (code, "skim-x: interrupted\n")


def test_a_call_that_lets_no_thread_run():
    work = (
        "import ctypes; from skim_runtime.interruptible import ends_at_once\n"
        "def work():\n"
        "    print('ready', flush=True)\n"
        "    with ends_at_once(): ctypes.PyDLL(None).sleep(60)\n"
    )
    assert ended(work + COMMAND.format(call="work()")) == (-signal.SIGINT, "")


def test_hashing_ends(tmp_path):
    """A file with holes, which takes no place but a long time."""
    with (tmp_path / "model.onnx.data").open("wb") as file:
        file.truncate(200 << 30)
    (tmp_path / "export.json").write_text(
        json.dumps({"files": {"model.onnx.data": {"bytes": 200 << 30, "sha256": "0" * 64}}})
    )
    verify = f"__import__('skim_runtime').verify({str(tmp_path)!r})"
    code = "print('ready', flush=True)\n" + COMMAND.format(call=verify)
    assert ended(code) == (130, "skim-x: interrupted\n")
