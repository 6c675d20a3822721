"""Run and evaluate models that skim-export wrote.

from skim_runtime import Session, Tokenizer, generate

session = Session("smollm2-3bit")
tokenizer = Tokenizer("smollm2-3bit")
generation = generate(session, tokenizer.prompt("What is the capital of France?"))
print(tokenizer.decode(generation.tokens))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skim_runtime.errors import UserError
    from skim_runtime.evaluation import Evaluation, evaluate
    from skim_runtime.genai import GenaiSession
    from skim_runtime.generation import Generation, generate
    from skim_runtime.session import Session
    from skim_runtime.tokenizer import TextStream, Tokenizer
    from skim_runtime.torch_reference import TorchReference

__all__ = [
    "Evaluation",
    "GenaiSession",
    "Generation",
    "Session",
    "TextStream",
    "Tokenizer",
    "TorchReference",
    "UserError",
    "evaluate",
    "generate",
]

_MODULES = {
    "Evaluation": "evaluation",
    "GenaiSession": "genai",
    "Generation": "generation",
    "Session": "session",
    "TextStream": "tokenizer",
    "Tokenizer": "tokenizer",
    "TorchReference": "torch_reference",
    "UserError": "errors",
    "evaluate": "evaluation",
    "generate": "generation",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `--help` does not wait for onnxruntime."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
