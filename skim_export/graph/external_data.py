"""Writing an ONNX model with its weights beside it, laid out so that a runtime can map and use them in place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir

from skim_export.work.files import fsync
from skim_runtime.data_file import METADATA, seal
from skim_runtime.progress import Progress

__all__ = ["save_model"]

INLINE_BYTES = 1024  # below this an own mapping costs more than it saves
PAGE_BYTES = 1 << 20  # from this size on tensors start on a page


def _aligned(offset: int, nbytes: int) -> int:
    alignment = 4096 if nbytes >= PAGE_BYTES else 64
    return -(-offset // alignment) * alignment


def save_model(model: ir.Model, path: Path, progress: Progress) -> None:
    """Write `path` and, for all initializers of 1 KiB and more, `path` + ".data", tied to each other by a hash.

    Tensors are written one after the other, so that only one of them is in memory. The model's initializers refer to
    the file afterwards.
    """
    data = path.with_name(path.name + ".data")
    values = [v for v in model.graph.initializers.values() if v.const_value is not None]
    large = [v for v in values if v.const_value is not None and v.const_value.nbytes >= INLINE_BYTES]
    progress.start("writing the model", len(large))
    digest = hashlib.sha256()
    with data.open("wb") as file:

        def write(content: bytes | memoryview) -> None:
            file.write(content)
            digest.update(content)

        for value in large:
            tensor = value.const_value
            assert tensor is not None
            assert value.name is not None
            offset = _aligned(file.tell(), tensor.nbytes)
            write(bytes(offset - file.tell()))
            write(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)  # no copy
            value.const_value = ir.ExternalTensor(
                data.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name,
                base_dir=path.parent,
            )
            progress.step(value.name)
        file.write(seal(digest.digest()))
    fsync(data)
    model.metadata_props[METADATA] = digest.hexdigest()
    ir.save(model, path)
    progress.finish()
