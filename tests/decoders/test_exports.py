"""Every architecture exported as users export it; the export compares what it wrote with transformers."""

from __future__ import annotations

import pytest

from skim_export import export
from skim_export.pipeline import calibration_text
from skim_runtime.errors import UserError

from ..tiny_decoders import DECODERS, cases, tiny_decoder
from ..tiny_models import TEXT

BOUND = 0.02  # of the relative error, with activations of 16 bits


def check_export(directory, name, **options):
    report = export(
        str(tiny_decoder(name, directory / "hf")),
        directory / "onnx" / "model.onnx",
        bits=3,
        threads=1,
        check=True,
        **options,
    )
    linears, *_ = report.parts
    assert report.error is not None
    assert report.error < BOUND
    assert linears.code_bits == pytest.approx(3, abs=0.05)


@pytest.mark.covers("weights")
@pytest.mark.parametrize("name", cases(DECODERS, "phi3", "lfm2", "gemma4-e"))
def test_weights_only(tmp_path, name):
    check_export(tmp_path, name, effort="weights")


@pytest.mark.slow
@pytest.mark.covers("calibrated")
@pytest.mark.parametrize("name", DECODERS)
def test_calibrated(tmp_path, name, monkeypatch):
    monkeypatch.setattr(calibration_text, "SEQUENCES", 4)
    monkeypatch.setattr(calibration_text, "LENGTH", 64)
    text = tmp_path / "calib.txt"
    text.write_text(TEXT * 4)
    check_export(tmp_path, name, effort="calibrated", calib=text)


def test_widths_of_embeddings_of_layers_are_to_be_given(tmp_path):
    """No statistics of them are gathered, so that `--head-bits auto` is refused before any work."""
    path = str(tiny_decoder("gemma4-e", tmp_path / "hf"))
    with pytest.raises(UserError, match=r"--head-bits auto: how sensitive model\.embed_tokens_per_layer is"):
        export(path, tmp_path / "onnx" / "model.onnx", bits=3, head_bits=None)
