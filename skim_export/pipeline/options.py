"""What an export can be told: the one list, from which Python's keywords, the command line and export.json follow."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

from skim_export.checkpoint.checks import LEAST_POSITIONS
from skim_export.checkpoint.recipes import DEFAULT_BITS
from skim_export.packed import CodebookType
from skim_export.pipeline.effort import DEFAULT_EFFORT, EFFORTS, Effort, effort_named
from skim_export.quantize import METHODS
from skim_runtime.errors import UserError
from skim_runtime.operators import INTEGER_ACCURACY
from skim_runtime.providers import ACTIVATIONS, PROVIDERS

__all__ = [
    "HEAD_BITS",
    "OPTIONS",
    "PLANNED",
    "ExportKeywords",
    "ExportOptions",
    "PlanKeywords",
    "add_arguments",
    "check_budget",
    "from_arguments",
    "parse_size",
]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ACCURACY_LEVELS = range(INTEGER_ACCURACY + 1)
OF_EFFORTS = {effort.name for effort in EFFORTS.values()}
OPTION = "option"  # key of a field's metadata
AUTO: Literal["auto"] = "auto"
HEAD_BITS = 8  # of embedding and head where the budget is of the linear layers alone


@dataclass(frozen=True)
class Option:
    """An option, beside its type and its default.

    Attributes:
        text: what it is, for `--help`; `{default}` stands for the default.
        parse: its value from an argument.
        choices: the arguments that are offered.
        metavar: how `--help` calls its value.
        group: of options with the same, one is given at most.
        together: for one that may be given again and again: its value from the values of all.
        recorded: whether the result depends on it: then export.json tells it, and an export that was interrupted goes
            on with the same value only.
    """

    text: str
    parse: Callable[[str], object] = str
    choices: Sequence[str] | None = None
    metavar: str | None = None
    group: str | None = None
    together: Callable[[list[Any]], object] | None = None
    recorded: bool = True


def _metadata(text: str, **more: Any) -> dict[str, Option]:
    """Of a field that is an option; the arguments are those of `Option`."""
    return {OPTION: Option(text, **more)}


def parse_size(argument: str, text: str) -> int:
    """Bytes from a text such as `2.5GB` or `800 MiB`.

    Raises:
        UserError: it is none; the message names the argument, such as `--size`.
    """
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise UserError(f"{argument} {text}: expected a number with a unit, such as 800MB or 2.5GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def width_or_auto(text: str) -> int | Literal["auto"]:
    """A width, or `auto`."""
    return AUTO if text == AUTO else int(text)


def parse_width(text: str) -> tuple[str, int]:
    """A pattern and a width from a text such as `lm_head=8`.

    Raises:
        UserError: it is none.
    """
    pattern, _, bits = text.rpartition("=")
    if not pattern or not bits.isdecimal():
        raise UserError(f"--keep {text}: expected a pattern and a width, such as lm_head=8")
    return pattern, int(bits)


def by_pattern(pairs: list[tuple[str, int]]) -> dict[str, int]:
    """Widths by their patterns.

    Raises:
        UserError: a pattern has two.
    """
    found: dict[str, int] = {}
    for pattern, bits in pairs:
        if found.setdefault(pattern, bits) != bits:
            raise UserError(f"--keep {pattern}={bits}: has another width by --keep {pattern}={found[pattern]}")
    return found


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export can be told; what each option means is said once, beside it, in the words of `--help`.

    From Python, sizes are in bytes.

    Raises:
        UserError: a value, or a combination of them, is wrong.
    """

    adapter: str | Path | None = field(
        default=None,
        metadata=_metadata("directory of a LoRA adapter of the model, merged into its weights", parse=Path),
    )
    bits: float | None = field(
        default=None,
        metadata=_metadata(
            "average width of the codes, 1 to 8, fractions too (default: what skim-export models says, else "
            f"{DEFAULT_BITS:g})",
            parse=float,
            group="budget",
        ),
    )
    effective_bits: float | None = field(
        default=None, metadata=_metadata("the same with codebooks and scales counted in", parse=float, group="budget")
    )
    size: int | None = field(
        default=None,
        metadata=_metadata(
            "size of the model's weights as a whole, e.g. 2.5GB", parse=partial(parse_size, "--size"), group="budget"
        ),
    )
    effort: str = field(
        default=DEFAULT_EFFORT,
        metadata=_metadata(
            "weights: look at nothing else, which takes minutes and loses most; calibrated (default): let the model "
            "read a text; tuned: fine-tune it on a longer one, too, which is better below 4 bits and takes much longer",
            choices=list(EFFORTS),
            group="effort",
        ),
    )
    method: str | None = field(
        default=None,
        metadata=_metadata(
            "calibrate with a method to compare with",
            choices=[name for name in METHODS if name not in OF_EFFORTS],
            group="effort",
        ),
    )
    head_bits: int | Literal["auto"] | None = field(
        default=None,
        metadata=_metadata(
            "width of the embedding and the output head, 1 to 8, or auto: as the budget, which is then theirs, too "
            f"(default: auto for a --size, unless --effort is weights; else {HEAD_BITS})",
            parse=width_or_auto,
        ),
    )
    keep: Mapping[str, int] | None = field(
        default=None,
        metadata=_metadata(
            "give the linear layers that match a pattern this width, 1 to 8, e.g. 'layers.0.*=8' or lm_head=6; it "
            "counts in the budget; may be given again",
            parse=parse_width,
            metavar="PATTERN=BITS",
            together=by_pattern,
        ),
    )
    exclude: Sequence[str] = field(
        default=(),
        metadata=_metadata(
            "leave the linear layers that match a pattern as they are, e.g. '*.down_proj': they stay floats; may be "
            "given again",
            metavar="PATTERN",
            together=tuple,
        ),
    )
    codebook: CodebookType = field(
        default="int8",
        metadata=_metadata("type of codebook entries (default: {default})", choices=get_args(CodebookType)),
    )
    accuracy_level: int = field(
        default=INTEGER_ACCURACY,
        metadata=_metadata(
            "of the products, as for MatMulNBits: with {default} (default) activations are rounded to 16 bits and "
            "multiplied as integers, with 0 to 3 they are multiplied in float32",
            parse=int,
        ),
    )
    ep: str = field(
        default="cpu",
        metadata=_metadata(
            "execution provider that the ONNX model is for: cpu (default) or cuda",
            choices=list(PROVIDERS),
        ),
    )
    activations: str | None = field(
        default=None,
        metadata=_metadata(
            "type of activations and key/value cache: with --ep cuda float16 (default), or bfloat16, which has "
            "fewer digits and no value that is too large, for GPUs since Ampere",
            choices=[*ACTIVATIONS["cpu"], *ACTIVATIONS["cuda"]],
        ),
    )
    context: int | None = field(
        default=None,
        metadata=_metadata(
            "positions that the exported model has room for (default: all that the model was made for): bounds its "
            "rotary tables",
            parse=int,
        ),
    )
    with_library: bool = field(
        default=False,
        metadata=_metadata(
            "put the operator library beside the model, for onnxruntime-genai and other programs; skim-run has its own"
        ),
    )
    device: str = field(
        default="cpu",
        metadata=_metadata(
            "where to calibrate and quantize: cpu (default), cuda or cuda:N; results differ a little; tuning, like "
            "skim-export plan, stays on the CPU"
        ),
    )
    calib: str | Path | None = field(
        default=None, metadata=_metadata("calibration text; without it the model writes its own", parse=Path)
    )
    seed: int = field(
        default=0, metadata=_metadata("seed of the text that the model writes (default: {default})", parse=int)
    )
    threads: int | None = field(
        default=None,
        metadata=_metadata(
            "threads to use (default: all); the result does not depend on it", parse=int, recorded=False
        ),
    )
    max_memory: int | None = field(
        default=None,
        metadata=_metadata(
            "memory to use at most, e.g. 4GB; the result on the CPU does not depend on it",
            parse=partial(parse_size, "--max-memory"),
            metavar="SIZE",
            recorded=False,
        ),
    )
    ray: str | None = field(
        default=None,
        metadata=_metadata(
            "let the workers of a Ray cluster quantize the layers: HOST:PORT of its head, or auto; --threads and "
            "--max-memory are then of each task",
            metavar="ADDRESS",
            recorded=False,
        ),
    )
    check: bool | None = field(
        default=None,
        metadata=_metadata(
            "compare what was written with transformers, or don't (default: if that takes less than about a minute)",
            parse=bool,
            recorded=False,
        ),
    )
    force: bool = field(default=False, metadata=_metadata("replace an output that exists", recorded=False))
    fresh: bool = field(
        default=False, metadata=_metadata("begin anew, whatever an interrupted export has left", recorded=False)
    )

    def __post_init__(self) -> None:
        effort_named(self.effort, self.method)
        if self.head_bits not in (None, AUTO, *range(1, 9)):
            raise UserError(f"--head-bits {self.head_bits}: must be a whole number from 1 to 8, or auto")
        if self.codebook not in get_args(CodebookType):
            raise UserError(f"--codebook {self.codebook}: must be one of {', '.join(get_args(CodebookType))}")
        check_budget(self.bits, self.effective_bits, self.size)
        for pattern, bits in (self.keep or {}).items():
            if bits not in range(1, 9):
                raise UserError(f"--keep {pattern}={bits}: must be a whole number from 1 to 8")
        if isinstance(self.exclude, str):
            raise UserError(f"--exclude {self.exclude}: must be a list of patterns")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads {self.threads}: must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")
        if self.calibration_file is not None and not self.calibration_file.is_file():
            what = (
                "is no ordinary file, and it is read more than once"
                if self.calibration_file.exists()
                else "no such file"
            )
            raise UserError(f"--calib {self.calib}: {what}")
        if self.accuracy_level not in ACCURACY_LEVELS:
            raise UserError(f"--accuracy-level {self.accuracy_level}: must be 0 to {ACCURACY_LEVELS[-1]}")
        if self.context is not None and self.context < LEAST_POSITIONS:
            raise UserError(f"--context {self.context}: must be at least {LEAST_POSITIONS}")
        if self.ep not in PROVIDERS:
            raise UserError(f"--ep {self.ep}: must be {' or '.join(PROVIDERS)}")
        if self.activations is not None and self.activations not in ACTIVATIONS[self.ep]:
            of_ep = " or ".join(ACTIVATIONS[self.ep])
            raise UserError(f"--activations {self.activations}: must be {of_ep} with --ep {self.ep}")
        if self.check and self.activation_type == "bfloat16":
            raise UserError("--check: runs the model on the CPU, where onnxruntime has no bfloat16: leave it out")

    @property
    def chosen(self) -> Effort:
        """What `effort` and `method` stand for."""
        return effort_named(self.effort, self.method)

    @property
    def head_width(self) -> int | None:
        """What `head_bits` stands for: a width, or None if embedding and head share the budget.

        A size is of the model as a whole, so its rows are weighed against each other wherever they are, if the method
        can do that.
        """
        if self.head_bits is None:
            return None if self.size is not None and self.chosen.method.allocation else HEAD_BITS
        return None if self.head_bits == AUTO else self.head_bits

    @property
    def activation_type(self) -> str:
        """What `activations` stands for."""
        return self.activations or ACTIVATIONS[self.ep][0]

    @property
    def float_bytes(self) -> int:
        """Bytes of a float of the graph."""
        return 4 if self.activation_type == "float32" else 2

    @property
    def calibration_file(self) -> Path | None:
        """The file that `calib` names."""
        return None if self.calib is None else Path(self.calib)

    def recorded(self) -> dict[str, Any]:
        """The options that the result depends on, as plain data: what was chosen for defaults, the names of files."""
        found = {name: getattr(self, name) for name, option in OPTIONS.items() if option.recorded}
        calib = None if self.calibration_file is None else self.calibration_file.name
        adapter = None if self.adapter is None else Path(self.adapter).name
        told = {"method": self.chosen.name, "activations": self.activation_type, "adapter": adapter, "calib": calib}
        head_bits = self.head_width or AUTO
        return {**found, **told, "head_bits": head_bits, "keep": dict(self.keep or {}), "exclude": list(self.exclude)}


