"""An exported model: its programs give what `beatray.load_model` gives, of every kind of answer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import beatray
from beatray.cli import main
from beatray.evaluate.waves import runs_of
from beatray.export.folder import real_recordings
from beatray.export.model_folder import export_model
from beatray.preprocess import prepare
from evaluation_rows import read_rows
from made_models import KINDS, SAMPLE, made_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_programs_give_what_the_model_gives(kind: str, tmp_path: Path) -> None:
    made = made_model(tmp_path / "made", kind)
    out = tmp_path / "out"
    with_onnx = kind == "waves"  # the most of a network; ONNX takes the most of the time
    programs = export_model(made, out, with_onnx=with_onnx)
    assert set(programs.difference) == {"model.pt2", *(["model.onnx"] if with_onnx else [])}
    signal_uv = read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 3)).signal_uv
    x_mv = prepare(torch.from_numpy(signal_uv.copy()))
    with torch.no_grad():
        (answers,) = torch.export.load(io.BytesIO((out / "model.pt2").read_bytes())).module()(x_mv)
    found = answers.numpy()
    if with_onnx:
        (again,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"x_mv": x_mv.numpy()})
        np.testing.assert_allclose(again, found, rtol=1e-3, atol=1e-4)
    model = beatray.load_model(str(out))  # the exported folder is a model itself
    said = model.predict(signal_uv / 1000.0)
    if kind == "waves":
        assert said.waves is not None and found.shape == (3, 1, 4, 5000)
        for waves, chances in zip(said.waves, found, strict=True):
            runs = sum(len(runs_of(chances[0].argmax(0).astype(np.int8), value)) for value in (1, 2, 3))
            assert abs(runs - len(waves)) <= 1  # a sample of equal chances may fall to either side
    else:
        expected = said.numbers if kind == "numbers" else said.probabilities
        assert expected is not None
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    card = (out / "README.md").read_text()
    assert "## Without beatray" in card and "Proven at export on 8 recordings" in card
    assert ("Yes above [0.5, 0.4, 0.6]" in card) == (kind == "multilabel")


def test_the_command_tells_a_model_from_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_model(tmp_path / "made", "classes")
    assert main(["export", made, "--out", str(tmp_path / "out"), "--no-onnx"]) == 0
    told = capsys.readouterr().out
    assert "model.pt2: equal to the model to" in told and "beatray.load_model(" in told
    assert not (tmp_path / "out" / "model.onnx").exists() and len(real_recordings()) == 8
    assert main(["export", made, "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", made, "--out", str(tmp_path / "other"), "--results", "r.json"]) == 2
    assert "whose card has its scores" in capsys.readouterr().err
