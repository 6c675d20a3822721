"""Weights as other quantizers store them, random ones, and what they mean: slowly, from each format's definition.

A way to store has a name, what config.json says of it, and the tensors of a module of N rows and K columns. Its decoder
sees these tensors only, as numpy arrays.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..tiny_models import tiny_llama

ADAPTER_PREFIX = "base_model.model."
ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 16,
    "bias": "none",
    "base_model_name_or_path": "some/model",
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Way:
    name: str
    config: dict[str, Any]
    store: Callable[[np.random.Generator, int, int], dict[str, torch.Tensor]]
    decode: Callable[[dict[str, Any]], np.ndarray]

    def __str__(self) -> str:
        return self.name


def words(random, *shape):
    return torch.from_numpy(random.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32))


def scales(random, *shape, dtype=torch.float16):
    return torch.from_numpy(random.uniform(0.001, 0.01, shape).astype(np.float32)).to(dtype)


def stream(row, bits, count):
    """Numbers from words, the lowest bits of the first word first."""
    long = sum(int(word) % 2**32 << 32 * place for place, word in enumerate(row))
    return [long >> bits * i & (1 << bits) - 1 for i in range(count)]


def up(value, step):
    return -(-value // step)


def product(codes, zeros, steps, block_of_row, block_of_column):
    """(code - zero) * scale, each number for itself."""
    weight = np.empty(codes.shape, np.float32)
    for n in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            i, j = block_of_row(n), block_of_column(k)
            weight[n, k] = np.float32(codes[n, k] - zeros[i][j]) * np.float32(steps[i][j])
    return weight


# AWQ


def awq(size):
    group = lambda K: K if size == -1 else size  # noqa: E731

    def store(random, N, K):
        G = up(K, group(K))
        return {
            "qweight": words(random, K, N // 8),
            "qzeros": words(random, G, N // 8),
            "scales": scales(random, G, N),
        }

    def unpack(packed):
        found = np.empty((packed.shape[0], packed.shape[1] * 8), np.int64)
        for row, line in enumerate(packed):
            for place, word in enumerate(line):
                for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):  # AutoAWQ's order_map
                    found[row, 8 * place + column] = int(word) % 2**32 >> 4 * nibble & 15
        return found

    def decode(parts):
        codes, zeros = unpack(parts["qweight"]), unpack(parts["qzeros"])
        K = codes.shape[0]
        return product(codes.T, zeros.T, parts["scales"].T, lambda n: n, lambda k: k // group(K))

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True}
    return Way(f"awq-{size}", config, store, decode)


# GPTQ


def gptq(bits, *, size=16, version="gptq", order=None):
    def store(random, N, K):
        G = up(K, size)
        index = {None: None, "sorted": np.arange(K) // size, "unset": np.zeros(K)}.get(order)
        if order == "act":
            index = random.permutation(np.arange(K) // size)
        parts = {
            "qweight": words(random, K * bits // 32, N),
            "qzeros": words(random, G, N * bits // 32),
            "scales": scales(random, G, N),
        }
        return parts if index is None else {**parts, "g_idx": torch.from_numpy(index.astype(np.int32))}

    def decode(parts):
        K, N = parts["qweight"].shape[0] * 32 // bits, parts["scales"].shape[1]
        codes = np.array([stream(column, bits, K) for column in parts["qweight"].T])
        zeros = np.array([stream(row, bits, N) for row in parts["qzeros"]])
        if version == "gptq":
            zeros = (zeros + 1) % 2**bits
        index = parts["g_idx"] if order == "act" else np.arange(K) // size
        return product(codes, zeros.T, parts["scales"].T, lambda n: n, lambda k: int(index[k]))

    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": order == "act"}
    config["checkpoint_format"] = version
    return Way(f"gptq-{bits}-{version}-{order}", config, store, decode)


# Floats of 8 bits


def float8(byte):
    """Sign, exponent of 4 bits with a bias of 7, mantissa of 3."""
    byte = int(byte)
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if sign else value


def float8_codes(random, N, K):
    found = random.integers(0, 256, (N, K), dtype=np.uint8)
    found[found % 128 == 127] = 0  # NaN
    return torch.from_numpy(found).view(torch.float8_e4m3fn)


def float8_decoded(codes, steps, block):
    values = np.vectorize(float8)(codes)
    zeros = np.zeros(steps.shape)
    return product(values, zeros, steps, lambda n: n // block[0], lambda k: k // block[1])


def blocks_of(scope, N, K):
    return {"tensor": (N, K), "channel": (1, K)}.get(scope, scope)


def fp8(scope, dtype=torch.float32, shape=None):
    def store(random, N, K):
        block = blocks_of(scope, N, K)
        steps = scales(random, up(N, block[0]), up(K, block[1]))
        steps = torch.exp2(torch.randint(-9, -5, steps.shape).float()) if dtype == torch.float8_e8m0fnu else steps
        parts = {"weight": float8_codes(random, N, K), "weight_scale_inv": steps.to(dtype)}
        if shape is not None:
            parts["weight_scale_inv"] = parts["weight_scale_inv"].reshape(shape)
        return {**parts, "activation_scale": torch.tensor(0.5)}

    def decode(parts):
        codes = parts["weight"]
        block = blocks_of(scope, *codes.shape)
        return float8_decoded(codes, parts["weight_scale_inv"].reshape(-1, up(codes.shape[1], block[1])), block)

    config = {"quant_method": "fp8", "activation_scheme": "static"}
    config["weight_block_size"] = None if isinstance(scope, str) else list(scope)
    return Way(f"fp8-{scope}-{dtype}", config, store, decode)


# compressed-tensors


def compressed(form, bits, strategy, *, kind="int", symmetric=True, size=None, block=None, order=None):
    def grid(N, K):
        return {"tensor": (N, K), "channel": (1, K), "group": (1, size), "block": block}[strategy]

    def store(random, N, K):
        blocks = grid(N, K)
        I, J = up(N, blocks[0]), up(K, blocks[1])  # noqa: E741
        parts = {"weight_scale": scales(random, I, J, dtype=torch.bfloat16)}
        if strategy == "tensor":
            parts["weight_scale"] = parts["weight_scale"].reshape(1)
        if form == "pack-quantized":
            parts |= {"weight_packed": words(random, N, up(K * bits, 32)), "weight_shape": torch.tensor([N, K])}
            if not symmetric:
                parts["weight_zero_point"] = words(random, up(I * bits, 32), J)
        elif kind == "int":
            parts["weight"] = torch.from_numpy(random.integers(-128, 128, (N, K), dtype=np.int8))
            if not symmetric:
                parts["weight_zero_point"] = torch.from_numpy(random.integers(-128, 128, (I, J), dtype=np.int8))
        else:
            parts["weight"] = float8_codes(random, N, K)
        if order is not None:
            index = random.permutation(np.arange(K) // size) if order == "group" else np.full(K, -1)
            parts["weight_g_idx"] = torch.from_numpy(index.astype(np.int32))
        return parts

    def decode(parts):
        if form == "pack-quantized":
            N, K = map(int, parts["weight_shape"])
        else:
            N, K = parts["weight"].shape
        blocks = grid(N, K)
        I, J = up(N, blocks[0]), up(K, blocks[1])  # noqa: E741
        steps = parts["weight_scale"].reshape(I, J)
        if kind == "float":
            return float8_decoded(parts["weight"], steps, blocks)
        zeros = np.zeros((I, J), np.int64)
        if form == "pack-quantized":
            codes = np.array([stream(row, bits, K) for row in parts["weight_packed"]]) - 2 ** (bits - 1)
            if not symmetric:
                columns = [stream(column, bits, I) for column in parts["weight_zero_point"].T]
                zeros = np.array(columns).T - 2 ** (bits - 1)
        else:
            codes = parts["weight"].astype(np.int64)
            zeros = zeros if symmetric else parts["weight_zero_point"].astype(np.int64)
        index = parts["weight_g_idx"] if order == "group" else np.arange(K) // blocks[1]
        return product(codes, zeros, steps, lambda n: n // blocks[0], lambda k: int(index[k]))

    weights = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, "group_size": size}
    weights |= {"block_structure": None if block is None else list(block), "actorder": order}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    config = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }
    return Way(f"{form}-{bits}-{kind}-{strategy}-{symmetric}-{order}", config, store, decode)


WAYS = [
    awq(16),
    awq(-1),
    *(gptq(bits, version=version) for bits in (2, 3, 4, 8) for version in ("gptq", "gptq_v2")),
    gptq(4, order="act"),
    gptq(3, order="sorted"),
    gptq(4, order="unset"),
    gptq(4, size=24),
    fp8((24, 20)),
    fp8((128, 128), torch.bfloat16),
    fp8((16, 16), torch.float8_e8m0fnu),
    fp8("tensor", shape=()),
    fp8("channel"),
    compressed("pack-quantized", 4, "group", size=16),
    compressed("pack-quantized", 4, "group", size=16, symmetric=False),
    compressed("pack-quantized", 4, "group", size=16, order="group"),
    compressed("pack-quantized", 4, "group", size=16, order="unset"),
    compressed("pack-quantized", 8, "channel", symmetric=False),
    compressed("int-quantized", 8, "channel"),
    compressed("int-quantized", 8, "group", size=8, symmetric=False),
    compressed("float-quantized", 8, "tensor", kind="float"),
    compressed("float-quantized", 8, "channel", kind="float"),
    compressed("naive-quantized", 8, "block", kind="float", block=(24, 20)),
]


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Floats of 8 bits as bytes, floats of 16 bits in float32, where they are the same."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def plain_llama(path: Path) -> Path:
    """Save a Llama small enough for slow decoders: gate and up are 64 x 32, down 32 x 64, the others 32 x 32."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return tiny_llama(path, layers=1, attention_bias=True, **sizes)


