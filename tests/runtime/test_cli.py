import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from skim_runtime import cli
from skim_runtime.command import run_command
from skim_runtime.errors import UserError
from skim_runtime.generation import Generation

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    line = json.dumps({"ctx": "The quick brown", "endings": ["fox", "dog jumps"], "label": 0})
    file.write_text(f"{line}\n" * 3)
    return file


@pytest.mark.parametrize("engine", ["ort", "genai"])
def test_run_streams_the_text_and_says_how_fast(packed, capsys, engine):
    from skim_runtime import Session, Tokenizer, generate

    tokenizer = Tokenizer(packed)
    generation = generate(Session(packed), tokenizer.prompt("Hello", system="Be brief."), max_new_tokens=12)
    arguments = [str(packed), "Hello", "--system", "Be brief.", "--max-new-tokens", "12", "--engine", engine]
    assert cli.run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == tokenizer.decode(generation.tokens) + "\n"
    (line,) = captured.err.splitlines()
    for part in ("kernel: ", "prompt: ", "decode: 12 tokens", "tokens/s", "GB/s"):
        assert part in line


def test_run_says_that_it_falls_back(packed, capfd):
    assert cli.run([str(packed), "Hello", "--max-new-tokens", "2", "--kernel", "function"]) == 0
    assert "kernel: function fallback" in capfd.readouterr().err


def test_run_reads_the_prompt_from_stdin(fp32, capfd, monkeypatch):
    import io

    options = ["--raw", "--max-new-tokens", "8", "--temperature", "1", "--seed", "7"]
    assert cli.run([str(fp32), "quick brown", *options]) == 0
    want = capfd.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"quick brown")))
    assert cli.run([str(fp32), "-", *options]) == 0
    assert capfd.readouterr().out == want
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"quick \xff")))
    assert cli.run([str(fp32), "-", *options]) == 2
    assert capfd.readouterr().err == "skim-run: error: stdin: not UTF-8 text (byte 6)\n"


def test_run_says_that_there_is_no_template(fp32, tmp_path, capsys):
    model = shutil.copytree(fp32, tmp_path / "model")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (model / name).unlink(missing_ok=True)
    for arguments, said in (([], True), (["--raw"], False)):
        assert cli.run([str(model), "quick", "--max-new-tokens", "2", *arguments]) == 0
        assert ("has no chat template: the prompt goes in as it is" in capsys.readouterr().err) == said


