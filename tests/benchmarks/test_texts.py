"""The texts of the results: how they are cut, and that they are what the results name."""

import hashlib

import pytest
import texts

from .command import benchmark


def test_articles_lose_their_tags():
    sample = "".join(f'<doc id="{i}" title="T">\nText {i} < 5.\n\n</doc>\n' for i in range(4))
    first, rest = texts.split_articles(sample, 3)
    assert first == "Text 0 < 5.\n\nText 1 < 5.\n\nText 2 < 5.\n\n"
    assert rest == "Text 3 < 5.\n\n"


def test_web_pages_are_cut_by_characters():
    assert texts.split_web_pages("äbcdefg") == ("äbcd", "efg")


@pytest.mark.slow
def test_they_are_written_and_checked(tmp_path):
    done = benchmark("texts", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == texts.SHA256
    for name, content in found.items():
        assert f"{len(content)}  {texts.SHA256[name]}" in done.stdout, name
