"""Nsight Compute's counters of the decoders that are furthest from the speed of memory."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from device_check.plan import PROFILER
from device_check.work import Work
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say

__all__ = ["headline", "read_counters", "run", "slowest"]

BENCHMARKS = Path(__file__).resolve().parents[2]
COUNT = 3
# What the headline tells of all counters: the first that a pattern finds. Names differ between versions.
HEADLINE = {
    "share of the memory's bandwidth, %": r"dram_+throughput.*pct_of_peak_sustained_elapsed",
    "share of issue slots, %": r"(issue_active|inst_issued)\.avg\.pct_of_peak_sustained_active",
    "instructions issued a clock and scheduler": r"smsp__issue_active\.avg\.per_cycle_active",
    "active warps, %": r"sm__warps_active\.avg\.pct_of_peak_sustained_active",
    "bank conflicts of shared memory": r"bank_conflicts_pipe_lsu_mem_shared\.sum",
}
STALL = re.compile(r"issue_stalled_(\w+?)_per_issue_active\.ratio")
STALLS = 4  # reasons that the headline tells


def run(work: Work) -> None:
    """Profile the slowest.

    Raises:
        UserError: the profiler is missing, or gives no counters for a layer.
    """
    if shutil.which(PROFILER[0]) is None:
        raise UserError(f"{PROFILER[0]} is missing")
    found: list[dict[str, Any]] = []
    rows = slowest(work.record.result("decode").get("rows", []))
    if not rows:
        raise UserError("decode has found nothing: which are the slowest?")
    for row in rows:
        log = work.directory / "counters.csv"
        log.unlink(missing_ok=True)
        product = ["product", "--shape", row["shape"], "--width", row["contender"], "--tokens", str(row["tokens"])]
        product += ["--stand-in"] if work.target.stand_in else []
        command = [*PROFILER, "--log-file", str(log), sys.executable, str(BENCHMARKS), *product]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = log.read_text("utf-8", "replace") if log.exists() else ""
        say(" ".join(command), done.stdout + done.stderr, text)
        counters = read_counters(text.splitlines())
        of_row = {key: row[key] for key in ("shape", "contender", "tokens", "bandwidth_share")}
        found.append({**of_row, "headline": headline(counters), "counters": counters})
        work.save({"rows": found})
    if without := [f"{row['shape']}, {row['contender']}" for row in found if not row["counters"]]:
        raise UserError(f"{PROFILER[0]} gives no counters for {' and '.join(without)}: see the log")


def slowest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of packed weights with one token whose share of the bandwidth is the least, each width once."""
    of_width: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["tokens"] == 1 and "bit" in row["contender"] and "MatMulNBits" not in row["contender"]:
            best = of_width.setdefault(row["contender"], row)
            if row["bandwidth_share"] < best["bandwidth_share"]:
                of_width[row["contender"]] = row
    return sorted(of_width.values(), key=lambda row: float(row["bandwidth_share"]))[:COUNT]


def read_counters(lines: Iterable[str]) -> dict[str, float]:
    """The counters of the last kernel in what `ncu --csv --page raw` prints: names, units, then a line a kernel."""
    table = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(table) < 3:
        return {}
    counters = {}
    for name, text in zip(table[0], table[-1], strict=False):
        try:
            counters[name] = float(text.replace(",", ""))
        except ValueError:  # names of kernels and the like
            continue
    return counters


def headline(counters: Mapping[str, float]) -> dict[str, float]:
    """The few counters that tell most, and what warps waited for most: warps waiting for each instruction issued."""
    found: dict[str, float] = {}
    for what, pattern in HEADLINE.items():
        name = next((name for name in counters if re.search(pattern, name)), None)
        if name is not None:
            found[what] = counters[name]
    stalls = {match[1]: value for name, value in counters.items() if (match := STALL.search(name))}
    for reason in sorted(stalls, key=lambda reason: -stalls[reason])[:STALLS]:
        found[f"stalled: {reason}"] = stalls[reason]
    return found
