"""Quantized checkpoints: their weights are made float again, tensor by tensor, a run of rows at a time.

Which modules are quantized is said by the tensors that are there, what these mean by config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skim_export.checkpoint.tensors import FLOAT_TYPES, StoredTensor, Tensor
from skim_runtime.errors import UserError

from .awq import AWQ
from .compressed_tensors import COMPRESSED_TENSORS
from .format import Format
from .fp8 import FP8
from .gptq import GPTQ
from .mxfp4 import MXFP4
from .stored_module import Settings, StoredModule

__all__ = ["SETTINGS", "float_tensors"]

SETTINGS = "quantization_config"
WEIGHT = "weight"
FORMATS = {"awq": AWQ, "compressed-tensors": COMPRESSED_TENSORS, "fp8": FP8, "gptq": GPTQ, "mxfp4": MXFP4}


def float_tensors(
    path: Path, quantization: object, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, Tensor], str | None]:
    """The tensors that the network has, and what they were stored as.

    Args:
        path: of the model.
        quantization: what config.json says of it; None for a model that is not quantized.
        stored: the tensors of the files.

    Returns:
        The tensors by their names, weights as floats; and the format, None if the model is not quantized.

    Raises:
        UserError: the format cannot be read, or a tensor is missing or wrong.
    """
    if quantization is None:
        for name in stored:
            if name.endswith((".qweight", ".weight_packed")):
                raise UserError(
                    f"model {path} is quantized (tensor {name}), but config.json has no {SETTINGS}, which would say "
                    "how: give the full-precision checkpoint"
                )
        return dict(stored), None
    entries = quantization if isinstance(quantization, dict) else {}
    method = (entries.get("quant_method") or "unknown method") if entries else quantization
    if not isinstance(method, str) or method not in FORMATS:
        raise UserError(
            f"model {path} is quantized in a way that cannot be read ({method}, as config.json says); can be read: "
            f"{', '.join(FORMATS)}; or give the full-precision checkpoint"
        )
    form, settings = FORMATS[method], Settings(path / "config.json", SETTINGS, entries)
    title = form.described(settings)
    tensors: dict[str, Tensor] = {}
    quantized = {module for name, tensor in stored.items() if (module := _quantized_module(name, tensor, form))}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(form.separator)
        if part not in form.ignored and not (module in quantized and part in form.parts):
            tensors[name] = tensor
    for module in quantized:
        name = f"{module}.{WEIGHT}" if form.separator == "." else module
        if name in tensors:
            raise UserError(f"model {path} has two weights of {module}: a float one, and one that is quantized")
        tensors[name] = form.weight(StoredModule(module, stored, path, form.separator), settings)
    if not quantized:
        raise UserError(f"{settings.file} has {SETTINGS} ({title}), but no tensor is stored so: remove it")
    return tensors, title


def _quantized_module(name: str, tensor: StoredTensor, form: Format) -> str | None:
    """The module that this tensor shows to be quantized."""
    module, _, part = name.rpartition(form.separator)
    return module if part in form.codes and (part != WEIGHT or tensor.dtype not in FLOAT_TYPES) else None
