"""Tables of docs/results.md about quality; each is made of the reports in one or several JSON files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from real_model import HEADINGS as REAL_MODEL_HEADINGS
from real_model import cells as real_model_cells
from results import AS_DISTRIBUTED

from skim_runtime.measure.tables import markdown_table, number, with_error

__all__ = ["TABLES"]

Report = dict[str, Any]
RATIO_TO = "squeezellm"
PLANNED = "skim+"  # the method that the planner knows, the default
BEFORE = "skim+:windowless,rowwise"  # without what came later


def _quality(reports: Sequence[Report]) -> str:
    """`python benchmarks quality`; the ratio is that of the gaps, where squeezellm was measured at the same bits."""
    rows, texts, full = _rows(reports)
    others = {row["bits"]: row for row in rows if row["method"] == RATIO_TO}
    lines = []
    for row in rows:
        cells = [number(row["bits"], "g"), f"`{row['method']}`" if row is not full else AS_DISTRIBUTED]
        cells += [number(row["effective_bits"], ".3f"), number(row["megabytes"], ".2f")]
        for text in texts:
            cells += _of_text(row, full, text)
            if others:
                other = others.get(row["bits"])
                cells.append(
                    "" if other is None or row is full else f"{_gap(row, full, text) / _gap(other, full, text):.3f}"
                )
        lines.append(cells)
    measured = _headings(texts, ("ratio",) if others else ())
    return markdown_table(("bits", "method", "effective bits", "MB", *measured), lines, left=2)


def _saved(reports: Sequence[Report]) -> str:
    """`python benchmarks quality`: what the default saves of the bits that `BEFORE` takes for the same divergence.

    Between two widths the logarithm of the divergence is taken to be a line.
    """
    rows, texts, _ = _rows(reports)
    before = sorted((row for row in rows if row["method"] == BEFORE), key=lambda row: row["effective_bits"])
    lines = []
    for row in (row for row in rows if row["method"] == PLANNED):
        cells = [f"{row['bits']:g}", f"{row['effective_bits']:.3f}"]
        for text in texts:
            known = [-math.log(other["texts"][text]["kl_mean"]) for other in before]
            wanted = -math.log(row["texts"][text]["kl_mean"])
            inside = known[0] <= wanted <= known[-1]
            bits = [other["effective_bits"] for other in before]
            needed = float(np.interp(wanted, known, bits)) if inside else None
            cells += [number(needed, ".3f"), number(needed and needed - row["effective_bits"], ".3f")]
        lines.append(cells)
    headings = (f"{Path(text).stem}, {what}" for text in texts for what in ("same KL before", "saved"))
    return markdown_table(("bits", "effective bits", *headings), sorted(lines), left=0)


def _planning(reports: Sequence[Report]) -> str:
    """`skim-export plan --json`, and `python benchmarks quality` at the same widths: factors on the perplexity."""
    plan, *measured = reports
    rows, texts, full = _rows(measured)
    of = {row["bits"]: row["texts"] for row in rows if row["method"] == PLANNED}
    lines = []
    for row in plan["rows"]:
        if row["bits"] in of:
            factors = [of[row["bits"]][text]["perplexity"] / full["texts"][text]["perplexity"] for text in texts]
            predicted = (f"{row['loss_increase']:.3f}", f"{row['perplexity_factor']:.3f}")
            lines.append((f"{row['bits']:g}", *predicted, *(f"{factor:.3f}" for factor in factors)))
    headings = (f"{Path(text).stem}, measured" for text in texts)
    return markdown_table(("bits", "predicted rise, nats", "predicted factor", *headings), lines)


def _quality_whole(reports: Sequence[Report]) -> str:
    """`python benchmarks quality-whole`."""
    rows, texts, full = _rows(reports)
    lines = [
        (
            row["method"],
            number(row["effective_bits"], ".3f"),
            number(row["megabytes"], ".2f"),
            *chain.from_iterable(_of_text(row, full, text) for text in texts),
        )
        for row in rows
    ]
    return markdown_table(("model", "bits of all weights", "MB", *_headings(texts)), lines)


def _rows(reports: Sequence[Report]) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """The rows of all reports, that of the model as distributed once and first; the texts; and that row."""
    rows = [row for report in reports for row in report["rows"]]
    full = next(row for row in rows if row["method"] == AS_DISTRIBUTED)
    return [full, *(row for row in rows if row["method"] != AS_DISTRIBUTED)], list(full["texts"]), full


def _headings(texts: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    return [f"{Path(text).stem} {what}" for text in texts for what in ("perplexity", "gap", "KL", "top-1", *more)]


def _of_text(row: dict[str, Any], full: dict[str, Any], text: str) -> list[str]:
    found = row["texts"][text]
    perplexity = with_error(found["perplexity"], found["perplexity_error"])
    if row is full:
        return [perplexity, "", "", ""]
    return [perplexity, f"{_gap(row, full, text):.2f}", f"{found['kl_mean']:.3f}", f"{found['top1_agreement']:.1%}"]


def _gap(row: dict[str, Any], full: dict[str, Any], text: str) -> float:
    difference: float = row["texts"][text]["perplexity"] - full["texts"][text]["perplexity"]
    return difference


def _arithmetic(reports: Sequence[Report]) -> str:
    """`python benchmarks arithmetic`."""
    lines = []
    for row in chain.from_iterable(report["rows"] for report in reports):
        found = row["evaluation"]
        exact = with_error(found["reference_perplexity"], found["reference_perplexity_error"])
        integer = with_error(found["perplexity"], found["perplexity_error"])
        agreement = f"{found['top1_agreement']:.2%}"
        lines.append(
            (Path(row["text"]).stem, exact, integer, f"{row['cost']:+.3%}", f"{found['kl_mean']:.1e}", agreement)
        )
    return markdown_table(("text", "float32", "integer", "difference", "KL", "top-1"), lines)


def _evaluations(reports: Sequence[Report]) -> str:
    """`skim-eval --json`, a line for each file; distances where there was a reference."""
    lines = [
        (
            Path(report["model"]).name,
            Path(report["text"]["name"]).stem,
            str(report["tokens"]),
            with_error(report["perplexity"], report["perplexity_error"]),
            _of_reference(report),
            number(report["kl_mean"], ".4f"),
            number(report["top1_agreement"], ".1%"),
        )
        for report in reports
    ]
    return markdown_table(("model", "text", "tokens", "perplexity", "of the reference", "KL", "top-1"), lines, left=2)


def _of_reference(report: Report) -> str:
    """The perplexity of what a model was compared with, if it was."""
    perplexity, error = report["reference_perplexity"], report["reference_perplexity_error"]
    return "" if perplexity is None else with_error(perplexity, error)


def _answers(reports: Sequence[Report]) -> str:
    """`skim-eval --choices --json`, a line for each file."""
    lines = [
        (
            Path(report["model"]).name,
            Path(report["choices"]["name"]).stem,
            str(report["questions"]),
            *(
                f"{report[kind]:.1%} ± {report[f'{kind}_error']:.1%}".replace("% ±", " ±")
                for kind in ("accuracy", "normalized_accuracy")
            ),
            *(number(report[kind], ".1%") for kind in ("reference_accuracy", "reference_normalized_accuracy")),
            number(report["agreement"], ".1%"),
        )
        for report in reports
    ]
    headings = ("right", "per character", "reference: right", "per character", "same answer")
    return markdown_table(("model", "questions of", "questions", *headings), lines, left=2)


def _real_models(reports: Sequence[Report]) -> str:
    """`python benchmarks real-model`: a line for each model and width."""
    rows = [real_model_cells(row) for report in reports for row in report["models"]]
    return markdown_table(REAL_MODEL_HEADINGS, rows)


def _summary(reports: Sequence[Report]) -> str:
    """`python benchmarks decode`, and `skim-eval --json` for models of it: size, quality and speed on one line.

    The speed is that of the most threads and the faster engine, the size that of the weights read for a token.
    """
    speeds = [row for report in reports if "rows" in report for row in report["rows"]]
    evaluations = [report for report in reports if "rows" not in report]
    threads = max(row["threads"] for row in speeds)
    texts = list(dict.fromkeys(report["text"]["name"] for report in evaluations))
    of = {(report["model"], report["text"]["name"]): report for report in evaluations}
    lines = []
    for name in dict.fromkeys(row["decoder"] for row in speeds):
        row = max(
            (s for s in speeds if (s["decoder"], s["threads"]) == (name, threads)), key=lambda s: s["decode_speed"]
        )
        found = [of.get((row["path"], text)) for text in texts]
        perplexities = [
            "" if report is None else with_error(report["perplexity"], report["perplexity_error"]) for report in found
        ]
        lines.append(
            (
                Path(name).name,
                row["engine"],
                f"{row['weight_bytes'] / 1e6:.1f}",
                *perplexities,
                f"{row['decode_speed']:.0f}",
                number(row["decode_ratio"], ".2f"),
            )
        )
    measured = [f"{Path(text).stem} perplexity" for text in texts]
    headings = ("model", "engine", "MB read a token", *measured, f"tokens/s, {threads} threads", "of int4")
    return markdown_table(headings, lines, left=2)


TABLES: Mapping[str, Callable[[Sequence[Report]], str]] = {
    "summary": _summary,
    "quality": _quality,
    "saved": _saved,
    "planning": _planning,
    "quality-whole": _quality_whole,
    "arithmetic": _arithmetic,
    "evaluations": _evaluations,
    "answers": _answers,
    "real-models": _real_models,
}
