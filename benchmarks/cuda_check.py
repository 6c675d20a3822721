"""Are the CUDA kernels right? A grid of cases against float64 in numpy.

Every case is launched twice and captured in a CUDA graph: all three must give the same bits, write every output and
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from cuda_device import Device, Kernels, Layer

from skim_export.measure.random_linear import random_linear
from skim_export.packed import CLASSES, LevelKind, RowClass, class_kind
from skim_runtime.measure.tables import say

__all__ = ["TYPE_BOUNDS", "Case", "Finding", "Tally", "cases", "check", "fits", "relative_error"]

# Of norm(y - reference) / norm(reference). bfloat16: levels of float16, activations times their scale, and outputs are
# rounded, each off by at most 2^-8 of itself, and their squares add up.
TYPE_BOUNDS = {"float16": 1e-3, "bfloat16": 3**0.5 * 2**-8, "float32": 1e-5}
MARGIN = 64  # elements around an output that must stay as they are
ALL_CLASSES = tuple(range(CLASSES))
# That decoding multiplies as integers: those whose levels are codes, or looked up by up to 4 bits.
INTEGER_CLASSES = tuple(
    c for c in ALL_CLASSES if class_kind(c) == LevelKind.AFFINE or RowClass.numbered(c, "int8").level_bits <= 4
)
TABLES = tuple(c for c in ALL_CLASSES if class_kind(c) == LevelKind.TABLE)


Codebook = Literal["int8", "float16"]
Float = Literal["float16", "bfloat16", "float32"]
Epilogue = Literal["store", "silu", "multiply", "gather"]
CODEBOOKS: tuple[Codebook, ...] = ("int8", "float16")
FLOATS: tuple[Float, ...] = ("float16", "bfloat16", "float32")
EPILOGUES: tuple[Epilogue, ...] = ("store", "silu", "multiply")


@dataclass(frozen=True)
class Case:
    """One product, or one gathering of rows.

    Attributes:
        rows: N.
        columns: K.
        classes: of the rows, in equal shares.
        tokens: M; ids, for a gathering.
        codebook: type of the codebook's entries.
        dtype: of activations and outputs.
        epilogue: what becomes of the product, or "gather".
        extras: whether there are a column scale and a bias.
        integers: whether activations may be rounded to integers.
    """

    rows: int
    columns: int
    classes: tuple[int, ...]
    tokens: int
    codebook: Codebook = "int8"
    dtype: Float = "float16"
    epilogue: Epilogue = "store"
    extras: bool = False
    integers: bool = False


@dataclass(frozen=True)
class Finding:
    """What a case gave.

    Attributes:
        error: norm(y - reference) / norm(reference).
        complaint: what is wrong, or None.
    """

    error: float
    complaint: str | None


@dataclass
class Tally:
    """What cases gave, all together.

    Attributes:
        counts: of the cases, by type of activations.
        largest: relative error, by type; not a number if one is none.
        wrong: cases, and what is wrong.
    """

    counts: dict[str, int] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    wrong: list[tuple[Case, str]] = field(default_factory=list)

    def add(self, case: Case, finding: Finding) -> None:
        """One more case."""
        self.counts[case.dtype] = self.counts.get(case.dtype, 0) + 1
        self.largest[case.dtype] = float(np.maximum(self.largest.get(case.dtype, 0.0), finding.error))
        if finding.complaint is not None:
            say(f"{case}: {finding.complaint}")
            self.wrong.append((case, finding.complaint))


def fits(case: Case, device: Device) -> bool:
    """Whether a device has the type of a case."""
    return case.dtype != "bfloat16" or device.has_bfloat16


def cases() -> Iterator[Case]:
    """The grid: classes, tokens, shapes and epilogues, in all types of activations."""
    base = Case(rows=208, columns=1024, classes=ALL_CLASSES, tokens=1)
    for dtype in FLOATS:
        of_type = replace(base, dtype=dtype)
        for codebook in CODEBOOKS:
            # Affine rows have no codebook.
            for row_class, tokens in product(ALL_CLASSES if codebook == "int8" else TABLES, (1, 6, 11, 70)):
                alone = replace(of_type, rows=45, columns=768, classes=(row_class,), tokens=tokens)
                yield replace(alone, codebook=codebook, extras=tokens > 1)
            for tokens in (0, *range(1, 18), 64, 65, 128, 130):
                yield replace(of_type, codebook=codebook, tokens=tokens)
            for columns, tokens in product((1, 31, 100, 256, 640, 1000), (0, 1, 50)):
                gathered = replace(of_type, columns=columns, tokens=tokens, epilogue="gather")
                yield replace(gathered, codebook=codebook, extras=columns % 2 == 0)
        for columns in (1, 4, 31, 33, 64, 96, 100, 128, 160, 256, 288, 320, 384, 512, 576, 640, 1000, 1100, 4096):
            for rows, tokens in ((5, 1), (16, 9), (130, 3), (129, 66)):
                yield replace(of_type, rows=rows, columns=columns, classes=(0, 1, 2, 3, 4, 7, 10, 15), tokens=tokens)
        for epilogue, tokens, extras in product(EPILOGUES, (1, 7, 16, 100), (False, True)):
            yield replace(of_type, columns=640, tokens=tokens, epilogue=epilogue, extras=extras)
        if dtype == "float32":
            continue
        whole = replace(of_type, integers=True)
        for row_class, tokens in product(INTEGER_CLASSES, (1, 6, 11)):
            yield replace(whole, rows=45, columns=768, classes=(row_class,), tokens=tokens, extras=tokens > 1)
        for tokens in (*range(1, 18), 64):
            yield replace(whole, tokens=tokens, classes=INTEGER_CLASSES)
        for columns, tokens in product((1, 31, 100, 256, 640, 1000, 4096, 14336), (1, 4, 16)):
            yield replace(whole, rows=130, columns=columns, classes=(0, 1, 2, 3, 10, 15), tokens=tokens)
        for epilogue, tokens in product(EPILOGUES, (1, 16)):
            yield replace(whole, columns=640, classes=(2, 9), tokens=tokens, epilogue=epilogue, extras=True)
    # So many rows of 16 bits that Hopper's tiles have 128 tokens; then the large ones, which have an order of their own
    # from 1025 tokens on.
    many = replace(base, columns=1000)
    for (rows, tokens), dtype in product(((9000, 100), (6000, 1100)), FLOATS[:2]):
        for classes, extras in (((2,), False), ((1, 4, 7, 11), True)):
            yield replace(many, rows=rows, tokens=tokens, dtype=dtype, classes=classes, extras=extras)


def check(case: Case, kernels: Kernels, device: Device, seed: int = 0, *, replay: bool = True) -> Finding:
    """Run a case and compare it; without `replay` no CUDA graph is captured of it."""
    random = np.random.default_rng(seed)
    shares = dict.fromkeys(case.classes, 1 / len(case.classes))
    packed = random_linear(
        random, case.rows, case.columns, shares, case.codebook, column_scale=case.extras, bias=case.extras
    )
    layer, weight = Layer(packed, device, case.integers), packed.dequantize().astype(np.float64)
    if case.epilogue == "gather":
        ids = random.integers(0, case.rows, case.tokens)
        ids[1::5] = random.choice([-1, case.rows, 1 << 40], len(ids[1::5]))
        exists = (ids >= 0) & (ids < case.rows)
        want = np.where(exists[:, None], weight[np.where(exists, ids, 0)], np.nan)
        before = np.zeros_like(want)
        on_device = torch.from_numpy(ids).to(device.place)
        launch: Callable[[torch.Tensor], None] = lambda y: kernels.gather(layer, on_device, y)  # noqa: E731
    else:
        activations = _of_type(random.standard_normal((case.tokens, case.columns)), case)
        before = _of_type(random.standard_normal((case.tokens, case.rows)), case).double().numpy()
        products = activations.double().numpy() @ weight.T + (packed.bias if packed.bias.size else 0)
        want = _with_epilogue(products, case.epilogue, before)
        x = activations.to(device.place)
        launch = lambda y: kernels.matmul(layer, x, y, case.epilogue)  # noqa: E731
    return _compare(
        case, want, before if case.epilogue == "multiply" else np.full_like(before, np.nan), launch, device, replay
    )


def _of_type(values: npt.NDArray[np.float64], case: Case) -> torch.Tensor:
    """Values as the case's type holds them."""
    return torch.from_numpy(values).to(getattr(torch, case.dtype))


