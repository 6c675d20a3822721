"""The page of results and the README: their tables are what the JSON files say; and how tables are made."""

import json
from dataclasses import asdict

import pytest
import quality_tables
import tables
from arithmetic import Row as ArithmeticRow
from decode import Row as DecodeRow
from kernels import Row as KernelRow
from measuring import Distances
from quantizer import Row as QuantizerRow
from results import AS_DISTRIBUTED
from results import Row as QualityRow
from roofline import Prediction

from skim_export.measure.emulated import Count
from skim_runtime.errors import UserError
from skim_runtime.evaluation import Evaluation
from skim_runtime.measure.report import report_head

from .command import benchmark, refusal

HEAD = {
    "command": "python benchmarks x",
    "date": "2026-01-02",
    "commit": "0" * 40,
    "versions": {},
    "machine": {"processor": "P", "cores": 2},
}


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_pages_are_as_the_files_say(page):
    text = page.read_text("utf-8")
    assert tables.MARKED.search(text)
    assert tables.rewritten(text, tables.ROOT) == text


def test_every_file_belongs_to_a_table():
    pages = [page.read_text("utf-8") for page in tables.PAGES]
    named = {file for page in pages for match in tables.MARKED.finditer(page) for file in match["files"].split()}
    found = {str(path.relative_to(tables.ROOT)) for path in (tables.ROOT / "docs" / "results").glob("*.json")}
    assert found == named


def test_reports_have_what_files_must_have():
    assert set(tables.HEAD) <= report_head().keys()


@pytest.fixture
def page(tmp_path):
    """A page with a table of one file, both in a directory of their own."""
    rows = [asdict(QuantizerRow(10, 20, what, 2e-6)) for what in ("skim", "rtn")]
    (tmp_path / "a.json").write_text(json.dumps({**HEAD, "rows": rows}))
    return tmp_path, "# Page\n\n<!-- table: quantizer a.json -->\nold\n<!-- end -->\n\nRest.\n"


def test_tables_are_written_between_their_marks(page):
    root, text = page
    written = tables.rewritten(text, root)
    assert written.splitlines() == [
        "# Page",
        "",
        "<!-- table: quantizer a.json -->",
        "",
        "| rows | columns |                   skim |                    rtn |",
        "| ---- | ------: | ---------------------: | ---------------------: |",
        "| 10   |      20 | 0.0 s (10 ns a weight) | 0.0 s (10 ns a weight) |",
        "",
        "On P, 2 cores, 2026-01-02.",
        "",
        "<!-- end -->",
        "",
        "Rest.",
    ]
    assert tables.rewritten(written, root) == written


def test_what_is_wrong_is_said(page):
    root, text = page
    other = {**HEAD, "machine": {"processor": "Q", "cores": 2}, "rows": []}
    (root / "b.json").write_text(json.dumps(other))
    (root / "c.json").write_text(json.dumps({"rows": []}))
    (root / "d.json").write_text("[")
    (root / "e.json").write_text(json.dumps({**HEAD, "rows": [{}]}))
    for changed, message in (
        (text.replace("quantizer", "speeds"), "table speeds: must be one of kernels-decode, "),
        (text.replace("a.json", "a.json b.json"), "table quantizer: b.json is of another machine than a.json"),
        (text.replace("a.json", "c.json"), "c.json: has no command"),
        (text.replace("a.json", "d.json"), "d.json: cannot be read"),
        (text.replace("a.json", "missing.json"), "missing.json: cannot be read"),
        (text.replace("a.json", "e.json"), "table quantizer: e.json: is not what this table is made of: KeyError"),
    ):
        with pytest.raises(UserError, match=message):
            tables.rewritten(changed, root)


def test_the_command_writes_and_checks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("No table.\n")
    assert "0 tables are as their files say" in benchmark("tables", "--pages", page, "--check").stdout
    page.write_text("<!-- table: no docs/none.json -->\n<!-- end -->\n")
    assert "table no: must be one of" in refusal("tables", "--pages", page)


