"""Whether what an export writes beside the graph can be written and read again: tried before any long work."""

from __future__ import annotations

import tempfile
from pathlib import Path

from skim_export.checkpoint import Model
from skim_export.graph.genai_builder import DecoderBuilder
from skim_export.packed import PackedLinear
from skim_export.pipeline.options import ExportOptions
from skim_export.work.files import disk_error
from skim_runtime.errors import UserError
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.tokenizer import Tokenizer

__all__ = ["rehearse"]

MODEL = "model.onnx"


def rehearse(model: Model, options: ExportOptions) -> None:
    """Write configuration and tokenizer to a temporary directory, and read them as skim-runtime will.

    Raises:
        UserError: that fails, or the model has no token that ends a text.
    """
    path = model.checkpoint.path
    with tempfile.TemporaryDirectory(prefix="skim-rehearsal-") as name:
        directory = Path(name)
        (directory / MODEL).touch()
        try:
            builder = DecoderBuilder(
                model,
                _no_weights,
                directory / MODEL,
                options.accuracy_level,
                options.ep,
                options.activation_type,
                context=options.context,
            )
            builder.write_configuration()
            opened, tokenizer = ModelDirectory.open(directory), Tokenizer(directory)
            tokenizer.encode("a", special_tokens=True)
        except UserError as error:
            what = str(error).replace(f"{directory}/", "").removesuffix("; export the model again")
            raise UserError(f"model {path}: {what}") from error
        except OSError as error:
            raise UserError(f"cannot write to {directory.parent}: {disk_error(error) or error}") from error
    if not any(token < opened.vocabulary for token in opened.eos_token_ids):
        tokens = ", ".join(map(str, opened.eos_token_ids))
        raise UserError(
            f"model {path}: its eos_token_id is {tokens}, but the embedding ends at {opened.vocabulary - 1}: no text "
            "would end; correct generation_config.json"
        )


def _no_weights(name: str) -> PackedLinear:
    raise AssertionError(f"the configuration needs no weights of {name}")
