import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from skim_runtime import Question, Session, UserError, answer_questions, read_questions
from skim_runtime.choices import _cleaned
from skim_runtime.progress import Progress

HELLASWAG = {
    "activity_label": "Making tea",
    "ctx": "[header] How to make tea [title] Boil water. [step] Then  the cook",
    "endings": ["pours it over the leaves. [substeps] Wait.", "sings", "paints a wall", "drives home"],
    "label": 0,
}
ARC = {
    "question": "What melts?",
    "choices": {"text": ["ice", "sand", "air"], "label": ["A", "B", "C"]},
    "answerKey": "A",
}
ARC_OF_AI2 = {
    "question": {"stem": "What melts?", "choices": [{"text": "sand", "label": "1"}, {"text": "ice", "label": "2"}]},
    "answerKey": "2",
}


class EvenLengths:
    """A model that is sure of what has an even number of tokens, and knows nothing of the rest."""

    def logits(self, tokens):
        logits = np.zeros((len(tokens), 320), np.float32)
        if len(tokens) % 2 == 0:
            logits[np.arange(len(tokens) - 1), tokens[1:]] = 100
        return logits


@pytest.fixture(scope="module")
def session(fp32):
    return Session(fp32)


@pytest.fixture(scope="module")
def questions():
    """Random ones, so that a model of random weights has a side to each."""
    rng = np.random.default_rng(7)
    words = ["tea", "water", "cook", "pours", "melts", "ice", "sand", "the", "a", "of", "over", "leaf", "wall"]

    def text(most):
        return " ".join(rng.choice(words, rng.integers(1, most)))

    return [Question(text(9), tuple(text(6) for _ in range(rng.integers(2, 6))), 0) for _ in range(12)]


def lines(path, *fields):
    path.write_text("\n".join(json.dumps(line) for line in fields) + "\n", "utf-8")
    return path


def answers_of_torch(hf, directory, questions):
    """Most likely choices by transformers alone, without and with normalization."""
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = []
    for question in questions:
        start = len(tokenizer(question.context).input_ids)
        sums = []
        for choice in question.choices:
            ids = torch.tensor([tokenizer(f"{question.context} {choice}").input_ids])
            with torch.no_grad():
                log = torch.log_softmax(model(ids).logits[0].double(), -1)
            sums.append(sum(log[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
        by_character = [total / len(choice) for total, choice in zip(sums, question.choices, strict=True)]
        found.append((int(np.argmax(sums)), int(np.argmax(by_character))))
    return np.array(found)


def test_answers_are_those_of_torch(hf, fp32, session, questions):
    found = answers_of_torch(hf, fp32, questions)
    assert len(set(found[:, 0])) > 1
    assert (found[:, 0] != found[:, 1]).any()
    for column in (0, 1):  # with these right, all are
        pairs = zip(questions, found[:, column], strict=True)
        asked = [Question(question.context, question.choices, int(right)) for question, right in pairs]
        answers = answer_questions(session, asked)
        assert (answers.accuracy, answers.normalized_accuracy)[column] == 1
        share = np.mean(found[:, 0] == found[:, 1])
        assert (answers.accuracy, answers.normalized_accuracy)[1 - column] == pytest.approx(share)
        assert answers.questions == len(questions)
        assert answers.reference_accuracy is None


def test_a_share_comes_with_its_error(session, questions):
    answers = answer_questions(session, questions)
    right = [0] * len(questions)
    right[: round(answers.accuracy * len(questions))] = [1] * round(answers.accuracy * len(questions))
    assert 0 < answers.accuracy < 1
    assert answers.accuracy_error == pytest.approx(np.std(right, ddof=1) / len(right) ** 0.5)


def test_a_reference_answers_the_same_questions(hf, session, questions):
    same = answer_questions(session, questions, reference=hf)
    assert same.agreement == 1
    assert same.reference_accuracy == same.accuracy
    assert same.reference_normalized_accuracy == same.normalized_accuracy
    other = answer_questions(session, questions, reference=EvenLengths())
    assert 0 < other.agreement < 1
    assert other.reference_accuracy != same.accuracy


def test_questions_of_both_kinds_are_read(tmp_path):
    file = lines(tmp_path / "q.jsonl", HELLASWAG, ARC, ARC_OF_AI2, {**HELLASWAG, "label": "3"})
    hellaswag, arc, of_ai2, other = read_questions(file)
    assert hellaswag.context == "Making tea: How to make tea. Boil water. Then the cook"
    assert hellaswag.choices[0] == "pours it over the leaves. Wait."
    assert hellaswag.right == 0
    assert other.right == 3
    assert arc == Question("Question: What melts?\nAnswer:", ("ice", "sand", "air"), 0)
    assert of_ai2 == Question("Question: What melts?\nAnswer:", ("sand", "ice"), 1)
    assert read_questions(file, 2) == [hellaswag, arc]


def test_other_brackets_stay():
    assert _cleaned("a [b] c") == "a [b] c"


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        "{}",
        json.dumps({**HELLASWAG, "label": 4}),
        json.dumps({**HELLASWAG, "label": -1}),
        json.dumps({**HELLASWAG, "endings": []}),
        json.dumps({**HELLASWAG, "endings": ["a", " "]}),
        json.dumps({**HELLASWAG, "endings": [1, 2]}),
        json.dumps({**ARC, "answerKey": "D"}),
        json.dumps({"question": "What melts?", "answerKey": "A"}),
        json.dumps({**ARC, "question": 3, "choices": None}),
    ],
)
def test_something_else_is_refused_by_its_line(tmp_path, line):
    file = tmp_path / "q.jsonl"
    file.write_text(f"{json.dumps(ARC)}\n\n{line}\n", "utf-8")
    with pytest.raises(UserError, match=r"q\.jsonl: line 3 is not a question of HellaSwag"):
        read_questions(file)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"q\.jsonl: is empty"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(UserError, match="--questions 0: must be at least 1"):
        read_questions(tmp_path / "q.jsonl", 0)


def test_a_question_longer_than_the_context_is_refused(session):
    with pytest.raises(UserError, match=rf"the question 'a a.* tokens, the model's context {session.context_length}"):
        answer_questions(session, [Question("a " * session.context_length, ("b", "c"), 0)])


def test_progress_counts_the_questions(session, questions):
    class Counting(Progress):
        stages = []  # noqa: RUF012

        def start(self, stage, total):
            self.stages.append((stage, total))

    answer_questions(session, questions[:3], progress=Counting())
    assert Counting.stages == [("answering", 3)]
