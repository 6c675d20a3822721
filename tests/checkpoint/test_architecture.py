"""Models of a supported architecture with parts that are not."""

from __future__ import annotations

import pytest

from skim_export.checkpoint import Model
from skim_runtime.errors import UserError

from ..tiny_decoders import tiny_decoder

EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
REFUSED = {
    "mixture": (EXPERTS, r"experts \(model\.layers\.0\.experts\.gate_up_proj\); mixtures of experts"),
    "embeddings": ({"hidden_size_per_layer_input": 16}, r"second embedding \(model\.embed_tokens_per_layer\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_part_that_is_not_supported(tmp_path, case):
    entries, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        Model.open(tiny_decoder("gemma4", tmp_path, **entries))


def test_a_size_of_a_single_layer_is_checked(tmp_path):
    path = tiny_decoder("gemma4", tmp_path)
    file = path / "config.json"
    text = file.read_text("utf-8")
    assert text.count('"head_dim": 32') == 1
    file.write_text(text.replace('"head_dim": 32', '"head_dim": 320000'), "utf-8")
    with pytest.raises(UserError, match="head_dim must be a whole number from 1 to 65536, is 320000"):
        Model.open(path)
