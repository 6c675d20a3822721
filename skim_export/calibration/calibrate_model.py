"""Calibration statistics of a model, by this process block after block, or by many in pieces."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from skim_export.calibration import (
    Activations,
    LinearStatistics,
    block_statistics,
    calibrate,
    trace_sequences,
    traced_vocabulary_statistics,
)
from skim_export.calibration.passes import SEQUENCES_TOGETHER
from skim_export.calibration.shared_states import SharedStates
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Architecture, Linear, Model
from skim_export.work.resources import FLOAT32_BYTES, ROW_GROUP, Resources
from skim_export.work.tasks import Executor, Task, do_tasks
from skim_runtime.progress import Progress

Statistics: TypeAlias = Callable[[], Iterator[tuple[Linear, LinearStatistics]]]

__all__ = ["activation_bytes", "calibrating_bytes", "gather_statistics", "spread_statistics", "warn_of_seldom_experts"]

TRACED_TOGETHER = 8  # sequences of a task
FEW_TOKENS = 64  # of an expert; the mean of its layer has a fifth of what is known of it then
IN_WORK = 6  # times the activations of a sequence that a thread holds while it goes backwards through them


def gather_statistics(
    model: Model,
    tokens: npt.NDArray[np.int64],
    store: StatisticsStore,
    *,
    vocabulary: bool = False,
    resources: Resources,
    progress: Progress,
) -> None:
    """Run the calibration tokens `[S, T]` through the model and keep the statistics of every linear layer.

    With `vocabulary`, also of embedding and head. What was kept of the same tokens before is not computed again.
    """
    wanted = _wanted(model.architecture, vocabulary)
    kept = {linear.name for linear in wanted if store.is_complete(linear.name)}
    if len(kept) == len(wanted):
        return
    directory = store.directory / "activations"
    statistics = partial(
        calibrate,
        model,
        tokens,
        Activations(directory),
        vocabulary=vocabulary,
        is_kept=lambda linear: linear.name in kept,
        resources=resources,
        progress=progress,
    )
    _keep(statistics, store)
    shutil.rmtree(directory)


def spread_statistics(
    model: Model,
    tokens: npt.NDArray[np.int64],
    store: StatisticsStore,
    *,
    vocabulary: bool = False,
    executor: Executor,
    progress: Progress,
) -> None:
    """The same in tasks, which together take longer and more disk, but can be done at the same time.

    Args:
        model: the model.
        tokens: int64 `[S, T]`.
        store: where the statistics go.
        vocabulary: whether those of embedding and head are wanted, too.
        executor: does the tasks.
        progress: sees two stages, "calibrating sequences" and "calibrating blocks".

    Raises:
        UserError: the loss or a gradient is not finite.
    """
    architecture = model.architecture
    if all(store.is_complete(linear.name) for linear in _wanted(architecture, vocabulary)):
        return
    directory, resources = store.directory / "activations", executor.resources
    memory = calibrating_bytes(model, tokens.shape, resources.workers, vocabulary)
    traces, tasks = [], []
    for start in range(0, len(tokens), TRACED_TOGETHER):
        some = tokens[start : start + TRACED_TOGETHER]
        trace = Activations(directory / f"sequences-{start}")
        work = partial(trace_sequences, model, some, trace, resources=resources)
        tasks.append(Task(f"sequence {start}", work, trace.paths(len(architecture.blocks)), memory))
        traces.append(trace)
    do_tasks("calibrating sequences", tasks, executor, progress)

    def task(name: str, linears: list[Linear], statistics: Statistics) -> Task:
        return Task(name, partial(_keep, statistics, store), tuple(store.path(x.name) for x in linears), memory)

    tasks = [
        task(
            f"block {index}",
            linears,
            partial(block_statistics, model, index, tokens, traces, resources=resources),
        )
        for index, linears in enumerate(architecture.packed_blocks)
        if linears
    ]
    if vocabulary:
        statistics = partial(traced_vocabulary_statistics, model, tokens, traces, resources=resources)
        tasks.append(task("vocabulary", architecture.token_linears, statistics))
    do_tasks("calibrating blocks", tasks, executor, progress)
    shutil.rmtree(directory)


def warn_of_seldom_experts(architecture: Architecture, store: StatisticsStore) -> None:
    """Say how many experts the calibration text has hardly reached."""
    layers = [store.expert_tokens(x.name) for x in architecture.linears if x.inputs_differ]
    if not layers:
        return
    tokens = np.concatenate(layers)
    few, none = np.count_nonzero(tokens < FEW_TOKENS), np.count_nonzero(tokens == 0)
    if few:
        of_them = f"{few} of {len(tokens)} experts"
        unseen = f", {none} of them none" if none else ""
        warnings.warn(
            f"{of_them} were given fewer than {FEW_TOKENS} tokens of the calibration text{unseen}: what these are "
            "sensitive to is taken from the others of their layer; a longer text with --calib tells more",
            stacklevel=2,
        )


def _wanted(architecture: Architecture, vocabulary: bool) -> list[Linear]:
    return architecture.linears + (architecture.token_linears if vocabulary else [])


def _keep(statistics: Statistics, store: StatisticsStore) -> None:
    for linear, of_linear in statistics():
        store.write(linear.name, of_linear)
        del of_linear  # 1 GB perhaps, which the next block needs


def _channels(linear: Linear, per_token: int) -> int:
    """Inputs and outputs of a linear layer for a token, or of so many of its experts."""
    if linear.of_experts:
        return per_token * (linear.out_features // len(linear.members) + linear.in_features)
    return linear.out_features + linear.in_features


def activation_bytes(model: Model, text: tuple[int, ...]) -> int:
    """Disk that the inputs of all blocks take, what the last one gives, and one gradient.

    Args:
        model: the model.
        text: sequences, S, and their length, T.
    """
    states, blocks = SharedStates(model.checkpoint.config), len(model.architecture.blocks)
    widths = [states.width(block) for block in range(blocks + 1)]
    return FLOAT32_BYTES * math.prod(text) * (sum(widths) + widths[-1])


def calibrating_bytes(model: Model, text: tuple[int, ...], threads: int, vocabulary: bool) -> int:
    """Memory that calibration takes, an estimate: a block with its statistics and what it sees; or the head.

    Args:
        model: the model.
        text: sequences, S, and their length, T.
        threads: sequences that are worked on at the same time.
        vocabulary: whether the statistics of embedding and head are wanted, too.
    """
    sequences, length = text
    architecture = model.architecture
    widest = SharedStates(model.checkpoint.config).width(len(architecture.blocks))
    hidden = FLOAT32_BYTES * sequences * length * widest
    per_token = getattr(model.checkpoint.config, "num_experts_per_tok", 1)
    blocks = []
    for block in architecture.blocks:
        weights = FLOAT32_BYTES * sum(linear.out_features * linear.in_features for linear in block)
        moments = [FLOAT32_BYTES * linear.in_features**2 for linear in block]
        outputs = FLOAT32_BYTES * ROW_GROUP * sum(linear.out_features for linear in block)
        channels = sum(_channels(linear, per_token) for linear in block)
        seen = FLOAT32_BYTES * length * channels * (min(SEQUENCES_TOGETHER, sequences) + IN_WORK * threads)
        blocks.append(2 * weights + outputs + sum(moments) + max(max(moments), seen))
    head = FLOAT32_BYTES * architecture.vocabulary_size * architecture.hidden_size
    others = 2 * FLOAT32_BYTES * sequences * length * sum(linear.in_features for linear in architecture.others)
    return 3 * hidden + others + max(*blocks, 3 * head if vocabulary else head)
