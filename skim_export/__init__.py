"""Quantize a language model to any average bit-width and write it as an ONNX model.

from skim_export import export

report = export("smollm2-135m", "smollm2-3bit/model.onnx", bits=3)
print(report.parts[-1].effective_bits)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skim_runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from skim_export.checkpoint.torch_reference import TorchReference
    from skim_export.packed import PackedLinear
    from skim_export.pipeline.export import export
    from skim_export.pipeline.options import ExportOptions
    from skim_export.pipeline.report import ExportReport, Part
    from skim_runtime.errors import UserError
    from skim_runtime.progress import Progress

__all__ = ["ExportOptions", "ExportReport", "PackedLinear", "Part", "Progress", "TorchReference", "UserError", "export"]

_MODULES = {
    "ExportOptions": "skim_export.pipeline.options",
    "ExportReport": "skim_export.pipeline.report",
    "PackedLinear": "skim_export.packed",
    "Part": "skim_export.pipeline.report",
    "Progress": "skim_runtime.progress",
    "TorchReference": "skim_export.checkpoint.torch_reference",
    "UserError": "skim_runtime.errors",
    "export": "skim_export.pipeline.export",
}

__getattr__ = lazy_attributes(__name__, _MODULES)
