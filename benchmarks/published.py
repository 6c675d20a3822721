"""Published perplexities at 3 bits, and the command that puts ours beside them.

Of the whole test split of WikiText-2, in windows of the model's full context. Figures are those of GuidedQuant (arXiv
2505.07004) and QTIP (arXiv 2406.11235), as rounded there; each method has a calibration text of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published", "ShowPublished"]


@dataclass(frozen=True)
class Published:
    """What is known of a model.

    Attributes:
        model: its repository.
        context: tokens of a window.
        tokens: of the text that fill whole windows.
        original: perplexity of the model itself.
        at_3_bits: that of each method with codes of 3 bits.
    """

    model: str
    context: int
    tokens: int
    original: float
    at_3_bits: dict[str, float]

    def command(self) -> str:
        """What measures our row of it."""
        name = self.model.rsplit("/", 1)[-1].lower()
        return (
            f"python benchmarks quality --model {self.model} --text wikitext-2-test.txt --tokens {self.tokens} "
            f"--context {self.context} --methods skim+ --bits 3 --json {name}.json"
        )


PUBLISHED = (
    Published(
        "meta-llama/Llama-2-7b-hf",
        4096,
        83 * 4096,
        5.12,
        {"SqueezeLLM": 5.74, "GuidedQuant": 5.57, "QTIP": 5.38},
    ),
    Published("meta-llama/Meta-Llama-3-8B", 8192, 35 * 8192, 5.54, {"SqueezeLLM": 7.39, "GuidedQuant": 6.99}),
)

TEXT = """wikitext-2-test.txt is the test split of wikitext-2-raw-v1, its lines joined by two line feeds:
    text = "\\n\\n".join(datasets.load_dataset("wikitext", "wikitext-2-raw-v1", split="test")["text"])"""


class ShowPublished(argparse.Action):
    """Prints all of it, and leaves."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Called where the option is given."""
        sys.stdout.write("\n\n".join((*map(_shown, PUBLISHED), TEXT)) + "\n")
        parser.exit()


def _shown(published: Published) -> str:
    rows: Sequence[tuple[str, float]] = [("original", published.original), *published.at_3_bits.items()]
    lines = [f"    {name:<12} {perplexity:.2f}  {perplexity - published.original:+.2f}" for name, perplexity in rows]
    head = f"{published.model}, WikiText-2, context {published.context}, 3 bits: perplexity and gap"
    return "\n".join((head, *lines, f"    ours: {published.command()}"))
