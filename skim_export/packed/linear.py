"""A packed linear: the tensors of the packed format, and what they mean.

The modules of this folder own the format; `docs/format.md` is its normative description. `codes` has the place of
every bit, `row_class` what is stored for a row of each class, and `PackedLinear.sections` where each class's rows lie.
Everything that writes or reads packed weights in Python goes through them, so a new version of the format changes
these modules and the kernels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skim_export.packed.codes import Field, pack_codes, superblocks, unpack_codes
from skim_export.packed.levels import RowLevels
from skim_export.packed.row_class import CLASSES, CodebookType, RowClass, all_classes, class_numbers
from skim_export.packed.section import Section
from skim_runtime.operators import FORMAT_VERSION, TENSORS

__all__ = ["FORMAT_VERSION", "PackedFormatError", "PackedLinear"]


class PackedFormatError(ValueError):
    """A packed tensor violates the format; the message names the tensor."""


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts one after the other; of the type of those that are not empty, since an empty codebook has any."""
    return np.concatenate([part for part in parts if part.size] or parts[:1])


def _classes(codebook: npt.NDArray[Any]) -> list[RowClass]:
    """The classes that rows can have beside a codebook, by their numbers."""
    entries: CodebookType = "int8" if codebook.dtype == np.int8 else "float16"
    return all_classes(entries)