def _with_epilogue(
    values: npt.NDArray[np.float64], epilogue: str, before: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    if epilogue == "silu":
        values = values * np.exp(np.minimum(values, 0)) / (1 + np.exp(-np.abs(values)))
    return values * before if epilogue == "multiply" else values


def _compare(
    case: Case,
    want: npt.NDArray[np.float64],
    before: npt.NDArray[np.float64],
    launch: Callable[[torch.Tensor], None],
    device: Device,
    replay: bool,
) -> Finding:
    """Launch on outputs that hold `before`, and look at what they and their surroundings hold then."""
    start = _of_type(np.pad(before.reshape(-1), MARGIN, constant_values=np.nan), case).to(device.place)
    whole = torch.empty_like(start)
    y = whole[MARGIN : MARGIN + before.size].view(before.shape)

    def again(call: Callable[[], None]) -> torch.Tensor:
        whole.copy_(start)
        call()
        return whole.clone().cpu()

    first, second = (again(lambda: launch(y)) for _ in range(2))
    replayed = again(device.captured(lambda: launch(y))) if case.tokens and replay else first
    got = first[MARGIN : MARGIN + before.size].view(want.shape).double().numpy()
    exists = ~np.isnan(want)
    error = relative_error(got[exists], want[exists])
    complaint = None
    if not error < TYPE_BOUNDS[case.dtype]:
        complaint = f"off by {error:.2e}"
    elif not np.isnan(got[~exists]).all():
        complaint = "rows that do not exist are numbers"
    elif not torch.cat([first[:MARGIN], first[MARGIN + before.size :]]).isnan().all():
        complaint = "writes outside of its output"
    elif not _same_bits(first, second):
        complaint = "the second launch gives other bits"
    elif not _same_bits(first, replayed):
        complaint = "a captured graph gives other bits"
    return Finding(error, complaint)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def relative_error(got: npt.NDArray[np.floating[Any]], want: npt.NDArray[np.floating[Any]]) -> float:
    """Of all elements together: norm(got - want) / norm(want); 0 if there are none."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want)) if want.size else 0.0
