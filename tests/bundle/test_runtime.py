"""The C runtime, with the reference kernels on this machine."""

import json
import re
import shutil
import subprocess

import numpy as np
import onnx
import pytest

from skim_export.bundle.bundle import PROMPT_TOKENS
from skim_runtime import Session, generate

from ..tools import require
from .models import MODELS, random_tokens
from .native import Device, bundle, logits, run

PROMPTS = (1, 2, PROMPT_TOKENS, PROMPT_TOKENS + 1, 2 * PROMPT_TOKENS + 7)


@pytest.fixture(scope="session")
def llama(tiny, tmp_path_factory):
    """The bundle of `MODELS["llama"]`, compiled."""
    require("make")
    return bundle(tiny("llama").path, tmp_path_factory.mktemp("bundles") / "compiled", Device(compiles=True))


def skim_run(directory, *arguments, **options):
    return run(directory / "skim_run", *arguments, **options)


def relative_error(actual, reference):
    return np.linalg.norm(actual - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_logits_are_those_of_transformers_in_double_precision(name, threads, tiny, bundles, logits_program):
    directory = bundles(tiny(name).path)
    program = logits_program(directory)
    tokens = random_tokens(max(PROMPTS) + 4)
    expected = tiny(name).logits(tokens)
    for prompt in PROMPTS:
        actual = logits(program, directory, tokens[: prompt + 4], prompt, threads)
        assert relative_error(actual, expected[prompt - 1 : prompt + 4]) < 1e-5, f"prompt of {prompt} tokens"


def test_threads_change_no_bit(tiny, bundles, logits_program):
    directory = bundles(tiny("llama").path)
    program = logits_program(directory)
    tokens = random_tokens(PROMPT_TOKENS + 9)
    one, two, seven = (logits(program, directory, tokens, PROMPT_TOKENS + 5, threads) for threads in (1, 2, 7))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, seven)


@pytest.mark.parametrize("threads", [1, 3])
def test_greedy_tokens_are_those_of_onnxruntime(threads, tiny, llama):
    prompt = random_tokens(2 * PROMPT_TOKENS + 3, seed=1)
    expected = generate(Session(tiny("llama").path, threads=1), prompt, max_new_tokens=40, stop=()).tokens
    done = skim_run(llama, "-t", threads, "-n", 40, "-e", -1, llama / "weights.bin", *prompt)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == expected


def partly_rotated(model):
    """Leave half of the channels as they are."""
    for name in ("cos_cache", "sin_cache"):
        (cache,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
        columns = onnx.numpy_helper.to_array(cache)[:, :8]
        cache.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(columns), name))


def attention_with(**attributes):
    def change(model):
        for node in model.graph.node:
            if node.op_type == "GroupQueryAttention":
                kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
                del node.attribute[:]
                node.attribute.extend(kept)
                node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())

    return change


@pytest.mark.parametrize(
    "change",
    [
        attention_with(softcap=3.0),
        attention_with(rotary_interleaved=1),
        attention_with(do_rotary=0),
        attention_with(scale=0.1),
        attention_with(local_window_size=5),
        partly_rotated,
    ],
    ids=["softcap", "interleaved", "no rotation", "scale", "window", "partly rotated"],
)
def test_variants_of_attention_are_those_of_onnxruntime(change, tiny, logits_program, tmp_path):
    copy = shutil.copytree(tiny("wide_heads").path, tmp_path / "model")
    model = onnx.load(copy / "model.onnx")
    change(model)
    onnx.save(model, copy / "model.onnx")
    tokens = random_tokens(PROMPT_TOKENS + 12)
    expected = Session(copy, threads=1).logits(tokens)[PROMPT_TOKENS + 7 :]
    unchanged = Session(tiny("wide_heads").path, threads=1).logits(tokens)[PROMPT_TOKENS + 7 :]
    assert relative_error(unchanged, expected) > 1e-3
    directory = bundle(copy, tmp_path / "bundle")
    actual = logits(logits_program(directory), directory, tokens, PROMPT_TOKENS + 8, 2)
    assert relative_error(actual, expected) < 1e-4  # two engines in float32


