"""What is predicted of prefill from machine code."""

import pytest
from prefill_roofline import H100, predict
from sass import Function, Instruction

from ..tools import require
from .command import measured

MANGLED = "_ZN4skim4cuda14WarpgroupProbeILNS0_9LevelKindE0ELi2ELi{}ELi{}EEEvv"  # 3 bits


def probe(arithmetic, products=16, row_tiles=2, token_tiles=16):
    """A multiplying loop with so much arithmetic, a filling loop of two batches, and a loop that stores."""
    lines = [
        *(["HGMMA"] * products + ["PRMT"] * arithmetic + ["@P0 BRA 0x0"]),
        *(["LDS", "STG.E.U16"]),
    ]
    store = (len(lines) - 2) * 16
    lines += [f"@P0 BRA {store:#x}", "@P1 EXIT"]
    stage = len(lines) * 16
    lines += [
        "BAR.SYNC",
        *["LDG.E.128"] * 8,
        *["STS.128"] * 8,
        f"@P0 BRA {stage + 16:#x}",
        f"@P1 BRA {stage:#x}",
        "EXIT",
    ]
    code = []
    for line in lines:
        words = line.split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        code.append(Instruction(words[0], words[1] if len(words) > 1 else "", predicate))
    return Function(MANGLED.format(row_tiles, token_tiles), tuple(code))


def test_clocks_of_a_stage():
    found = predict(probe(500), H100, 14336, 4096, 2048)
    assert (found.row_class, found.codebook, found.kernel) == (2, "int8", "wgmma, 256 rows, 128 tokens")
    # 256 rows, 128 tokens and 128 columns at 2048 products a clock.
    assert found.clocks["tensor"] == 2048
    assert found.clocks["ALU"] == 8 * 500 / 2
    # Eight warps multiply; four fill, a stage in two batches of 8 loads and stores of 16 bytes a thread.
    assert found.clocks["issue"] == (8 * (16 + 500 + 1) + 4 * (1 + 2 * 17 + 1)) / 4
    assert found.clocks["shared"] == (8 * 16 * 1024 + 4 * 2 * 16 * 16 * 32) / 128
    assert found.clocks["L2"] == pytest.approx((2 * 128 * 128 + 256 * 48) / (5120 / 132))
    assert found.limit == "tensor"


def test_rounds_of_blocks():
    """56 tiles of rows and 16 of tokens are 7 rounds of 132 multiprocessors, of 32 stages and a begin and an end."""
    found = predict(probe(10), H100, 14336, 4096, 2048)
    end = 256 * 128 / 32 * (3 + 1) / 4
    assert found.microseconds == pytest.approx(7 * (32 * 2048 + end + 2000) / 1830)
    dense = 14336 * 4096 * 2048 / (0.75 * 2048 * 132 * 1830)
    assert found.cublas_share == pytest.approx(dense / found.microseconds)


def test_whatever_takes_longest_is_the_limit():
    found = predict(probe(2000), H100, 14336, 4096, 2048)
    assert (found.limit, found.clocks["ALU"]) == ("ALU", 8000)


@pytest.mark.parametrize(
    ("rows", "tokens", "tiles"),
    [
        (4096, 17, (1, 8)),
        (14336, 64, (1, 8)),
        (14336, 128, (1, 16)),  # 112 blocks at once, where tiles of 64 tokens would be two rounds
        (4096, 256, (1, 8)),
        (14336, 256, (2, 16)),
        (128256, 64, (1, 8)),
        (128256, 128, (2, 16)),
    ],
)
def test_the_tiles_that_are_fastest(rows, tokens, tiles):
    for row_tiles, token_tiles in ((1, 8), (1, 16), (2, 16)):
        found = predict(probe(500, 16 * row_tiles, row_tiles, token_tiles), H100, rows, 4096, tokens)
        assert (found is not None) == ((row_tiles, token_tiles) == tiles)


def test_products_that_are_missing():
    with pytest.raises(ValueError, match="a stage has 2097152 products, not 4194304"):
        predict(probe(500, products=8), H100, 14336, 4096, 2048)


@pytest.mark.slow
def test_the_command(tmp_path):
    require("nvcc", "nvdisasm")
    report, printed = measured(tmp_path / "a.json", "prefill-roofline", "--markdown", tmp_path / "a.md")
    assert printed.strip() == (tmp_path / "a.md").read_text().strip()
    tiles = ("128 rows, 64 tokens", "128 rows, 128 tokens", "256 rows, 128 tokens")
    assert {row["kernel"] for row in report["rows"]} == {"mma.sync", *(f"wgmma, {of}" for of in tiles)}
    # Of int8 tables of 3 bits, 2048 tokens.
    rows = [row for row in report["rows"] if (row["row_class"], row["codebook"], row["tokens"]) == (2, "int8", 2048)]
    shares = {row["kernel"]: row["cublas_share"] for row in rows}
    assert shares["wgmma, 256 rows, 128 tokens"] > 1 > 0.7 > shares["mma.sync"]
