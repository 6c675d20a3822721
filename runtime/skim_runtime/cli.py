"""The commands `skim-run` and `skim-eval`: arguments in, text out; everything between is in the public functions."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from skim_runtime.command import run_command
from skim_runtime.text_file import read_stdin, read_text, text_facts

if TYPE_CHECKING:
    from skim_runtime.choices import Answers
    from skim_runtime.evaluation import Evaluation
    from skim_runtime.generation import Generation

__all__ = ["evaluate", "run"]


def run(argv: Sequence[str] | None = None) -> int:
    """`skim-run`: generate a text; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="skim-run",
        description="Generate text with a model that skim-export wrote. The text goes to stdout, speeds to stderr.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory that skim-export wrote")
    parser.add_argument("prompt", help='the prompt; "-" reads it from stdin')
    parser.add_argument("--engine", choices=("ort", "genai"), default="ort", help="onnxruntime or onnxruntime-genai")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): greedy decoding")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the nucleus; 1: from all")
    parser.add_argument("--seed", type=int, metavar="SEED", help="makes sampling reproducible")
    parser.add_argument("--raw", action="store_true", help="take the prompt as it is, without the chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message for the chat template")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    parser.add_argument(
        "--kernel", choices=("auto", "function"), default="auto", help="function: without our operator library, slow"
    )
    _add_provider(parser)
    _add_checks(parser)
    arguments = parser.parse_args(argv)
    return run_command("skim-run", lambda: _run(arguments))


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`skim-eval`: perplexity or answers, and distance from a reference; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="skim-eval",
        description="Measure a model that skim-export wrote: its perplexity on a text or its answers to questions, and "
        "its distance from a reference.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory that skim-export wrote")
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to measure on")
    measured.add_argument(
        "--choices", type=Path, metavar="FILE", help="questions of HellaSwag or ARC to answer, JSON Lines"
    )
    parser.add_argument(
        "--reference",
        metavar="MODEL",
        help="alias, Hugging Face id, directory or GGUF file (in float32), or an exported directory",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens of a window (default: 1024, or the model's context if it is less)",
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="only the first N tokens of the text")
    parser.add_argument("--questions", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    _add_provider(parser)
    _add_checks(parser)
    arguments = parser.parse_args(argv)
    return run_command("skim-eval", lambda: _evaluate(arguments))


def _add_provider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ep",
        choices=("cpu", "cuda"),
        help="execution provider: refused where it can't run the model (default: the one that the model was exported "
        "for, or else with a warning the CPU's)",
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-library",
        action="store_true",
        help="run the operator library that lies in DIR, code of whoever made it, in place of the installed one",
    )
    parser.add_argument("--verify", action="store_true", help="first compare all files of DIR with their hashes")


def _verify(arguments: argparse.Namespace) -> None:
    from skim_runtime.progress_bar import ProgressBar
    from skim_runtime.verification import verify

    if arguments.verify:
        with ProgressBar() as progress:
            verify(arguments.directory, progress=progress)


def _run(arguments: argparse.Namespace) -> None:
    from skim_runtime.genai import GenaiSession
    from skim_runtime.generation import generate
    from skim_runtime.model_directory import ModelDirectory
    from skim_runtime.session import Session
    from skim_runtime.tokenizer import TextStream, Tokenizer

    _verify(arguments)
    prompt = read_stdin() if arguments.prompt == "-" else arguments.prompt
    directory = ModelDirectory.open(arguments.directory)
    tokenizer = Tokenizer(directory.path)
    if not arguments.raw and not tokenizer.has_chat_template:
        warnings.warn("the model has no chat template: the prompt goes in as it is, as with --raw", stacklevel=1)
    tokens = tokenizer.prompt(prompt, system=arguments.system, raw=arguments.raw)
    engine = GenaiSession if arguments.engine == "genai" else Session
    session = engine(
        directory.path,
        threads=arguments.threads,
        kernel=arguments.kernel,
        ep=arguments.ep,
        trust_library=arguments.trust_library,
    )
    stream = TextStream(tokenizer)
    generation = generate(
        session,
        tokens,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        on_token=lambda token: _write(stream.put(token)),
    )
    _write(stream.end() + "\n")
    bandwidth = _gpu_bandwidth(session.library) if session.kernel == "cuda" and session.library else None
    print(_speeds(session.kernel, session.weight_bytes, generation, bandwidth), file=sys.stderr)  # noqa: T201


def _write(text: str) -> None:
    """To stdout at once, whatever its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _gpu_bandwidth(library: Path) -> float | None:
    """Bytes per second that the GPU's memory is read at; None, with a warning, if that can't be measured."""
    from skim_runtime.errors import UserError
    from skim_runtime.measure.bandwidth import read_gpu

    try:
        return read_gpu(library).bytes_per_second
    except UserError as error:
        warnings.warn(str(error), stacklevel=1)
        return None


def _speeds(kernel: str, weight_bytes: int, generation: Generation, bandwidth: float | None) -> str:
    parts = [
        f"kernel: {kernel}",
        f"prompt: {generation.prompt_tokens} tokens, {generation.prompt_speed:.1f} tokens/s",
        f"decode: {len(generation.tokens)} tokens, {generation.decode_speed:.1f} tokens/s",
    ]
    if weight_bytes:
        speed = weight_bytes * generation.decode_speed
        share = f", {speed / bandwidth:.0%} of the memory's {bandwidth / 1e9:.0f} GB/s" if bandwidth else ""
        parts.append(f"weights read: {speed / 1e9:.2f} GB/s{share}")
    return " | ".join(parts)


def _evaluate(arguments: argparse.Namespace) -> None:
    from skim_runtime.choices import answer_questions, read_questions
    from skim_runtime.evaluation import evaluate
    from skim_runtime.measure.report import report_head
    from skim_runtime.progress_bar import ProgressBar
    from skim_runtime.session import Session

    _refuse_stray_options(arguments)
    if arguments.text is not None:
        text = read_text(arguments.text, "--text")
    else:
        questions = read_questions(arguments.choices, arguments.questions)
    _verify(arguments)
    session = Session(
        arguments.directory, threads=arguments.threads, ep=arguments.ep, trust_library=arguments.trust_library
    )
    reference = arguments.reference
    found: Evaluation | Answers
    with ProgressBar() as progress:
        if arguments.text is not None:
            limits = {"context": arguments.context, "max_tokens": arguments.tokens}
            found = evaluate(session, text, reference=reference, **limits, progress=progress)
            title, rows = f"{found.tokens} tokens, context {found.context}", _evaluation_rows(found)
        else:
            found = answer_questions(session, questions, reference=reference, progress=progress)
            title, rows = f"{found.questions} questions", _answer_rows(found)
    if arguments.json:
        measured_on = {name: text_facts(file) for name in ("text", "choices") if (file := getattr(arguments, name))}
        facts = {"model": str(arguments.directory), "kernel": session.kernel, **measured_on}
        print(json.dumps({**report_head(), **facts, **asdict(found)}, indent=2))  # noqa: T201
    else:
        _print_table(f"{title}, kernel {session.kernel}", rows)


def _refuse_stray_options(arguments: argparse.Namespace) -> None:
    """Options of texts beside questions, and the other way round.

    Raises:
        UserError: there are some.
    """
    from skim_runtime.errors import UserError

    stray = {"--context": arguments.context, "--tokens": arguments.tokens}
    other, wanted = "--choices", "--text"
    if arguments.text is not None:
        stray, other, wanted = {"--questions": arguments.questions}, wanted, other
    for option, value in stray.items():
        if value is not None:
            raise UserError(f"{option} {value}: goes with {wanted}, not with {other}")


def _evaluation_rows(found: Evaluation) -> list[tuple[str, str]]:
    from skim_runtime.measure.tables import with_error

    rows = [("perplexity", with_error(found.perplexity, found.perplexity_error))]
    if found.reference_perplexity is not None:
        reference = with_error(found.reference_perplexity, found.reference_perplexity_error)
        rows += [
            ("perplexity of the reference", reference),
            ("KL divergence from the reference, mean", f"{found.kl_mean:.5f} nats"),
            ("KL divergence from the reference, 99th percentile", f"{found.kl_p99:.5f} nats"),
            ("top-1 agreement", f"{100 * (found.top1_agreement or 0):.2f} %"),
        ]
    return rows


def _answer_rows(found: Answers) -> list[tuple[str, str]]:
    rows = [
        ("right", f"{found.accuracy:.1%} ± {found.accuracy_error:.1%}"),
        (
            "right, likelihoods per character",
            f"{found.normalized_accuracy:.1%} ± {found.normalized_accuracy_error:.1%}",
        ),
    ]
    if found.reference_accuracy is not None:
        rows += [
            ("the reference", f"{found.reference_accuracy:.1%}"),
            ("the reference, likelihoods per character", f"{found.reference_normalized_accuracy:.1%}"),
            ("same answer as the reference", f"{found.agreement:.1%}"),
        ]
    return rows


def _print_table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
