"""Whole models through TVM: the ONNX decoder becomes a Relax module, and that one shared library.

from pathlib import Path
from relax_model.compile import compile_model
from relax_model.session import RelaxSession
from skim_runtime import Tokenizer, generate

compile_model("smollm2-3bit", "x86-avx2", Path("smollm2.so"))
session = RelaxSession("smollm2-3bit", Path("smollm2.so"))
tokenizer = Tokenizer("smollm2-3bit")
print(tokenizer.decode(generate(session, tokenizer.prompt("What is the capital of France?")).tokens))
"""
