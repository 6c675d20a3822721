"""Writing the bundle of a CPU: everything that it needs to run a model, in one directory."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Protocol

from skim_export.bundle.abi import Kernels, Product, kernels_header
from skim_export.bundle.layout import WeightsFile
from skim_export.bundle.lowering import read_program
from skim_export.bundle.memory import make_plan
from skim_export.bundle.program import Kind, Program
from skim_export.bundle.sources import Weights, makefile, model_source
from skim_export.graph.reader import load
from skim_export.packed import RowClass
from skim_export.work.files import sha256, staged_directory, write_json
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.progress import Progress

__all__ = [
    "MANIFEST",
    "PROMPT_CHUNK",
    "WEIGHTS",
    "Device",
    "KernelCompiler",
    "build_bundle",
    "copy_model_files",
    "files_of",
    "write_weights",
]

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
KERNELS = "skim_kernels.o"
PROGRAMS = ("skim_run", "skim_example")
PROMPT_CHUNK = 32  # tokens of a prompt at once: decoding the weights costs little beside so many multiplications
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "genai_config.json", "export.json")

log = logging.getLogger(__name__)


class Device(Protocol):
    """What a bundle is compiled for; `skim_export.bundle.target.CpuTarget` is one."""

    @property
    def name(self) -> str:
        """Of the target, e.g. "rpi5"."""

    @property
    def description(self) -> str:
        """For people."""

    @property
    def compiler_name(self) -> str:
        """The C compiler that makes programs for it."""

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        """Its options for the CPU."""

    @property
    def compiler_package(self) -> str | None:
        """Debian's package with it."""

    def compiler(self) -> str | None:
        """Where it is, if it is installed here."""


KernelCompiler = Callable[[Sequence[Product], Sequence[RowClass]], Kernels]


def build_bundle(
    model: Path, device: Device, output: Path, compile_kernels: KernelCompiler, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the bundle of an exported model and return its manifest.

    Where a compiler for the device is on this machine, the programs are compiled, too.

    Args:
        model: directory that skim-export wrote.
        device: to compile for.
        output: directory to write; in one that exists, files of the same names are replaced.
        compile_kernels: makes the kernels of some products, and of classes whose rows are also read one by one.
        progress: told about each packed linear.

    Raises:
        UserError: the model is damaged or has what the runtime lacks, or the output cannot be written.
    """
    directory = ModelDirectory.open(model)
    program = read_program(directory.model_file)
    plan = make_plan(program, PROMPT_CHUNK)
    context = min(directory.context_length, program.positions or directory.context_length)
    with staged_directory(output, MANIFEST) as stage:
        weights = write_weights(program, stage / WEIGHTS, progress or Progress())
        gathers = sorted({rows.row_class for unit in program.gathered for rows in weights.linears[unit].rows})
        products = sorted(
            {
                product
                for unit, layout in weights.linears.items()
                for product in layout.products(integer=unit in program.integer)
            }
        )
        kernels = compile_kernels(products, gathers)
        (stage / KERNELS).write_bytes(kernels.object_file)
        source = model_source(
            program,
            plan,
            weights,
            kernels.matmuls,
            target=device.name,
            context=context,
            eos=directory.eos_token_ids,
        )
        runtime = [*_copy_sources(stage), "skim_model.c"]
        texts = {
            "skim_kernels.h": kernels_header(kernels.matmuls, gathers),
            "skim_model.c": source,
            "Makefile": makefile(device.description, device.compiler_name, device.compiler_flags, runtime),
        }
        for name, text in texts.items():
            (stage / name).write_text(text, "utf-8")
        copy_model_files(model, stage)
        manifest = {
            "skim_export": metadata.version("skim-export"),
            "target": device.name,
            "classes": [row_class.name for row_class in sorted({product.row_class for product in products})],
            "context_length": context,
            "weights": {"bytes": weights.size, "read_bytes": weights.read_bytes},
            "programs": _compile(stage, device),
            "files": files_of(stage),
        }
        write_json(stage / MANIFEST, manifest)
    return manifest


def write_weights(program: Program, path: Path, progress: Progress) -> Weights:
    """Write weights.bin and return what lies where."""
    progress.start("writing the weights", len(program.linears))
    with WeightsFile(path) as file:
        tensors = {name: file.add_shared(load()) for name, load in program.tensors.items()}
        linears = {}
        for unit, weights in program.linears.items():
            linears[unit] = file.add_linear(load(weights), gathered=unit in program.gathered)
            progress.step(unit)
    progress.finish()
    read_bytes = sum(linears[op.unit].read_bytes for op in program.operators if op.kind == Kind.PRODUCT)
    return Weights(file.header, file.size, read_bytes, linears, tensors)


def copy_model_files(model: Path, directory: Path) -> None:
    """Copy what is beside the model: tokenizer, configuration and the export's report, those that there are."""
    for name in COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, directory / name)


def files_of(directory: Path) -> dict[str, dict[str, Any]]:
    """What a manifest says of the files of a directory."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(directory.iterdir())}


def _copy_sources(stage: Path) -> list[str]:
    """Copy the runtime's sources, and name the C files that both programs need."""
    programs = [f"{name}.c" for name in PROGRAMS]
    sources = sorted(resources.files("skim_export.bundle").joinpath("c").iterdir(), key=lambda file: file.name)
    for source in sources:
        (stage / source.name).write_bytes(source.read_bytes())
    return [source.name for source in sources if source.name.endswith(".c") and source.name not in programs]


def _compile(stage: Path, device: Device) -> dict[str, Any]:
    """Compile the programs if that is possible here; what the manifest says of it."""
    compiler, make = device.compiler(), shutil.which("make")
    if compiler is None or make is None:
        missing, package = ("make", "make") if make is None else (device.compiler_name, device.compiler_package)
        return _not_compiled(f"{missing} is not installed" + (f" (apt install {package})" if package else ""))
    # Static, so that they run whatever C library the device has.
    command = [make, "-s", "-C", str(stage), f"CC={compiler}", "LDFLAGS=-static -s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for path in stage.glob("*.o"):
        if path.name != KERNELS:
            path.unlink()
    if done.returncode != 0:
        return _not_compiled(f"{compiler} failed: {done.stderr.strip()}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return {"compiled": True, "compiler": version.partition("\n")[0]}


def _not_compiled(reason: str) -> dict[str, Any]:
    log.warning("the programs of the bundle are not compiled: %s; run make on the device", reason)
    return {"compiled": False, "reason": reason}
