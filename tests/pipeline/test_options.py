"""The options of an export: one list, whichever way they are given."""

import argparse
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from skim_export import ExportOptions, export
from skim_export.bundle.build import export_bundle
from skim_export.cli.main import main
from skim_export.pipeline import options as module
from skim_export.pipeline.options import OPTIONS, PLANNED, ExportKeywords, add_arguments, from_arguments
from skim_export.pipeline.plan import plan
from skim_runtime.errors import UserError

from ..tiny_models import tiny_llama

# A value of each option that is not its default, as Python has it and on the command line.
OTHERS = {
    "adapter": (Path("adapter"), ["--adapter", "adapter"]),
    "bits": (2.5, ["--bits", "2.5"]),
    "effective_bits": (3.25, ["--effective-bits", "3.25"]),
    "size": (2_500_000, ["--size", "2.5MB"]),
    "effort": ("weights", ["--effort", "weights"]),
    "method": ("gptq", ["--method", "gptq"]),
    "head_bits": ("auto", ["--head-bits", "auto"]),
    "keep": ({"layers.0.*": 6, "lm_head": 4}, ["--keep", "layers.0.*=6", "--keep", "lm_head=4"]),
    "exclude": (("*.down_proj", "*.o_proj"), ["--exclude", "*.down_proj", "--exclude", "*.o_proj"]),
    "codebook": ("float16", ["--codebook", "float16"]),
    "accuracy_level": (0, ["--accuracy-level", "0"]),
    "ep": ("cuda", ["--ep", "cuda"]),
    "activations": ("bfloat16", ["--activations", "bfloat16"]),
    "context": (128, ["--context", "128"]),
    "with_library": (True, ["--with-library"]),
    "device": ("cuda:1", ["--device", "cuda:1"]),
    "calib": (Path(__file__), ["--calib", __file__]),
    "seed": (3, ["--seed", "3"]),
    "threads": (2, ["--threads", "2"]),
    "max_memory": (4 << 30, ["--max-memory", "4 GiB"]),
    "ray": ("auto", ["--ray", "auto"]),
    "check": (False, ["--no-check"]),
    "force": (True, ["--force"]),
    "fresh": (True, ["--fresh"]),
}


NEEDED = {"activations": ("ep", "cuda")}  # by an option, of another one


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return ExportOptions(**from_arguments(parser.parse_args(arguments)))


def test_keywords_are_the_fields_of_the_options():
    assert get_type_hints(ExportKeywords) == get_type_hints(ExportOptions)
    assert ExportKeywords.__optional_keys__ == {one.name for one in fields(ExportOptions)}


@pytest.mark.parametrize("function", [export, export_bundle, plan])
def test_functions_take_them_as_typed_keywords(function):
    (keywords,) = [one for one in inspect.signature(function).parameters.values() if one.kind is one.VAR_KEYWORD]
    assert keywords.annotation == f"Unpack[{'PlanKeywords' if function is plan else 'ExportKeywords'}]"


def test_no_arguments_are_the_defaults():
    assert parsed() == ExportOptions()


@pytest.mark.parametrize("name", OPTIONS)
def test_an_argument_is_the_keyword(name):
    value, arguments = OTHERS[name]
    assert value != getattr(ExportOptions(), name)
    needed = dict([NEEDED[name]] if name in NEEDED else [])
    more = [f"--{other}={chosen}" for other, chosen in needed.items()]
    assert parsed(*arguments, *more) == ExportOptions(**{name: value}, **needed)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_result_depends_on_is_recorded(name):
    needed = dict([NEEDED[name]] if name in NEEDED else [])
    before, after = (ExportOptions(**one, **needed).recorded() for one in ({}, {name: OTHERS[name][0]}))
    assert (before != after) == (name not in {"threads", "max_memory", "ray", "check", "force", "fresh"})
    assert json.loads(json.dumps(after)) == after


