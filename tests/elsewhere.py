"""A second device for machines that have none: it computes on the CPU, and refuses what a GPU would refuse.

Tensors of it are wrappers around tensors of the CPU. Operations whose tensors are on both devices fail, as they do with
a GPU, except for copies between them and for single numbers and indices on the CPU. What depends on a GPU's arithmetic,
memory or order of execution it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["elsewhere", "in_this_thread"]

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}  # indices may be the CPU's


# At once: a device that comes after the first backward pass of the process is unknown to the passes that follow.
backend_registration._setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere", 0)


class Elsewhere(torch.Tensor):
    """A tensor of the device; `inner` is on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        wrapper: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees what is made on the device or moved to it, without a tensor of it among the arguments."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(kind, Elsewhere) for kind in types) or kwargs.get("device") == DEVICE:
            return _run(function, args, kwargs)
        return function(*args, **kwargs)


class _FromData(TorchFunctionMode):
    """`torch.tensor`, which no dispatch mode sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == DEVICE:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device, usable in this thread."""
    with _FromData(), _Factories():
        yield DEVICE


class _Inline(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def in_this_thread(threads: int) -> Iterator[Executor]:
    """In place of `calibration.workers.workers`: other threads do not know the device."""
    yield _Inline()


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, Elsewhere)]
    others = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim() and function not in INDEXED]
    if ours and others and function not in COPIES:
        raise RuntimeError(f"{function}: tensors on two devices")
    target = kwargs.get("device")
    if target is not None:
        target = torch.device(target)
        if target == DEVICE:
            kwargs = {**kwargs, "device": torch.device("cpu")}
    elif function is aten.copy_.default:
        target = args[0].device
    elif ours:
        target = DEVICE
    unwrapped = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    result = function(*unwrapped[0], **unwrapped[1])
    if target != DEVICE:
        return result
    known = {id(x.inner): x for x in ours}  # what was changed in place stays what it was

    def wrap(x: Any) -> Any:
        return known.get(id(x), Elsewhere(x)) if isinstance(x, torch.Tensor) else x

    return tree_map(wrap, result)
