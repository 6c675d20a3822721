"""Layers with a width of their own, and layers that keep their floats."""

import json
import math

import numpy as np
import onnx
import pytest
import torch

from skim_export import export
from skim_export.bundle.build import export_bundle
from skim_export.bundle.lowering import read_program
from skim_export.calibration.calibrate_model import gather_statistics, spread_statistics
from skim_export.calibration.statistics_store import StatisticsStore
from skim_export.checkpoint import Model
from skim_export.cli.main import main
from skim_export.graph.reader import read_packed
from skim_export.packed.dequantized import dequantized_model
from skim_export.pipeline import calibration_text
from skim_export.pipeline.budget import GRAPH_BYTES, Budget
from skim_export.pipeline.cost import estimate_sizes
from skim_export.pipeline.export import prepare
from skim_export.pipeline.free_rows import FreeRows
from skim_export.pipeline.layer_choice import excluding, kept_widths
from skim_export.pipeline.options import ExportOptions
from skim_export.pipeline.plan import plan
from skim_export.pipeline.quantize_linear import QuantizeOptions
from skim_export.pipeline.quantize_model import allocate
from skim_export.quantize import METHODS
from skim_export.tuning import HELD_OUT
from skim_export.work.resources import Resources
from skim_export.work.sealed import write_sealed_array
from skim_export.work.tasks import SerialExecutor
from skim_runtime import Session
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import TEXT, tiny_llama, tiny_mistral

TOKENS = np.random.default_rng(0).integers(2, 300, 40)
COMMON = {"executor": SerialExecutor(Resources(1)), "progress": Progress()}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tied") / "hf")


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return tiny_mistral(tmp_path_factory.mktemp("untied") / "hf")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "calib.txt"
    path.write_text(TEXT * 60)
    return path


@pytest.fixture(autouse=True, scope="module")
def short_texts():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibration_text, "SEQUENCES", 8)
        patched.setattr(calibration_text, "TUNING_SEQUENCES", HELD_OUT + 8)
        yield


# Patterns.


def block(index, *names):
    return {f"model.layers.{index}.{name}" for name in names}


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("layers.1.*", block(1, "attn.qkv_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
        ("model.layers.1.mlp.[gu]*", block(1, "mlp.gate_proj", "mlp.up_proj")),
        ("down_proj", {f"model.layers.{i}.mlp.down_proj" for i in range(11)}),
        ("layers.?.self_attn.o*", {f"model.layers.{i}.attn.o_proj" for i in range(10)}),
        ("lm_head", {"model.embed_tokens"}),
        ("embed_*", {"model.embed_tokens"}),
    ],
)
def test_a_pattern_matches_what_follows_a_dot(tmp_path, pattern, layers):
    model = Model.open(tiny_llama(tmp_path / "hf", layers=11))
    assert excluding(model, [pattern]).architecture.excluded == layers
    kept = kept_widths(model, {pattern: 5})
    assert kept.keys() == layers
    assert all((rows == 5).all() for rows in kept.values())


def test_widths_are_of_what_is_not_excluded(tied):
    model = excluding(Model.open(tied), ["layers.1.*"])
    assert kept_widths(model, {"o_proj": 4}).keys() == {"model.layers.0.attn.o_proj"}


def test_a_width_is_of_the_rows_of_a_module(tied):
    kept = kept_widths(Model.open(tied), {"*.k_proj": 6, "layers.1.*.v_proj": 2})
    assert sorted(kept) == ["model.layers.0.attn.qkv_proj", "model.layers.1.attn.qkv_proj"]
    first, second = (kept[name] for name in sorted(kept))
    np.testing.assert_array_equal(first, np.repeat([0, 6, 0], [64, 32, 32]))
    np.testing.assert_array_equal(second, np.repeat([0, 6, 2], [64, 32, 32]))


def test_head_and_embedding_are_two_unless_they_are_tied(tied, untied):
    assert kept_widths(Model.open(tied), {"lm_head": 4}).keys() == {"model.embed_tokens"}
    assert kept_widths(Model.open(untied), {"lm_head": 4}).keys() == {"lm_head"}
    assert excluding(Model.open(untied), ["embed_tokens"]).architecture.excluded == {"model.embed_tokens"}