def test_the_record_names_the_method_and_the_file():
    told = ExportOptions(calib=__file__).recorded()
    assert told["method"] == "skim+"
    assert told["calib"] == Path(__file__).name
    assert ExportOptions(effort="weights").recorded()["method"] == "weights"


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 8),
        ({"bits": 3}, 8),
        ({"effective_bits": 3}, 8),
        ({"size": 10**9}, None),
        ({"size": 10**9, "effort": "tuned"}, None),
        ({"size": 10**9, "effort": "weights"}, 8),  # no allocation
        ({"size": 10**9, "method": "gptq"}, 8),
        ({"size": 10**9, "head_bits": 6}, 6),
        ({"bits": 3, "head_bits": "auto"}, None),
    ],
    ids=str,
)
def test_a_size_is_of_embedding_and_head_too(options, width):
    found = ExportOptions(**options)
    assert found.head_width == width
    assert found.recorded()["head_bits"] == (width or "auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0.5}, "--bits 0.5: must be from 1 to 8"),
        ({"bits": 3, "size": 10**9}, "--bits and --size state the same budget: give one of them"),
        ({"effort": "most"}, "--effort most: must be one of weights, calibrated, tuned"),
        ({"method": "most"}, "--method most: must be one of skim+, skim, squeezellm, gptq, weights, rtn"),
        ({"head_bits": 9}, "--head-bits 9: must be a whole number from 1 to 8, or auto"),
        ({"keep": {"lm_head": 9}}, "--keep lm_head=9: must be a whole number from 1 to 8"),
        ({"keep": {"lm_head": 2.5}}, "--keep lm_head=2.5: must be a whole number from 1 to 8"),
        ({"exclude": "lm_head"}, "--exclude lm_head: must be a list of patterns"),
        ({"codebook": "int4"}, "--codebook int4: must be one of int8, float16"),
        ({"accuracy_level": 5}, "--accuracy-level 5: must be 0 to 4"),
        ({"ep": "rocm"}, "--ep rocm: must be cpu or cuda"),
        ({"ep": "cuda", "activations": "float32"}, "--activations float32: must be float16 or bfloat16 with --ep cuda"),
        ({"activations": "bfloat16"}, "--activations bfloat16: must be float32 with --ep cpu"),
        (
            {"ep": "cuda", "activations": "bfloat16", "check": True},
            "--check: runs the model on the CPU, where onnxruntime has no bfloat16: leave it out",
        ),
        ({"threads": 0}, "--threads 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"calib": "none.txt"}, "--calib none.txt: no such file"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(UserError) as caught:
        ExportOptions(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm_head"], "--keep lm_head: expected a pattern and a width, such as lm_head=8"),
        (["=8"], "--keep =8: expected a pattern and a width, such as lm_head=8"),
        (["lm_head=2.5"], "--keep lm_head=2.5: expected a pattern and a width, such as lm_head=8"),
        (["lm_head=4", "lm_head=5"], "--keep lm_head=5: has another width by --keep lm_head=4"),
    ],
)
def test_what_is_no_width_is_said(arguments, message):
    with pytest.raises(UserError) as caught:
        parsed(*(f"--keep={argument}" for argument in arguments))
    assert str(caught.value) == message


def test_keywords_take_the_place_of_options(tmp_path):
    path = tiny_llama(tmp_path / "hf")
    options = ExportOptions(effort="weights", bits=4, head_bits=6)
    export(str(path), tmp_path / "out" / "model.onnx", options, bits=3)
    told = json.loads((tmp_path / "out" / "export.json").read_text())["options"]
    assert told == {
        "model": str(path),
        **ExportOptions(effort="weights", bits=3, head_bits=6).recorded(),
        "tuned": None,
    }


def test_a_command_line_offers_what_it_says(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    every = capsys.readouterr().out
    assert all(arguments[0] in every for _, arguments in OTHERS.values())
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--help"])
    planned = capsys.readouterr().out
    own = {"bits"}  # of another kind there
    for name, (_, arguments) in OTHERS.items():
        assert (f"  {arguments[0]} " in planned) == (name in PLANNED | own), name


def test_help_is_quick_to_import():
    code = f"import sys, {module.__name__}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
