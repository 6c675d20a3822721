"""GGUF files: read back they are the model that was written, of whatever architecture and types; or are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaTokenizer,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from skim_export import export
from skim_export.checkpoint import Checkpoint
from skim_export.checkpoint.gguf import convert_gguf
from skim_export.checkpoint.gguf.header import BlockTensor, readable_types
from skim_export.checkpoint.gguf.tokenizer import mend
from skim_export.checkpoint.torch_reference import TorchReference
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_models import VOCABULARY, tiny_tokenizer
from .gguf_writer import tiny_network, write_gguf

TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, 40)
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.5, 2.0],
    "long_factor": [1.0, 2.5, 4.0, 8.0],
}


def tiny(config: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    """A configuration of a model of two blocks, unlike the defaults of its class where that is possible."""
    return config(
        **{
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "rms_norm_eps": 3e-5,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "initializer_range": 0.15,
            "tie_word_embeddings": False,
            **(
                {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}
                if "rope_parameters" not in more
                else {}
            ),
            **more,
        }
    )


CONFIGS = {
    "llama": tiny(LlamaConfig, head_dim=24, tie_word_embeddings=True),
    "qwen2": tiny(Qwen2Config),
    "qwen3": tiny(Qwen3Config, head_dim=32),
    "gemma": tiny(GemmaConfig, head_dim=32, tie_word_embeddings=True),
    "gemma2": tiny(
        Gemma2Config,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        tie_word_embeddings=True,
    ),
    "gemma3": tiny(
        Gemma3TextConfig,
        head_dim=32,
        num_hidden_layers=7,
        query_pre_attn_scalar=32,
        sliding_window=8,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        tie_word_embeddings=True,
    ),
    "phi3": tiny(Phi3Config, sliding_window=8),
    "phi3-long": tiny(Phi3Config, original_max_position_embeddings=32, rope_parameters=LONG),
    "lfm2": tiny(
        Lfm2Config,
        norm_eps=3e-5,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=True,
    ),
    "olmo2": tiny(Olmo2Config),
    "olmo3": tiny(Olmo3Config, sliding_window=8, layer_types=["full_attention", "sliding_attention"]),
    "granite": tiny(
        GraniteConfig,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=4.0,
    ),
    "smollm3": tiny(SmolLM3Config, num_hidden_layers=5),
}
LLAMAS = {
    "biases": tiny(LlamaConfig, attention_bias=True, mlp_bias=True),
    "linear": tiny(LlamaConfig, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "yarn": tiny(LlamaConfig, rope_parameters=YARN),
    "llama3": tiny(LlamaConfig, head_dim=32, rope_parameters=LLAMA3),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.covers("gguf")
@pytest.mark.parametrize("name", CONFIGS)
def test_architectures(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    check_reading(CONFIGS[name], tmp_path, tokenizer)


@pytest.mark.parametrize("kind", LLAMAS)
def test_kinds_of_llama(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    check_reading(LLAMAS[kind], tmp_path, tokenizer)


def check_reading(config: PreTrainedConfig, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Whether tensors and logits of a GGUF file are those of the network that it was made from."""
    network = tiny_network(config)
    written = write_gguf(tmp_path / "tiny.gguf", network, tokenizer)
    checkpoint = Checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.names == sorted(written)
    for tensor, weight in written.items():
        torch.testing.assert_close(checkpoint.tensor(tensor), weight, rtol=0, atol=1e-7)  # the offset of norms
    assert checkpoint.architecture_name == type(network).__name__
    with torch.inference_mode():
        expected = network(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    logits = TorchReference.load(tmp_path / "tiny.gguf").logits(TOKENS)
    assert np.linalg.norm(logits - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_types(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    """Rows of a query of Llama are read in another order than they have in the file; those of a norm are values."""
    network = tiny_network(CONFIGS["llama"])
    written = write_gguf(tmp_path / "tiny.gguf", network, tokenizer, kind=GGMLQuantizationType[kind])
    checkpoint = Checkpoint(tmp_path / "tiny.gguf")
    for name, weight in written.items():
        assert torch.equal(checkpoint.tensor(name), weight), name
        assert torch.equal(checkpoint.tensor(name, slice(5, 23)), weight[5:23]), name


@pytest.mark.parametrize("name", readable_types())
def test_every_readable_type(tmp_path: Path, name: str) -> None:
    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(1).integers(0, 256, (7, 2 * size), np.uint8)
    (tmp_path / "data").write_bytes(b"before" + stored.tobytes())
    tensor = BlockTensor(tmp_path / "data", 6, kind, (7, 2 * block))
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(stored, kind)
        assert np.array_equal(tensor.read(), expected, equal_nan=True)
        assert np.array_equal(tensor.read(slice(2, 5)), expected[2:5], equal_nan=True)
        assert np.array_equal(tensor.read(np.array([6, 0])), expected[[6, 0]], equal_nan=True)


def test_the_readable_types_are_many() -> None:
    assert {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "IQ2_XXS"} <= set(readable_types())


def test_config(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Decimals are what was written, not the float32 next to it; every token that ends a turn is known."""

    def more(writer: gguf.GGUFWriter, config: Any) -> None:
        writer.add_eot_token_id(7)
        writer.add_pad_token_id(9)

    write_gguf(tmp_path / "tiny.gguf", tiny_network(CONFIGS["llama, llama3"]), tokenizer, more=more)
    config = Checkpoint(tmp_path / "tiny.gguf").config
    assert config.rms_norm_eps == 3e-5
    assert config.rope_parameters == LLAMA3
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, [1, 7], 9)
    assert config.max_position_embeddings == 64


def test_split_models(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    network = tiny_network(CONFIGS["llama"])
    directory = tmp_path / "parts"
    directory.mkdir()
    written = write_gguf(directory / "tiny.gguf", network, tokenizer, parts_of=8)
    parts = sorted(directory.iterdir())
    assert [part.name for part in parts] == [f"tiny-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    for path in (directory, parts[0], parts[2]):
        checkpoint = Checkpoint(path)
        assert checkpoint.files == parts
        assert all(torch.equal(checkpoint.tensor(name), weight) for name, weight in written.items())
        assert checkpoint.tokenizer.encode("quick") == tokenizer.encode("quick")

    held = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf says to be part 3 of 3, unlike its name"):
        Checkpoint(directory)
    parts[1].unlink()
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf is missing: the model has 3 parts"):
        Checkpoint(parts[0])
    parts[1].write_bytes(held)
    (directory / "other.gguf").write_bytes(held)
    with pytest.raises(UserError, match=r"holds several GGUF models \(other\.gguf, tiny-00001-of-00003\.gguf\): give"):
        Checkpoint(directory)


def test_the_cache_is_made_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, cache: Path) -> None:
    network = tiny_network(CONFIGS["llama"])
    write_gguf(tmp_path / "tiny.gguf", network, tokenizer)
    path = Checkpoint(tmp_path / "tiny.gguf").path
    assert sorted(file.name for file in path.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    before = (path / "config.json").stat()
    assert Checkpoint(tmp_path / "tiny.gguf").path == path
    assert (path / "config.json").stat().st_mtime_ns == before.st_mtime_ns
    write_gguf(tmp_path / "tiny.gguf", network, tokenizer, pre="qwen2")
    assert Checkpoint(tmp_path / "tiny.gguf").path != path
    assert list(cache.glob(".*")) == []


def test_export(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """From the file as from the same model as safetensors: the same graph and weights."""
    network = tiny_network(tiny(LlamaConfig))
    written = write_gguf(tmp_path / "tiny.gguf", network, tokenizer, kind=GGMLQuantizationType.Q8_0)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "converted", Progress())
    assert all(torch.equal(Checkpoint(tmp_path / "converted").tensor(name), x) for name, x in written.items())
    for source in ("tiny.gguf", "converted"):
        export(str(tmp_path / source), tmp_path / f"of-{source}" / "model.onnx", bits=3, effort="weights")
    files = [sorted((tmp_path / f"of-{source}").iterdir()) for source in ("tiny.gguf", "converted")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    for one, other in zip(*files, strict=True):
        assert one.name == "export.json" or one.read_bytes() == other.read_bytes(), one.name


def _tensor(name: str, shape: tuple[int, ...]) -> Any:
    return lambda writer, config: writer.add_tensor(name, np.ones(shape, np.float32))


def _scaled(kind: str, extrapolation: float = 1.0) -> Any:
    def more(writer: gguf.GGUFWriter, config: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(2.0)
        writer.add_rope_scaling_yarn_ext_factor(extrapolation)

    return more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"more": lambda w, _: w.add_expert_count(4)}, "llama.expert_count = 4: no such model is known"),
        ({"more": lambda w, _: w.add_string("llama.attention.key_length", "x")}, "key_length must be a whole number"),
        ({"more": lambda w, _: w.add_array("llama.rope.scaling.type", ["x"])}, "of type ['x'], factor None"),
        ({"more": lambda w, _: w.add_array("tokenizer.ggml.eot_token_id", [1])}, "its metadata make no sense: unhash"),
        ({"without": ("llama.block_count",)}, "its metadata lacks llama.block_count"),
        ({"more": lambda w, _: w.add_key_length(8)}, "llama.rope.dimension_count is 24, expected 8"),
        ({"more": _tensor("blk.0.attn_q_norm.weight", (24,))}, "has the tensor blk.0.attn_q_norm.weight, which is no"),
        ({"more": _tensor("output.bias", (5,))}, "has the tensor output.bias, which is no part of"),
        ({"more": _tensor("rope_freqs.weight", (12,))}, "the factors in rope_freqs.weight are not those of Llama 3"),
        ({"more": _scaled("longrope")}, "rotary embeddings of type 'longrope', factor 2.0, are not known"),
        ({"more": _scaled("yarn", 0.5)}, "rotary embeddings of type 'yarn', factor 2.0, are not known"),
        ({"more": _tensor("blk.4000000000.attn_q.weight", (96, 64))}, "block_count is 2, its tensors are of 3 blocks"),
        ({"pre": "nobody"}, "how its tokenizer splits text (tokenizer.ggml.pre = 'nobody') is unknown; known are"),
        ({"pre": None}, "how its tokenizer splits text (tokenizer.ggml.pre = None) is unknown"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, cache: Path, options: Any, message: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_network(CONFIGS["llama"]), tokenizer, **options)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Checkpoint(tmp_path / "tiny.gguf")
    assert str(tmp_path / "tiny.gguf") in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_damaged_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_network(CONFIGS["llama"]), tokenizer)
    content = file.read_bytes()
    many = (1 << 60).to_bytes(8, "little")
    strings = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    types = content.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    for damaged in (
        b"",
        b"GGUX" + content[4:],
        content[:20],
        content[:2000],
        content[:-1],
        content[:8] + many + content[16:],
        content[:16] + many + content[24:],
        content[:24] + many + content[32:],
        content[:strings] + many + content[strings + 8 :],
        content[:types] + many + content[types + 8 :],
        content.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tiny\.gguf is damaged: it is no GGUF file, or ends too early"):
            Checkpoint(file)
    for place, value, message in (
        (content.index(b"blk.0.attn_q.weight") + 19 + 4 + 16, 4, r"has type 4; readable are F32, .*Q4_K"),
        (content.index(b"blk.0.attn_q.weight") + 19 + 4 + 16, 24, r"has type I8; readable are F32, .*Q4_K"),
        (4, 1, r"has version 1 of GGUF; readable are"),
    ):
        file.write_bytes(content[:place] + value.to_bytes(4, "little") + content[place + 4 :])
        with pytest.raises(UserError, match=message):
            Checkpoint(file)
    file.write_bytes(
        content.replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0bloom",
        )
    )
    with pytest.raises(UserError, match=r"has the GGUF architecture 'bloom'; known are llama, qwen2"):
        Checkpoint(file)


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("smollm", "in 1984", ["i", "n", "Ġ", "1", "9", "8", "4"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),  # composed
        ("llama-bpe", "quick", ["<s>", "q", "u", "i", "c", "k"]),
    ],
)
def test_what_transformers_forgets_of_tokenizers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pre: str, text: str, tokens: list[str]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_network(CONFIGS["llama"]), tokenizer, pre=pre)
    found = Checkpoint(tmp_path / "tiny.gguf").tokenizer
    assert len(found) == VOCABULARY  # and none of a class's own
    assert json.loads(found.backend_tokenizer.to_str())["model"]["ignore_merges"] is (pre == "llama-bpe")
    assert "".join(found.convert_ids_to_tokens(found.encode(text))) == "".join(tokens)
    assert found.decode(found.encode(text), skip_special_tokens=True) == text.replace("e\u0301", "é")


@pytest.mark.parametrize(("prefix", "tokens"), [(True, [3, 6, 3, 4]), (False, [6, 3, 4])])
def test_a_space_before_the_text(prefix: bool, tokens: list[int]) -> None:
    vocabulary = {token: number for number, token in enumerate(("<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab"))}
    llama = LlamaTokenizer(vocab=vocabulary, merges=[("a", "b")])
    mend(llama, {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": prefix})
    assert llama.encode("ab a", add_special_tokens=False) == tokens
    assert llama.decode(tokens) == "ab a"