@dataclass(frozen=True)
class PackedLinear:
    """One weight matrix in the packed format (see `docs/format.md` for shapes and meaning of the tensors)."""

    out_features: int
    in_features: int
    rows_per_class: tuple[int, ...]
    codes: npt.NDArray[np.uint8]
    codebook: npt.NDArray[Any]
    row_scale: npt.NDArray[np.float16]
    row_class: npt.NDArray[np.uint8]
    column_scale: npt.NDArray[np.float16]
    bias: npt.NDArray[np.float32]

    TENSORS = TENSORS

    @classmethod
    def pack(
        cls,
        codes: npt.NDArray[np.uint8],
        levels: RowLevels,
        column_scale: npt.NDArray[np.float16] | None = None,
        bias: npt.NDArray[np.float32] | None = None,
    ) -> PackedLinear:
        """Pack codes `[N, K]` and their levels.

        Raises:
            PackedFormatError: a code does not fit into its row's width, or a level, scale or bias is invalid.
        """
        rows, columns = codes.shape
        too_wide = codes.max(axis=1).astype(np.int32) >> levels.bits.astype(np.int32)
        if too_wide.any():
            row = int(np.flatnonzero(too_wide)[0])
            raise PackedFormatError(f"codes: row {row} has code {codes[row].max()}, above its {levels.bits[row]} bits")
        numbers = class_numbers(levels)
        counts = np.bincount(numbers, minlength=CLASSES)
        scales = np.stack([levels.scale, levels.offset], axis=1)
        code_parts, entry_parts, scale_parts = [], [], []
        for row_class, count in zip(_classes(levels.entries), counts, strict=True):
            if count:
                rows_of_class = np.flatnonzero(numbers == row_class.number)
                packed_codes = pack_codes(codes[rows_of_class], row_class.bits, row_class.fields)
                code_parts.append(packed_codes.reshape(-1))
                entry_parts.append(levels.entries[rows_of_class, : row_class.entries].reshape(-1))
                scale_parts.append(scales[rows_of_class, : row_class.scales].reshape(-1))
        packed = cls(
            out_features=rows,
            in_features=columns,
            rows_per_class=tuple(int(n) for n in counts),
            codes=np.concatenate(code_parts),
            codebook=np.concatenate(entry_parts),
            row_scale=np.concatenate(scale_parts).astype(np.float16),
            row_class=numbers if np.count_nonzero(counts) > 1 else np.zeros(0, np.uint8),
            column_scale=np.zeros(0, np.float16) if column_scale is None else column_scale,
            bias=np.zeros(0, np.float32) if bias is None else bias,
        )
        packed.validate()
        return packed

    @classmethod
    def concatenate(cls, parts: Sequence[PackedLinear]) -> PackedLinear:
        """One packed linear of the rows of several, which have the same columns and column scale.

        Raises:
            PackedFormatError: they do not go together.
        """
        first = parts[0]
        for part in parts:
            if part.in_features != first.in_features or not np.array_equal(part.column_scale, first.column_scale):
                raise PackedFormatError("column_scale: parts of one matrix must have the same")
        counts = np.sum([part.rows_per_class for part in parts], axis=0)
        sections = sorted((s for part in parts for s in part.sections()), key=lambda s: s.row_class.number)
        joined = {
            name: _joined([getattr(first, name)[:0], *(getattr(section, name).reshape(-1) for section in sections)])
            for name in Section.TENSORS
        }
        mixed = np.count_nonzero(counts) > 1
        packed = cls(
            out_features=sum(part.out_features for part in parts),
            in_features=first.in_features,
            rows_per_class=tuple(int(n) for n in counts),
            row_class=_joined([part.row_classes() for part in parts]) if mixed else np.zeros(0, np.uint8),
            column_scale=first.column_scale,
            bias=_joined([part.bias for part in parts]),
            **joined,
        )
        packed.validate()
        return packed

    def sections(self) -> list[Section]:
        """The rows of each class that there is, in the order in which they are stored."""
        found = []
        row = code = entry = scale = 0
        for row_class, count in zip(_classes(self.codebook), self.rows_per_class, strict=True):
            if not count:
                continue
            code_end = code + count * row_class.row_bytes(self.in_features)
            entry_end, scale_end = entry + count * row_class.entries, scale + count * row_class.scales
            section = Section(
                row_class=row_class,
                count=count,
                row_start=row,
                codes_start=code,
                codebook_start=entry,
                row_scale_start=scale,
                codes=self.codes[code:code_end].reshape(count, -1),
                codebook=self.codebook[entry:entry_end].reshape(count, row_class.entries),
                row_scale=self.row_scale[scale:scale_end].reshape(count, row_class.scales),
            )
            found.append(section)
            row, code, entry, scale = row + count, code_end, entry_end, scale_end
        return found

    def row_classes(self) -> npt.NDArray[np.uint8]:
        """Class of each row in original order, uint8 `[N]`."""
        if self.row_class.size:
            return self.row_class
        return np.full(self.out_features, int(np.argmax(self.rows_per_class)), np.uint8)

    def row_order(self) -> npt.NDArray[np.int64]:
        """Original index of each stored row, `[N]`."""
        if self.row_class.size == 0:
            return np.arange(self.out_features)
        return np.argsort(self.row_class, kind="stable")

    def row_bits(self) -> npt.NDArray[np.uint8]:
        """Width of each row in original order, uint8 `[N]`."""
        widths = np.array([row_class.bits for row_class in _classes(self.codebook)], np.uint8)
        return widths[self.row_classes()]

    def unpack(self) -> tuple[npt.NDArray[np.uint8], RowLevels]:
        """Undo `pack`: codes, uint8 `[N, K]`, and levels."""
        n, order, sections = self.out_features, self.row_order(), self.sections()
        codes = np.empty((n, self.in_features), np.uint8)
        kind, memory = np.empty(n, np.uint8), np.empty(n, np.uint8)
        entries = np.zeros((n, max(section.row_class.entries for section in sections)), self.codebook.dtype)
        scale_offset = np.zeros((2, n), np.float16)
        for section in sections:
            rows, row_class = order[section.rows], section.row_class
            codes[rows] = self._read(section, row_class.fields)
            kind[rows], memory[rows] = row_class.kind, row_class.memory
            entries[rows, : row_class.entries] = section.codebook
            scale_offset[: row_class.scales, rows] = section.row_scale.T
        return codes, RowLevels(self.row_bits(), kind, entries, scale_offset[0], scale_offset[1], memory)

    def windows(self) -> npt.NDArray[np.uint8]:
        """What levels are looked up by, uint8 `[N, K]`: the windows of rows with a memory, the codes of all others."""
        windows, order = np.empty((self.out_features, self.in_features), np.uint8), self.row_order()
        for section in self.sections():
            windows[order[section.rows]] = self._read(section, section.row_class.window_fields)
        return windows

    def _read(self, section: Section, fields: list[Field]) -> npt.NDArray[np.uint8]:
        return unpack_codes(section.codes, section.row_class.bits, self.in_features, fields)[:, : self.in_features]

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight matrix that is meant, float32 `[N, K]`: the reference that every kernel is compared with."""
        levels = self.unpack()[1]
        weight = np.take_along_axis(levels.values(), self.windows().astype(np.intp), axis=1)
        if self.column_scale.size:
            weight *= self.column_scale.astype(np.float32)
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors but the bias, which is no weight."""
        return sum(getattr(self, name).nbytes for name in self.TENSORS if name != "bias")

    @property
    def code_bits(self) -> float:
        """Average width of the codes, in bits per weight."""
        return float(np.mean(self.row_bits()))

    @property
    def effective_bits(self) -> float:
        """All bits stored over the number of weights."""
        return 8 * self.nbytes / (self.out_features * self.in_features)

    def validate(self) -> None:
        """Check everything that `docs/format.md` demands.

        Raises:
            PackedFormatError: naming the tensor, what it is and what it should be.
        """
        n, k = self.out_features, self.in_features
        counts = self.rows_per_class
        if n < 1 or k < 1:
            raise PackedFormatError(f"N and K must be at least 1, got N={n}, K={k}")
        if len(counts) != CLASSES or min(counts) < 0 or sum(counts) != n:
            raise PackedFormatError(f"rows_per_class must be {CLASSES} counts with sum N={n}, got {list(counts)}")
        if self.codebook.dtype not in (np.int8, np.float16):
            raise PackedFormatError(f"codebook must be int8 or float16, got {self.codebook.dtype}")
        classes = list(zip(_classes(self.codebook), counts, strict=True))
        mixed = sum(m > 0 for m in counts) > 1
        expected: dict[str, tuple[object, tuple[int, ...]]] = {
            "codes": (np.uint8, (sum(m * row_class.row_bytes(k) for row_class, m in classes),)),
            "codebook": (self.codebook.dtype, (sum(m * row_class.entries for row_class, m in classes),)),
            "row_scale": (np.float16, (sum(m * row_class.scales for row_class, m in classes),)),
            "row_class": (np.uint8, (n,) if mixed else (n, 0)),
            "column_scale": (np.float16, (k, 0)),
            "bias": (np.float32, (n, 0)),
        }
        for name, (dtype, sizes) in expected.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.ndim != 1 or tensor.size not in sizes:
                want = f"{np.dtype(dtype)} of {' or '.join(str(s) for s in sizes)} elements"  # type: ignore[call-overload]
                raise PackedFormatError(f"{name} must be {want}, got {tensor.dtype} of shape {list(tensor.shape)}")
        if self.row_class.size and tuple(np.bincount(self.row_class, minlength=CLASSES)) != tuple(counts):
            raise PackedFormatError("row_class does not agree with rows_per_class")
        if self.codebook.dtype == np.int8 and any(
            s.row_class.memory and (s.codebook == -128).any() for s in self.sections()
        ):
            raise PackedFormatError("codebook: an entry of a row with windows is -128, which has no negative")
        for name in ("codebook", "row_scale", "column_scale", "bias"):
            if not np.isfinite(getattr(self, name)).all():
                raise PackedFormatError(f"{name} has a value that is not finite")
        if (self.column_scale <= 0).any():
            raise PackedFormatError("column_scale has a value that is not positive")
        self._validate_padding()

    def _validate_padding(self) -> None:
        k = self.in_features
        if k % 32 == 0:
            return
        first, count, lanes = superblocks(k)[-1]
        for section in self.sections():
            bits, fields = section.row_class.bits, section.row_class.fields
            codes = unpack_codes(section.codes[:, -bits * lanes * count :], bits, k - first, fields)
            if codes[:, k - first :].any():
                raise PackedFormatError(f"codes: a padding code of the {bits}-bit rows is not 0")