class PlanKeywords(TypedDict, total=False):
    """The options that a plan has, too; see `ExportKeywords`."""

    adapter: str | Path | None
    head_bits: int | Literal["auto"] | None
    keep: Mapping[str, int] | None
    exclude: Sequence[str]
    codebook: CodebookType
    context: int | None
    calib: str | Path | None
    seed: int
    threads: int | None


class ExportKeywords(PlanKeywords, total=False):
    """The fields of `ExportOptions` as keywords of a function. Python has them written twice; a test compares them."""

    bits: float | None
    effective_bits: float | None
    size: int | None
    effort: str
    method: str | None
    accuracy_level: int
    ep: str
    activations: str | None
    with_library: bool
    device: str
    max_memory: int | None
    ray: str | None
    check: bool | None
    force: bool
    fresh: bool


OPTIONS = {one.name: cast(Option, one.metadata[OPTION]) for one in fields(ExportOptions)}
PLANNED = PlanKeywords.__optional_keys__


def check_budget(bits: float | None, effective_bits: float | None, size: int | None) -> None:
    """Check what can be checked of a budget without the model.

    Raises:
        UserError: it was stated in two ways, or is out of range.
    """
    ranges = {"--bits": (bits, 8), "--effective-bits": (effective_bits, 12), "--size": (size, math.inf)}
    stated = [name for name, (value, _) in ranges.items() if value is not None]
    if len(stated) > 1:
        raise UserError(f"{' and '.join(stated)} state the same budget: give one of them")
    for name, (value, most) in ranges.items():
        if value is not None and not 1 <= value <= most:
            raise UserError(f"{name} {value:g}: must be from 1 to {most}")


def add_arguments(parser: argparse.ArgumentParser, which: Collection[str] = tuple(OPTIONS)) -> None:
    """Declare options of a command line, in the order of `ExportOptions`; `from_arguments` reads them."""
    groups: dict[str | None, Any] = {None: parser}
    for name, option in OPTIONS.items():
        if name not in which:
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_mutually_exclusive_group()
        default = getattr(ExportOptions, name)
        how: dict[str, Any] = {"type": option.parse, "choices": option.choices, "metavar": option.metavar}
        if option.parse is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif default is False:
            how = {"action": "store_true"}
        elif option.together is not None:
            how["action"] = "append"
        groups[option.group].add_argument(
            f"--{name.replace('_', '-')}",
            help=option.text.format(default=default),
            default=argparse.SUPPRESS,  # what is not given is the dataclass's business
            **how,
        )


def from_arguments(arguments: argparse.Namespace, which: Collection[str] = tuple(OPTIONS)) -> dict[str, Any]:
    """The options that were given on the command line, as keywords."""
    given = {name: getattr(arguments, name) for name in OPTIONS if name in which and name in arguments}
    return {name: value if (join := OPTIONS[name].together) is None else join(value) for name, value in given.items()}
