"""Calibration tokens: from a text file, or written by the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skim_export.checkpoint import Architecture, Checkpoint
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .workers import in_order, workers

if TYPE_CHECKING:
    import torch

__all__ = ["self_generated", "tokens_from_file"]

GROUP = 8  # sequences that are written together; fixed, so that the text does not depend on the number of threads
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
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"calibration text {path} is not UTF-8: byte {error.start} is invalid") from error
    except OSError as error:
        raise UserError(f"calibration text {path} cannot be read: {error.strerror}") from error
    bos = _bos(checkpoint.tokenizer)
    ids = np.array(checkpoint.tokenizer.encode(text, add_special_tokens=False, verbose=False), np.int64)
    window = length - len(bos)
    if ids.size < sequences * window:
        need = sequences * window
        raise UserError(f"calibration text {path} has {ids.size} tokens; {sequences} windows of {length} need {need}")
    starts = np.linspace(0, ids.size - window, sequences).astype(np.int64)
    return np.stack([np.concatenate([bos, ids[start : start + window]]) for start in starts])


def self_generated(
    checkpoint: Checkpoint,
    architecture: Architecture,
    sequences: int,
    length: int,
    *,
    seed: int,
    threads: int,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Text that the model writes itself, so that no data set is needed (LLM-QAT, arXiv 2305.17888, section 3.1).

    A sequence begins with a random word (after BOS, where the tokenizer sets one), so that the topics differ; the rest
    is sampled from the model. Where it ends a text, another begins with a random word.

    Args:
        checkpoint: the model; all of it is loaded, in float32.
        architecture: of the model.
        sequences: number of sequences, S.
        length: tokens of a sequence, T.
        seed: the same seed gives the same text, whatever `threads` is.
        threads: groups of 8 sequences that are written at the same time.
        progress: sees one stage, "writing calibration text".

    Returns:
        int64 `[S, T]`.

    Raises:
        UserError: the model does not fit into the available memory.
    """
    from .streaming import StreamedModel

    _check_memory(checkpoint)
    openings = _openings(checkpoint.tokenizer)
    groups = [(i, min(GROUP, sequences - i)) for i in range(0, sequences, GROUP)]
    progress.start("writing calibration text", len(groups) * (length // REPORT_EVERY))
    model = StreamedModel(checkpoint, architecture).load_all()

    def write(group: tuple[int, int]) -> torch.Tensor:
        first, count = group
        return _write(model, checkpoint.tokenizer, openings, count, length, (seed, first), progress)

    with workers(threads) as pool:
        tokens = np.concatenate([written.numpy() for written in in_order(pool, write, groups)])
    progress.finish()
    return tokens


def _write(
    model: Any,
    tokenizer: Any,
    openings: npt.NDArray[np.int64],
    count: int,
    length: int,
    seed: tuple[int, int],
    progress: Progress,
) -> torch.Tensor:
    import torch
    from transformers import DynamicCache

    random = np.random.default_rng(seed)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    banned = special[special != tokenizer.eos_token_id]
    opening = torch.from_numpy(random.choice(openings, (count, 1)))
    tokens = torch.cat([torch.from_numpy(_bos(tokenizer)).expand(count, -1), opening], dim=1)
    cache = DynamicCache(config=model.config)
    step = tokens
    with torch.inference_mode():
        while tokens.shape[1] < length:
            logits = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            logits[:, banned] = -torch.inf
            top, candidates = logits.topk(TOP_K)
            noise = torch.from_numpy(random.gumbel(size=top.shape).astype(np.float32))
            step = candidates.gather(1, (top + noise).argmax(dim=1, keepdim=True))
            again = torch.from_numpy(random.choice(openings, (count, 1)))
            step = torch.where(tokens[:, -1:] == tokenizer.eos_token_id, again, step)
            tokens = torch.cat([tokens, step], dim=1)
            if tokens.shape[1] % REPORT_EVERY == 0:
                progress.step(f"token {tokens.shape[1]} of {count} sequences")
    return tokens


def _bos(tokenizer: Any) -> npt.NDArray[np.int64]:
    """What the tokenizer puts in front of every text: BOS or nothing, int64 `[1]` or `[0]`."""
    ids = tokenizer.encode("a")
    return np.array(ids[:1] if ids[0] == tokenizer.bos_token_id else [], np.int64)


def _openings(tokenizer: Any) -> npt.NDArray[np.int64]:
    """Tokens that a text can begin with: capitalized words, or any ordinary token if there are next to none."""
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    words = [
        i for i, text in zip(ordinary, tokenizer.batch_decode([[i] for i in ordinary]), strict=True) if _is_word(text)
    ]
    return np.array(words if len(words) >= 100 else ordinary, np.int64)


def _is_word(text: str) -> bool:
    return len(text) > 1 and text.isalpha() and text.istitle()


def _check_memory(checkpoint: Checkpoint) -> None:
    need = 5 * checkpoint.parameter_count  # float32 weights, and a quarter on top for the key-value cache
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: nothing reliable is known
        return
    available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if need > available:
        raise UserError(
            f"writing calibration text takes {need / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are available: "
            "give a text with --calib FILE"
        )
