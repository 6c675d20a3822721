"""Every architecture exported as users export it; the export compares what it wrote with transformers."""

from __future__ import annotations

import numpy as np
import pytest

from skim_export import export
from skim_export.checkpoint import Model
from skim_export.graph.reader import read_packed
from skim_export.pipeline import calibration_text

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
@pytest.mark.parametrize("name", cases(DECODERS, "phi3", "lfm2", "gemma4-e", "lfm2-moe"))
def test_weights_only(tmp_path, name):
    check_export(tmp_path, name, effort="weights")


@pytest.mark.covers("calibrated")
@pytest.mark.parametrize("name", cases(DECODERS, "qwen3-moe"))
def test_calibrated(tmp_path, name, monkeypatch):
    monkeypatch.setattr(calibration_text, "SEQUENCES", 4)
    monkeypatch.setattr(calibration_text, "LENGTH", 64)
    text = tmp_path / "calib.txt"
    text.write_text(TEXT * 4)
    check_export(tmp_path, name, effort="calibrated", calib=text)


def test_embeddings_of_layers_share_no_budget(tmp_path, monkeypatch):
    """No statistics of them are gathered; they keep 8 bits where embedding and head are allocated."""
    monkeypatch.setattr(calibration_text, "SEQUENCES", 4)
    monkeypatch.setattr(calibration_text, "LENGTH", 64)
    text = tmp_path / "calib.txt"
    text.write_text(TEXT * 4)
    path = tiny_decoder("gemma4-e", tmp_path / "hf")
    report = export(str(path), tmp_path / "onnx" / "model.onnx", bits=3, head_bits="auto", calib=text)
    assert report.error is not None
    assert report.error < BOUND
    packed = read_packed(tmp_path / "onnx" / "model.onnx")
    architecture = Model.open(path).architecture
    assert {packed[linear.name].code_bits for linear in architecture.others} == {8}
    budgeted = [packed[linear.name] for linear in (*architecture.linears, *architecture.token_linears)]
    weights = [linear.out_features * linear.in_features for linear in budgeted]
    assert np.average([linear.code_bits for linear in budgeted], weights=weights) == pytest.approx(3, abs=0.05)
