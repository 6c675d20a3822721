"""The text model inside a model that sees or hears as well: its configuration and its tensors."""

from __future__ import annotations

from typing import Any

from skim_runtime.errors import UserError

__all__ = ["has_text_part", "text_config", "text_tensor"]

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # which the whole model may know alone

# Where its tensors are, by the beginnings of their names, and where a text model has them.
PLACES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
}


def has_text_part(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a model with a text model inside."""
    return isinstance(config.get("text_config"), dict)


def text_config(config: dict[str, Any], file: str) -> dict[str, Any]:
    """The configuration of the text model, as its own config.json would have it.

    Raises:
        UserError: transformers has no causal language model for it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MODEL_CLASSES

    text = dict(config["text_config"])
    model_class = MODEL_CLASSES.get(text.get("model_type", ""))
    if not isinstance(model_class, str):
        raise UserError(f"{file}: text_config has the model_type {text.get('model_type')!r}, of no text model")
    if "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    tokens = {name: config[name] for name in TOKENS if name in config}
    return {**tokens, **text, "architectures": [model_class]}


def text_tensor(name: str) -> str | None:
    """The name that a tensor has in the text model; None if it belongs to another part."""
    return next((new + name.removeprefix(old) for old, new in PLACES.items() if name.startswith(old)), None)
