import itertools

import pytest

from skim_export.bundle.lowering import read_program
from skim_export.bundle.memory import BY_TOKEN, TENSOR_ALIGNMENT, Barrier, make_plan
from skim_export.bundle.program import Kind

from .models import MODELS

CHUNK = 8


@pytest.fixture(params=MODELS)
def planned(request, tiny):
    program = read_program(tiny(request.param).path / "model.onnx")
    return program, make_plan(program, CHUNK)


def steps(program, plan, when):
    """For each operator the number of barriers before it, with those of one token (ALWAYS) or of many."""
    counts = itertools.accumulate(barrier in when for barrier in plan.barriers)
    return list(zip(program.operators, plan.last_only, counts, strict=True))


ONE = (Barrier.ALWAYS,)
MANY = (Barrier.ALWAYS, Barrier.IF_MANY_TOKENS)


def test_nothing_is_read_that_another_thread_may_not_have_written(planned):
    program, plan = planned
    for many in (False, True):
        written = {}
        for op, last_only, step in steps(program, plan, MANY if many else ONE):
            for name in op.inputs:
                writer, writer_last_only, writer_step = written[name]
                # A thread reads what it wrote itself: by token, from its share of them or from memory of its own.
                alone = not many or writer_last_only
                own = writer.kind in BY_TOKEN and (alone or (op.kind in BY_TOKEN and not last_only))
                assert own or writer_step < step, f"{name} is read by {op.kind} without a barrier"
            written.update(dict.fromkeys(op.outputs, (op, last_only, step)))


def lives(program, plan, times):
    """When each value is written first and read last."""
    first, last = {}, {}
    for op, time in zip(program.operators, times, strict=True):
        for name in op.outputs:
            first[name] = last[name] = time
        for name in op.inputs:
            last[name] = time
    last[program.logits] = times[-1] + 1
    return {name: (first[name], last[name]) for name in first}


def places(plan, shared):
    for name, buffer in plan.buffers.items():
        if shared:
            rows = 1 if buffer.last_only else CHUNK
            yield name, buffer.shared_offset, buffer.shared_offset + rows * buffer.row_bytes
        elif buffer.own_offset is not None:
            yield name, buffer.own_offset, buffer.own_offset + buffer.row_bytes


@pytest.mark.parametrize("shared", [True, False])
def test_values_in_use_do_not_overlap(shared, planned):
    program, plan = planned
    times = [step for _, _, step in steps(program, plan, ONE)] if shared else list(range(len(program.operators)))
    used = lives(program, plan, times)
    for (a, a_begin, a_end), (b, b_begin, b_end) in itertools.combinations(places(plan, shared), 2):
        if used[a][0] <= used[b][1] and used[b][0] <= used[a][1]:
            assert a_end <= b_begin or b_end <= a_begin, f"{a} and {b} overlap"
    assert max(end for _, _, end in places(plan, shared)) == (plan.shared_bytes if shared else plan.own_bytes)


def test_rows_are_aligned_and_hold_their_elements(planned):
    program, plan = planned
    for name, buffer in plan.buffers.items():
        assert buffer.width == program.widths[name]
        assert buffer.row_bytes >= 4 * buffer.width
        for number in (buffer.row_bytes, buffer.shared_offset, buffer.own_offset or 0):
            assert number % TENSOR_ALIGNMENT == 0


def test_memory_is_used_again(planned):
    _, plan = planned
    assert plan.shared_bytes < sum(CHUNK * buffer.row_bytes for buffer in plan.buffers.values()) / 2


def test_only_the_last_token_passes_the_last_attention(planned):
    program, plan = planned
    (*_, last) = [i for i, op in enumerate(program.operators) if op.kind == Kind.ATTENTION]
    assert plan.last_only == [i >= last for i in range(len(program.operators))]


def test_a_layer_has_six_barriers_when_there_is_one_token(tiny):
    program = read_program(tiny("llama").path / "model.onnx")
    plan = make_plan(program, CHUNK)
    kinds = [op.kind for op, barrier in zip(program.operators, plan.barriers, strict=True) if barrier == Barrier.ALWAYS]
    assert kinds == 2 * [Kind.ATTENTION, Kind.PREPARE, Kind.ADD_NORM, Kind.SWIGLU, Kind.PREPARE, Kind.ADD_NORM]