@pytest.mark.parametrize("sanitizers", ["memory", "threads"])
@pytest.mark.parametrize("name", ["biased", "windowed"])
def test_sanitizers_find_nothing(sanitizers, name, tiny, bundles, logits_program):
    directory = bundles(tiny(name).path)
    tokens = random_tokens(2 * PROMPT_TOKENS + 9)
    for prompt in (1, 2 * PROMPT_TOKENS + 7):
        expected = logits(logits_program(directory), directory, tokens, prompt, 1)
        actual = logits(logits_program(directory, sanitizers), directory, tokens, prompt, 3)
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(
    "compiler", ["gcc", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc", "riscv64-linux-gnu-gcc"]
)
def test_sources_compile_without_warnings(compiler, llama, tmp_path):
    require(compiler)
    for source in llama.glob("*.c"):
        for optimization in ("-O0", "-O3"):
            options = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", optimization]
            done = run(compiler, *options, "-c", source, "-o", tmp_path / "object.o")
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_damaged_weights_are_refused_or_mere_values(name, tiny, bundles, logits_program, tmp_path):
    """Under sanitizers: indices that lead elsewhere are refused, and whatever else changes is harmless."""
    directory = bundles(tiny(name).path)
    program = logits_program(directory, "memory")
    content = (directory / "weights.bin").read_bytes()
    source = (directory / "skim_model.c").read_text()
    damaged = tmp_path / "weights.bin"

    def tried(*changes):
        changed = bytearray(content)
        for offset, value in changes:
            changed[offset : offset + len(value)] = value
        damaged.write_bytes(changed)
        done = subprocess.run([program, damaged, "2", "3", "5", "6", "7", "8"], capture_output=True)
        errors = done.stderr.decode()
        assert "Sanitizer" not in errors
        assert "runtime error" not in errors
        return done.returncode, errors

    indices = {int(offset) for offset in re.findall(r"\.(?:row_index|stored_row) = (\d+)", source)}
    assert len(indices) > 4
    for offset in sorted(indices)[:: len(indices) // 4]:
        for value in (-1, -(1 << 31), (1 << 31) - 1, 1 << 20):
            assert tried((offset, value.to_bytes(4, "little", signed=True))) == (
                1,
                f"{damaged}: is damaged: copy it again\n",
            )
    assert "another model's weights" in tried((9, b"\xff"))[1]
    rng = np.random.default_rng(0)
    for _ in range(20):
        tried(*((offset, rng.bytes(1)) for offset in rng.integers(64, len(content), 100).tolist()))
    for _ in range(20):
        tried(*((4 * offset, rng.bytes(4)) for offset in rng.integers(16, len(content) // 4, 3).tolist()))


def test_tokens_come_from_stdin_too(llama):
    given = skim_run(llama, "-n", 5, llama / "weights.bin", 10, 20, 30)
    read = skim_run(llama, "-n", 5, llama / "weights.bin", input="10 20\n30\n")
    assert given.returncode == 0, given.stderr
    assert given.stdout == read.stdout != ""


def test_summary_says_speed_and_memory(llama):
    done = skim_run(llama, "-n", 5, "-t", 2, llama / "weights.bin", 10, 20, 30)
    assert re.fullmatch(
        r"prompt: 3 tokens, [\d.]+ tokens/s \| decode: 5 tokens, [\d.]+ tokens/s, [\d.]+ GB/s of weights \| "
        r"threads: 2 \| weights: [\d.]+ MB \| peak memory: [\d.]+ MB\n",
        done.stderr,
    )


def test_json_is_for_machines(llama):
    plain = skim_run(llama, "-n", 5, llama / "weights.bin", 10, 20, 30)
    done = skim_run(llama, "--json", "-n", 5, "-t", 2, llama / "weights.bin", 10, 20, 30)
    result = json.loads(done.stdout)
    assert done.stderr == ""
    assert result["tokens"] == [int(word) for word in plain.stdout.split()]
    assert (result["target"], result["threads"], result["context"]) == ("host", 2, 8)
    assert (result["prompt_tokens"], result["decode_tokens"], result["stopped"]) == (3, 4, False)
    assert result["prompt_seconds"] > 0
    assert result["decode_seconds"] > 0
    assert result["weights_bytes"] == (llama / "weights.bin").stat().st_size
    assert 0 < result["read_bytes"] < result["weights_bytes"] < result["peak_memory_bytes"]


def test_a_stop_token_ends_the_text_and_is_left_out(llama):
    tokens = skim_run(llama, "-n", 20, "-e", -1, llama / "weights.bin", 10, 20, 30).stdout.split()
    stop = tokens[7]
    done = skim_run(llama, "--json", "-n", 20, "-e", stop, llama / "weights.bin", 10, 20, 30)
    result = json.loads(done.stdout)
    assert result["tokens"] == [int(token) for token in tokens[: tokens.index(stop)]]
    assert result["stopped"]


def test_the_context_ends_the_text(llama):
    done = skim_run(llama, "-n", 20, "-c", 8, "-e", -1, llama / "weights.bin", 10, 20, 30)
    assert len(done.stdout.split()) == 5
    prompt = random_tokens(500)
    done = skim_run(llama, "-n", 20, "-e", -1, llama / "weights.bin", *prompt)
    assert len(done.stdout.split()) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the file weights.bin is missing; see skim_run --help"),
        (["WEIGHTS"], "there are no tokens to continue"),
        (["WEIGHTS", "1", "-1"], "unknown option -1; see skim_run --help"),
        (["WEIGHTS", "1", "x"], "a token must be a whole number from 0 on, not x"),
        (["WEIGHTS", "99999999999"], "a token must be a whole number from 0 on, not 99999999999"),
        (["WEIGHTS", "320"], "token 320 is none of the model's, which are 0 to 319"),
        (["-n", "0", "WEIGHTS", "1"], "-n must be a whole number from 1 on, not 0"),
        (["-t", "0", "WEIGHTS", "1"], "-t must be a whole number from 1 on, not 0"),
        (["WEIGHTS", "1", "-c"], "option -c needs a value"),
        (["-c", "600", "WEIGHTS", "1"], "the context must be 1 to 512 tokens, which is the model's, not 600"),
        (["-c", "3", "WEIGHTS", "1", "2", "3"], "the prompt has 3 tokens, but the context only 3"),
        (["--jsno", "WEIGHTS", "1"], "unknown option --jsno; see skim_run --help"),
        (["nowhere.bin", "1"], "nowhere.bin: No such file or directory"),
        (["TRUNCATED", "1"], "copy it again"),
        (["OTHER", "1"], "holds another model's weights; take the one of this bundle"),
        (["DIRECTORY", "1"], "copy it again"),
    ],
)
def test_mistakes_are_one_line_and_code_2(arguments, message, llama, tmp_path):
    weights = (llama / "weights.bin").read_bytes()
    (tmp_path / "truncated").write_bytes(weights[:-1])
    (tmp_path / "other").write_bytes(bytes([*weights[:20], weights[20] ^ 1, *weights[21:]]))
    places = {
        "WEIGHTS": llama / "weights.bin",
        "TRUNCATED": tmp_path / "truncated",
        "OTHER": tmp_path / "other",
        "DIRECTORY": tmp_path,
    }
    done = skim_run(llama, *[places.get(argument, argument) for argument in arguments], input="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"skim_run: error: .*{re.escape(message)}\n", done.stderr)


def test_help_is_no_mistake(llama):
    done = skim_run(llama, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: skim_run")


def test_a_full_disk_is_a_mistake(llama):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = run(llama / "skim_run", "-n", 2, llama / "weights.bin", 1, stdout=full)
    assert done.returncode == 2
