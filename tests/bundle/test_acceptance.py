"""SmolLM2-135M-Instruct, exported with the defaults, as a bundle for this machine and, emulated, a Raspberry Pi 5."""

import pytest

from skim_runtime import Session, Tokenizer, generate

from ..tools import require, require_packages
from .native import run

require_packages("tvm")

TARGETS = {"x86-avx2": [], "rpi5": ["qemu-aarch64"]}


@pytest.mark.slow
def test_smollm2_says_the_same_as_in_onnxruntime(smollm2_3bit, tmp_path):
    from skim_export.bundle.build import write_bundle

    require("make", "aarch64-linux-gnu-gcc", "qemu-aarch64")
    prompt = Tokenizer(smollm2_3bit).prompt("What is the capital of France?")
    expected = generate(Session(smollm2_3bit), prompt, max_new_tokens=16, stop=()).tokens
    for target, emulator in TARGETS.items():
        bundle = tmp_path / target
        assert write_bundle(smollm2_3bit, target, bundle)["files"]["skim_kernels.o"]["bytes"] < 1_000_000
        done = run(*emulator, bundle / "skim_run", "-n", 16, "-e", -1, bundle / "weights.bin", *prompt)
        assert [int(word) for word in done.stdout.split()] == expected, target