def stored_llama(way: Way, plain: Path, path: Path) -> dict[str, np.ndarray]:
    """Save a copy of that Llama whose linear layers are random, and stored in some way.

    Returns:
        What each of its tensors means, float32.
    """
    shutil.copytree(plain, path)
    random = np.random.default_rng(0)
    stored, meant = {}, {}
    for name, tensor in load_file(path / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if name != module and module.endswith(LINEARS):
            parts = way.store(random, *tensor.shape)
            stored |= {f"{module}.{part}": value for part, value in parts.items()}
            meant[name] = way.decode({part: as_numpy(value) for part, value in parts.items()})
        else:
            stored[name], meant[name] = tensor, tensor.numpy()
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    edit_quantization(path, **way.config)
    return meant


def edit_quantization(path: Path, **entries: Any) -> None:
    """Replace entries of the quantization's configuration."""
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **entries}
    (path / "config.json").write_text(json.dumps(config))


def save_adapter(path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Save a LoRA adapter as PEFT does; `config` overrides entries of its configuration."""
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({**ADAPTER_CONFIG, **config}))
    save_file({ADAPTER_PREFIX + name: tensor for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    return path


def factors(name: str, rows: int, columns: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """Random matrices of a change of a module."""
    return {f"{name}.lora_A.weight": torch.randn(rank, columns), f"{name}.lora_B.weight": torch.randn(rows, rank)}
