"""The real model, SmolLM2-135M-Instruct, as a bundle for this machine and, emulated, for a Raspberry Pi 5."""

import pytest

from skim_export import export
from skim_runtime import Session, Tokenizer, generate

from ..tools import require, require_packages
from .native import run

require_packages("tvm")

TARGETS = {"x86-avx2": [], "rpi5": ["qemu-aarch64"]}


@pytest.mark.slow
def test_smollm2_says_the_same_as_in_onnxruntime(smollm2, tmp_path):
    from skim_export.bundle.build import write_bundle

    require("make", "aarch64-linux-gnu-gcc", "qemu-aarch64")
    model = tmp_path / "model"
    export("smollm2-135m", model / "model.onnx", bits=4, method="rtn")
    prompt = Tokenizer(model).prompt("What is the capital of France?")
    expected = generate(Session(model), prompt, max_new_tokens=16, stop=()).tokens
    for target, emulator in TARGETS.items():
        bundle = tmp_path / target
        assert write_bundle(model, target, bundle)["files"]["skim_kernels.o"]["bytes"] < 1_000_000
        done = run(*emulator, bundle / "skim_run", "-n", 16, "-e", -1, bundle / "weights.bin", *prompt)
        assert [int(word) for word in done.stdout.split()] == expected, target
