"""A configuration that the graph would read otherwise than transformers is refused before any work."""

import json

import pytest

from skim_export.checkpoint import Model
from skim_export.cli.main import main
from skim_export.pipeline.proof import prove
from skim_runtime.errors import UserError

from ..tiny_models import tiny_llama, tiny_mistral

ORIGINAL = {"original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}


def changed(path, **entries):
    """The model with entries of its config.json replaced."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    if "rope_scaling" in entries:  # the older name; transformers writes the newer one
        config.pop("rope_parameters", None)
    file.write_text(json.dumps({**config, **entries}))
    return Model.open(path)


@pytest.mark.parametrize(
    ("tiny", "entries"),
    [
        (tiny_llama, {}),
        (tiny_mistral, {}),
        (tiny_mistral, {"sliding_window": None}),
        (tiny_llama, {"rope_scaling": LLAMA3}),
        (tiny_llama, {"rope_theta": 500000.0}),
        (tiny_llama, {"hidden_act": "gelu"}),
        (tiny_llama, {"rms_norm_eps": 0.1}),
        # The builder would believe these, if it were let.
        (tiny_llama, {"rope_position_scale": 4.0}),
        (tiny_llama, {"seq_length": 8}),
        # It would drop these, or fail.
        (tiny_llama, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        (tiny_llama, {"rope_scaling": YARN}),
        (tiny_llama, {"partial_rotary_factor": 0.5}),
        (tiny_mistral, {"rope_scaling": YARN}),
    ],
)
def test_what_both_read_alike(tmp_path, tiny, entries):
    prove(changed(tiny(tmp_path / "model"), **entries))


@pytest.mark.parametrize("sizes", [(9, 3, 64), (8, 1, 128), (3, 3, 32)])
def test_sizes_of_heads(tmp_path, sizes):
    heads, kv_heads, head_size = sizes
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 16 * heads}
    prove(Model.open(tiny_llama(tmp_path / "model", head_dim=head_size, **sizes)))


@pytest.mark.parametrize(
    ("tiny", "entries"),
    [
        # The builder honours what transformers ignores.
        (tiny_llama, {"sliding_window": 8}),
        (tiny_llama, {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
        (tiny_llama, {"hidden_activation": "gelu"}),
    ],
)
def test_what_they_read_differently(tmp_path, tiny, entries):
    model = changed(tiny(tmp_path / "model"), **entries)
    with pytest.raises(UserError, match=r"config\.json: the graph would not mean what transformers means: after 12"):
        prove(model)


@pytest.mark.parametrize(
    ("tiny", "entries"),
    [
        (tiny_llama, {"hidden_act": "quick_gelu"}),
    ],
)
def test_what_would_fail_after_hours(tmp_path, tiny, entries):
    model = changed(tiny(tmp_path / "model"), **entries)
    with pytest.raises(UserError, match=r"config\.json: tried on a small model of this kind: ") as error:
        prove(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head_size", [20, 100, 264])
def test_head_sizes_that_attention_refuses(tmp_path, head_size):
    model = Model.open(tiny_llama(tmp_path / "model", head_dim=head_size))
    with pytest.raises(UserError, match="tried on a small model of this kind: onnxruntime refuses the graph"):
        prove(model)


def test_exports_and_estimates_are_refused_before_they_begin(tmp_path, capsys):
    path = tiny_llama(tmp_path / "model")
    changed(path, sliding_window=8)
    for more in ([], ["--dry-run"]):
        assert main(["--model", str(path), "-o", str(tmp_path / "out" / "model.onnx"), *more]) == 2
        assert "the graph would not mean what transformers means" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