def test_the_default_context_fits_the_model(fp32, text, capsys):
    assert cli.evaluate([str(fp32), "--text", str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 512  # the model's own


def test_eval_prints_json_for_machines(packed, fp32, text, capfd):
    from skim_runtime import Session, evaluate

    arguments = [str(packed), "--text", str(text), "--reference", str(fp32), "--context", "64", "--tokens", "100"]
    assert cli.evaluate([*arguments, "--json"]) == 0
    captured = capfd.readouterr()
    printed = json.loads(captured.out)
    want = evaluate(Session(packed), TEXT, reference=fp32, context=64, max_tokens=100)
    assert printed["perplexity"] == want.perplexity
    assert printed["kl_mean"] == want.kl_mean
    assert printed["perplexity_error"] == want.perplexity_error > 0
    assert printed["tokens"] == 98
    assert printed["text"] == {
        "name": "text.txt",
        "bytes": len(TEXT),
        "sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
    }
    assert printed["model"] == str(packed)
    assert printed["machine"]["cores"] >= 1
    assert "evaluating" in captured.err


def test_eval_prints_a_table_for_people(fp32, text, capfd):
    assert cli.evaluate([str(fp32), "--text", str(text), "--context", "64", "--reference", str(fp32)]) == 0
    out = capfd.readouterr().out
    for part in ("context 64", " ± ", "perplexity of the reference", "nats", "100.00 %"):
        assert part in out


def test_eval_answers_questions(fp32, questions, capfd):
    arguments = [str(fp32), "--choices", str(questions), "--reference", str(fp32)]
    assert cli.evaluate([*arguments, "--questions", "2", "--json"]) == 0
    captured = capfd.readouterr()
    printed = json.loads(captured.out)
    assert printed["questions"] == 2
    assert printed["choices"]["sha256"] == hashlib.sha256(questions.read_bytes()).hexdigest()
    assert printed["accuracy"] == printed["reference_accuracy"]
    assert printed["agreement"] == 1
    assert "answering" in captured.err
    assert cli.evaluate(arguments) == 0
    out = capfd.readouterr().out
    for part in ("3 questions", "right, likelihoods per character", "same answer as the reference", "100.0%"):
        assert part in out


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (cli.run, ["nowhere", "hi"], "skim-run: error: nowhere: not a directory"),
        (cli.run, ["{fp32}", "hi", "--top-p", "2"], "skim-run: error: top_p must be above 0 and at most 1, got 2.0"),
        (cli.run, ["{fp32}", "hi", "--threads", "0"], "skim-run: error: threads must be at least 1, got 0"),
        (
            cli.evaluate,
            ["{fp32}", "--text", "none.txt"],
            "skim-eval: error: --text none.txt: cannot be read (No such file",
        ),
        (cli.evaluate, ["{fp32}", "--text", "{binary}"], "binary: not UTF-8 text (byte 1)"),
        (cli.evaluate, ["{fp32}", "--text", "{text}", "--context", "64", "--reference", "smolm2-135m"], "smollm2-135m"),
        (cli.evaluate, ["{fp32}", "--choices", "{text}"], "text.txt: line 1 is not a question of HellaSwag"),
        (
            cli.evaluate,
            ["{fp32}", "--choices", "{questions}", "--tokens", "9"],
            "--tokens 9: goes with --text, not with --choices",
        ),
        (
            cli.evaluate,
            ["{fp32}", "--text", "{text}", "--questions", "9"],
            "--questions 9: goes with --choices, not with --text",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(fp32, text, questions, tmp_path, capsys, command, arguments, message):
    (tmp_path / "binary").write_bytes(b"a\xff")
    places = {"fp32": fp32, "text": text, "questions": questions, "binary": tmp_path / "binary"}
    assert command([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line


@pytest.mark.parametrize("arguments", [[], ["dir", "hi", "--engine", "tvm"], ["dir", "hi", "--threads", "two"]])
def test_argument_errors_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.run(arguments)
    assert error.value.code == 2
    assert "usage: skim-run" in capsys.readouterr().err


def test_a_message_is_one_line_and_not_endless():
    error = str(UserError("a\nb\u2028c " + "x" * 100_000 + " the end"))
    assert error.startswith("a b c xxx")
    assert error.endswith("xxx the end")
    assert len(error) < 1100


def test_errors_become_exit_codes(capsys):
    def fail(error):
        raise error

    assert run_command("skim-x", lambda: None) == 0
    assert run_command("skim-x", lambda: fail(UserError("no"))) == 2
    assert capsys.readouterr().err == "skim-x: error: no\n"
    assert run_command("skim-x", lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "skim-x: interrupted\n"
    with pytest.raises(ZeroDivisionError):  # a bug is not hidden
        run_command("skim-x", lambda: fail(ZeroDivisionError()))


def command_line(*arguments, **environment):
    """A `skim-run` process that takes at least 50 ms for each token, so that there is time to disturb it."""
    code = (
        "import sys, time\n"
        "from skim_runtime import cli\n"
        "write = cli._write\n"
        "cli._write = lambda text: (write(text), time.sleep(0.05))\n"
        "sys.exit(cli.run())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_their_code_and_no_traceback(fp32, number):
    process = command_line(str(fp32), "hi", "--max-new-tokens", "400", "--temperature", "5")
    process.stdout.read(1)  # it has begun
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.decode() == "skim-run: interrupted\n"


def test_a_reader_that_goes_away_is_no_error(fp32):
    process = command_line(str(fp32), "hi", "--max-new-tokens", "400", "--temperature", "5")
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


def test_a_terminal_without_unicode_gets_question_marks(fp32):
    process = command_line(
        str(fp32), "hi", "--max-new-tokens", "40", "--temperature", "5", "--seed", "1", PYTHONIOENCODING="ascii"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"?" in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from skim_runtime import cli\n"
        "try: cli.run(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*{'numpy', 'onnx', 'onnxruntime', 'torch', 'transformers', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: skim-run" in done.stdout
    assert done.stderr.strip() == ""


def test_public_names_are_not_shadowed_by_modules():
    code = (
        "import skim_runtime.evaluation, skim_runtime.generation, skim_runtime\n"
        "names = [getattr(skim_runtime, name) for name in skim_runtime.__all__]\n"
        "assert all(callable(name) for name in names), names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_share_of_a_gpu_s_memory():
    generation = Generation([1, 2, 3], 5, 0.5, 4, 0.5, stopped=False)
    with_share = cli._speeds("cuda", 10**9, generation, 32e9)
    assert with_share.endswith(" | weights read: 8.00 GB/s, 25% of the memory's 32 GB/s")
    assert cli._speeds("avx2", 10**9, generation, None).endswith(" | weights read: 8.00 GB/s")
