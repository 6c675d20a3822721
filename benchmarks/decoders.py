"""Other people's exports of a checkpoint, to compare with: onnxruntime-genai's own, and GGUF files for llama.cpp."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
from pathlib import Path

import gguf

from skim_export.checkpoint.recipes import load_recipes
from skim_export.checkpoint.wheel import WheelSource, gguf_from_wheel
from skim_export.work.files import staged_directory
from skim_runtime.errors import UserError
from skim_runtime.measure.child import in_child
from skim_runtime.progress import Progress

__all__ = ["GENAI_EXPORTS", "check_llama", "genai_export", "recipe_ggufs"]

GENAI_EXPORTS = ("int4", "fp32")
Q4_0 = gguf.GGMLQuantizationType.Q4_0


def genai_export(checkpoint: Path, precision: str, work: Path) -> Path:
    """What onnxruntime-genai's model builder makes of a checkpoint with its defaults; made once, kept in `work`."""
    target = work / f"{checkpoint.name}-genai-{precision}"
    if not (target / "model.onnx").is_file():
        in_child(_export, checkpoint, precision, target)
    return target


def _export(progress: Progress, checkpoint: Path, precision: str, target: Path) -> None:
    progress.start(f"onnxruntime-genai {precision} export", 1)
    printed = io.StringIO()
    with (
        staged_directory(target, "model.onnx") as stage,
        tempfile.TemporaryDirectory() as cache,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        from onnxruntime_genai.models import builder  # type: ignore[import-not-found,unused-ignore]

        where = ("", str(checkpoint), str(stage), precision, "cpu", cache)
        builder.create_model(*where, **builder.parse_extra_options(*where, []))
    progress.step(precision)
    progress.finish()


def check_llama() -> None:
    """Find out whether llama.cpp is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError("--gguf needs llama.cpp: pip install xllamacpp")


def recipe_ggufs(model: str, work: Path, progress: Progress) -> list[Path]:
    """The GGUF file that a recipe's wheel has, and its matrices as Q4_0; made once, kept in `work`.

    There is no k-quant among them: the package of llama.cpp has no quantizer, and rows of 576 columns, as SmolLM2-135M
    has them, cannot have k-quants, which need multiples of 256.

    Raises:
        UserError: the model has no such recipe.
    """
    recipe = load_recipes().get(model)
    if recipe is None or not isinstance(recipe.source, WheelSource):
        raise UserError(f"--gguf: the recipe of model {model!r} has no GGUF file, give one")
    directory = work / f"{recipe.alias}-gguf"
    original = directory / Path(recipe.source.file).name
    converted = directory / f"{recipe.alias}.Q4_0.gguf"
    if not original.is_file() or not converted.is_file():
        with tempfile.TemporaryDirectory() as scratch, staged_directory(directory, converted.name) as stage:
            found = gguf_from_wheel(recipe.source, Path(scratch), progress)
            (stage / original.name).write_bytes(found.read_bytes())
            _requantize(found, stage / converted.name)
    return [original, converted]


def _requantize(source: Path, target: Path) -> None:
    """Write a GGUF file once more with Q4_0 for all quantized matrices but embedding and head.

    What that does to the quality is of no interest here: both have 4 bits, and speed does not depend on values.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, *more = field.types
        writer.add_key_value(field.name, field.contents(), kind, more[-1] if more else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            data, kind = gguf.quants.quantize(gguf.quants.dequantize(data, kind), Q4_0), Q4_0
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
