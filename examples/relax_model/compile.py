"""Compiling a decoder that skim-export wrote into one shared library for TVM's runtime."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import tvm

from relax_model.importer import Imported, import_model
from relax_model.parameters import Parameter
from skim_export.bundle.target import CpuTarget, load_cpu_target
from skim_export.work.files import sha256, write_json
from skim_runtime.errors import UserError
from skim_runtime.model_directory import ModelDirectory

__all__ = ["Description", "build_library", "compile_model"]


@dataclass(frozen=True)
class Description:
    """What has to be known of a compiled model to call it; a JSON file beside the library.

    Attributes:
        model_sha256: of the ONNX file that it was compiled from.
        target: that it was compiled for.
        parameters: the arguments behind the inputs of the graph.
    """

    model_sha256: str
    target: str
    parameters: list[Parameter]

    def write(self, library: Path) -> None:
        """Write it beside `library`."""
        write_json(_description_file(library), asdict(self))

    @classmethod
    def read(cls, library: Path) -> Description:
        """Read the one beside `library`.

        Raises:
            UserError: the library or its description is missing, or the latter malformed.
        """
        file = _description_file(library)
        for path in (library, file):
            if not path.is_file():
                raise UserError(f"{path}: missing; give a library that compile_model wrote, with its .json beside it")
        try:
            values = json.loads(file.read_text("utf-8"))
            parameters = [Parameter(**{**entry, "shape": tuple(entry["shape"])}) for entry in values.pop("parameters")]
            return cls(**values, parameters=parameters)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: malformed ({error}); compile the model again") from None


def compile_model(model_dir: str | Path, target: str, library: Path) -> None:
    """Compile the decoder of a model directory, and describe it in `library` + ".json".

    The function "main" of the library takes the inputs of the ONNX graph and the parameters that the description
    lists, and returns the logits. The key/value cache is updated in place: what is given as "past_key_values" has room
    for the new tokens behind those of the past. No weights are in the library.

    Args:
        model_dir: what skim-export wrote.
        target: a CPU of `skim_export/bundle/targets`, or the path of a file like those there.
        library: the file to write, ".so".

    Raises:
        UserError: the model is damaged or has an operator that is not supported, there is no such target, or its C
            compiler is not installed.
        PackedFormatError: packed weights violate their format.
    """
    directory = ModelDirectory.open(model_dir)
    cpu = load_cpu_target(target)
    model = onnx.load(directory.model_file, load_external_data=False)
    dimensions = {"batch_size": 1, "kv_cache_dim": directory.head_size}
    imported = import_model(model, directory.path, dimensions, ["logits"], cpu)
    build_library(imported, cpu, library)
    Description(sha256(directory.model_file), target, imported.parameters).write(library)


def build_library(imported: Imported, target: CpuTarget, library: Path) -> None:
    """Compile a module and link it with its kernels into the shared library `library`.

    Raises:
        UserError: TVM does not accept the target, or its C compiler is not installed.
    """
    compiler = target.require_compiler()
    with TemporaryDirectory() as temporary:
        object_file = Path(temporary) / "kernels.o"
        object_file.write_bytes(imported.kernels)
        executable = tvm.compile(imported.module, tvm.target.Target(target.tvm))
        executable.export_library(
            str(library), addons=[str(object_file)], cc=compiler, options=list(target.compiler_flags)
        )


def _description_file(library: Path) -> Path:
    return library.with_name(library.name + ".json")
