"""Fine-tuning of what a quantized model stores beside its codes: the free levels and the norms.

The codes stay; everything else is moved against the KL divergence from the full-precision model to the quantized one,
in the manner of PV-Tuning's continuous phase (arXiv 2405.14852, section 3.2). Column scales need no steps of their own:
in front of qkv, gate and up they are the norm's weight, and those of down and o are rows of up and v.

One decoder block is in memory at a time, as in calibration: a step runs forwards, keeping the input of every block, and
backwards, block by block, each updated as soon as its gradient is known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from skim_export.calibration.arguments import Arguments
from skim_export.calibration.passes import (
    BlockBackward,
    Factors,
    OfSequence,
    add_in_pieces,
    forward,
    head_gradient,
    head_values,
)
from skim_export.calibration.streaming import StreamedModel
from skim_export.calibration.workers import workers
from skim_export.checkpoint import Architecture, Model
from skim_export.packed.checkpoint import PackedCheckpoint
from skim_export.work.resources import Resources
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .student import Student

__all__ = ["HELD_OUT", "TuneReport", "tune"]

HELD_OUT = 8  # sequences that are not trained on, but decide when to stop
BATCH = 4  # sequences a step
EPOCHS = 2  # over the text
EVERY = 8  # steps between two looks at the held-out sequences
PATIENT_LOOKS = 3  # without progress
WARM_UP_STEPS = 4
LEVEL_RATE = 3e-3  # of the spread of a row, at the height of the schedule
NORM_RATE = 2e-4


@dataclass(frozen=True)
class TuneReport:
    """What tuning did.

    Attributes:
        steps: steps whose result was kept.
        before: mean KL divergence to the full-precision model on the held-out sequences, in nats a token.
        after: the same at the end.
    """

    steps: int
    before: float
    after: float


def tune(
    model: Model,
    packed: PackedCheckpoint,
    tokens: npt.NDArray[np.int64],
    state: Path,
    *,
    resources: Resources,
    progress: Progress,
) -> TuneReport:
    """Fine-tune the linear layers of a packed checkpoint, which is changed in place, and the norms.

    The state with the least divergence on held-out text wins. The same call with the same `state` file goes on where an
    interrupted one last saved it. The result depends neither on the number of threads nor on interruptions.

    Args:
        model: the full-precision model.
        packed: its quantized linear layers.
        tokens: int64 `[S, T]`; the first `HELD_OUT` sequences are held out, and each of the others is seen
            `EPOCHS` times, but for a rest that fills no batch.
        state: file that keeps the best state; the caller may remove it afterwards.
        resources: threads to use; tuning stays on the CPU.
        progress: told of every step.

    Raises:
        UserError: there are too few sequences, or the state is that of another model, text or quantization.
    """
    if len(tokens) < HELD_OUT + BATCH:
        raise UserError(f"tuning needs at least {HELD_OUT + BATCH} sequences of text, got {len(tokens)}")
    ids = torch.from_numpy(tokens)
    batches = (len(ids) - HELD_OUT) // BATCH
    steps = EPOCHS * batches
    with workers(resources.threads) as pool, tempfile.TemporaryDirectory(dir=state.parent) as scratch:
        teacher = _final_states(pool, model, ids, progress)
        student = Student(model, packed, tokens, Path(scratch))
        trainer = _Trainer(pool, model.architecture, student, ids, teacher)
        before = after = trainer.held_out_divergence()
        best = first = 0
        if state.is_file():
            first, before, after = student.restore(state)
            best = first
        progress.start("tuning", steps)
        for step in range(first, steps):
            start = HELD_OUT + step % batches * BATCH
            batch = slice(start, start + BATCH)
            divergence = trainer.step(batch, _schedule(step, steps))
            progress.step(f"divergence {divergence:.4f}, held out {after:.4f}")
            if (step + 1) % EVERY and step + 1 < steps:
                continue
            held_out = trainer.held_out_divergence()
            if held_out < after:
                best, after = step + 1, held_out
                student.save(state, best, before, after)
            elif step + 1 - best >= PATIENT_LOOKS * EVERY:
                break
        progress.finish()
        if best:
            student.restore(state)
            student.write(packed)
    return TuneReport(best, before, after)


def _schedule(step: int, steps: int) -> float:
    """Part of the full learning rate: a short rise, then a straight fall to a tenth."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - 0.9 * step / steps)


