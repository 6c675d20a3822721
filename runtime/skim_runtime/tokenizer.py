"""Text to tokens and back, with the tokenizer files of an exported directory.

Only `tokenizers` and jinja2: loading them takes a quarter of a second where transformers takes five.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from skim_runtime.chat_template import render_template
from skim_runtime.errors import UserError, foreign_errors
from skim_runtime.interruptible import interruptible
from skim_runtime.text_file import read_text

__all__ = ["TextStream", "Tokenizer"]

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of `directory`.

    Raises:
        UserError: `tokenizer.json` is missing or malformed.
    """

    def __init__(self, directory: str | Path) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._directory = Path(directory)
        file = self._directory / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{file}: missing; copy it from the model's checkpoint")
        with foreign_errors(f"{file}: not a tokenizer"):
            self._tokenizer = FastTokenizer.from_file(str(file))
        # What the file says of these is of batches in training; transformers ignores it, too, unless it is asked.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Tokens of `text`; with those that the model's tokenizer puts around it (BOS) only if `special_tokens`.

        Raises:
            UserError: the tokenizer's own rules fail on it.
        """

        def encode() -> list[int]:
            # Unlike `encode`, `encode_batch` lets other threads run.
            (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=special_tokens)
            return list(encoding.ids)

        with foreign_errors(f"{self._directory / 'tokenizer.json'}: cannot encode the text"):
            return interruptible(encode)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens, without special tokens.

        Raises:
            UserError: the tokenizer's own rules fail on them.
        """
        with foreign_errors(f"{self._directory / 'tokenizer.json'}: cannot decode tokens"):
            return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model comes with a chat template."""
        return self._chat_template is not None

    def prompt(self, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
        """Tokens of a prompt, as a user's message in the chat template.

        A model without a chat template, and `raw`, take the text as it is, with the tokenizer's BOS if it has one.

        Raises:
            UserError: `system` is given where there is no template, or the template refuses the messages.
        """
        if raw or self._chat_template is None:
            if system is not None:
                raise UserError("a system message needs a chat template: leave it out, or put it into the prompt")
            return self.encode(text, special_tokens=True)
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        return self.encode(self._render(messages))

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = self._directory / "tokenizer_config.json"
        if not file.is_file():
            return {}
        try:
            config = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: malformed ({error})") from None
        if not isinstance(config, dict):
            raise UserError(f"{file}: must be an object, is {type(config).__name__}")
        return config

    @cached_property
    def _chat_template(self) -> str | None:
        file = self._directory / "chat_template.jinja"
        if file.is_file():
            return read_text(file, "the chat template")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = named[-1].get("template") if named else None
        if not isinstance(template, str | None):
            raise UserError(
                f"{self._directory / 'tokenizer_config.json'}: chat_template must be a text or a list of them"
            )
        return template

    def _render(self, messages: list[dict[str, str]]) -> str:
        """The prompt by the rules of transformers, which knows of tools and documents even where there are none."""
        special = {name: self._config.get(name) for name in _SPECIAL_TOKENS}
        special = {name: token.get("content") if isinstance(token, dict) else token for name, token in special.items()}
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **special}
        try:
            return render_template(self._chat_template or "", variables)
        except UserError as error:
            raise UserError(f"{self._directory}: the chat template fails: {error}") from None


class TextStream:
    """Turns tokens into text as they come, holding back the bytes of characters that are not complete yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Tokens before `_read` are printed. Those from `_start` on are decoded together with new ones, since
        # a tokenizer may decode a token differently at the beginning of a text (spaces).
        self._start = self._read = 0

    def put(self, token: int) -> str:
        """The text that is complete with this token; may be empty."""
        self._tokens.append(token)
        return self._advance(complete=True)

    def end(self) -> str:
        """The rest: an incomplete character as U+FFFD."""
        return self._advance(complete=False)

    def _advance(self, *, complete: bool) -> str:
        printed = self._tokenizer.decode(self._tokens[self._start : self._read])
        text = self._tokenizer.decode(self._tokens[self._start :])
        if complete and text.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text[len(printed) :]
