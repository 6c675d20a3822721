"""The rows of a table: in a JSON file that grows row by row, on the terminal, and as a plot."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import Distances

from skim_runtime.errors import UserError
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import number, say, text_table, with_error

__all__ = ["AS_DISTRIBUTED", "Results", "Row", "check_plot", "gap", "plot", "print_table"]

AS_DISTRIBUTED = "as distributed"  # no "full precision": what was distributed may have been quantized before


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        method: what was measured; `AS_DISTRIBUTED` is the model that nothing was done to.
        bits: average width of the codes that was asked for; None where a method leaves no choice.
        code_bits: the width that the codes have.
        effective_bits: everything that is stored for the quantized weights, in bits a weight.
        megabytes: the same in 10^6 bytes.
        texts: perplexity and distances by text.
        seconds: time to quantize, without calibration.
        peak_megabytes: largest resident memory of the process when it had quantized.
    """

    method: str
    bits: float | None
    code_bits: float | None
    effective_bits: float | None
    megabytes: float | None
    texts: dict[str, Distances]
    seconds: float | None = None
    peak_megabytes: float | None = None


class Results:
    """Measured rows, those of an earlier run included.

    Args:
        path: JSON file; None keeps rows in memory only.
        settings: what rows depend on beside method and bits.

    Raises:
        UserError: the file has rows of other settings or of another machine, or is something else.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.rows: list[Row] = []
        self.calibration: dict[str, float] = {}
        self._path, self._settings, self._head = path, settings, report_head()
        if path is None:
            return
        if not path.exists():
            self._write()
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            known, self.calibration = {**found["settings"], "machine": found["machine"]}, found["calibration"]
            self.rows = [
                Row(**{**row, "texts": {name: Distances(**d) for name, d in row["texts"].items()}})
                for row in found["rows"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--json {path}: is no file of this benchmark, give another name") from error
        wanted = {**settings, "machine": self._head["machine"]}
        for name in sorted(wanted.keys() | known.keys()):
            if (before := known.get(name)) != (now := wanted.get(name)):
                raise UserError(f"--json {path}: has rows with {name} {before}, not {now}; give another name")

    def find(self, method: str, bits: float | None) -> Row | None:
        """The row of a method and average, if it was measured."""
        return next((row for row in self.rows if (row.method, row.bits) == (method, bits)), None)

    def add(self, row: Row) -> None:
        """Keep a row, on disk at once."""
        self.rows.append(row)
        self._write()

    def calibrated(self, seconds: float, peak_megabytes: float) -> None:
        """Note what calibration took."""
        self.calibration = {"seconds": seconds, "peak_megabytes": peak_megabytes}
        self._write()

    def _write(self) -> None:
        value = {
            **self._head,
            "settings": self._settings,
            "calibration": self.calibration,
            "rows": [asdict(row) for row in self.rows],
        }
        save_json(self._path, value)


def gap(row: Row, full: Row, text: str) -> float:
    """Perplexity minus that of the full-precision model."""
    return row.texts[text].perplexity - full.texts[text].perplexity


def print_table(rows: list[Row], title: str, ratio_to: str | None = None) -> None:
    """Print rows, the first of which is the full-precision model.

    `ratio_to` names the method whose gap at the same bits those of the others are divided by.
    """
    full, texts = rows[0], list(rows[0].texts)
    measured = ["ppl", "gap", *([f"gap/{ratio_to}"] if ratio_to else []), "KL", "top-1"]
    of_texts = [f"{text if i == 0 else ''}\n{heading}" for text in texts for i, heading in enumerate(measured)]
    headings = ("method", "bits", "code bits", "eff. bits", "MB", *of_texts, "s", "peak MB")
    others = {row.bits: row for row in rows if row.method == ratio_to}
    lines = []
    for row in rows:
        cells = [number(row.bits, "g"), *(number(value, ".3f") for value in (row.code_bits, row.effective_bits))]
        cells.append(number(row.megabytes, ".2f"))
        for text in texts:
            found = row.texts[text]
            cells += [
                with_error(found.perplexity, found.perplexity_error),
                "" if row is full else number(gap(row, full, text), ".3f"),
            ]
            if ratio_to:
                other = others.get(row.bits)
                ratio = gap(row, full, text) / gap(other, full, text) if other and row is not full else None
                cells.append(number(ratio, ".3f"))
            cells += [number(found.kl_mean, ".4f"), number(found.top1_agreement, ".2%")]
        lines.append((row.method, *cells, number(row.seconds, ".0f"), number(row.peak_megabytes, ".0f")))
    say(text_table(headings, lines, title))


def check_plot(path: Path) -> None:
    """Find out before hours of work whether the plot can be drawn.

    Raises:
        UserError: matplotlib is missing, or does not write such files.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'skim-export[bench]'") from error
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in kinds:
        raise UserError(f"--plot {path}: the name must end in one of {', '.join('.' + kind for kind in sorted(kinds))}")


def plot(rows: list[Row], path: Path) -> None:
    """Draw perplexity over effective bits, a panel a text and a line a method; the first row is full precision."""
    from matplotlib.figure import Figure

    full, texts = rows[0], list(rows[0].texts)
    figure = Figure(figsize=(6.4 * len(texts), 4.8), layout="constrained")
    for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
        for method in dict.fromkeys(row.method for row in rows[1:]):
            points = sorted(
                (row.effective_bits or math.nan, row.texts[text].perplexity) for row in rows if row.method == method
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=method)
        axes.axhline(full.texts[text].perplexity, color="gray", linestyle=":", label=full.method)
        axes.set(title=text, xlabel="effective bits per weight", ylabel="perplexity", yscale="log")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    figure.savefig(path)
