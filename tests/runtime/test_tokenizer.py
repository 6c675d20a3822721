import json
import shutil

import pytest
from transformers import AutoTokenizer

from skim_runtime import TextStream, Tokenizer, UserError

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
    with pytest.raises(UserError, match="the chat template refuses the messages: no system role, please"):
        Tokenizer(directory).prompt("a", system="b")


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