EXAMPLES = "there are model.layers.0.self_attn.q_proj, model.layers.0.self_attn.o_proj and lm_head, ..."


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep": {"layers.2.*": 4}}, f"--keep layers.2.*=4: matches no layer; {EXAMPLES}"),
        ({"exclude": ["proj"]}, f"--exclude proj: matches no layer; {EXAMPLES}"),
        ({"exclude": ["norm"]}, f"--exclude norm: matches no layer; {EXAMPLES}"),
        (
            {"keep": {"*.k_proj": 4, "layers.0.*": 5}},
            "--keep layers.0.*=5: model.layers.0.self_attn.k_proj has another width by --keep *.k_proj=4",
        ),
        (
            {"keep": {"lm_head": 4, "embed_tokens": 5}},
            "--keep embed_tokens=5: model.embed_tokens has another width by --keep lm_head=4",
        ),
        (
            {"keep": {"layers.1.*.o_proj": 4}, "exclude": ["layers.1.*"]},
            "--keep layers.1.*.o_proj=4: model.layers.1.self_attn.o_proj is excluded by --exclude, and has no width",
        ),
        (
            {"exclude": ["layers.1.*.q_proj"]},
            "--exclude layers.1.*.q_proj: model.layers.1.self_attn.q_proj, model.layers.1.self_attn.k_proj and "
            "model.layers.1.self_attn.v_proj are one matrix in the graph: exclude model.layers.1.self_attn.k_proj and "
            "model.layers.1.self_attn.v_proj, too, or none of them",
        ),
        ({"exclude": ["*_proj"]}, "--exclude *_proj: leaves no linear layer to quantize"),
        (
            {"bits": 3, "keep": {"layers.0.*": 6}},
            "--keep: its layers take 6 bits a weight of a budget of 3 for all, which leaves nothing for each of "
            "the other weights; they need 1",
        ),
        (
            {"bits": 3, "keep": {"*_proj": 4}},
            "--keep: its layers take 4 bits a weight of a budget of 3 for all, and they are all that there is",
        ),
        (
            {"effective_bits": 5, "keep": {"layers.0.*": 6}},
            "--keep: its layers take 13.2 bits a weight of a budget of 5 for all, which leaves nothing for "
            "each of the other weights; they need 1.56",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_any_work(tied, tmp_path, options, line):
    with pytest.raises(UserError) as caught:
        export(str(tied), tmp_path / "out" / "model.onnx", **options)
    assert str(caught.value) == line
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_it_in_one_line(tied, tmp_path, capsys):
    out = tmp_path / "out" / "model.onnx"
    assert main(["--model", str(tied), "-o", str(out), "--keep", "foo=4"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "--keep foo=4: matches no layer" in line
    assert main(["plan", "--model", str(tied), "--exclude", "foo"]) == 2
    assert "--exclude foo: matches no layer" in capsys.readouterr().err


# The allocation.


def slowly_allocated(curves, columns, low, budget):
    """Widths of rows by name, from convex error curves at widths from `low`: the best step a bit, again and again."""
    steps = {name: np.zeros(len(errors), int) for name, errors in curves.items()}
    left = budget - sum(low * len(errors) * columns[name] for name, errors in curves.items())
    ended = set()
    while True:
        possible = [
            ((errors[row, step] - errors[row, step + 1]) / columns[name], name, row)
            for name, errors in curves.items()
            for row, step in enumerate(steps[name])
            if step + 1 < errors.shape[1] and (name, row) not in ended
        ]
        if not possible:
            return {name: low + taken for name, taken in steps.items()}
        _, name, row = max(possible)
        if columns[name] <= left:
            steps[name][row] += 1
            left -= columns[name]
        else:
            ended.add((name, row))


def convex(rng, rows):
    """Errors of rows at 1 to 8 bits, float64 `[rows, 8]`, that fall by less and less."""
    saved = -np.sort(-rng.exponential(1, (rows, 7)), axis=1) * np.exp(rng.normal(0, 1, (rows, 1)))
    return np.concatenate([np.cumsum(saved[:, ::-1], axis=1)[:, ::-1], np.zeros((rows, 1))], axis=1)


@pytest.mark.parametrize(
    ("bits", "keep"),
    [
        (2.7, {}),
        (2.6, {"*.k_proj": 6, "layers.0.mlp.*": 2}),
        (3, {"*.down_proj": 1, "q_proj": 7}),
        (6.5, {"layers.1.*": 8}),
        (3.3, {"layers.1.*": 3, "layers.0.self_attn.*": 3}),
    ],
)
def test_widths_are_those_of_a_slow_allocation(tmp_path, bits, keep):
    path = tiny_llama(tmp_path / "hf", hidden_size=16, intermediate_size=24, num_attention_heads=2, head_dim=8)
    model, rng = Model.open(path), np.random.default_rng(0)
    options = QuantizeOptions(METHODS["skim+"], kept=kept_widths(model, keep))
    linears = model.architecture.linears
    total = int(bits * sum(linear.out_features * linear.in_features for linear in linears))
    left, weights = total, 0
    for linear in linears:
        given = options.given(linear)
        left -= int(given.sum()) * linear.in_features
        weights += int((given == 0).sum()) * linear.in_features
    low, high = max(1, math.floor(left / weights) - 2), min(8, math.ceil(left / weights) + 2)
    curves, columns, free = {}, {}, {}
    for linear in linears:
        errors = convex(rng, linear.out_features)[:, low - 1 : high]
        write_sealed_array(tmp_path / f"{linear.name}.npy", errors)
        free[linear.name] = options.kept.get(linear.name, np.zeros(linear.out_features)) == 0
        curves[linear.name], columns[linear.name] = errors[free[linear.name]], linear.in_features
    found = allocate(model, StatisticsStore(tmp_path), options, Budget(bits), curves=tmp_path, **COMMON)

    want = slowly_allocated(curves, columns, low, left)
    for name, rows in found.items():
        np.testing.assert_array_equal(rows[free[name]], want[name])
        np.testing.assert_array_equal(rows[~free[name]], options.kept.get(name, rows)[~free[name]])
    spent = sum(int(rows.sum()) * columns[name] for name, rows in found.items())
    assert total - max(columns.values()) < spent <= total


@pytest.mark.parametrize(("method", "budget"), [("rtn", Budget(3.3)), ("rtn", Budget(4.5, stored=True))])
def test_without_allocation_the_free_rows_of_every_layer_have_one_average(tied, tmp_path, method, budget):
    model = Model.open(tied)
    options = QuantizeOptions(METHODS[method], kept=kept_widths(model, {"*.k_proj": 6, "layers.1.mlp.*": 2}))
    free = FreeRows.of(model.architecture.linears, options, budget)
    found = allocate(model, StatisticsStore(tmp_path), options, budget, curves=tmp_path, **COMMON)
    weights = spent = 0
    for linear in model.architecture.linears:
        rows, of_layer = found[linear.name], free.mask(linear)
        np.testing.assert_array_equal(rows[~of_layer], options.kept.get(linear.name, rows)[~of_layer])
        if of_layer.any():
            assert rows[of_layer].sum() == math.floor(of_layer.sum() * free.average)
        costs = budget.row_costs(range(1, 9), linear.in_features, "int8", options.method)
        spent += int(costs[rows - 1].sum())
        weights += linear.out_features * linear.in_features
    assert 0.98 * budget.bits <= spent / weights <= budget.bits


# Whole exports.


def floats(directory):
    """The weights that an exported model has as floats, by name."""
    model = onnx.load(directory / "model.onnx")
    matrices = [tensor for tensor in model.graph.initializer if tensor.data_type in (1, 10) and len(tensor.dims) == 2]
    return {x.name: onnx.numpy_helper.to_array(x) for x in matrices if x.name.endswith("weight")}


EXPORTS = {
    "mixed": (tiny_llama, {}, {"keep": {"*.k_proj": 6, "lm_head": 4}, "exclude": ["layers.1.mlp.*"]}),
    "biases": (
        tiny_llama,
        {"attention_bias": True, "mlp_bias": True},
        {"exclude": ["layers.1.self_attn.*", "layers.0.mlp.up_proj", "layers.1.mlp.down_proj"], "method": "rtn"},
    ),
    "a block": (tiny_mistral, {}, {"keep": {"lm_head": 3, "layers.0.mlp.*": 2}, "exclude": ["layers.1.*"]}),
    "tied": (tiny_llama, {}, {"exclude": ["lm_head"], "keep": {"layers.0.*": 3}}),
    "head": (tiny_mistral, {}, {"exclude": ["lm_head"], "keep": {"embed_tokens": 5}, "head_bits": "auto"}),
    "embedding": (
        tiny_mistral,
        {},
        {"exclude": ["embed_tokens"], "head_bits": "auto", "keep": {"layers.0.*.v_proj": 8}},
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x in ("head", "embedding") else x for x in EXPORTS]
)
def test_an_export_is_what_was_asked_for(calib, tmp_path, name):
    make, config, options = EXPORTS[name]
    path, out = make(tmp_path / "hf", **config), tmp_path / "out"
    report = export(str(path), out / "model.onnx", bits=3, calib=calib, accuracy_level=0, **options)
    assert report.error < 1e-5
    model, packed = Model.open(path), read_packed(out / "model.onnx")
    assert json.loads((out / "export.json").read_text())["options"]["keep"] == options.get("keep", {})

    excluded = excluding(model, options["exclude"]).architecture.excluded
    assert packed.keys() == {linear.name for linear in model.architecture.all_linears} - excluded
    for linear_name, widths in kept_widths(model, options.get("keep", {})).items():
        rows = packed[linear_name].row_bits()
        np.testing.assert_array_equal(rows[widths > 0], widths[widths > 0])
    network = dequantized_model(model, packed.get)
    with torch.no_grad():
        want = network(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    for kernel in ("auto", "function"):
        got = Session(out, kernel=kernel).logits(TOKENS)
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
    # The average is that of the linear layers that are quantized, and of embedding and head with head_bits="auto".
    apart = set() if options.get("head_bits") == "auto" else {model.architecture.embedding, model.architecture.head}
    counted = [one for linear, one in packed.items() if linear not in apart]
    bits = sum(x.code_bits * x.out_features * x.in_features for x in counted)
    assert 2.95 < bits / sum(x.out_features * x.in_features for x in counted) <= 3

    matrices = floats(out)
    assert sum(x.size for x in matrices.values()) == sum(
        x.out_features * x.in_features for x in model.architecture.all_linears if x.name in excluded
    )
    part = [part for part in report.parts if part.name == "excluded layers"]
    assert [one.nbytes for one in part] == [sum(x.nbytes for x in matrices.values())]
    assert sum(part.nbytes for part in report.parts[:-1]) == report.parts[-1].nbytes
    read = sum(
        x.nbytes + x.bias.nbytes
        for linear, x in packed.items()
        if linear != "model.embed_tokens" or model.architecture.tied
    )
    read += sum(
        x.nbytes for key, x in matrices.items() if key != "model.embed_tokens.weight" or model.architecture.tied
    )
    assert Session(out).weight_bytes == read


@pytest.mark.filterwarnings("ignore:the model was exported for CUDA")
def test_excluded_layers_have_the_type_of_the_graph(tied, calib, tmp_path):
    options = {"exclude": ["lm_head", "layers.0.mlp.*"], "effort": "weights", "ep": "cuda", "size": 1_200_000}
    job = prepare(str(tied), tmp_path / "out" / "model.onnx", ExportOptions(**options))
    report = export(str(tied), tmp_path / "out" / "model.onnx", **options)
    assert report.error < 2e-2
    assert {x.dtype.name for x in floats(tmp_path / "out").values()} == {"float16"}
    assert Session(tmp_path / "out").directory.graph.activations == "float16"
    assert report.parts[-1].nbytes <= 1_200_000
    assert estimate_sizes(job).output > 0
    with pytest.raises(UserError, match=r"Gather .*: the runtime of bundles has no such operator"):
        read_program(tmp_path / "out" / "model.onnx")


@pytest.mark.parametrize("budget", [{"size": 1_600_000}, pytest.param({"effective_bits": 5}, marks=pytest.mark.slow)])
def test_budgets_over_everything_count_what_is_kept(calib, tmp_path, budget):
    path = tiny_llama(tmp_path / "hf", hidden_size=128, intermediate_size=256)
    options = {"keep": {"layers.0.mlp.*": 6, "*.k_proj": 2}, "exclude": ["layers.1.self_attn.*"], "calib": calib}
    report = export(str(path), tmp_path / "out" / "model.onnx", **options, **budget)
    if "size" in budget:
        data, room = (tmp_path / "out" / "model.onnx.data").stat().st_size, budget["size"] - GRAPH_BYTES
        assert 0.98 * room < data <= room
    else:
        assert 4.9 < report.parts[0].effective_bits <= 5


@pytest.mark.slow
def test_plan_and_cost_tell_it_before(calib, tmp_path):
    path = tiny_llama(tmp_path / "hf", hidden_size=128, intermediate_size=256)
    options = {"keep": {"layers.0.mlp.*": 6, "lm_head": 3}, "exclude": ["layers.1.mlp.*"], "calib": calib, "threads": 1}
    sizes = estimate_sizes(prepare(str(path), tmp_path / "out" / "model.onnx", ExportOptions(bits=4, **options)))
    report = export(str(path), tmp_path / "out" / "model.onnx", bits=4, **options)
    (row,) = plan(str(path), bits=[4], **options).rows
    assert row.nbytes == pytest.approx(report.parts[-1].nbytes, rel=0.01)
    assert row.effective_bits == pytest.approx(report.parts[0].effective_bits, rel=1e-3)
    assert sizes.output == pytest.approx(report.parts[-1].nbytes, rel=0.05)


@pytest.mark.slow
def test_tuning_leaves_excluded_layers_alone(calib, tmp_path):
    path, out = tiny_llama(tmp_path / "hf", attention_bias=True), tmp_path / "out"
    options = {"exclude": ["layers.0.*", "layers.1.mlp.gate_proj"], "keep": {"layers.1.*.k_proj": 4}}
    report = export(str(path), out / "model.onnx", bits=2, calib=calib, effort="tuned", accuracy_level=0, **options)
    assert report.error < 1e-5
    assert json.loads((out / "export.json").read_text())["options"]["tuned"]["steps"] > 0
    gate = Model.open(path).checkpoint.tensor("model.layers.1.mlp.gate_proj.weight").numpy()
    np.testing.assert_array_equal(floats(out)["model.layers.1.mlp.gate_proj.weight"], gate.T)


class Interrupt(Progress):
    """Ctrl-C in a step of a stage."""

    def __init__(self, stage):
        self.wanted, self.stage, self.left = stage, "", 2

    def start(self, stage, total):
        self.stage = stage

    def step(self, done):
        if self.stage == self.wanted:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("stage", [pytest.param("calibrating", marks=pytest.mark.slow), "quantizing"])
def test_an_interrupted_export_goes_on_with_the_same_wishes_only(tied, calib, tmp_path, stage):
    options = {"bits": 3, "calib": calib, "keep": {"*.k_proj": 6}, "exclude": ["layers.1.mlp.*"]}
    export(str(tied), tmp_path / "through" / "model.onnx", **options)
    out = tmp_path / "out" / "model.onnx"
    with pytest.raises(KeyboardInterrupt):
        export(str(tied), out, **options, progress=Interrupt(stage))
    for other in ({"keep": {"*.k_proj": 5}}, {"exclude": ["layers.0.mlp.*"]}, {"keep": None}):
        with pytest.raises(UserError, match="--fresh"):
            export(str(tied), out, **{**options, **other})
    export(str(tied), out, **options)
    for path in out.parent.iterdir():
        assert path.read_bytes() == (tmp_path / "through" / path.name).read_bytes()


def test_statistics_in_tasks_are_the_same(tied, tmp_path):
    model = excluding(Model.open(tied), ["layers.0.*", "layers.1.self_attn.*"])
    tokens = np.random.default_rng(0).integers(2, 300, (3, 16))
    stores = [StatisticsStore(tmp_path / name) for name in "ab"]
    for store in stores:
        store.directory.mkdir()
    gather_statistics(model, tokens, stores[0], vocabulary=True, resources=Resources(1), progress=Progress())
    spread_statistics(model, tokens, stores[1], vocabulary=True, **COMMON)
    files = [sorted(path.name for path in store.directory.glob("*.statistics")) for store in stores]
    names = ["embed_tokens", "layers.1.mlp.down_proj", "layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"]
    assert files[0] == files[1] == [f"model.{name}.statistics" for name in names]
    for linear in model.architecture.linears:
        np.testing.assert_allclose(*(store.fisher(linear.name) for store in stores), rtol=1e-2, atol=1e-12)


def test_bundles_have_no_floats(tied, tmp_path, capsys):
    with pytest.raises(UserError, match=r"--exclude lm_head: bundles have no products with floats"):
        export_bundle(str(tied), "rpi5", tmp_path / "out", exclude=["lm_head"])
    arguments = ["--model", str(tied), "-o", str(tmp_path / "out"), "--target", "rpi5", "--exclude", "lm_head"]
    assert main([*arguments, "--dry-run"]) == 2
    assert "bundles have no products with floats" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
