from pathlib import Path

import pytest

from skim_export.bundle.target import DIRECTORY, load_cpu_target, target_names
from skim_export.packed import LevelKind, RowClass
from skim_runtime import UserError

from ..tools import require_packages

TABLE3 = RowClass(LevelKind.TABLE, 3, "int8")
AFFINE8 = RowClass(LevelKind.AFFINE, 8, None)
GOOD = (
    (DIRECTORY / "rpi4.toml").read_text().partition("[schedule]")[0]
    + """\
[schedule]
decode = { rows = 1, lanes = 16, vector = 16, tokens = 1 }
batch = { rows = 1, lanes = 16, vector = 4, tokens = 4 }
prefill = { rows = 4, columns = 1024, lanes = 16, vector = 4, tokens = 4, least_tokens = 16 }
"""
)


def load(tmp_path, text):
    path = Path(tmp_path) / "mine.toml"
    path.write_text(text)
    return load_cpu_target(str(path))


@pytest.mark.parametrize("name", target_names("cpu"))
def test_every_target_loads(name):
    target = load_cpu_target(name)
    assert target.name == name
    for integer in (False, True):
        assert target.schedule_for(TABLE3, integer, 4096, 4096).decode.tokens == 1


def test_a_file_of_ones_own(tmp_path):
    target = load(tmp_path, GOOD)
    assert (target.name, target.threads) == ("mine", 4)
    assert (target.schedule.decode.vector, target.schedule.prefill.least_tokens) == (16, 16)


def test_later_overrides_win(tmp_path):
    overrides = """
[[override]]
when = { bits = [3, 8] }
decode = { rows = 2 }

[[override]]
when = { kind = "affine", arithmetic = "integer", N = 100 }
decode = { rows = 4, vector = 8 }
"""
    target = load(tmp_path, GOOD + overrides)
    assert target.schedule.decode.rows == 1
    assert target.schedule_for(TABLE3, True, 100, 50).decode.rows == 2
    assert target.schedule_for(AFFINE8, False, 100, 50).decode.rows == 2
    assert target.schedule_for(AFFINE8, True, 99, 50).decode.rows == 2
    both = target.schedule_for(AFFINE8, True, 100, 50).decode
    assert (both.rows, both.vector, both.lanes) == (4, 8, 16)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('lookup = "tbl"\n', "", "mine.toml: lookup is missing"),
        ('kind = "cpu"\n', "", "mine.toml: kind = None must be one of cpu, gpu"),
        ("threads = 4", 'threads = "4"', "mine.toml: threads = '4' must be a int"),
        ("threads = 4", "threads = 4\nspeed = 9", "mine.toml: unknown key 'speed'"),
        (
            "lanes = 16",
            "lanes = 12",
            r"mine.toml \[schedule\] decode: lanes = 12 must be one of \[1, 2, 4, 8, 16, 32\]",
        ),
        ("vector = 16", "vector = 32", r"decode: vector = 32 must be one of \[1, 2, 4, 8, 16\]"),
        ("columns = 1024", "columns = 1000", "prefill: columns = 1000 must be a multiple of 256"),
        ("rows = 1, ", "rows = 1.5, ", "decode: rows = 1.5 must be an integer"),
        ("rows = 1, ", "", "decode: rows is missing"),
        ("rows = 1, ", "rows = 0, ", "decode: rows is too small"),
        ("tokens = 1 }", "tokens = 2 }", "decode: tokens = 2 must be 1"),
        ("[target]", "[target", "is no TOML file"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(UserError, match=message):
        load(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decode = { rows = 2 }", "needs a table `when`"),
        ("when = { width = 3 }", "when: unknown key 'width'; there are arithmetic, kind, bits, N, K"),
    ],
)
def test_mistakes_in_overrides_are_named(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, f"{GOOD}\n[[override]]\n{override}\n")


def test_an_override_that_cannot_be_is_named(tmp_path):
    target = load(tmp_path, GOOD + "\n[[override]]\nwhen = { bits = 3 }\ndecode = { row = 2 }\n")
    with pytest.raises(UserError, match=r"target mine, override 1 decode: unknown key 'row'"):
        target.schedule_for(TABLE3, False, 1, 1)


def test_unknown_names():
    with pytest.raises(UserError, match=r"--target rpi55: unknown target; did you mean rpi5\?"):
        load_cpu_target("rpi55")
    with pytest.raises(UserError, match="--target zzz: unknown target; there are armv7"):
        load_cpu_target("zzz")
    with pytest.raises(UserError, match=r"--target no\.toml: no such file"):
        load_cpu_target("no.toml")
    with pytest.raises(UserError, match="target opencl is no CPU"):
        load_cpu_target("opencl")


@pytest.mark.parametrize(("key", "value"), [("lookup", "pshufd"), ("integer", "vdot")])
def test_unknown_instructions_are_named(tmp_path, key, value):
    require_packages("tvm")
    from skim_export.bundle.kernels.compile import compile_kernels

    line = next(line for line in GOOD.splitlines() if line.startswith(f"{key} ="))
    target = load(tmp_path, GOOD.replace(line, f'{key} = "{value}"'))
    with pytest.raises(UserError, match=f"target mine: {key} = '{value}' is unknown; there are "):
        compile_kernels([], [], target)


def test_a_target_that_tvm_refuses_is_named(tmp_path):
    require_packages("tvm")
    from skim_export.bundle.kernels.compile import compile_kernels

    with pytest.raises(UserError, match="target mine: TVM does not accept it: "):
        compile_kernels([], [], load(tmp_path, GOOD.replace("mcpu =", "mccpu =")))
