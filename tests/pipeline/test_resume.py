"""An export that is killed, interrupted or out of disk goes on where it was, and ends with the same bytes."""

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from skim_export import export
from skim_export.pipeline import calibration_text
from skim_export.pipeline import export as pipeline
from skim_export.tuning import HELD_OUT
from skim_export.work.workplace import workplace, workplace_of
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama, tiny_mistral

EFFORTS = ("weights", "calibrated", "tuned")
SEQUENCES = 8
TUNING_SEQUENCES = HELD_OUT + 8

# Children are forked from one process that has imported everything and computed nothing. Each is killed after so many
# steps of its progress or, where the number is negative, so many milliseconds; the last may finish.
KILLER = f"""
import os, signal, sys, threading, time
from skim_export.pipeline import calibration_text
from skim_export.pipeline import export as pipeline
from skim_runtime.progress import Progress

calibration_text.SEQUENCES, calibration_text.TUNING_SEQUENCES = {SEQUENCES}, {TUNING_SEQUENCES}

class Killer(Progress):
    def __init__(self, steps):
        self.left = steps
    def step(self, done):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

model, output, calib, effort, *moments = sys.argv[1:]
for moment in map(int, moments):
    child = os.fork()
    if child == 0:
        pipeline.export(model, output, bits=3, calib=calib, effort=effort, threads=2, progress=Killer(moment))
        os._exit(0)
    if moment < 0:
        time.sleep(-moment / 1000)
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(autouse=True, scope="module")
def short_texts():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibration_text, "SEQUENCES", SEQUENCES)
        patched.setattr(calibration_text, "TUNING_SEQUENCES", TUNING_SEQUENCES)
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 60)
    return path


@pytest.fixture(scope="module")
def through(llama, calib, tmp_path_factory):
    """The files of exports that nothing interrupted, by effort."""
    directory = tmp_path_factory.mktemp("through")
    return {effort: exported(llama, calib, directory / effort, effort) for effort in EFFORTS}


def exported(llama, calib, directory, effort="calibrated", **options):
    """The hashes of the files of an export."""
    export(str(llama), directory / "model.onnx", bits=3, calib=calib, effort=effort, threads=2, **options)
    return digests(directory)


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


class Interrupt(Progress):
    """Ctrl-C in some step of a stage."""

    def __init__(self, stage, steps):
        self.wanted, self.left, self.stages = stage, steps, []

    def start(self, stage, total):
        self.stages.append(stage)

    def step(self, done):
        if self.stages[-1] == self.wanted:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def interrupted(llama, calib, directory, stage, steps, **options):
    with pytest.raises(KeyboardInterrupt):
        exported(llama, calib, directory, progress=Interrupt(stage, steps), **options)
    return workplace_of(directory).directory


@pytest.mark.slow
@pytest.mark.parametrize("effort", EFFORTS)
def test_killed_again_and_again(llama, calib, through, tmp_path, effort):
    moments = np.random.default_rng(EFFORTS.index(effort)).permutation([6, 8, 11, 14, 17, 20, 23, 26, -700])
    output = tmp_path / "out" / "model.onnx"
    result = subprocess.run(
        [sys.executable, "-c", KILLER, llama, output, calib, effort, *map(str, moments), "100000"],
        capture_output=True,
        text=True,
    )
    statuses = list(map(int, result.stdout.split()))
    assert len(statuses) == len(moments) + 1, result.stderr
    assert statuses.count(signal.SIGKILL) >= 5
    assert statuses[-1] == 0, result.stderr
    assert digests(output.parent) == through[effort]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("stage", "steps", "left"),
    [
        ("calibrating", 4, []),
        ("error curves", 2, ["calibrating"]),
        ("quantizing", 3, ["calibrating"]),
        ("writing the model", 5, ["calibrating"]),
    ],
)
def test_what_was_done_is_not_done_again(llama, calib, through, tmp_path, stage, steps, left):
    work = interrupted(llama, calib, tmp_path / "out", stage, steps)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    again = Interrupt(None, 0)
    unchanged = []

    class Watch(Interrupt):
        def finish(self):
            unchanged.extend(path for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time)

    again = Watch(None, 0)
    assert exported(llama, calib, tmp_path / "out", progress=again) == through["calibrated"]
    assert set(unchanged) == set(before)
    assert not set(left) & set(again.stages)
    assert not work.exists()


def test_damaged_files_are_made_again(llama, calib, through, tmp_path):
    work = interrupted(llama, calib, tmp_path / "out", "writing the model", 5)
    for pattern in ("packed/*mlp.up_proj.safetensors", "statistics/*o_proj.statistics", "curves/*down_proj.npy"):
        files = list(work.glob(pattern))
        assert files
        for path in files:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
    assert exported(llama, calib, tmp_path / "out") == through["calibrated"]


def test_interrupted_before_anything_is_done(llama, calib, tmp_path):
    interrupted(llama, calib, tmp_path / "out", "hashing the model", 1)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_files_are_put_into_place(llama, calib, through, tmp_path, monkeypatch):
    """In a directory that exists, the files come one by one."""
    (tmp_path / "out").mkdir()

    def half(stage, target, last):
        for path in sorted(stage.iterdir(), key=lambda path: path.name != last)[:4]:  # the model file among them
            path.replace(target / path.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "publish", half)
        with pytest.raises(KeyboardInterrupt):
            exported(llama, calib, tmp_path / "out")
    assert exported(llama, calib, tmp_path / "out") == through["calibrated"]


def test_other_options_do_not_go_on_there(llama, calib, tmp_path):
    work = interrupted(llama, calib, tmp_path / "out", "quantizing", 3)
    with pytest.raises(UserError, match=rf"{work} keeps an unfinished export with codebook int8, not float16: repeat"):
        exported(llama, calib, tmp_path / "out", codebook="float16")
    other = tiny_mistral(tmp_path / "other")
    copy = shutil.copytree(llama, tmp_path / "copy")
    shutil.copy(other / "config.json", copy / "generation_config.json")
    with pytest.raises(UserError, match="unfinished export with checkpoint"):
        exported(copy, calib, tmp_path / "out")
    assert work.exists()


def test_a_second_process_is_refused(llama, calib, tmp_path):
    with (
        workplace(tmp_path / "out", {}),
        pytest.raises(UserError, match=rf"another process is exporting to {tmp_path / 'out'}"),
    ):
        exported(llama, calib, tmp_path / "out")
    exported(llama, calib, tmp_path / "out")


@pytest.mark.parametrize("error", [UserError("a tiny mistake"), RuntimeError("a bug")])
def test_whatever_goes_wrong_what_was_done_is_kept(llama, calib, through, tmp_path, error):
    class Fail(Interrupt):
        def step(self, done):
            with contextlib.suppress(KeyboardInterrupt):
                super().step(done)
            if self.left == 0:
                raise error

    with pytest.raises(type(error)):
        exported(llama, calib, tmp_path / "out", progress=Fail("quantizing", 3))
    assert len(list((tmp_path / ".out.work" / "packed").glob("*.safetensors"))) >= 3
    second = Interrupt("none", 1)
    assert exported(llama, calib, tmp_path / "out", progress=second) == through["calibrated"]
    assert "calibrating" not in second.stages


def test_a_mistake_before_anything_is_done_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="tiny"), workplace(tmp_path / "out", {}):
        raise UserError("a tiny mistake")
    assert list(tmp_path.iterdir()) == []


def test_fresh_begins_anew(llama, calib, through, tmp_path):
    work = interrupted(llama, calib, tmp_path / "out", "quantizing", 3)
    (work / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"provenance\.json: is damaged: give --fresh"):
        exported(llama, calib, tmp_path / "out")
    (work / "provenance.json").unlink()
    with pytest.raises(UserError, match=r"\.out\.work keeps files of an unknown export: give --fresh"):
        exported(llama, calib, tmp_path / "out")
    assert exported(llama, calib, tmp_path / "out", fresh=True) == through["calibrated"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_killed_while_it_cleans_up(llama, calib, through, tmp_path, monkeypatch, seen):
    """Nothing of the export before is taken up, whatever of it was deleted until then."""
    remove = shutil.rmtree

    def killed(path, **options):
        if ".removed-" not in str(path):
            return remove(path, **options)
        for one in sorted(path.rglob("*"))[:seen]:
            if one.is_file():
                one.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("skim_export.work.workplace.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            exported(llama, calib, tmp_path / "out")
    assert shutil.rmtree is remove
    assert not (tmp_path / ".out.work").exists()
    assert exported(llama, calib, tmp_path / "other") == through["calibrated"]
    assert digests(tmp_path / "out") == through["calibrated"]
    exported(llama, calib, tmp_path / "out", force=True, effort="weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (25_000, True),
        pytest.param(1000, False, marks=pytest.mark.slow),
        pytest.param(60_000, True, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk(llama, calib, through, tmp_path, limit, kept):
    """A limit on the size of files stands in for the end of the disk: writes fail in the same places."""
    out = tmp_path / "out" / "model.onnx"
    arguments = ["--model", llama, "--bits", "3", "--effort", "weights", "--calib", calib, "-o", out, "--threads", "2"]
    # What is tried before, in a temporary directory, is not of interest here.
    code = "import sys; from skim_export.pipeline import export; export.prove = export.rehearse = lambda *_: None\n"
    command = [sys.executable, "-c", code + "from skim_export.cli.main import main; sys.exit(main())"]
    result = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert f"cannot write {out.parent}" in line
    assert ("the same command goes on there" in line) == kept
    assert not out.parent.exists()
    assert bool(list(tmp_path.iterdir())) == kept
    assert exported(llama, calib, out.parent, "weights") == through["weights"]


def test_ctrl_c(llama, tmp_path):
    out = tmp_path / "out" / "model.onnx"
    command = [sys.executable, "-c", "import sys; from skim_export.cli.main import main; sys.exit(main())"]
    process = subprocess.Popen([*command, "--model", llama, "-o", out], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.work/provenance.json")):  # the work has begun
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert not out.parent.exists()


def test_a_command_that_is_repeated_sees_that_its_work_is_done(llama, calib, through, tmp_path):
    out = tmp_path / "out"
    assert exported(llama, calib, out) == through["calibrated"]
    before = (out / "model.onnx").stat()
    report = export(str(llama), out / "model.onnx", bits=3, calib=calib, threads=1)
    assert report.found
    assert report.parts == export(str(llama), tmp_path / "other" / "model.onnx", bits=3, calib=calib, threads=2).parts
    assert (out / "model.onnx").stat() == before
    for changed in ({"codebook": "float16"}, {"bits": 2}):
        with pytest.raises(UserError, match="exists; use --force"):
            export(str(llama), out / "model.onnx", **{"bits": 3, "calib": calib, "threads": 2, **changed})
    other = tmp_path / "calib.txt"  # another text of the same name
    other.write_text(calib.read_text() + "!")
    with pytest.raises(UserError, match="exists; use --force"):
        exported(llama, other, out)
    (out / "tokenizer.json").write_text("{}")  # no longer as it was written
    with pytest.raises(UserError, match="exists; use --force"):
        exported(llama, calib, out)
    assert exported(llama, calib, out, force=True) == through["calibrated"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_directory_is_replaced_as_a_whole(llama, calib, through, tmp_path, monkeypatch, exchanges):
    """What was not of the old export stays; what was and is not of the new one goes."""
    out = tmp_path / "out"
    exported(llama, calib, out, "weights", with_library=True)
    (out / "notes.txt").write_text("mine")
    if not exchanges:
        (out / "directory").mkdir()  # can't be linked: file by file then
    inode = out.stat().st_ino
    found = exported(llama, calib, out, force=True) if exchanges else None
    if exchanges:
        assert found == {**through["calibrated"], "notes.txt": hashlib.sha256(b"mine").hexdigest()}
        assert out.stat().st_ino != inode
    else:
        export(str(llama), out / "model.onnx", bits=3, calib=calib, threads=2, force=True)
        assert through["calibrated"].items() <= digests_of_files(out).items()
        assert (out / "notes.txt").read_text() == "mine"
        assert out.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def digests_of_files(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir() if p.is_file()}
