"""The check of a device: its plan, how steps are run, what is carried, and a rehearsal on the stand-in."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tables
import torch
from cuda_benchmark import WIDTHS
from device_check.parcels import LIST, pack, unpack
from device_check.plan import PLAN, Step
from device_check.record import DONE, Record
from device_check.runner import Runner
from device_check.steps import counters
from device_check.summary import GOALS, goal_rows, summary
from device_check.tables import TABLES
from device_check.target import REAL

from skim_runtime.errors import UserError
from skim_runtime.measure.report import report_head

from ..custom_ops.native import ROOT
from .command import BENCHMARKS, refusal

HEAD = {"commit": "abc", "stand_in": False}
MINUTES = 9


def test_the_plan_fits_its_minutes():
    assert sum(step.expected for step in PLAN) <= 60 * MINUTES
    assert all(step.expected < step.limit for step in PLAN)


def test_what_a_step_needs_comes_before_it():
    names = [step.name for step in PLAN]
    assert len(set(names)) == len(names)
    for i, step in enumerate(PLAN):
        assert set(step.needs) <= set(names[:i])
        module = BENCHMARKS / "device_check" / "steps" / f"{step.module or step.name}.py"
        assert module.is_file()


def test_goals_are_of_what_is_measured():
    assert {1, 16} <= set(REAL.decode)
    assert 2048 in REAL.prefill
    assert REAL.shapes[0] == (14336, 4096)
    assert {"3 bits", "4 bits"} <= set(REAL.widths) <= WIDTHS.keys()


class Scripted(Runner):
    """Runs a Python program for each step, in place of the benchmarks."""

    def __init__(self, directory, programs, seconds=60):
        self.programs = programs
        self.record = Record(directory, HEAD)
        super().__init__(directory, self.record, [], seconds)

    def _command(self, step):
        return [sys.executable, "-c", self.programs[step.name]]

    def statuses(self):
        return {name: step["status"] for name, step in self.record.content["steps"].items()}


def steps(*names, limit=20, needs=()):
    return [Step(name, "something", 1, limit, needs) for name in names]


def write(path, content):
    return f"import json; json.dump({content!r}, open({str(path)!r}, 'w'));"


def test_steps(tmp_path):
    programs = {
        "good": write(tmp_path / "good.json", {"a": 1}),
        "bad": write(tmp_path / "bad.json", {"part": 2}) + "raise ValueError('of no use')",
        "silent": "raise SystemExit(3)",
    }
    runner = Scripted(tmp_path, programs)
    after = [replace(steps("after")[0], needs=("bad",)), replace(steps("tooled")[0], tool=("no-such-tool",))]
    runner.run([*steps("good", "bad", "silent"), *after])
    assert runner.statuses() == {
        "good": DONE,
        "bad": "failed: ValueError: of no use",
        "silent": "failed: exit code 3",
        "after": "not run: bad is not done",
        "tooled": "not run: no-such-tool is missing",
    }
    written = json.loads((tmp_path / "record.json").read_text())
    assert written == runner.record.content
    assert written["steps"]["good"]["result"] == {"a": 1}
    assert written["steps"]["bad"]["result"] == {"part": 2}


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    child = "import time; time.sleep(60)"
    programs = {
        "hanging": write(tmp_path / "hanging.json", {"part": 1})
        + f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        + f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(60)"
    }
    started = time.monotonic()
    runner = Scripted(tmp_path, programs)
    runner.run(steps("hanging", limit=2))
    assert time.monotonic() - started < 15
    assert runner.statuses() == {"hanging": "ended after 2 s"}
    assert runner.record.result("hanging") == {"part": 1}
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):  # its parent is gone: whoever adopts it may take a moment
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            return
        time.sleep(0.1)
    raise AssertionError(state)


def test_when_the_minutes_are_over(tmp_path):
    runner = Scripted(tmp_path, {"slow": "import time; time.sleep(60)"}, seconds=2)
    runner.run([*steps("slow"), *steps("late")])
    assert runner.statuses() == {"slow": "ended after 2 s", "late": "not reached in time"}


def test_another_run_goes_on(tmp_path):
    programs = {"first": write(tmp_path / "first.json", {"run": 1}), "second": "raise SystemExit(1)"}
    Scripted(tmp_path, programs).run(steps("first", "second"))
    programs = {"first": "raise SystemExit(1)", "second": write(tmp_path / "second.json", {"run": 2})}
    again = Scripted(tmp_path, programs)
    again.run(steps("first", "second"))
    assert again.statuses() == {"first": DONE, "second": DONE}
    assert [again.record.result(name) for name in ("first", "second")] == [{"run": 1}, {"run": 2}]


def test_what_was_found_stays(tmp_path):
    """Whatever keeps a step from being done again."""
    more, less = {"rows": [1, 2, 3]}, {"rows": [1]}
    Scripted(tmp_path, {"cut": write(tmp_path / "cut.json", more) + "raise ValueError('cut')"}).run(steps("cut"))
    for again, seconds in (("raise ValueError('at once')", 60), ("", 0), (write(tmp_path / "cut.json", less), 60)):
        runner = Scripted(tmp_path, {"cut": again + "; raise ValueError('cut')"}, seconds)
        runner.run(steps("cut"))
        assert runner.record.result("cut") == more
        assert json.loads((tmp_path / "record.json").read_text())["steps"]["cut"]["result"] == more


def test_what_a_tool_says_last_is_no_reason(tmp_path):
    program = "print('error: 3 cases are wrong'); print('========= ERROR SUMMARY: 0 errors'); raise SystemExit(9)"
    runner = Scripted(tmp_path, {"checked": program})
    runner.run(steps("checked"))
    assert runner.statuses() == {"checked": "failed: error: 3 cases are wrong"}


def test_records_that_do_not_fit(tmp_path):
    Record(tmp_path, HEAD).add("machine", DONE, 1, {})
    with pytest.raises(UserError, match=r"record.json: is of commit abc, not def: name another directory"):
        Record(tmp_path, {**HEAD, "commit": "def"})
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "record.json").write_text(damaged)
        with pytest.raises(UserError, match=r"record.json: is no record"):
            Record(tmp_path, HEAD)


@pytest.fixture
def cargo(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "weights").write_bytes(os.urandom(25_000))
    (directory / "config").write_text("{}")
    (tmp_path / "some.whl").write_bytes(os.urandom(9_999))
    return [directory, tmp_path / "some.whl"]


def test_parcels(tmp_path, cargo):
    parts = pack(cargo, tmp_path / "parts", 10_000)
    assert len(parts) >= 4
    assert {part.stat().st_size for part in parts[:-1]} == {10_000}
    unpack(tmp_path / "parts", tmp_path / "out")
    for name in ("model/weights", "model/config", "some.whl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_parcels_that_are_not_whole(tmp_path, cargo):
    parts = pack(cargo, tmp_path / "parts", 10_000)
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"part.001: its SHA-256 is not that of parcels.json"):
        unpack(tmp_path / "parts", tmp_path / "out")
    parts[1].unlink()
    with pytest.raises(UserError, match=rf"1 of {len(parts)} parts are missing: part.001"):
        unpack(tmp_path / "parts", tmp_path / "out")
    (tmp_path / "parts" / LIST).unlink()
    with pytest.raises(UserError, match=r"parcels.json is missing"):
        unpack(tmp_path / "parts", tmp_path / "out")


RAW = """==PROF== Connected to process 1
==PROF== Profiling "DecodeKernel": 0%....100% - 44 passes
"ID","Kernel Name","Block Size","gpu__time_duration.sum","gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"
"","","","ns","%","inst","inst",""
"0","DecodeKernel","(256, 1, 1)","12,345","81.5","3.25","0.5","77"
"""


def test_counters():
    found = counters.read_counters(RAW.splitlines())
    assert found["gpu__time_duration.sum"] == 12345
    assert "Kernel Name" not in found
    assert counters.headline(found) == {
        "share of the memory's bandwidth, %": 81.5,
        "bank conflicts of shared memory": 77,
        "stalled: long_scoreboard": 3.25,
        "stalled: barrier": 0.5,
    }
    assert counters.read_counters(["==ERROR== No metrics"]) == {}


def row(contender, tokens, microseconds, share=0.5, shape="14336x4096"):
    return {
        "shape": shape,
        "contender": contender,
        "tokens": tokens,
        "microseconds": microseconds,
        "bandwidth_share": share,
    }


def test_the_slowest_are_profiled():
    rows = [row("2 bits", 1, 1, 0.4), row("3 bits", 1, 1, 0.3), row("3 bits", 1, 1, 0.2, "4096x4096")]
    rows += [row("4 bits", 1, 1, 0.9), row("6 bits", 1, 1, 0.8), row("6 bits", 2, 1, 0.1)]
    rows += [row("cuBLAS float16", 1, 1, 0.1), row("MatMulNBits 4 bits", 1, 1, 0.1)]
    assert [found["bandwidth_share"] for found in counters.slowest(rows)] == [0.2, 0.4, 0.8]


def test_goals():
    record = {
        "stand_in": False,
        "steps": {
            "decode": {
                "seconds": 80.0,
                "status": "ended after 80 s",
                "result": {"rows": [row("3 bits", 1, 10, 0.85), row("cuBLAS float16", 1, 30), row("3 bits", 16, 13)]},
            },
            "prefill": {
                "seconds": 40.0,
                "status": DONE,
                "result": {"rows": [row("3 bits", 2048, 400), row("cuBLAS float16", 2048, 350)]},
            },
            "quantize": {"seconds": 3.0, "status": "failed: nothing", "result": {"seconds": [4.5, 2.5]}},
        },
    }
    assert [goal.measured(record) for goal in GOALS] == [0.85, 3.0, 1.3, 0.875, None, 2.5]
    assert [row[-1] for row in goal_rows(record)] == ["yes", "no", "yes", "yes", "", "yes"]
    assert [row[-2] for row in goal_rows(record)][-2:] == ["not measured", "2.5"]
    assert "at least 0.8" in summary(record)
    assert "at least 0.8" not in summary({**record, "stand_in": True})
    assert all(goal.measured({"steps": {}}) is None for goal in GOALS)


def test_tables_of_a_record(tmp_path):
    rows = [row("3 bits", 1, 10.25, 0.85) | {"to_cublas": 3.0}, row("cuBLAS float16", 1, 30) | {"to_cublas": 1.0}]
    facts = {"name": "G100", "nvidia-smi": {"driver_version": "580.1", "clocks.max.sm": "1980 MHz"}}
    results = {
        "machine": {"device": facts},
        "decode": {"rows": rows, "bandwidth": {"bytes_per_second": 4e12, "way": "torch.sum"}},
        "prefill": {"rows": [row("3 bits", 2048, 400) | {"to_cublas": 0.9}]},
    }
    written = {name: {"status": DONE, "seconds": 1.0, "result": result} for name, result in results.items()}
    (tmp_path / "record.json").write_text(json.dumps({**report_head(), **HEAD, "steps": written}))
    page = "\n".join(f"<!-- table: {name} record.json -->\n<!-- end -->" for name in TABLES)
    text = tables.rewritten(page, tmp_path)
    assert "| 14336x4096, 3 bits         |          85% | 10.2 (3.00) | 400.0 (0.90) |" in text
    assert "On G100, driver 580.1, up to 1980 MHz, commit abc, " in text
    assert "| prefill |       1 |" in text
    assert "| at least 0.8 |         0.85 | yes |" in text


def device_check(*arguments, **environment):
    command = [sys.executable, str(BENCHMARKS), "device-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_refusals(tmp_path):
    assert "--minutes 0.0: must be at least 1" in refusal("device-check", "--minutes", "0")
    assert "--only" in device_check("--only", "nothing").stderr
    if not torch.cuda.is_available():
        assert "no GPU: torch" in refusal("device-check")


@pytest.mark.slow
def test_a_short_rehearsal(tmp_path):
    done = device_check("--stand-in", "--output", tmp_path, "--only", "machine", "build", "grid")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert {name: step["status"] for name, step in record["steps"].items()} == dict.fromkeys(
        ("machine", "build", "grid"), DONE
    )
    assert record["steps"]["grid"]["result"]["cases"] > 10


TOOLS = {
    "compute-sanitizer": '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do\n'
    "case $1 in --error-exitcode|--print-limit|--report-api-errors|--tool) shift;; esac\nshift\ndone\n"
    '"$@"\n',
    "ncu": f"""#!{sys.executable}
import subprocess, sys
at = sys.argv.index("--log-file")
open(sys.argv[at + 1], "w").write({RAW!r})
sys.exit(subprocess.run(sys.argv[at + 2:]).returncode)
""",
}


@pytest.fixture
def bare(tmp_path):
    """A source tree without git, and a Python in which nothing of it is installed."""
    tree, site = tmp_path / "tree", tmp_path / "site"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    site.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("skim", "_", "matplotlib")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "python"], check=True)
    return tree, tmp_path / "python/bin/python", os.pathsep.join([".", "runtime", str(site)])


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path, bare):
    tree, python, path = bare
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    pack([tools], tmp_path / "parts", 1000)
    options = ["--stand-in", "--output", tmp_path / "out", "--parts", tmp_path / "parts", "--commit", "abc"]
    done = subprocess.run(
        [python, "benchmarks", "device-check", *options],
        cwd=tree,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["commit"] == "abc"
    assert {name: step["status"] for name, step in record["steps"].items()} == {step.name: DONE for step in PLAN}
    assert len(record["steps"]["counters"]["result"]["rows"]) == counters.COUNT
    for name in ("small_model", "large_model", "bfloat16_model"):
        assert all(0 < error < 0.01 for error in record["steps"][name]["result"]["errors"].values())
