"""What integer arithmetic costs: an exported model with accuracy level 4 against the same weights with level 0.

The graph is copied with each level; both copies use the exported weights where they lie.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from evaluated import ENOUGH_TOKENS, texts_and_warnings

from skim_runtime import Session
from skim_runtime.evaluation import Evaluation, evaluate
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.tables import number, say, text_table, with_error
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.operators import ACCURACY_LEVEL, DOMAIN, INTEGER_ACCURACY, OPERATORS
from skim_runtime.progress_bar import ProgressBar
from skim_runtime.text_file import read_text
from skim_runtime.verification import REPORT_NAME

__all__ = ["Row", "add_arguments", "run", "with_accuracy_level"]


@dataclass(frozen=True)
class Row:
    """One text.

    Attributes:
        text: name of its file.
        evaluation: of the model with integer arithmetic; the reference is the same with float32.
        cost: how much the former's perplexity is higher, a share of the latter's.
    """

    text: str
    evaluation: Evaluation
    cost: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--exported", type=Path, required=True, metavar="DIR", help="what skim-export wrote")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts to measure on")
    parser.add_argument("--tokens", type=int, default=ENOUGH_TOKENS, help="of each text (%(default)s)")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate both and print the table."""
    directory = ModelDirectory.open(args.exported)
    texts = {path: read_text(path, "--text") for path in args.text}
    facts = texts_and_warnings(args.text, args.tokens)
    rows = []
    with tempfile.TemporaryDirectory(dir=directory.path.parent) as temporary:
        integer, exact = (
            Session(with_accuracy_level(directory, Path(temporary) / str(level), level))
            for level in (INTEGER_ACCURACY, 0)
        )
        with ProgressBar() as progress:
            for path, text in texts.items():
                found = evaluate(
                    integer, text, reference=exact, context=args.context, max_tokens=args.tokens, progress=progress
                )
                assert found.reference_perplexity is not None
                rows.append(Row(path.name, found, found.perplexity / found.reference_perplexity - 1))
        kernels = [exact.kernel, integer.kernel]
    save_json(args.json, {**report_head(), **facts, "kernels": kernels, "rows": [asdict(row) for row in rows]})
    _print(rows, " against ".join(reversed(kernels)))


def with_accuracy_level(source: ModelDirectory, target: Path, level: int) -> Path:
    """A copy of an exported directory whose products have this accuracy level; its weights are linked, not copied."""
    target.mkdir()
    for file in source.path.iterdir():
        if file == source.model_file or file.name == REPORT_NAME or not file.is_file():  # that is of the source's files
            continue
        if file.name.endswith(".data"):
            os.link(file, target / file.name)
        else:
            shutil.copyfile(file, target / file.name)
    model = onnx.load(source.model_file, load_external_data=False)
    for node in model.graph.node:
        if node.domain == DOMAIN and OPERATORS[node.op_type].is_product:
            kept = [attribute for attribute in node.attribute if attribute.name != ACCURACY_LEVEL.name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(ACCURACY_LEVEL.name, level)])
    onnx.save(model, target / source.model_file.name)
    return target


def _print(rows: list[Row], title: str) -> None:
    headings = ("text", "tokens", "float32 perplexity", "integer perplexity", "cost", "KL, nats", "top-1")
    lines = []
    for row in rows:
        found = row.evaluation
        assert found.reference_perplexity is not None
        exact = with_error(found.reference_perplexity, found.reference_perplexity_error)
        integer = with_error(found.perplexity, found.perplexity_error)
        distance = (number(found.kl_mean, ".2e"), number(found.top1_agreement, ".2%"))
        lines.append((row.text, str(found.tokens), exact, integer, f"{row.cost:+.3%}", *distance))
    say(text_table(headings, lines, title))
