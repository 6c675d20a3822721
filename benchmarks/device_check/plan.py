"""The plan of minutes: the steps in their order, what each takes, and how long it may take at most.

What would make everything after it worthless comes first, then what tells most for its seconds. Every step is a process
of its own: one that crashes or hangs costs its limit and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PLAN", "PROFILER", "Step", "named"]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: of the step, and of its module under steps/ unless `module` is another.
        what: it finds out.
        expected: seconds that it is planned to take on a GPU of data centres, on 16 cores.
        limit: seconds after which it is ended; what it has found until then is kept.
        needs: steps that must have gone well.
        module: that has its function `run`.
        tool: a program that runs the step's process, with its arguments.
        with_site: whether it imports the packages that `unpack` has installed.
        environment: variables of its process.
    """

    name: str
    what: str
    expected: int
    limit: int
    needs: tuple[str, ...] = ()
    module: str = ""
    tool: tuple[str, ...] = ()
    with_site: bool = False
    environment: tuple[tuple[str, str], ...] = ()


# What libraries ask the driver for without need is no error. With ALONE every tensor is an allocation of its own: what
# lies behind it is nobody's.
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no", "--print-limit", "20", "--tool")
ALONE = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
# All counters: a kernel of these sizes is replayed in milliseconds.
PROFILER = (
    *("ncu", "--set", "full", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"),
    *("--kernel-name", "regex:Decode|Prefill", "--launch-skip", "3", "--launch-count", "1"),
)

PLAN = (
    Step("machine", "device, clocks, driver, versions", 5, 30),
    Step("build", "kernels and operators compiled for this GPU alone", 70, 180),
    Step("grid", "every kernel against float64, twice and in a CUDA graph", 30, 90, ("build",)),
    Step("decode", "1 to 16 tokens beside cuBLAS and the memory's bandwidth", 70, 140, ("build",), "speed"),
    Step("prefill", "128 to 2048 tokens beside cuBLAS", 45, 80, ("build",), "speed"),
    Step("counters", "what the hardware counts in the three slowest decoders", 60, 110, ("build",)),
    Step("memcheck", "accesses outside of their memory", 45, 90, ("build",), "short_grid", (*SANITIZER, "memcheck"),
         environment=ALONE),
    Step("racecheck", "races in shared memory", 45, 90, ("build",), "short_grid", (*SANITIZER, "racecheck")),
    Step("quantize", "one layer as of a 7B model with --device cuda, beside the CPU", 35, 60, ("build",)),
    Step("unpack", "packages and models that were carried in parts", 15, 60),
    Step("nbits", "4 bits beside MatMulNBits", 20, 40, ("build", "unpack"), "speed", with_site=True),
    Step("small_model", "SmolLM2 in onnxruntime: logits, tokens per second, memory", 25, 60, ("build", "unpack"),
         "end_to_end", with_site=True),
    Step("large_model", "two blocks as of Mistral-7B: quantized there, then the same", 45, 100, ("build", "unpack"),
         "end_to_end", with_site=True),
    Step("bfloat16_model", "the same blocks with activations in bfloat16", 30, 60, ("large_model",), "end_to_end",
         with_site=True),
)  # fmt: skip


def named(name: str) -> Step:
    """The step of a name."""
    return next(step for step in PLAN if step.name == name)