def _final_states(pool: ThreadPoolExecutor, model: Model, ids: torch.Tensor, progress: Progress) -> torch.Tensor:
    """What the full-precision head sees, `[S, T, hidden]`."""
    progress.start("full-precision outputs", len(model.architecture.blocks) + 1)
    streamed = StreamedModel(model)
    hidden, arguments = pool.submit(streamed.enter, ids).result()
    for index in range(len(model.architecture.blocks)):
        hidden = forward(pool, streamed.load_block(index), hidden, arguments[index])
        streamed.unload_block(index)
        progress.step(f"block {index}")
    norm, _ = streamed.load_head()
    states = forward(pool, norm, hidden, Arguments())
    progress.step("norm")
    progress.finish()
    return states


class _Trainer:
    def __init__(
        self,
        pool: ThreadPoolExecutor,
        architecture: Architecture,
        student: Student,
        ids: torch.Tensor,
        teacher: torch.Tensor,
    ) -> None:
        self._pool, self._architecture, self._student = pool, architecture, student
        self._ids, self._teacher = ids, teacher

    def held_out_divergence(self) -> float:
        """Mean KL divergence on the held-out sequences."""
        held_out = slice(0, HELD_OUT)
        hidden, _, _ = self._forward(self._ids[held_out])
        return sum(head_values(self._pool, self._student.norm, self._student.head, hidden, self._loss(held_out)))

    def step(self, batch: slice, rate: float) -> float:
        """One step; the mean KL divergence before it."""
        hidden, inputs, arguments = self._forward(self._ids[batch])
        student = self._student
        trained = student.norms(student.norm, self._architecture.norm)
        losses, gradient, of_norm = head_gradient(
            self._pool, student.norm, student.head, hidden, self._loss(batch), list(trained.values())
        )
        student.step_norms(trained, of_norm, rate * NORM_RATE)
        for index in reversed(range(len(inputs))):
            gradient = self._backward(index, inputs[index], gradient, arguments[index], rate)
        return sum(losses)

    def _forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[Arguments]]:
        """The input of the last norm, and of every block with its further arguments."""
        hidden, arguments = self._pool.submit(self._student.streamed.enter, ids).result()
        inputs = []
        for index in range(len(self._architecture.blocks)):
            inputs.append(hidden)
            hidden = forward(self._pool, self._student.load_block(index), hidden, arguments[index])
            self._student.streamed.unload_block(index)
        return hidden, inputs, arguments

    def _backward(
        self, index: int, inputs: torch.Tensor, gradient: torch.Tensor, arguments: Arguments, rate: float
    ) -> torch.Tensor:
        """Update one block; the gradient in its input."""
        student, module = self._student, self._architecture.block_modules[index]
        linears = self._architecture.packed_blocks[index]
        block = student.load_block(index)
        trained = student.norms(block, module)
        quantized = [student.linears[linear.name] for linear in linears]
        sums = [torch.zeros(linear.out_features, linear.in_features) for linear in linears]

        def consume(factors: list[OfSequence]) -> None:
            add_in_pieces(self._pool, sums, factors, _add_gradient)

        backward = BlockBackward(linears, module, block, list(trained.values()))
        below, of_norms = backward.run(self._pool, inputs, gradient, arguments, consume)
        student.streamed.unload_block(index)

        def update(position: int) -> None:
            linear = quantized[position]
            linear.step(linear.level_gradient(sums[position]), rate * LEVEL_RATE)

        list(self._pool.map(update, range(len(quantized))))
        student.step_norms(trained, of_norms, rate * NORM_RATE)
        return below

    def _loss(self, batch: slice) -> Callable[[torch.Tensor, int, slice], torch.Tensor]:
        """KL(full precision || quantized), a share of the mean over all positions of the batch."""
        teacher = self._teacher[batch]
        head = self._student.head
        positions = len(teacher) * (teacher.shape[1] - 1)

        def loss(logits: torch.Tensor, sequence: int, rows: slice) -> torch.Tensor:
            with torch.no_grad():
                wanted = torch.log_softmax(head(teacher[sequence, rows]), dim=-1)
            found = torch.log_softmax(logits, dim=-1)
            return torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True) / positions

        return loss


def _add_gradient(total: torch.Tensor, rows: slice, factors: Factors) -> None:
    total[rows].addmm_(factors.of(rows).T, factors.x)
