"""No measurement: trains a small mixture of experts, for quality tables of something that has learnt.

Qwen3-MoE with four layers of 16 experts, two of them for a token, and the tokenizer of SmolLM2: 26 million weights,
half of them in the embedding, which is the head, too. It learns from the texts that it is given, in passes over them in
random order, with the loss that keeps experts busy alike, as transformers has it. In an hour of a few cores it becomes
no good model; but its experts differ, and its router has something to say.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from rich.console import Console
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from skim_export.checkpoint import Checkpoint, resolve
from skim_runtime.errors import UserError
from skim_runtime.progress_bar import ProgressBar
from skim_runtime.text_file import read_text

__all__ = ["add_arguments", "run"]

TOKENIZER = "smollm2-135m"
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "router_aux_loss_coef": 0.01,
    "output_router_logits": True,
}
BATCH, LENGTH = 8, 256
RATE, WARM_UP, DECAY = 2e-3, 50, 0.1  # the highest rate, the steps up to it, weight decay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts to learn")
    parser.add_argument("--minutes", type=float, default=50, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, say what became of the loss, and write a checkpoint."""
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes}: must be positive")
    with ProgressBar() as progress:
        source = Checkpoint(resolve(TOKENIZER, progress=progress))
    texts = [read_text(path, "--text") for path in args.text]
    ids = torch.tensor([t for text in texts for t in source.tokenizer.encode(text, verbose=False)])
    if len(ids) < 2 * LENGTH:
        raise UserError(f"--text: {len(ids)} tokens in all; at least {2 * LENGTH} are needed")
    torch.manual_seed(args.seed)
    ends = {name: getattr(source.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    network = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=source.config.vocab_size, **ends, **SIZES))
    losses = _train(network, ids, args.minutes)
    network.config.output_router_logits = False
    network.save_pretrained(args.output)
    source.tokenizer.save_pretrained(args.output)
    Console().print(
        f"wrote {args.output}: {len(losses)} steps over {len(ids)} tokens, loss {losses[0]:.2f} at first, "
        f"{sum(losses[-20:]) / len(losses[-20:]):.2f} at last",
        highlight=False,
        soft_wrap=True,
    )


def _train(network: Qwen3MoeForCausalLM, ids: torch.Tensor, minutes: float) -> list[float]:
    """Steps until the time is over, the rate falling to nothing; the losses."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
    starts = torch.arange(0, len(ids) - LENGTH, LENGTH)
    order: list[int] = []
    losses: list[float] = []
    started, seconds = time.monotonic(), 60 * minutes
    network.train()
    with ProgressBar() as progress:
        progress.start("training", 100)
        while (part := (time.monotonic() - started) / seconds) < 1:
            while len(order) < BATCH:  # another pass, from another place, so that windows differ
                order += (starts[torch.randperm(len(starts))] + int(torch.randint(LENGTH, ()))).tolist()
            places = [min(order.pop(0), len(ids) - LENGTH) for _ in range(BATCH)]
            batch = torch.stack([ids[place : place + LENGTH] for place in places])
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (len(losses) + 1) / WARM_UP) * (1 + math.cos(math.pi * part)) / 2
            found = network(input_ids=batch, labels=batch)
            optimizer.zero_grad()
            found.loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(found.loss.item())
            for _ in range(int(100 * (time.monotonic() - started) / seconds) - int(100 * part)):
                progress.step(f"step {len(losses)}, loss {losses[-1]:.2f}")
        progress.finish()
    network.eval()
    return losses
