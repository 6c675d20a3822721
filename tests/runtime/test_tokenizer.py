import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from transformers import AutoTokenizer

from skim_runtime import TextStream, Tokenizer, UserError
from skim_runtime import tokenizer as tokenizer_module
from skim_runtime.chat_template import render_template

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve café 🇫🇷 done."


@pytest.fixture
def directory(hf, tmp_path):
    """The tokenizer files of the tiny model, to change."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(hf / name, tmp_path / name)
    return tmp_path


def streamed(tokenizer, tokens):
    stream = TextStream(tokenizer)
    return [stream.put(token) for token in tokens], stream.end()


def test_streamed_text_is_the_text_without_broken_characters(hf):
    tokenizer = Tokenizer(hf)
    tokens = tokenizer.encode(TEXT)
    pieces, rest = streamed(tokenizer, tokens)
    assert len(pieces) == len(tokens) > len(TEXT)
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert rest == ""


def test_an_incomplete_character_comes_at_the_end(hf):
    tokenizer = Tokenizer(hf)
    pieces, rest = streamed(tokenizer, tokenizer.encode("a 世")[:-1])
    assert "".join(pieces) == "a "
    assert set(rest) == {"\ufffd"}


def test_streamed_text_keeps_spaces_that_a_tokenizer_strips_at_the_start(tmp_path):
    """Metaspace, as in Llama 2: the first token of a text loses its space."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {"▁the": 0, "▁fox": 1, "es": 2, "<unk>": 3}
    fast = FastTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    fast.save(str(tmp_path / "tokenizer.json"))
    pieces, rest = streamed(Tokenizer(tmp_path), [0, 1, 2, 0])
    assert pieces == ["the", " fox", "es", " the"]
    assert rest == ""


def test_special_tokens_are_not_printed(hf):
    tokenizer = Tokenizer(hf)
    assert tokenizer.decode([0, *tokenizer.encode("hi"), 1]) == "hi"
    assert "".join(streamed(tokenizer, [0, *tokenizer.encode("hi"), 1])[0]) == "hi"


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_prompt_is_that_of_transformers(hf, system):
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": TEXT})
    want = AutoTokenizer.from_pretrained(hf).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert Tokenizer(hf).prompt(TEXT, system=system) == want


def test_a_raw_prompt_is_the_text_itself(hf, directory):
    want = AutoTokenizer.from_pretrained(hf)(TEXT)["input_ids"]
    assert Tokenizer(hf).prompt(TEXT, raw=True) == want
    (directory / "chat_template.jinja").unlink()
    tokenizer = Tokenizer(directory)
    assert not tokenizer.has_chat_template
    assert tokenizer.prompt(TEXT) == want
    with pytest.raises(UserError, match="a system message needs a chat template"):
        tokenizer.prompt(TEXT, system="Be brief.")


def change_config(directory, **entries):
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_a_template_may_lie_in_the_configuration(directory):
    (directory / "chat_template.jinja").unlink()
    template = "{{ bos_token }}{% for m in messages %}{{ m.content | tojson }}{% break %}{% endfor %}"
    change_config(directory, chat_template=template, bos_token={"content": "<s>"})
    tokenizer = Tokenizer(directory)
    assert tokenizer.prompt('ü"') == [0, *tokenizer.encode('"ü\\""')]
    change_config(directory, chat_template=[{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}])
    assert Tokenizer(directory).prompt("a") == Tokenizer(directory).encode("y")


def test_a_template_that_refuses_is_a_users_error(directory):
    (directory / "chat_template.jinja").write_text("{{ raise_exception('no system role, please') }}")
    with pytest.raises(UserError, match="the chat template fails: no system role, please"):
        Tokenizer(directory).prompt("a", system="b")


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
        "{{ tools is not none }} {{ documents is none }} {{ tools is defined }} {{ missing is defined }}",
        "{% for m in messages %}\n  {{ m.role }}\n{% endfor %}{{ ['a', 1] | tojson(indent=1) }}",
        "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = 2 %}{% continue %}{% endfor %}{{ ns.a }}",
    ],
)
def test_a_template_is_rendered_as_by_transformers(directory, template):
    (directory / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": TEXT}]
    theirs = AutoTokenizer.from_pretrained(directory)
    want = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert Tokenizer(directory).prompt(TEXT) == Tokenizer(directory).encode(want)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than 2 seconds"),
        ("{{ 'a' * 10**10 }}", "takes too much memory"),
        (
            "{% set ns = namespace(t='a' * 999) %}{% for i in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "takes ",  # too much of one or of the other
        ),
        ("{{ 'a' | center(10**10) }}", "memory"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages[0].content.missing.more }}", "has no attribute"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for %}", "Expected an expression"),
        ("{{ strftime_now(1) }}", "must be str"),
    ],
)
def test_a_hostile_template_gets_little(directory, monkeypatch, template, message):
    seconds = 2.0 if message.endswith("seconds") else 60.0  # a busy machine takes its time to start a process
    monkeypatch.setattr(tokenizer_module, "render_template", partial(render_template, seconds=seconds))
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="the chat template fails: ") as error:
        Tokenizer(directory).prompt("a")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_template(directory):
    (directory / "chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja: not UTF-8"):
        Tokenizer(directory).prompt("a")
    (directory / "chat_template.jinja").unlink()
    for template in (1, {"a": 1}, [{"name": "default", "template": 1}]):
        change_config(directory, chat_template=template)
        with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template must be a text or a list of them"):
            Tokenizer(directory).prompt("a")
    for template in (None, [], [1], [{"name": "default"}], [{"template": "a"}]):
        change_config(directory, chat_template=template)
        assert not Tokenizer(directory).has_chat_template
    for text in ("[" * 100_000, "[]", '"a"', "a", "\xff"):
        (directory / "tokenizer_config.json").write_text(text, "latin-1")
        with pytest.raises(UserError, match=r"tokenizer_config\.json: m"):
            Tokenizer(directory).prompt("a")


def edited(directory, change):
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return Tokenizer(directory)


def test_limits_for_training_do_not_count(directory):
    def limit(content):
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None}
        content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}

    want = Tokenizer(directory).encode(TEXT)
    assert edited(directory, limit).encode(TEXT) == want == AutoTokenizer.from_pretrained(directory)(TEXT)["input_ids"]


def split_by(pattern):
    def change(content):
        content["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }

    return change


def test_a_pattern_that_takes_for_ever_can_be_interrupted(directory):
    edited(directory, split_by("(a+)+b"))
    text = "('a' * 18 + 'c') * 1_000_000"  # each run stays below the limit at which the pattern gives up
    program = f"from skim_runtime import Tokenizer; Tokenizer({str(directory)!r}).encode({text})"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=5)[1]


def test_a_pattern_that_gives_up_is_a_users_error(directory):
    tokenizer = edited(directory, split_by("(a+)+b"))
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot encode the text"):
        tokenizer.encode("a" * 40)


def test_a_panic_is_a_users_error(directory):
    """A merge makes a token that is not there."""
    content = json.loads((directory / "tokenizer.json").read_text())
    del content["model"]["vocab"]["Ġvexingly"]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer: range end index"):
        Tokenizer(directory)


def test_missing_and_damaged_files_are_named(directory):
    (directory / "tokenizer_config.json").write_text("[")
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json: malformed"):
        Tokenizer(directory).prompt("a")
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: missing"):
        Tokenizer(directory)
