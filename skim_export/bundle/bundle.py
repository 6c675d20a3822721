"""Writing a bundle: everything that a device needs to run a model, in one directory."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from skim_export.bundle.abi import kernels_header
from skim_export.bundle.layout import WeightsFile
from skim_export.bundle.lowering import read_program
from skim_export.bundle.memory import make_plan
from skim_export.bundle.program import Kind, Program
from skim_export.bundle.row_class import RowClass
from skim_export.bundle.sources import Weights, makefile, model_source
from skim_export.files import sha256, staged_directory, write_json
from skim_runtime.errors import UserError
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress

__all__ = ["MANIFEST", "PROGRAMS", "PROMPT_CHUNK", "Device", "build_bundle"]

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
KERNELS = "skim_kernels.o"
PROGRAMS = ("skim_run", "skim_example")
PROMPT_CHUNK = 32  # tokens of a prompt at once: decoding the weights costs little beside so many multiplications
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "genai_config.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What a bundle is compiled for.

    Attributes:
        name: of the target, e.g. "rpi5".
        compiler: C compiler that makes programs for it, e.g. "aarch64-linux-gnu-gcc".
        flags: its options for the device's CPU, e.g. "-mcpu=cortex-a76".
    """

    name: str
    compiler: str
    flags: tuple[str, ...] = ()


def build_bundle(
    model: Path,
    device: Device,
    output: Path,
    compile_kernels: Callable[[Sequence[RowClass]], bytes],
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the bundle of an exported model and return its manifest.

    Where the device's compiler is on this machine, the programs are compiled, too.

    Args:
        model: directory that skim-export wrote.
        device: to compile for.
        output: directory to write; of one that exists, files of the same names are replaced.
        compile_kernels: makes the object file with the kernels of some row classes.
        progress: told about each packed linear.

    Raises:
        UserError: the model is damaged or has what the runtime lacks, or the output cannot be written.
    """
    directory = ModelDirectory.open(model)
    program = read_program(directory.model_file)
    plan = make_plan(program, PROMPT_CHUNK)
    context = min(directory.context_length, program.positions or directory.context_length)
    with staged_directory(output, MANIFEST) as stage:
        weights = _write_weights(program, stage / WEIGHTS, progress or Progress())
        classes = sorted({rows.row_class for layout in weights.linears.values() for rows in layout.rows})
        (stage / KERNELS).write_bytes(compile_kernels(classes))
        (stage / "skim_kernels.h").write_text(kernels_header(classes), "utf-8")
        source = model_source(program, plan, weights, target=device.name, context=context, eos=directory.eos_token_ids)
        (stage / "skim_model.c").write_text(source, "utf-8")
        runtime = _copy_sources(stage)
        (stage / "Makefile").write_text(makefile(["skim_model.c", *runtime], device.compiler, device.flags), "utf-8")
        for name in TOKENIZER_FILES:
            if (model / name).is_file():
                shutil.copyfile(model / name, stage / name)
        manifest = {
            "skim_export": metadata.version("skim-export"),
            "target": device.name,
            "classes": [row_class.name for row_class in classes],
            "context_length": context,
            "weights": {"bytes": weights.size, "read_bytes": weights.read_bytes},
            "programs": _compile(stage, device),
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(stage.iterdir())
            },
        }
        write_json(stage / MANIFEST, manifest)
    return manifest


def _write_weights(program: Program, path: Path, progress: Progress) -> Weights:
    gathered = {op.unit for op in program.operators if op.kind == Kind.EMBED}
    progress.start("writing the weights", len(program.linears))
    with WeightsFile(path) as file:
        tensors = {name: file.add_shared(load()) for name, load in program.tensors.items()}
        linears = {}
        for unit, weights in program.linears.items():
            linears[unit] = file.add_linear(weights.load(), gathered=unit in gathered)
            progress.step(unit)
    progress.finish()
    read_bytes = sum(linears[op.unit].read_bytes for op in program.operators if op.kind == Kind.PRODUCT)
    return Weights(file.header, file.size, read_bytes, linears, tensors)


def _copy_sources(stage: Path) -> list[str]:
    """Copy the runtime's sources, and name the C files that both programs need."""
    programs = [f"{name}.c" for name in PROGRAMS]
    sources = sorted(resources.files("skim_export.bundle").joinpath("c").iterdir(), key=lambda file: file.name)
    for source in sources:
        (stage / source.name).write_bytes(source.read_bytes())
    return [source.name for source in sources if source.name.endswith(".c") and source.name not in programs]


def _compile(stage: Path, device: Device) -> dict[str, Any]:
    """Compile the programs if that is possible here; what the manifest says of it."""
    for tool in (device.compiler, "make"):
        if shutil.which(tool) is None:
            log.info("the bundle's programs are not compiled: %s is not on this machine", tool)
            return {"compiled": False, "reason": f"{tool} was not on the machine that wrote the bundle"}
    done = subprocess.run(["make", "-s", "-C", str(stage)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{device.compiler} cannot compile the bundle's programs: {done.stderr.strip()[-500:]}")
    for path in stage.glob("*.o"):
        if path.name != KERNELS:
            path.unlink()
    return {"compiled": True, "compiler": _version(device.compiler)}


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]
