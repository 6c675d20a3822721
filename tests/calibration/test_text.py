"""Calibration tokens: windows of a file, and text that the model writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from skim_export.calibration import self_generated, text, tokens_from_file
from skim_export.checkpoint import Checkpoint, Model, architecture_of
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama, tiny_mistral


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tiny_llama(tmp_path / "model"))


def with_bos(path: Path) -> Checkpoint:
    """Make the tokenizer of a checkpoint put BOS in front of every text, as those of Llama and Mistral do."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(path)
    return Checkpoint(path)


def test_windows_are_spread_over_the_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    ids = checkpoint.tokenizer.encode(TEXT)
    tokens = tokens_from_file(checkpoint, file, 3, 20)
    assert tokens.dtype == np.int64
    middle = (len(ids) - 20) // 2
    np.testing.assert_array_equal(tokens, [ids[:20], ids[middle : middle + 20], ids[-20:]])


def test_one_window(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    np.testing.assert_array_equal(tokens_from_file(checkpoint, file, 1, 20)[0], checkpoint.tokenizer.encode(TEXT)[:20])


def test_windows_begin_with_bos_where_texts_do(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    plain = tokens_from_file(checkpoint, file, 3, 19)
    tokens = tokens_from_file(with_bos(checkpoint.path), file, 3, 20)
    assert (tokens[:, 0] == 0).all()
    np.testing.assert_array_equal(tokens[:, 1:], plain)


def test_a_file_that_is_just_long_enough(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    count = len(checkpoint.tokenizer.encode(TEXT))
    assert tokens_from_file(checkpoint, file, 1, count).shape == (1, count)
    with pytest.raises(UserError, match=f"has {count} tokens; 1 windows of {count + 1} need {count + 1}"):
        tokens_from_file(checkpoint, file, 1, count + 1)


def test_a_file_that_is_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read \(No such file"):
        tokens_from_file(checkpoint, tmp_path / "absent.txt", 1, 20)


def test_a_file_that_is_no_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"--calib .*latin1\.txt: not UTF-8 text \(byte 3\)"):
        tokens_from_file(checkpoint, file, 1, 20)


def write(checkpoint: Checkpoint, sequences: int = 11, length: int = 40, seed: int = 0, threads: int = 2) -> np.ndarray:
    return self_generated(
        Model(checkpoint, architecture_of(checkpoint)),
        sequences,
        length,
        seed=seed,
        resources=Resources(threads),
        progress=Progress(),
    )


def test_written_text_does_not_depend_on_threads(checkpoint: Checkpoint) -> None:
    one = write(checkpoint, threads=1)
    assert one.shape == (11, 40)
    assert one.dtype == np.int64
    for threads in (2, 3):
        np.testing.assert_array_equal(write(checkpoint, threads=threads), one)


def test_written_text_depends_on_the_seed(checkpoint: Checkpoint) -> None:
    assert not np.array_equal(write(checkpoint, seed=0), write(checkpoint, seed=1))
    assert len({tuple(row) for row in write(checkpoint)}) == 11


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_written_text_is_the_models_own(tmp_path: Path, kind: str) -> None:
    """Every token is among the likeliest after those before it, computed without a cache."""
    path = (tiny_llama if kind == "llama" else tiny_mistral)(tmp_path / "model")
    checkpoint = Checkpoint(path)
    tokens = torch.from_numpy(write(checkpoint))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path)(input_ids=tokens).logits[:, :-1]
    logits[:, :, 0] = -torch.inf  # BOS is never sampled
    rank = (logits > logits.gather(2, tokens[:, 1:, None])).sum(dim=2)
    begun = tokens[:, :-1] != checkpoint.tokenizer.eos_token_id  # after the end of a text comes a random word
    assert begun.float().mean() > 0.5
    assert int(rank[begun].max()) < text.TOP_K


def test_written_text_begins_with_bos_where_texts_do(checkpoint: Checkpoint) -> None:
    tokens = write(with_bos(checkpoint.path))
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, 1:] != 0).all()
    assert (write(Checkpoint(tiny_llama(checkpoint.path))) != 0).all()


def test_a_model_that_does_not_fit(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "parameter_count", 10**15)
    with pytest.raises(UserError, match=r"takes 5000000\.0 GB of memory .* give a text with --calib FILE"):
        write(checkpoint)
