"""Run and evaluate models that skim-export wrote.

from skim_runtime import Session, Tokenizer, generate

session = Session("smollm2-3bit")
tokenizer = Tokenizer("smollm2-3bit")
generation = generate(session, tokenizer.prompt("What is the capital of France?"))
print(tokenizer.decode(generation.tokens))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skim_runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from skim_runtime.errors import UserError
    from skim_runtime.evaluation import Evaluation, evaluate
    from skim_runtime.genai import GenaiSession
    from skim_runtime.generation import Generation, generate
    from skim_runtime.session import Session
    from skim_runtime.tokenizer import TextStream, Tokenizer
    from skim_runtime.verification import verify

__all__ = [
    "Answers",
    "Evaluation",
    "GenaiSession",
    "Generation",
    "Question",
    "Session",
    "TextStream",
    "Tokenizer",
    "UserError",
    "answer_questions",
    "evaluate",
    "generate",
    "read_questions",
    "verify",
]

_MODULES = {
    "Answers": "skim_runtime.choices",
    "Evaluation": "skim_runtime.evaluation",
    "GenaiSession": "skim_runtime.genai",
    "Generation": "skim_runtime.generation",
    "Question": "skim_runtime.choices",
    "Session": "skim_runtime.session",
    "TextStream": "skim_runtime.tokenizer",
    "Tokenizer": "skim_runtime.tokenizer",
    "UserError": "skim_runtime.errors",
    "answer_questions": "skim_runtime.choices",
    "evaluate": "skim_runtime.evaluation",
    "generate": "skim_runtime.generation",
    "read_questions": "skim_runtime.choices",
    "verify": "skim_runtime.verification",
}

__getattr__ = lazy_attributes(__name__, _MODULES)
