"""How many questions of multiple choice a model answers right, without examples (zero-shot)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from skim_runtime.errors import UserError
from skim_runtime.evaluation import Model, log_softmax, open_reference
from skim_runtime.progress import Progress
from skim_runtime.session import Session
from skim_runtime.text_file import read_text
from skim_runtime.tokenizer import Tokenizer

__all__ = ["Answers", "Question", "answer_questions", "read_questions"]

FORMS = "a question of HellaSwag (ctx, endings, label) or of ARC (question, choices, answerKey)"


@dataclass(frozen=True)
class Question:
    """A question of multiple choice.

    Attributes:
        context: what the model reads first.
        choices: what may follow it, after a space.
        right: index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Answers:
    """What `answer_questions` found; the comparisons are None without a reference.

    Attributes:
        questions: how many there were.
        accuracy: share whose right choice is the most likely one.
        accuracy_error: its standard error.
        normalized_accuracy: the same with the log likelihood of a choice divided by its characters, which spares long
            ones (`acc_norm` in EleutherAI's lm-evaluation-harness).
        normalized_accuracy_error: its standard error.
        reference_accuracy: that of the reference.
        reference_normalized_accuracy: that of the reference.
        agreement: share of questions for which both find the same choice the most likely.
    """

    questions: int
    accuracy: float
    accuracy_error: float
    normalized_accuracy: float
    normalized_accuracy_error: float
    reference_accuracy: float | None = None
    reference_normalized_accuracy: float | None = None
    agreement: float | None = None


def read_questions(path: Path, count: int | None = None) -> list[Question]:
    """Questions from JSON Lines in the form of HellaSwag or ARC, as both are distributed.

    Args:
        path: the file.
        count: only the first so many.

    Raises:
        UserError: the file cannot be read, is empty, or a line is something else.
    """
    if count is not None and count < 1:
        raise UserError(f"--questions {count}: must be at least 1")
    lines = (line for line in enumerate(read_text(path, "--choices").splitlines(), 1) if line[1].strip())
    questions = []
    for number, line in islice(lines, count):
        try:
            questions.append(_question(json.loads(line)))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"--choices {path}: line {number} is not {FORMS}") from error
    if not questions:
        raise UserError(f"--choices {path}: is empty; each line must be {FORMS}")
    return questions


def _question(fields: dict[str, Any]) -> Question:
    if "endings" in fields:
        title = f"{fields['activity_label']}: " if "activity_label" in fields else ""
        return _checked(title + fields["ctx"], fields["endings"], int(fields["label"]))
    question = fields["question"]
    if isinstance(question, dict):  # as AI2 distributes it
        question, choices = question["stem"], question["choices"]
        texts, labels = ([choice[key] for choice in choices] for key in ("text", "label"))
    else:  # as on the Hugging Face hub
        texts, labels = (fields["choices"][key] for key in ("text", "label"))
    return _checked(f"Question: {question}\nAnswer:", texts, list(labels).index(fields["answerKey"]))


def _checked(context: str, choices: Sequence[str], right: int) -> Question:
    question = Question(_cleaned(context), tuple(_cleaned(choice) for choice in choices), right)
    if not question.context or not all(question.choices) or not 0 <= right < len(question.choices):
        raise ValueError
    return question


def _cleaned(text: str) -> str:
    """A text of HellaSwag without what WikiHow's headings left in it; others stay as they are."""
    text = text.replace(" [title]", ". ")
    return re.sub(" {2,}", " ", re.sub(r"\[(header|step|substeps|title)\]", "", text)).strip()


def answer_questions(
    session: Session,
    questions: Sequence[Question],
    *,
    reference: Model | str | Path | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Let a model answer questions: its answer is the choice that it finds the most likely after the context.

    Args:
        session: the model.
        questions: at least one.
        reference: what to compare with, as for `evaluate`.
        progress: told about every question.

    Raises:
        UserError: a question is longer than the model's context, or the reference cannot be loaded.
    """
    progress = progress or Progress()
    if isinstance(reference, str | Path):
        reference = open_reference(reference, progress)
    tokenizer = Tokenizer(session.directory.path)
    encoded = [_encoded(tokenizer, question, session.context_length) for question in questions]
    models: list[Model] = [session] if reference is None else [session, reference]
    found: list[list[tuple[int, int]]] = [[] for _ in models]  # most likely choices, without and with normalization
    progress.start("answering", len(questions))
    for i, (question, candidates) in enumerate(zip(questions, encoded, strict=True)):
        characters = np.array([len(choice) for choice in question.choices])
        for model, answers in zip(models, found, strict=True):
            likelihood = np.array([_log_likelihood(model, *candidate) for candidate in candidates])
            answers.append((int(likelihood.argmax()), int((likelihood / characters).argmax())))
        progress.step(f"question {i + 1}")
    progress.finish()

    right = np.array([[question.right] for question in questions])
    own, *others = (np.array(answers) for answers in found)
    accuracy, normalized = (float(share) for share in np.mean(own == right, axis=0))
    count = len(questions)
    result = Answers(count, accuracy, _error(accuracy, count), normalized, _error(normalized, count))
    for other in others:
        of_reference, of_reference_normalized = (float(share) for share in np.mean(other == right, axis=0))
        result = replace(
            result,
            reference_accuracy=of_reference,
            reference_normalized_accuracy=of_reference_normalized,
            agreement=float(np.mean(own[:, 0] == other[:, 0])),
        )
    return result


def _encoded(tokenizer: Tokenizer, question: Question, longest: int) -> list[tuple[list[int], int]]:
    """For each choice the tokens of context and choice, with BOS where the tokenizer sets one, and where they part."""
    shared = tokenizer.encode(question.context, special_tokens=True)
    candidates = []
    for choice in question.choices:
        tokens = tokenizer.encode(f"{question.context} {choice}", special_tokens=True)
        if len(tokens) > longest:
            raise UserError(
                f"the question {question.context[:40]!r}... has {len(tokens)} tokens, the model's context {longest}"
            )
        # The last token of the context may become another one where a text goes on.
        same = [before == now for before, now in zip(shared, tokens, strict=False)]
        candidates.append((tokens, max(1, same.index(False) if False in same else len(same))))
    return candidates


def _log_likelihood(model: Model, tokens: list[int], start: int) -> float:
    """Of the tokens from `start` on, each given all before it."""
    logits = model.logits(tokens)[start - 1 : -1]
    return float(np.take_along_axis(log_softmax(logits), np.array(tokens[start:])[:, None], axis=1).sum())


def _error(share: float, count: int) -> float:
    """Standard error of a share of so many independent draws."""
    return float(np.sqrt(share * (1 - share) / max(count - 1, 1)))
