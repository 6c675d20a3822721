"""Outputs wherever people put them: roots of file systems, directories that can't be written to, long names."""

import pytest

from skim_export import export
from skim_export.cli.main import main
from skim_export.work import place
from skim_export.work.place import place_for
from skim_runtime import Session, verify

from ..tiny_models import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("place") / "model", layers=1)


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A directory that is the root of another file system."""
    path = tmp_path / "mounted"
    path.mkdir()
    monkeypatch.setattr(place, "_device", lambda one: 7 if one == path else one.stat().st_dev)
    return path


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def refusal(capsys, model, output):
    assert main(["--model", str(model), "--effort", "weights", "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_beside_a_directory(tmp_path):
    assert place_for(tmp_path / "new" / "out", "work") == tmp_path / "new" / ".out.work"
    (tmp_path / "out").mkdir()
    assert place_for(tmp_path / "out", "work") == tmp_path / ".out.work"


def test_in_the_root_of_a_file_system(mounted):
    assert place_for(mounted, "work") == mounted / ".skim-export.work"
    assert place_for(mounted / "out", "work") == mounted / ".out.work"
    assert str(place_for(mounted.parent.joinpath("/"), "work")) == "/.skim-export.work"


def test_where_nothing_can_be_written_beside(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(place.os, "access", lambda path, mode: path != tmp_path)
    assert place_for(tmp_path / "out", "work") == tmp_path / "out" / ".skim-export.work"


def test_a_long_name_has_a_short_place(tmp_path):
    places = {place_for(tmp_path / (letter * 250), "work").name for letter in "ab"}
    assert len(places) == 2
    assert all(name.startswith(".") and name.endswith(".work") and len(name) < 60 for name in places)


@pytest.mark.parametrize("force", [False, True])
def test_an_export_to_a_file_system_of_its_own(model, mounted, force):
    """No file is renamed from one to the other: `_device` lies, so what matters is that nothing is beside."""
    (mounted / "notes.txt").write_text("mine")
    output = mounted / "model.onnx"
    export(str(model), output, effort="weights", bits=3)
    export(str(model), output, effort="weights", bits=4 if force else 3, force=force)
    assert names(mounted.parent) == ["mounted"]
    assert not [name for name in names(mounted) if name.startswith(".")]
    assert (mounted / "notes.txt").read_text() == "mine"
    verify(mounted)
    Session(mounted)


@pytest.mark.parametrize("name", ["n" * 250, "two words", "größer", "-o"])
def test_names_of_directories(model, tmp_path, name):
    export(str(model), tmp_path / name / "model.onnx", effort="weights", bits=3)
    assert names(tmp_path) == [name]
    Session(tmp_path / name)


def test_names_of_files(model, tmp_path):
    longest = "n" * (255 - len(".onnx.data")) + ".onnx"
    export(str(model), tmp_path / longest, effort="weights", bits=3)
    Session(tmp_path)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("n" * 250 + ".onnx", "a name of 260 bytes with .data; 255 at most"),
        ("n" * 256 + "/model.onnx", "a name of 256 bytes; 255 at most"),
        ("ü" * 128 + "/model.onnx", "a name of 256 bytes; 255 at most"),
        ("file/model.onnx", "file is no directory"),
        ("file/more/model.onnx", "file is no directory"),
        ("nowhere/model.onnx", "nowhere is no directory"),
    ],
)
def test_where_nothing_can_be_written(model, tmp_path, capsys, output, message):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert message in refusal(capsys, model, tmp_path / output)
    assert names(tmp_path) == ["file", "nowhere"]


def test_a_directory_that_cannot_be_written_to(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(place.os, "access", lambda path, mode: False)
    assert f"{tmp_path} can't be written to" in refusal(capsys, model, tmp_path / "out" / "model.onnx")
