"""Tokens per second of a whole model: prompt and greedy decoding, ours beside onnxruntime-genai's own and llama.cpp.

Every run is a process of its own that loads the model, warms up with a few tokens and is gone before the next one
starts: nothing of one contender is left to disturb another. Contenders take turns, so that a busy minute of the machine
hits all of them; what is printed are medians over the rounds.

The prompt is random tokens, and generation goes on after an end-of-text token. Every engine decodes greedily, one token
at a time; in ours and onnxruntime-genai the largest logit is found by numpy. GB/s are the matrices' bytes, read once a
token, times the speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from decoders import GENAI_EXPORTS, check_llama, genai_export, recipe_ggufs
from engines import Decoder, Speeds, measure, weight_bytes

from skim_export.checkpoint import resolve
from skim_runtime.errors import UserError
from skim_runtime.measure.child import in_child
from skim_runtime.measure.options import at_least
from skim_runtime.measure.report import report_head, save_json
from skim_runtime.measure.rounds import take_turns
from skim_runtime.measure.tables import number, say, text_table
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress_bar import ProgressBar

__all__ = ["Row", "add_arguments", "run"]

BASELINE = "onnxruntime-genai int4"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        decoder: name of what was measured.
        engine: what ran it.
        path: directory of the model, or its file.
        kernel: what multiplied packed weights, None with llama.cpp.
        threads: threads of the engine.
        weight_bytes: bytes of weights read for each token.
        prompt_speed: prompt tokens per second, median over the rounds.
        decode_speed: new tokens after the first per second, median over the rounds.
        prompt_ratio: the former over that of onnxruntime-genai's int4 export.
        decode_ratio: the latter over that of onnxruntime-genai's int4 export.
        gigabytes_per_second: of weights, while decoding.
        runs: what each round found.
    """

    decoder: str
    engine: str
    path: str
    kernel: str | None
    threads: int
    weight_bytes: int
    prompt_speed: float
    decode_speed: float
    prompt_ratio: float | None
    decode_ratio: float | None
    gigabytes_per_second: float
    runs: list[Speeds]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", default="smollm2-135m", help="checkpoint of all contenders (%(default)s)")
    parser.add_argument("--exported", nargs="+", type=Path, default=[], metavar="DIR", help="what skim-export wrote")
    parser.add_argument(
        "--genai", nargs="*", choices=GENAI_EXPORTS, default=list(GENAI_EXPORTS), help="its own exports; default: both"
    )
    parser.add_argument(
        "--gguf", nargs="*", type=Path, metavar="FILE", help="run llama.cpp; without a FILE on what the recipe has"
    )
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of the prompt (%(default)s)")
    parser.add_argument("--new", type=int, default=128, metavar="N", help="tokens to generate (%(default)s)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T", help="default: 1 2")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/decode"), metavar="DIR", help="keeps other exports (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file, after each round")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    at_least("--prompt", 1, args.prompt)
    at_least("--new", 2, args.new)
    at_least("--threads", 1, *args.threads)
    at_least("--rounds", 1, args.rounds)
    for directory in args.exported:
        ModelDirectory.open(directory)
    for file in args.gguf or []:
        if not file.is_file():
            raise UserError(f"--gguf {file}: no such file")
    if args.gguf is not None:
        check_llama()
    if not args.exported and not args.genai and args.gguf is None:
        raise UserError("nothing to measure: give --exported DIR, --genai or --gguf")
    threads = list(dict.fromkeys(args.threads))

    with ProgressBar() as progress:
        checkpoint = resolve(args.model, progress=progress)
        decoders = _decoders(args, checkpoint, progress)
    vocabulary = int(json.loads((checkpoint / "config.json").read_text("utf-8"))["vocab_size"])
    prompt = np.random.default_rng(0).integers(vocabulary, size=args.prompt).tolist()
    sizes = {decoder: weight_bytes(decoder) for decoder in decoders}
    settings = {"model": args.model, "prompt": args.prompt, "new": args.new, "rounds": args.rounds}
    report = {**report_head(), **settings}
    save_json(args.json, {**report, "rows": []})

    contenders = {(d, t): partial(in_child, measure, d, t, prompt, args.new) for t in threads for d in decoders}
    with ProgressBar() as progress:
        runs = take_turns(
            contenders,
            args.rounds,
            progress,
            "decoding",
            after_round=lambda found: save_json(args.json, {**report, "rows": _dicts(_rows(found, sizes))}),
        )
    title = f"{args.model}, prompt of {args.prompt} tokens, {args.new} new ones, medians of {args.rounds}"
    say(_printed(_rows(runs, sizes), title))


def _dicts(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _decoders(args: argparse.Namespace, checkpoint: Path, progress: ProgressBar) -> list[Decoder]:
    found = [
        Decoder(str(path), engine, path) for path in args.exported for engine in ("onnxruntime", "onnxruntime-genai")
    ]
    for precision in dict.fromkeys(args.genai):
        path = genai_export(checkpoint, precision, args.work)
        found.append(Decoder(f"onnxruntime-genai {precision}", "onnxruntime-genai", path))
    if args.gguf is not None:
        files = args.gguf or recipe_ggufs(args.model, args.work, progress)
        found += [Decoder(file.name, "llama.cpp", file) for file in files]
    return found


def _rows(runs: dict[tuple[Decoder, int], list[Speeds]], sizes: dict[Decoder, int]) -> list[Row]:
    medians = {
        key: (statistics.median(s.prompt for s in found), statistics.median(s.decode for s in found))
        for key, found in runs.items()
    }
    baseline = {threads: speeds for (decoder, threads), speeds in medians.items() if decoder.name == BASELINE}
    rows = []
    for (decoder, threads), found in runs.items():
        prompt, decode = medians[decoder, threads]
        other: tuple[float, float] | None = baseline.get(threads)
        rows.append(
            Row(
                decoder=decoder.name,
                engine=decoder.engine,
                path=str(decoder.path),
                kernel=found[0].kernel,
                threads=threads,
                weight_bytes=sizes[decoder],
                prompt_speed=prompt,
                decode_speed=decode,
                prompt_ratio=None if other is None else prompt / other[0],
                decode_ratio=None if other is None else decode / other[1],
                gigabytes_per_second=sizes[decoder] * decode / 1e9,
                runs=found,
            )
        )
    return rows


def _printed(rows: list[Row], title: str) -> str:
    names = ("model", "engine", "kernel")
    headings = (*names, "threads", "MB", "prompt tok/s", "to int4", "decode tok/s", "to int4", "GB/s")
    cells = [
        (
            row.decoder,
            row.engine,
            row.kernel or "",
            str(row.threads),
            f"{row.weight_bytes / 1e6:.1f}",
            f"{row.prompt_speed:.1f}",
            number(row.prompt_ratio, ".2f"),
            f"{row.decode_speed:.1f}",
            number(row.decode_ratio, ".2f"),
            f"{row.gigabytes_per_second:.2f}",
        )
        for row in rows
    ]
    return text_table(headings, cells, title, left=len(names))
