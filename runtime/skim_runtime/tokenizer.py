"""Text to tokens and back, with the tokenizer files of an exported directory.

Only `tokenizers` and jinja2: loading them takes a quarter of a second where transformers takes five.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError

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
        try:
            self._tokenizer = FastTokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(f"{file}: not a tokenizer ({error})") from None

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Tokens of `text`; with those that the model's tokenizer puts around it (BOS) only if `special_tokens`."""
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens, without special tokens."""
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
            config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: malformed ({error})") from None
        return config

    @cached_property
    def _chat_template(self) -> str | None:
        file = self._directory / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template

    def _render(self, messages: list[dict[str, str]]) -> str:
        """The prompt by the rules of transformers: same Jinja settings, same names."""
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        special = {name: self._config.get(name) for name in _SPECIAL_TOKENS}
        special = {name: token["content"] if isinstance(token, dict) else token for name, token in special.items()}
        try:
            template = environment.from_string(self._chat_template or "")
            return template.render(messages=messages, add_generation_prompt=True, **special)
        except TemplateError as error:
            raise UserError(f"{self._directory}: the chat template refuses the messages: {error}") from None


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
