"""The tokenizer of a GGUF model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from skim_runtime.errors import UserError, foreign_errors

from .header import GgufHeader

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["mend", "save_tokenizer"]

# What transformers forgets, by `tokenizer.ggml.pre`. How text is split where digits stand alone, as in StarCoder:
SINGLE_DIGITS = {"refact", "smollm", "starcoder"}
PLAIN = {"gpt-2", "mpt", "olmo", "phi-2"}  # as it does if it knows nothing
COMPOSED = {"qwen2"}  # characters and their accents are put together first
# A word that is a token is one, whether merges lead there or not; and texts begin with BOS.
WHOLE_WORDS = {
    "falcon-h1", "falcon3", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral", "tekken",
}  # fmt: skip


def save_tokenizer(header: GgufHeader, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template.

    Raises:
        UserError: there is no tokenizer, or one that transformers cannot rebuild.
    """
    from transformers import PreTrainedTokenizerFast

    file, metadata = header.files[0], header.metadata
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2":
        _check_pre_tokenizer(file, pre)
    with foreign_errors(f"{file}: transformers cannot rebuild its tokenizer (of type {kind!r})"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer.model_max_length = metadata[f"{metadata['general.architecture']}.context_length"]
        mend(tokenizer, metadata)
        tokenizer.save_pretrained(directory)
        _drop_additions(directory / "tokenizer.json", len(metadata["tokenizer.ggml.tokens"]))


def _check_pre_tokenizer(file: Path, pre: object) -> None:
    # Beyond these transformers falls back to the way of GPT-2 without a word.
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    known = {*GGUF_PRE_TOKENIZER_SPLITS, *SINGLE_DIGITS, *PLAIN}
    if not isinstance(pre, str) or pre not in known:
        raise UserError(
            f"{file}: how its tokenizer splits text (tokenizer.ggml.pre = {pre!r}) is unknown; "
            f"known are {', '.join(sorted(known))}"
        )


def mend(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Do what the metadata say and transformers passes over."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    backend, pre = tokenizer.backend_tokenizer, metadata.get("tokenizer.ggml.pre")
    if pre in SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    if not prefix and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):  # SentencePiece, as in Llama 2
        backend.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if pre in COMPOSED:
        backend.normalizer = normalizers.NFC()
    if pre in WHOLE_WORDS:
        backend.model.ignore_merges = True
        tokenizer.add_bos_token = metadata.get("tokenizer.ggml.add_bos_token", True)


def _drop_additions(file: Path, count: int) -> None:
    """A tokenizer's class in transformers adds the special tokens that it expects, beyond the model's embedding."""
    content = json.loads(file.read_text("utf-8"))
    kept = [token for token in content["added_tokens"] if token["id"] < count]
    if kept != content["added_tokens"]:
        content["added_tokens"] = kept
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")