def made(name, *reports):
    """Lines of a table as lists of cells, its rule left out, and what stands below it."""
    text, _, below = tables.TABLES[name](list(reports)).partition("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [lines[0], *lines[2:]], below


def kernel_row(contender, level, threads, tokens=1, shape="64x64", milliseconds=1.5):
    return KernelRow(
        shape, threads, tokens, contender, level, 2_000_000, 3, 1e-5, milliseconds, 1.0, 1.3, 0.4, 1.25, None
    )


def kernels(*rows):
    bandwidth = {"1": {"bytes_per_second": 5e9, "way": "1 stream"}, "2": {"bytes_per_second": 9e9, "way": "2 streams"}}
    return {**HEAD, "kernel": "avx2", "bandwidth": bandwidth, "rows": [asdict(row) for row in rows]}


def test_kernels():
    rows = [kernel_row("3 bits", 4, threads) for threads in (1, 2)] + [kernel_row("3 bits", 4, 1, shape="9x9")]
    lines, below = made("kernels-decode", kernels(*rows, kernel_row("3 bits", 4, 1, tokens=8)))
    assert lines[0][3:6] == ["1 thread, ms", "1 thread, of bandwidth", "1 thread, times NBits 4"]
    assert lines[1:] == [["3 bits", "4", "2.0", *2 * ["1.500", "40%", "1.25"], ""]]
    assert below == "64x64, kernel avx2. Memory alone was read at 5.0 GB/s with 1 thread and 9.0 GB/s with 2 threads."


def test_kernels_with_tokens_and_shapes():
    contenders = tables.speed_tables.WITH_TOKENS
    rows = [kernel_row(*contender, 1, tokens) for tokens in (1, 8) for contender in contenders]
    lines, _ = made("kernels-tokens", kernels(*rows))
    assert lines[0][2:5] == ["3 bits", "8 bits affine", "3 bits, level 0"]
    assert lines[1:] == [["1", str(tokens), *6 * ["1.50 (1.25)"]] for tokens in (1, 8)]
    lines, _ = made("kernels-tokens", kernels(*(row for row in rows if row.level == 4)))
    assert lines[0][2:] == ["3 bits", "8 bits affine", "MatMulNBits 4 bits", "MatMulNBits 2 bits, LUT"]
    rows = [
        kernel_row(name, 4, t, shape=shape) for shape in ("4x8", "8x4") for t in (1, 2) for name, _ in contenders[:2]
    ]
    lines, _ = made("kernels-shapes", kernels(*rows))
    assert [line[0] for line in lines[1:]] == ["4 x 8", "8 x 4"]
    assert lines[1][1:] == [*2 * ["1.500", "1.25", ""], "1.500"]


def decoder(name, engine, threads, speed, ratio):
    return asdict(
        DecodeRow(name, engine, f"{name}.dir", "avx2", threads, 70_000_000, 300.0, speed, None, ratio, 7.5, [])
    )


def evaluation(model, text, perplexity):
    found = Evaluation(1000, 64, perplexity, 0.25, perplexity, 0.25, 0.01, 0.1, 0.9)
    return {**HEAD, "model": model, "kernel": "avx2", "text": {"name": text}, **asdict(found)}


def test_decoders_and_the_summary():
    rows = [decoder("build/m", "onnxruntime", t, 100.0 * t, 1.2) for t in (1, 2)]
    rows += [decoder("build/m", "onnxruntime-genai", 2, 250.0, 1.5), decoder("g", "llama.cpp", 2, 90.0, None)]
    report = {**HEAD, "rows": rows}
    lines, _ = made("decode", report)
    assert lines[1] == ["m", "onnxruntime", "1", "70.0", "300", "", "100.0", "1.20", "7.5"]
    evaluations = [evaluation("build/m.dir", "wiki.txt", 22.0), evaluation("build/m.dir", "c4.txt", 26.0)]
    lines, _ = made("summary", report, *evaluations)
    assert lines[0][3:5] == ["wiki perplexity", "c4 perplexity"]
    assert lines[1] == ["m", "onnxruntime-genai", "70.0", "22.00 ± 0.25", "26.00 ± 0.25", "250", "1.50"]
    assert lines[2] == ["g", "llama.cpp", "70.0", "", "", "90", ""]
    lines, _ = made("evaluations", *evaluations)
    assert lines[1] == ["m.dir", "wiki", "1000", "22.00 ± 0.25", "22.00 ± 0.25", "0.0100", "90.0%"]


def quality_row(method, bits, perplexity):
    distances = Distances(perplexity, 0.125, 0.5, 1.0, 0.75)
    sizes = (None, None, None) if method == AS_DISTRIBUTED else (bits, 3.125, 40.0)
    return asdict(QualityRow(method, bits, *sizes, {"wiki.txt": distances}, 12.0, 800.0))


def curve_row(method, bits, divergence):
    row = quality_row(method, bits, 25.0)
    row["effective_bits"] = bits + 0.125
    row["texts"]["wiki.txt"]["kl_mean"] = divergence
    return row


def test_bits_that_are_saved():
    before = quality_tables.BEFORE
    rows = [quality_row(AS_DISTRIBUTED, None, 20.0), curve_row(before, 3.0, 0.1), curve_row(before, 2.0, 0.4)]
    rows += [curve_row("skim+", 3.0, 0.05), curve_row("skim+", 2.0, 0.2)]  # half way, in logarithms; beyond the curve
    lines, _ = made("saved", {**HEAD, "rows": rows})
    assert lines[0][2:] == ["wiki, same KL before", "wiki, saved"]
    assert lines[1:] == [["2", "2.125", "2.625", "0.500"], ["3", "3.125", "", ""]]


def test_quality():
    rows = [quality_row(*row) for row in (("skim", 3.0, 24.0), (AS_DISTRIBUTED, None, 20.0), ("squeezellm", 3.0, 28.0))]
    lines, _ = made("quality", {**HEAD, "rows": rows})
    assert lines[0][4:9] == ["wiki perplexity", "wiki gap", "wiki KL", "wiki top-1", "wiki ratio"]
    assert lines[1][:6] == ["", AS_DISTRIBUTED, "", "", "20.00 ± 0.12", ""]
    assert lines[2] == [
        "3",
        "`skim`",
        "3.125",
        "40.00",
        "24.00 ± 0.12",
        "4.00",
        "0.500",
        "75.0%",
        "0.500",
    ]
    predicted = {"bits": 3.0, "loss_increase": 0.25, "perplexity_factor": 1.284}
    plan = {**HEAD, "rows": [predicted, {**predicted, "bits": 4.0}]}
    skim_plus = quality_row("skim+", 3.0, 25.0)
    lines, _ = made("planning", plan, {**HEAD, "rows": [*rows, skim_plus]})
    assert lines == [
        ["bits", "predicted rise, nats", "predicted factor", "wiki, measured"],
        ["3", "0.250", "1.284", "1.250"],
    ]
    lines, _ = made("quality-whole", {**HEAD, "rows": rows[:2]})
    assert lines[2] == ["skim", "3.125", "40.00", "24.00 ± 0.12", "4.00", "0.500", "75.0%"]


def test_arithmetic():
    found = Evaluation(1000, 64, 22.0, 0.25, 21.5, 0.25, 1e-6, 1e-5, 1.0)
    lines, _ = made("arithmetic", {**HEAD, "rows": [asdict(ArithmeticRow("wiki.txt", found, 0.001))]})
    assert lines[1] == ["wiki", "21.50 ± 0.25", "22.00 ± 0.25", "+0.100%", "1.0e-06", "100.00%"]


def test_devices():
    counts = [Count("64x64", 1, "table3_int8", arithmetic, 1e-6, 1.25) for arithmetic in ("float", "integer")]
    lines, _ = made("instructions", {**HEAD, "target": "rpi5", "counts": [asdict(count) for count in counts]})
    assert lines == [["target", "table3_int8"], ["`rpi5`", "1.25 / 1.25"]]
    row = {"shape": "4x8", "tokens": 1, "rows": "table3_int8", "arithmetic": "float", "gigaweights_per_second": 20.0}
    row |= {"to_operator": 0.9, "to_numpy": None}
    lines, below = made("target-kernels", {**HEAD, "target": "x86-avx2", "rows": [row]})
    assert lines == [["rows", "x86-avx2 float"], ["table3_int8", "20.0, 0.90,"]]
    assert below.startswith("Gweights/s")
    row = {"engine": "skim_run", "threads": 1, "prompt_speed": 600.0, "decode_speed": 130.0, "peak_megabytes": 83.0}
    lines, _ = made("bundles", {**HEAD, "rows": [row]})
    assert lines[1] == ["skim_run", "1", "600", "130", "83"]
    row |= {"gigabytes_per_second": 9.0, "bandwidth_share": 0.75}
    lines, _ = made("model", {**HEAD, "model": "build/m", "rows": [row]})
    assert lines[1] == ["m", "1", "600", "130.0", "9.0", "75%", "83"]


def test_models():
    one = {"alias": "b", "title": "B", "licence": "MIT", "gated": True, "bits": 3.0, "parameters": 8_190_000_000}
    sizes = {"output": 3_890_000_000, "disk": 47_570_000_000, "memory": 2_500_000_000, "memory_given_text": 10**9}
    two = {**one, "alias": "a", "gated": False, "parameters": 135_000_000, "sizes": None}
    lines, _ = made("models", {**HEAD, "models": [{**one, "sizes": sizes}, two]})
    assert lines[1] == ["`a`", "B", "MIT", "135M", "3", "not yet", "", "", ""]
    assert lines[2] == ["`b`", "B", "MIT, gated", "8.19B", "3", "3.89", "47.57", "2.50", "1.00"]


def test_roofline():
    rows = [
        asdict(Prediction(gpu, "affine", 1, 0, 4096, {"issue": 3.0, "ALU": 1.5}, {}, limit, 0.5))
        for gpu, limit in (("A", "issue"), ("B", "bandwidth"))
    ]
    lines, _ = made("roofline", {**HEAD, "rows": rows})
    assert lines[1] == ["affine, 1 bit", "3.00", "1.50", "0.00", "0.00", "0.00", "0.00", "50% issue", "50%"]
