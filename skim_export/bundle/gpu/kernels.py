"""The kernels that a model needs on a target."""

from __future__ import annotations

from collections.abc import Iterable

from skim_export.bundle.gpu.decode import decode_kernel
from skim_export.bundle.gpu.gather import gather_kernel
from skim_export.bundle.gpu.kernel import Kernel
from skim_export.bundle.gpu.prefill import prefill_kernel
from skim_export.bundle.gpu.prepare import prepare_kernel
from skim_export.bundle.gpu.schedule import Schedule
from skim_export.packed import RowClass

__all__ = ["kernels_for"]


def kernels_for(products: Iterable[RowClass], gathered: Iterable[RowClass], schedule: Schedule) -> list[Kernel]:
    """All kernels, in a fixed order.

    Args:
        products: classes of rows that are multiplied.
        gathered: classes of rows of the embedding.
        schedule: of the target.
    """
    kernels = [prepare_kernel(schedule.threads)]
    for row_class in sorted(set(products)):
        kernels += [decode_kernel(row_class, decode) for decode in schedule.decode]
        kernels.append(prefill_kernel(row_class, schedule.prefill))
    return kernels + [gather_kernel(row_class, schedule.threads) for row_class in sorted(set(gathered))]
