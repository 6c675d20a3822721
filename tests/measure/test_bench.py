"""Measuring and tuning kernels, on tiny shapes: what is measured is right; how long it takes is no matter here."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from skim_export.bundle.schedule import Prefill, Schedule, Tile
from skim_export.bundle.target import load_cpu_target, target_names
from skim_export.bundle.target_file import target_file
from skim_export.cli import bench
from skim_export.cli import main as cli
from skim_export.measure.running.layers import Layers, parse_classes, random_layer

from ..tools import require, require_packages

TARGET = "x86-avx2"
QUICK = ["--shape", "24x352", "--cold-mb", "0.02", "--bits", "3", "8-affine"]


@pytest.fixture(autouse=True)
def tvm():
    require_packages("tvm")


@pytest.fixture
def here():
    missing = load_cpu_target(TARGET).missing_here()
    if missing:
        pytest.skip(f"target {TARGET}: {missing}")


def refusal(capsys, main, *arguments):
    """The one line on stderr of a command that must exit with code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    return line


def measured(path, *arguments):
    """What skim-bench wrote to a JSON file."""
    assert bench.main([str(argument) for argument in (*arguments, "--json", path)]) == 0
    return json.loads(path.read_text())


def check_rows(rows, tokens):
    assert [(row["rows"], row["tokens"], row["arithmetic"]) for row in rows] == [
        (rows, m, arithmetic)
        for rows in ("table3_int8", "affine8")
        for m in tokens
        for arithmetic in ("float", "integer")
    ]
    for row in rows:
        assert row["milliseconds"] >= row["fastest"] > 0
        assert row["error"] < (1e-4 if row["arithmetic"] == "integer" else 1e-5)
        seconds = row["milliseconds"] / 1e3
        assert row["gigaweights_per_second"] == pytest.approx(24 * 352 / seconds / 1e9)
        assert row["gigabytes_per_second"] == pytest.approx(row["nbytes"] / seconds / 1e9)
        assert row["gigaflops"] == pytest.approx(2 * row["tokens"] * 24 * 352 / seconds / 1e9)
        assert row["copies"] == (-(-20_000 // row["nbytes"]) if row["tokens"] < 32 else 1)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kernels_here(here, tmp_path, capsys, threads):
    options = ["--tokens", 1, 5, 40, "--rounds", 2, "--seconds", 0.001, "--threads", threads]
    report = measured(tmp_path / "a.json", "--target", TARGET, *QUICK, *options)
    check_rows(report["rows"], (1, 5, 40))
    for row in report["rows"]:
        assert row["threads"] == threads
        assert row["to_operator"] == pytest.approx(row["operator_milliseconds"] / row["milliseconds"])
        assert row["to_numpy"] == pytest.approx(row["numpy_milliseconds"] / row["milliseconds"])
    assert report["where"] == "here"
    assert report["not_measured"] == []
    printed = capsys.readouterr().out
    for text in ("24x352, 40 tokens", "Gweights/s", "table3_int8", "operator ms", f"target {TARGET}"):
        assert text in printed


SLOW_TARGETS = [pytest.param(name, marks=pytest.mark.slow) for name in ("armv7", "riscv64")]


@pytest.mark.parametrize("target", ["rpi5", *SLOW_TARGETS])
def test_instructions_under_an_emulator(tmp_path, capsys, target):
    loaded = load_cpu_target(target)
    if loaded.missing_here() is None:
        pytest.skip("it is this machine")
    require(loaded.emulator[0], loaded.compiler_name)
    report = measured(tmp_path / "a.json", "--target", target, *QUICK, "--tokens", 1, 5)
    counts = {(c["rows"], c["tokens"], c["arithmetic"]): c for c in report["counts"]}
    assert len(counts) == 2 * 2 * 2
    for (rows, tokens, arithmetic), count in counts.items():
        assert count["error"] < (1e-4 if arithmetic == "integer" else 1e-5)
        assert 0.1 < count["instructions_per_weight"] < 200
        assert tokens == 1 or count["instructions_per_weight"] > counts[rows, 1, arithmetic]["instructions_per_weight"]
    assert "times: it is for" in capsys.readouterr().out
    assert "times" in report["not_measured"][0]


def test_a_model_beside_onnxruntime(here, tiny, tmp_path, capsys):
    require("make")
    model = tiny("llama").path
    options = ["--prompt", 20, "--new", 6, "--rounds", 1]
    report = measured(tmp_path / "a.json", "--target", TARGET, "--model", model, *options)
    program, onnxruntime = report["rows"]
    assert program["tokens"] == onnxruntime["tokens"]
    assert len(program["tokens"]) == 6
    for row in report["rows"]:
        assert all(row[key] > 0 for key in ("prompt_speed", "decode_speed", "peak_megabytes", "weight_megabytes"))
    assert "the first 6 of 6 new tokens are the same" in capsys.readouterr().out


def test_a_bundle_alone(here, tiny, tmp_path, capsys):
    require("make")
    assert cli.main(["bundle", str(tiny("llama").path), "--target", TARGET, "-o", str(tmp_path / "bundle")]) == 0
    report = measured(tmp_path / "a.json", "--bundle", tmp_path / "bundle", "--rounds", 1, "--new", 3)
    assert report["target"] == TARGET
    assert len(report["rows"]) == 1
    (tmp_path / "bundle" / "skim_run").unlink()
    capsys.readouterr()
    assert "is not compiled; run make there" in refusal(capsys, bench.main, "--bundle", tmp_path / "bundle")
    assert "is no bundle" in refusal(capsys, bench.main, "--bundle", tmp_path)


@pytest.fixture
def few_candidates(monkeypatch):
    from skim_export.measure import tune

    roles = {
        name: replace(role, tokens=(1,) if name == "decode" else (4,), values={"rows": [1, 2]})
        for name, role in tune.ROLES.items()
    }
    monkeypatch.setattr(tune, "ROLES", roles)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(tune, "KERNEL_SECONDS", 0.001)
    monkeypatch.setattr(tune, "PASSES", 1)
    monkeypatch.setattr(tune, "CROSSOVERS", [2])


@pytest.mark.slow
def test_tuning_here(here, few_candidates, tmp_path, capsys):
    output = tmp_path / "own.toml"
    assert cli.main(["tune-kernels", "--target", TARGET, *QUICK, "--bits", "3", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    for text in ("table3_int8", "integer", "decode", "batch", "prefill", "least_tokens=", "GFLOP/s"):
        assert text in printed
    tuned, before = load_cpu_target(str(output)), load_cpu_target(TARGET)
    assert tuned.name == "own"
    assert replace(tuned, name=TARGET, schedule=before.schedule, overrides=before.overrides) == before


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def board():
    """The address of a tracker that knows a board, which is this machine, as `loopback`."""
    require_packages("tornado", "cloudpickle")  # TVM's RPC tracker does
    from tvm import rpc

    tracker, server = free_port(), free_port()
    address = f"127.0.0.1:{tracker}"
    options = ["--host", "127.0.0.1", "--port"]
    run = [sys.executable, "-m"]
    commands = [
        [*run, "tvm.exec.rpc_tracker", *options, str(tracker), "--port-end", str(tracker + 1)],
        [*run, "tvm.exec.rpc_server", *options, str(server), "--port-end", str(server + 1)],
    ]
    commands[1] += ["--tracker", address, "--key", "loopback"]
    environment = {**os.environ, "TVM_BIND_THREADS": "0"}
    # Each is a session of its own: they start workers, which have to be ended with them.
    own = {"stderr": subprocess.DEVNULL, "start_new_session": True}
    processes = [subprocess.Popen(commands[0], **own)]
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", tracker), 1).close())
        processes.append(subprocess.Popen(commands[1], env=environment, **own))
        connected = rpc.connect_tracker("127.0.0.1", tracker)
        wait_for(lambda: connected.summary()["queue_info"]["loopback"])
        yield address
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


def wait_for(action, seconds=30):
    """Try again and again until it raises nothing."""
    end = time.monotonic() + seconds
    while True:
        try:
            return action()
        except (OSError, KeyError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.mark.slow
def test_a_board(here, board, few_candidates, tmp_path, capsys):
    where = ["--target", TARGET, "--rpc", board, "--rpc-key", "loopback"]
    options = ["--tokens", 1, 40, "--rounds", 1, "--seconds", 0.001]
    report = measured(tmp_path / "a.json", *where, *QUICK, *options)
    check_rows(report["rows"], (1, 40))
    assert all(row["to_operator"] is row["to_numpy"] is None for row in report["rows"])
    assert report["where"] == "loopback, by RPC"
    assert "only measured on this machine" in report["not_measured"][0]
    output = tmp_path / "own.toml"
    assert cli.main(["tune-kernels", *where, *QUICK, "--bits", "3", "-o", str(output)]) == 0
    assert "loopback, by RPC" in output.read_text().splitlines()[0]
    load_cpu_target(str(output))
    capsys.readouterr()
    expected = f"--rpc-key other: the tracker at {board} knows loopback"
    assert expected in refusal(capsys, bench.main, *where[:-1], "other", *QUICK)


@pytest.mark.parametrize("name", target_names("cpu"))
def test_targets_as_files(tmp_path, name):
    target = load_cpu_target(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(target_file(target, "a comment"))
    assert load_cpu_target(str(path)) == target


def test_overrides_say_what_was_found():
    from skim_export.measure.tune import Finding, overrides

    base = Schedule(Tile(1, 32, 32, 1), Tile(2, 32, 8, 4), Prefill(4, 1024, 32, 8, 3, 16))
    wide = replace(base, decode=replace(base.decode, rows=2))
    narrow = replace(wide, batch=replace(base.batch, vector=16, rows=1))
    table3, table5, table6, affine6 = parse_classes(["3", "5", "6", "6-affine"])
    found = {
        (table3, False): base,
        (table5, False): wide,
        (table6, False): wide,
        (affine6, False): base,
        (table3, True): narrow,
        (table5, True): narrow,
        (table6, True): base,
        (affine6, True): wide,
    }
    schedule, changes = overrides([Finding(*key, found[key], {}, 1, 1) for key in found])
    target = replace(load_cpu_target(TARGET), schedule=schedule, overrides=changes)
    for (row_class, integer), expected in found.items():
        assert target.schedule_for(row_class, integer, 10, 20) == expected
    assert len(changes) < len(found)
    assert changes[0].when == {"arithmetic": "float", "kind": "table", "bits": [5, 6]}


def test_a_wrong_product_is_noticed():
    random = np.random.default_rng(0)
    (row_class,) = parse_classes(["3"])
    layers = Layers.of([random_layer(random, row_class, 8, 64) for _ in range(2)], row_class)
    x = random.standard_normal((2, 64)).astype(np.float32)
    rows, weight = layers.sample
    y = np.empty((2, 8), np.float32)
    y[:, rows] = x @ weight.T
    assert layers.check("kernel", False, x, y) < 1e-6
    for wrong in (1e-3 * np.abs(y).max(), np.nan):
        changed = y.copy()
        changed[1, 3] += wrong
        with pytest.raises(RuntimeError, match="kernel: off by"):
            layers.check("kernel", False, x, changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "rpi6"], "--target rpi6: unknown target; did you mean rpi"),
        (["--target", TARGET, "--shape", "64"], "--shape 64: must be rows and columns"),
        (["--target", TARGET, "--shape", "64x100"], "--shape 64x100: columns must be a multiple of 32"),
        (["--target", TARGET, "--bits", "9"], "--bits 9: must be 1 to 8, or 1-affine to 8-affine"),
        (["--target", TARGET, "--cold-mb", "0"], "--cold-mb 0.0: must be positive"),
        (["--target", TARGET, "--rpc", "nowhere"], "--rpc nowhere: must be HOST:PORT"),
        (["--target", TARGET, "--rpc", "127.0.0.1:1"], "--rpc 127.0.0.1:1: there is no tracker"),
        (["--target", TARGET, "--rpc-key", "a"], "--rpc-key a: needs --rpc"),
    ],
)
def test_refusals(here, capsys, options, message):
    for main, first in ((bench.main, []), (cli.main, ["tune-kernels"])):
        assert message in refusal(capsys, main, *first, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", TARGET, "--tokens", "0"], "--tokens 0: must be at least 1"),
        (["--target", TARGET, "--threads", "0"], "--threads 0: must be at least 1"),
        (["--target", TARGET, "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--target", TARGET, "--seconds", "0"], "--seconds 0.0: must be positive"),
        (["--target", TARGET, "--json", "/missing/a.json"], "--json /missing/a.json: cannot be written"),
    ],
)
def test_refusals_of_skim_bench(capsys, options, message):
    assert message in refusal(capsys, bench.main, *options)


def test_refusals_of_tuning(here, capsys, tmp_path):
    tuning = ["tune-kernels", "--target"]
    assert "must be a .toml file" in refusal(capsys, cli.main, *tuning, TARGET, "-o", tmp_path / "a.txt")
    assert "must be a .toml file" in refusal(capsys, cli.main, *tuning, TARGET, "-o", tmp_path / "missing" / "a.toml")
    if load_cpu_target("rpi5").missing_here() and shutil.which("gcc"):
        message = "target rpi5 does not run here: it is for aarch64"
        assert message in refusal(capsys, cli.main, *tuning, "rpi5", "-o", tmp_path / "a.toml")
