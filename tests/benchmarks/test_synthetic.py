import json
import subprocess
import sys

import numpy as np
import pytest
from synthetic import COMMON, CONFIGS, make_checkpoint

from skim_export.checkpoint import Checkpoint, architecture_of
from skim_runtime.progress import Progress

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
}


@pytest.mark.parametrize("like", list(CONFIGS))
def test_it_is_a_checkpoint(tmp_path, like):
    make_checkpoint({**COMMON, **CONFIGS[like], **SMALL}, tmp_path / "a", 0, Progress(), shard_bytes=50_000)
    checkpoint = Checkpoint(tmp_path / "a")
    architecture = architecture_of(checkpoint)
    assert len(architecture.linears) == 10
    assert (
        len(set(json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())["weight_map"].values())) > 1
    )
    weight = checkpoint.tensor("model.layers.1.self_attn.q_proj.weight").numpy()
    assert 0.05 < weight.std() < 0.3
    rows = weight.std(axis=1)
    assert rows.max() > 1.5 * rows.min()
    norm = checkpoint.tensor("model.norm.weight").numpy()
    assert 0.8 < norm.mean() < 1.2
    ids = checkpoint.tokenizer.encode("Grüße, 世界", add_special_tokens=False)
    assert checkpoint.tokenizer.decode(ids) == "Grüße, 世界"
    assert max(ids) < SMALL["vocab_size"]


def test_the_seed_decides(tmp_path):
    config = {**COMMON, **CONFIGS["mistral-7b"], **SMALL}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_checkpoint(config, tmp_path / name, seed, Progress())
    first, same, other = (Checkpoint(tmp_path / name).tensor("lm_head.weight").numpy() for name in ("a", "b", "c"))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.slow
def test_an_export_keeps_to_the_memory_it_is_allowed(tmp_path):
    """The embedding would take half as much again, if all its rows were quantized at once."""
    shape = {**SMALL, "hidden_size": 1024, "head_dim": 256, "vocab_size": 80_000}
    make_checkpoint({**COMMON, **CONFIGS["mistral-7b"], **shape}, tmp_path / "hf", 0, Progress())
    code = (
        "import sys; from skim_export.cli.main import main; from skim_runtime.measure.child import peak_megabytes\n"
        "code = main(); print(peak_megabytes()); sys.exit(code)"
    )
    limit = 1100
    arguments = [
        "--effort",
        "weights",
        "--max-memory",
        f"{limit}MB",
        "--context",
        4096,
        "-o",
        tmp_path / "out" / "model.onnx",
    ]
    result = subprocess.run(
        [sys.executable, "-c", code, "--model", *map(str, [tmp_path / "hf", *arguments])],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < limit
