import itertools

import pytest

from skim_export.bundle import memory
from skim_export.bundle.lowering import read_program
from skim_export.bundle.memory import TENSOR_ALIGNMENT, Barrier, is_by_column, is_by_token, make_plan
from skim_export.bundle.program import Kind

from .models import MODELS

CHUNK = 8
DECODERS = ("qwen3", "gemma2", "granite", "olmo2")  # norms of heads, tanh, scales, sums


@pytest.fixture(params=[*MODELS, *DECODERS, *(f"{name}, all by column" for name in DECODERS)])
def planned(request, tiny, exported, monkeypatch):
    name, _, by_column = request.param.partition(", ")
    if by_column:
        monkeypatch.setattr(memory, "NARROW", 0)
    model = exported(name).directory if name in DECODERS else tiny(name).path
    program = read_program(model / "model.onnx")
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
                writer, writer_last_only, writer_step = written[program.whole(name)]
                # A thread reads what it wrote itself: by token, from its share of them or from memory of its own.
                alone = not many or writer_last_only
                own = is_by_token(program, writer) and (alone or (is_by_token(program, op) and not last_only))
                # Or by column, where columns of both are as many.
                own |= is_by_column(program, writer) and is_by_column(program, op) and name in writer.outputs
                assert own or writer_step < step, f"{name} is read by {op.kind} without a barrier"
            written.update(dict.fromkeys(op.outputs, (op, last_only, step)))


def lives(program, plan, times):
    """When each value is written first and read last."""
    first, last = {}, {}
    for op, time in zip(program.operators, times, strict=True):
        for name in op.outputs:
            first[name] = last[name] = time
        for name in op.inputs:
            last[program.whole(name)] = time
    last[program.logits] = times[-1] + 1
    return {name: (first[name], last[name]) for name in first}


def places(program, plan, shared):
    for name, buffer in plan.buffers.items():
        if name in program.parts:
            continue
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
    for (a, a_begin, a_end), (b, b_begin, b_end) in itertools.combinations(places(program, plan, shared), 2):
        if used[a][0] <= used[b][1] and used[b][0] <= used[a][1]:
            assert a_end <= b_begin or b_end <= a_begin, f"{a} and {b} overlap"
    assert max(end for _, _, end in places(program, plan, shared)) == (plan.shared_bytes if shared else plan.own_bytes)


def test_rows_are_aligned_and_hold_their_elements(planned):
    program, plan = planned
    for name, buffer in plan.buffers.items():
        assert buffer.width == program.widths[name]
        assert buffer.row_bytes >= 4 * buffer.width
        if name in program.parts:
            continue
        for number in (buffer.row_bytes, buffer.shared_offset, buffer.own_offset or 0):
            assert number % TENSOR_ALIGNMENT == 0


def test_parts_lie_in_what_they_are_parts_of(planned):
    program, plan = planned
    assert program.parts
    for name, part in program.parts.items():
        buffer, whole = plan.buffers[name], plan.buffers[part.whole]
        assert (buffer.row_bytes, buffer.last_only) == (whole.row_bytes, whole.last_only)
        assert buffer.shared_offset - whole.shared_offset == 4 * part.start
        assert part.start + buffer.width <= whole.width
        assert buffer.own_offset == whole.own_offset is None


def test_parts_of_memory_of_its_own(tiny):
    program = read_program(tiny("llama").path / "model.onnx")
    norm = program.operators[1].outputs[0]
    program.add_part("part", norm, 12, 20)
    plan = make_plan(program, CHUNK)
    assert plan.buffers["part"].own_offset == plan.buffers[norm].own_offset + 48


def test_memory_is_used_again(planned):
    program, plan = planned
    whole = [buffer for name, buffer in plan.buffers.items() if name not in program.parts]
    assert plan.shared_bytes < sum(CHUNK * buffer.row_bytes for buffer in whole) / 2


def test_only_the_last_token_passes_the_last_attention(planned):
    program, plan = planned
    (*_, last) = [i for i, op in enumerate(program.operators) if op.kind == Kind.ATTENTION]
    assert plan.last_only == [i >= last for i in range(len(program.operators))]


def test_what_a_thread_wrote_by_column_it_reads_without_a_barrier(tiny):
    gelu = read_program(tiny("gelu").path / "model.onnx")
    kinds = {op.kind: barrier for op, barrier in zip(gelu.operators, make_plan(gelu, CHUNK).barriers, strict=True)}
    assert (kinds[Kind.GELU], kinds[Kind.MUL]) == (Barrier.ALWAYS, Barrier.NEVER)


def test_a_layer_has_six_barriers_when_there_is_one_token(tiny):
    program = read_program(tiny("llama").path / "model.onnx")
    plan = make_plan(program, CHUNK)
    kinds = [op.kind for op, barrier in zip(program.operators, plan.barriers, strict=True) if barrier == Barrier.ALWAYS]
    assert kinds == 2 * [Kind.ATTENTION, Kind.PREPARE, Kind.ADD_NORM, Kind.SWIGLU, Kind.PREPARE, Kind.ADD_NORM]
