"""What measurements share, and `skim-bench` of a model."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from skim_runtime import Session, extensions
from skim_runtime.errors import UserError
from skim_runtime.measure import bandwidth, cli, report, tables
from skim_runtime.measure.child import in_child, peak_megabytes
from skim_runtime.measure.decoding import random_prompt
from skim_runtime.measure.model import measure_model
from skim_runtime.measure.options import at_least, parse_shape
from skim_runtime.measure.rounds import mean_seconds, take_turns
from skim_runtime.progress import Progress
from skim_runtime.progress_bar import ProgressBar

ROOT = Path(__file__).parents[2]


def test_shapes():
    assert parse_shape("14336x4096") == (14336, 4096)
    for shape in ("4096", "0x4096", "4096x", "4096x-1", "axb", "4096X4096"):
        with pytest.raises(UserError, match=f"--shapes {shape}: must be rows and columns"):
            parse_shape(shape)
    assert parse_shape("3x96", 32) == (3, 96)
    with pytest.raises(UserError, match="--shapes 3x100: columns must be a multiple of 32"):
        parse_shape("3x100", 32)


def test_least_values():
    at_least("--rounds", 1, 1, 2)
    with pytest.raises(UserError, match="--rounds 0: must be at least 1"):
        at_least("--rounds", 1, 2, 0)


def test_contenders_take_turns():
    calls, ends = [], []

    def contender(name):
        return lambda: (calls.append(name), len(calls))[1]

    found = take_turns(
        {name: contender(name) for name in "ab"},
        3,
        Progress(),
        after_round=lambda found: ends.append({name: list(of) for name, of in found.items()}),
    )
    assert calls == list("ababab")
    assert found == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert ends == [{"a": [1], "b": [2]}, {"a": [1, 3], "b": [2, 4]}, found]


def test_a_mean_is_over_calls_after_the_first(monkeypatch):
    now = 0.0

    def call():
        nonlocal now
        now += 5.0 if now == 0 else 1.0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert mean_seconds(call, 5.5) == 1.0
    now = 0.0
    assert mean_seconds(call, 5.0) == 5.0  # long enough by itself


def test_a_child_gets_a_progress_and_gives_a_result():
    assert in_child(isinstance, ProgressBar)


def test_errors_of_a_child_arrive():
    with pytest.raises(AttributeError, match="nothing"):
        in_child(getattr, "nothing")


def test_peak_outlives_what_was_freed():
    block = np.ones(30_000_000)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert resident > block.nbytes / 1e6
    del block
    assert resident * 0.99 < peak_megabytes() < resident + 4000


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_the_best_reading(threads):
    found = {way: read() for way, read in bandwidth.readers(threads, 1 << 20, seconds=0.001).items()}
    assert len(found) == len(bandwidth.WAYS)
    best = bandwidth.best_reading({way: [speed / 2, speed] for way, speed in found.items()})
    assert best.bytes_per_second == max(found.values()) == found[best.way]
    assert 1e7 < best.bytes_per_second < 1e13
    assert bandwidth.faster(None, best) is best
    assert bandwidth.faster(bandwidth.Bandwidth(1.0, "slowly"), best) is best


def test_a_report_begins_with_where_and_when(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks"), "decode", "--exported", "a b"])
    head = json.loads(json.dumps(report.report_head()))
    assert head["command"] == "python benchmarks decode --exported 'a b'"
    assert head["machine"]["cores"] >= 1
    assert head["machine"]["processor"]
    assert 1 << 10 < head["machine"]["last_level_cache"] < 1 << 40
    assert "onnxruntime" in head["versions"]
    if (ROOT / ".git").exists():
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        assert head["commit"].removesuffix("-dirty") == commit


def test_json_that_cannot_be_written(tmp_path):
    report.save_json(None, {})
    report.save_json(tmp_path / "a.json", {"rows": []})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": []}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UserError, match=r"--json .*b.json: cannot be written"):
        report.save_json(tmp_path / "missing" / "b.json", {})


def test_tables_are_aligned():
    rows = [("one", "1", "x"), ("eleven", "11", "")]
    assert tables.text_table(("name", "in\nall", "c"), rows, "Title").splitlines() == [
        "Title",
        "         in",
        "name    all  c",
        "one       1  x",
        "eleven   11",
    ]
    assert tables.markdown_table(("name", "all", "c"), rows).splitlines() == [
        "| name   | all |   c |",
        "| ------ | --: | --: |",
        "| one    |   1 |   x |",
        "| eleven |  11 |     |",
    ]


def test_a_model(packed_integer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("skim_runtime.measure.model.last_level_cache", lambda: 1 << 18)
    options = ["--prompt", "20", "--new", "6", "--rounds", "1", "--threads", "2"]
    assert cli.main(["--model", str(packed_integer), *options, "--json", str(tmp_path / "a.json")]) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    session = Session(packed_integer)
    assert (row["kernel"], row["weight_bytes"], row["threads"]) == (session.kernel, session.weight_bytes, 2)
    assert row["gigabytes_per_second"] == pytest.approx(row["weight_bytes"] * row["decode_speed"] / 1e9)
    share = 1e9 * row["gigabytes_per_second"] / row["bandwidth"]["bytes_per_second"]
    assert row["bandwidth_share"] == pytest.approx(share)
    assert row["prompt_speed"] > 0
    assert 10 < row["peak_megabytes"] < 10_000
    printed = capsys.readouterr().out
    for text in ("decode tokens/s", "of bandwidth", "memory alone: ", "integer arithmetic", "prompt of 20 tokens"):
        assert text in printed


def test_prompts_are_tokens_of_the_model(packed):
    prompt = random_prompt(packed, 500)
    assert prompt == random_prompt(packed, 500)
    assert 0 <= min(prompt) < 10
    assert 310 < max(prompt) < 320  # the size of the vocabulary
    with pytest.raises(UserError, match=r"genai_config\.json is missing"):
        random_prompt(packed / "nowhere", 1)


def test_a_prompt_that_does_not_fit(packed):
    with pytest.raises(UserError, match="context only 512"):
        measure_model(packed, 1, 600, 2, 1, Progress())


def refusal(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to measure: give --model DIR, --target or --bundle DIR"),
        (["--model", "/missing"], "/missing: not a directory"),
        (["--model", ".", "--threads", "0"], "--threads 0: must be at least 1"),
        (["--model", ".", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--model", ".", "--prompt", "0"], "--prompt 0: must be at least 1"),
        (["--model", ".", "--new", "1"], "--new 1: must be at least 2"),
        (["--model", ".", "--json", "/missing/a.json"], "--json /missing/a.json: cannot be written"),
    ],
)
def test_refusals(capsys, options, message):
    assert message in refusal(capsys, *options)


@pytest.mark.parametrize(
    "options", [["--target", "rpi5"], ["--model", "a", "--bundle=b"], ["--targ", "rpi5", "--help"]]
)
def test_devices_are_for_skim_export(capsys, monkeypatch, options):
    monkeypatch.setattr(extensions, "entry_points", lambda **wanted: ())
    option = "--bundle" if "--bundle=b" in options else "--target"
    line = f"skim-bench: error: skim-bench {option} needs the package skim-export, which is not installed"
    assert refusal(capsys, *options) == line

    class EntryPoint:
        def load(self):
            return lambda arguments: 7 if arguments == options else 8

    monkeypatch.setattr(
        extensions, "entry_points", lambda **wanted: [EntryPoint()] if wanted["name"] == "bench" else []
    )
    assert cli.main(options) == 7


def test_skim_export_declares_what_it_adds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["skim_runtime.extensions"]["bench"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from skim_runtime.measure import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*{'numpy', 'onnx', 'onnxruntime', 'torch', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: skim-bench" in done.stdout
    assert done.stderr.strip() == ""
