"""Calibration tokens: from a text file, or written by the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Checkpoint, Model
from skim_export.work.device import free_memory
from skim_export.work.resources import Resources, available_memory
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress
from skim_runtime.text_file import read_text

from .workers import in_order, workers

if TYPE_CHECKING:
    import torch

__all__ = ["self_generated", "tokens_from_file", "written_text_bytes"]

WRITTEN_TOGETHER = 16  # sequences; fixed, so that the text does not depend on the number of threads
TOP_K = 50
REPORT_EVERY = 32  # tokens between two steps of the progress


def tokens_from_file(checkpoint: Checkpoint, path: Path, sequences: int, length: int) -> npt.NDArray[np.int64]:
    """Evenly spread windows of a text file.

    Where the tokenizer begins a text with a BOS token (Llama, Mistral), every window does; otherwise (SmolLM2) none.

    Args:
        checkpoint: whose tokenizer is used.
        path: UTF-8 text.
        sequences: number of windows, S; they do not overlap.
        length: tokens of a window, T, BOS included.

    Returns:
        int64 `[S, T]`.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is too short.
    """
    text = read_text(path, "--calib")
    bos = _bos(checkpoint.tokenizer)
    ids = np.array(checkpoint.tokenizer.encode(text, add_special_tokens=False, verbose=False), np.int64)
    window = length - len(bos)
    if ids.size < sequences * window:
        need = sequences * window
        raise UserError(f"--calib {path}: has {ids.size} tokens; {sequences} windows of {length} need {need}")
    starts = np.linspace(0, ids.size - window, sequences).astype(np.int64)
    return np.stack([np.concatenate([bos, ids[start : start + window]]) for start in starts])


def self_generated(
    model: Model,
    sequences: int,
    length: int,
    *,
    seed: int,
    resources: Resources,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Text that the model writes itself, so that no data set is needed (LLM-QAT, arXiv 2305.17888, section 3.1).

    A sequence begins with a random word (after BOS, where the tokenizer sets one), so that the topics differ; the rest
    is sampled from the model. Where it ends a text, another begins with a random word.

    Args:
        model: the model; all of it is loaded, in float32.
        sequences: number of sequences, S.
        length: tokens of a sequence, T.
        seed: the same seed gives the same text, whatever the number of threads.
        resources: workers, each with a group of 16 sequences at a time, and the device that the model is on.
        progress: sees one stage, "writing calibration text".

    Returns:
        int64 `[S, T]`.

    Raises:
        UserError: the model does not fit into the available memory.
    """
    from .streaming import StreamedModel

    _check_memory(model.checkpoint, resources.device)
    tokenizer = model.checkpoint.tokenizer
    openings = _openings(tokenizer, model.architecture.vocabulary_size)
    network = StreamedModel(model, resources.device).load_all()
    writers = [
        _Writer(network, tokenizer, openings, min(WRITTEN_TOGETHER, sequences - first), (seed, first))
        for first in range(0, sequences, WRITTEN_TOGETHER)
    ]
    progress.start("writing calibration text", length // REPORT_EVERY)
    with workers(resources.workers) as pool:
        while writers[0].tokens.shape[1] < length:  # token by token, so that Ctrl-C need not wait for more
            in_order(pool, _Writer.step, writers)
            if (written := writers[0].tokens.shape[1]) % REPORT_EVERY == 0:
                progress.step(f"token {written} of {length}")
    progress.finish()
    return np.concatenate([writer.tokens.numpy() for writer in writers])


class _Writer:
    """A group of sequences in the making; every step adds a column to `tokens`, int64 `[sequences, written]`."""

    def __init__(
        self, network: Any, tokenizer: Any, openings: npt.NDArray[np.int64], sequences: int, seed: tuple[int, int]
    ) -> None:
        import torch
        from transformers import DynamicCache

        self._network = network
        self._openings = openings
        self._random = np.random.default_rng(seed)
        self._end = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id  # -1: no text ends
        special = [i for i in sorted(tokenizer.all_special_ids) if i < network.config.vocab_size]
        self._banned = torch.tensor([i for i in special if i != self._end], dtype=torch.int64)
        self._cache = DynamicCache(config=network.config)
        bos = torch.from_numpy(_bos(tokenizer)).expand(sequences, -1)
        self._unseen = self.tokens = torch.cat([bos, self._opening(sequences)], dim=1)

    def step(self) -> None:
        """Sample the next token of every sequence."""
        import torch

        with torch.inference_mode():
            unseen = self._unseen.to(self._network.device)
            output = self._network(input_ids=unseen, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[:, -1]
            logits[:, self._banned.to(logits.device)] = -torch.inf
            top, candidates = (found.cpu() for found in logits.topk(min(TOP_K, logits.shape[1])))
            noise = torch.from_numpy(self._random.gumbel(size=top.shape).astype(np.float32))
            sampled = candidates.gather(1, (top + noise).argmax(dim=1, keepdim=True))
            ended = self.tokens[:, -1:] == self._end
            self._unseen = torch.where(ended, self._opening(len(sampled)), sampled)
            self.tokens = torch.cat([self.tokens, self._unseen], dim=1)

    def _opening(self, sequences: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._random.choice(self._openings, (sequences, 1)))


def _bos(tokenizer: Any) -> npt.NDArray[np.int64]:
    """What the tokenizer puts in front of every text: BOS or nothing, int64 `[1]` or `[0]`."""
    ids = tokenizer.encode("a")
    return np.array([i for i in ids[:1] if i == tokenizer.bos_token_id], np.int64)


def _openings(tokenizer: Any, vocabulary: int) -> npt.NDArray[np.int64]:
    """Tokens that a text can begin with: capitalized words, or any ordinary token if there are next to none."""
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(min(len(tokenizer), vocabulary)) if i not in special]
    words = [
        i for i, text in zip(ordinary, tokenizer.batch_decode([[i] for i in ordinary]), strict=True) if _is_word(text)
    ]
    return np.array(words if len(words) >= 100 else ordinary, np.int64)


def _is_word(text: str) -> bool:
    return len(text) > 1 and text.isalpha() and text.istitle()


def written_text_bytes(checkpoint: Checkpoint) -> int:
    """Memory that a model takes to write text: float32 weights, and a quarter on top for the key-value cache."""
    return 5 * checkpoint.parameter_count


def _check_memory(checkpoint: Checkpoint, device: torch.device | None) -> None:
    need = written_text_bytes(checkpoint)
    available = free_memory(device) if device is not None and device.type == "cuda" else available_memory()
    if available is not None and need > available:
        where = "" if device is None else f" on {device}"
        raise UserError(
            f"writing calibration text takes {need / 1e9:.1f} GB of memory{where} and {available / 1e9:.1f} GB are "
            "available: give a text with --calib FILE"
        )
