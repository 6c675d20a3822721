"""Opening a model in ONNX Runtime: its operator library, its execution provider, and what is said where that fails."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from skim_runtime.capturing import running
from skim_runtime.errors import UserError
from skim_runtime.interruptible import interruptible
from skim_runtime.load_library import FALLBACK, check_onnxruntime, load, one_line
from skim_runtime.model_directory import ModelDirectory
from skim_runtime.providers import PROVIDERS, Provider, cpu_instead, cuda_obstacle, provider_of

__all__ = ["Kernel", "Opened", "check_for_cpu", "check_options", "open_session"]

Kernel = Literal["auto", "function"]
RUN_ON_CPU = ("float32", "float16")


@dataclass(frozen=True)
class Opened:
    """A session of onnxruntime.

    Attributes:
        session: onnxruntime's own.
        kernel: what runs packed weights, as `Session.kernel` tells it.
        device: "cpu" or "cuda".
        library: our operator library, if it is used.
        graphs: whether it keeps CUDA graphs.
    """

    session: Any
    kernel: str
    device: str = "cpu"
    library: Path | None = None
    graphs: bool = False


def check_options(threads: int | None, kernel: str, ep: str | None) -> None:
    """Refuse options of a session that make no sense.

    Raises:
        UserError: naming the option.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    if kernel not in ("auto", "function"):
        raise UserError(f"kernel must be auto or function, got {kernel!r}")
    if ep is not None and ep not in PROVIDERS:
        raise UserError(f"ep must be {' or '.join(PROVIDERS)}, got {ep!r}")


def check_for_cpu(directory: ModelDirectory) -> None:
    """Raises `UserError` if a model has activations that onnxruntime has no kernels for on the CPU."""
    if directory.graph.activations not in RUN_ON_CPU:
        raise UserError(
            f"{directory.model_file}: its activations are {directory.graph.activations}, which onnxruntime has for the "
            "GPU only: for the CPU export it with --ep cpu, or with --activations float16"
        )


def open_session(
    directory: ModelDirectory, threads: int | None, kernel: Kernel, ep: Provider | None, trust_library: bool
) -> Opened:
    """Open a model; arguments are those of `Session`.

    Raises:
        UserError: onnxruntime refuses it, or can't run it where `ep` wants it.
    """
    import onnxruntime as ort

    check_onnxruntime(ort.__version__)
    provider = provider_of(directory, ep)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    library, name = None, "none"
    if directory.graph.has_packed_weights:
        if kernel == "function":
            name = FALLBACK
        else:
            library, name = load(
                directory,
                lambda path: options.register_custom_ops_library(str(path)),
                trust_library=trust_library,
            )
    if provider == "cuda":
        try:
            session, graphs = _cuda_session(directory, options, library)
        except UserError as error:
            cpu_instead(directory, ep, str(error))
        else:
            return Opened(session, name if library is None else "cuda", "cuda", library, graphs)
    check_for_cpu(directory)
    session = _session(directory, options, [PROVIDERS["cpu"]])
    return Opened(session, name, library=library)


def _session(directory: ModelDirectory, options: Any, providers: list[Any], **more: Any) -> Any:
    """An onnxruntime session, unless that refuses the model."""
    import onnxruntime as ort

    try:
        return interruptible(lambda: ort.InferenceSession(directory.model_file, options, providers=providers, **more))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UserError(f"{directory.model_file}: refused by onnxruntime: {one_line(error)}") from error


def _cuda_session(directory: ModelDirectory, options: Any, library: Path | None) -> tuple[Any, bool]:
    """An onnxruntime session on the GPU, and whether it keeps CUDA graphs.

    Raises:
        UserError: why there is none.
    """
    import onnxruntime as ort

    obstacle = cuda_obstacle("onnxruntime", PROVIDERS["cuda"] in ort.get_available_providers(), library)
    if obstacle is not None:
        raise UserError(obstacle)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session will say it again
        ort.preload_dlls()
    names = [PROVIDERS["cuda"], PROVIDERS["cpu"]]  # what belongs to shapes is computed on the CPU

    def opened(graphs: bool) -> Any:
        first = (names[0], {"enable_cuda_graph": str(int(graphs))})
        with running():  # it allocates, too
            session = _session(directory, options, [first, names[1]], enable_fallback=0)
        if session.get_providers() != names:
            raise UserError("onnxruntime could not load its CUDAExecutionProvider, see its messages")
        return session

    if library is None:  # the functions of standard operators have nodes on the CPU
        return opened(graphs=False), False
    try:
        return opened(graphs=True), True
    except UserError as error:
        if "graph capture" not in str(error):  # whatever else is wrong would be so again
            raise
        warnings.warn(f"no CUDA graphs, every kernel is launched by itself: {error}", RuntimeWarning, stacklevel=2)
        return opened(graphs=False), False
