"""How a quantized model is measured: against outputs of the full-precision model that are computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from dense_baselines import DenseLinear

from skim_export.checkpoint import Checkpoint, Model
from skim_export.checkpoint.torch_reference import TorchReference
from skim_export.packed import PackedLinear
from skim_export.packed.dequantized import dequantized_model
from skim_runtime import evaluation
from skim_runtime.errors import UserError
from skim_runtime.evaluation import compare
from skim_runtime.progress import Progress
from skim_runtime.text_file import read_text

__all__ = [
    "Distances",
    "FullPrecision",
    "Job",
    "Quantized",
    "dense_quantized",
    "distances",
    "read_tokens",
    "torch_model",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """What all rows of a table share; it travels to the process that measures a row.

    Attributes:
        model: directory of the checkpoint.
        texts: tokens to measure on by name, int64 `[S]`.
        context: tokens of a window.
        work: directory for calibration statistics and outputs of the full-precision model.
        threads: threads to use.
    """

    model: Path
    texts: dict[str, Int64]
    context: int
    work: Path
    threads: int

    def open(self) -> Model:
        """The full-precision model; torch gets its threads."""
        torch.set_num_threads(self.threads)
        return Model.open(self.model)


@dataclass(frozen=True)
class Distances:
    """A model on one text: its perplexity with its standard error, and how far it is from the full-precision model."""

    perplexity: float
    perplexity_error: float | None
    kl_mean: float
    kl_p99: float
    top1_agreement: float


@dataclass(frozen=True)
class Quantized:
    """Quantized weights, read when they are needed.

    Attributes:
        read: the weight of a unit, or None where it stays in full precision.
        code_bits: mean width of the codes.
        weights: number of weights that were quantized.
        nbytes: everything that is stored for them.
        parameters: what else is not as in full precision.
    """

    read: Callable[[str], PackedLinear | DenseLinear | None]
    code_bits: float
    weights: int
    nbytes: int
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def effective_bits(self) -> float:
        """Everything that is stored, in bits a weight."""
        return 8 * self.nbytes / self.weights


class FullPrecision:
    """The full-precision model as a reference; its final hidden states are computed once and kept on disk.

    They are 85 times smaller than the logits of SmolLM2-135M, and the head costs one product.
    """

    def __init__(self, model: Model, directory: Path) -> None:
        self._model, self._directory = model, directory
        self._body: Any = None
        self._head = model.checkpoint.tensor(f"{model.architecture.head_linear.members[0].module}.weight")

    def logits(self, input_ids: npt.ArrayLike) -> Float32:
        """Logits, float32 `[S, V]`, of the tokens `[S]`."""
        ids = np.asarray(input_ids, np.int64)
        path = self._directory / f"{hashlib.sha256(ids.tobytes()).hexdigest()}.hidden.npy"
        if not path.exists():
            np.save(path, self._hidden(ids))
        logits: Float32 = (torch.from_numpy(np.load(path)) @ self._head.T).numpy()
        return logits

    def _hidden(self, ids: Int64) -> Float32:
        if self._body is None:
            self._body = dequantized_model(self._model, lambda name: None).base_model
        with torch.inference_mode():
            hidden: Float32 = self._body(torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0].numpy()
        return hidden


def torch_model(model: Model, quantized: Quantized) -> evaluation.Model:
    """The model in torch with dequantized weights."""
    # A DenseLinear has all that is asked of the packed ones here: `dequantize`.
    read = cast(Callable[[str], PackedLinear | None], quantized.read)
    return TorchReference(dequantized_model(model, read))


def distances(
    model: evaluation.Model, reference: evaluation.Model, job: Job, progress: Progress
) -> dict[str, Distances]:
    """Measure a model on all texts."""
    found = {}
    for name, ids in job.texts.items():
        result = compare(model, ids, reference, job.context, progress)
        assert result.kl_mean is not None  # there is a reference
        assert result.kl_p99 is not None
        assert result.top1_agreement is not None
        perplexity = (result.perplexity, result.perplexity_error)
        found[name] = Distances(*perplexity, result.kl_mean, result.kl_p99, result.top1_agreement)
    return found


def dense_quantized(
    names: list[str], quantize: Callable[[str], DenseLinear], directory: Path, progress: Progress
) -> Quantized:
    """Quantize units one after the other; their dequantized weights wait in a directory, not in memory."""
    code_bits, bits, weights = 0.0, 0, 0
    progress.start("quantizing", len(names))
    for name in names:
        linear = quantize(name)
        np.save(directory / f"{name}.npy", linear.weight)
        code_bits += linear.code_bits * linear.weight.size
        bits += linear.bits
        weights += linear.weight.size
        progress.step(name)
    progress.finish()

    def read(name: str) -> DenseLinear | None:
        return DenseLinear(np.load(directory / f"{name}.npy"), 0, 0) if name in names else None

    return Quantized(read, code_bits / weights, weights, -(-bits // 8))


def read_tokens(checkpoint: Checkpoint, paths: list[Path], count: int, context: int) -> dict[str, Int64]:
    """The first tokens of each text by file name.

    Raises:
        UserError: a file cannot be read or is too short, two have the same name, or `count` or `context` is too small.
    """
    if count < 2:
        raise UserError(f"--tokens {count}: must be at least 2")
    if context < 2:
        raise UserError(f"--context {context}: must be at least 2")
    texts: dict[str, Int64] = {}
    for path in paths:
        if path.name in texts:
            raise UserError(f"--text {path}: there is another text of this name, rows could not be told apart")
        text = read_text(path, "--text")
        ids = checkpoint.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if len(ids) < count:
            raise UserError(f"--text {path}: has {len(ids)} tokens, --tokens asks for {count}")
        texts[path.name] = np.array(ids[:count], np.int64)
    return texts
