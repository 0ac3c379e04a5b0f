"""An exported model: its programs give what `beatray.load_model` gives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import beatray
from beatray.cli import main
from beatray.evaluate.waves import runs_of
from beatray.export.model_folder import Answers, export_model
from beatray.models.model_folder import read_model
from beatray.preprocess import prepare
from evaluation_rows import read_rows
from made_models import SAMPLE, made_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def signal_uv() -> NDArray[np.int16]:
    return read_rows(ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 3)).signal_uv


@pytest.mark.parametrize("kind", ["multilabel", "classes", "numbers"])
def test_answers_are_calibrated_and_in_the_units_of_the_labels(
    kind: str, signal_uv: NDArray[np.int16], tmp_path: Path
) -> None:
    made = made_model(tmp_path, kind)
    loaded, predicted = read_model(made), beatray.load_model(made).predict(signal_uv / 1000.0)
    with torch.no_grad():
        (found,) = Answers(loaded.network, loaded.description)(prepare(torch.from_numpy(signal_uv.copy())))
    expected = predicted.numbers if kind == "numbers" else predicted.probabilities
    assert expected is not None and expected.std() > 0.01
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_programs_of_answers_give_the_answers_of_the_model(
    kind: str, signal_uv: NDArray[np.int16], tmp_path: Path
) -> None:
    made = made_model(tmp_path / "made", kind)
    export_model(made, tmp_path / "out")
    x_mv = prepare(torch.from_numpy(signal_uv.copy()))
    (found,) = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").run(None, {"x_mv": x_mv.numpy()})
    predicted = beatray.load_model(made).predict(signal_uv / 1000.0)
    np.testing.assert_allclose(
        found, predicted.numbers if kind == "numbers" else predicted.probabilities, rtol=1e-3, atol=1e-4
    )


def test_programs_of_waves_give_the_waves_of_the_model(signal_uv: NDArray[np.int16], tmp_path: Path) -> None:
    out = tmp_path / "out"
    programs = export_model(made_model(tmp_path / "made", "waves", seed=4), out)
    assert set(programs.difference) == {"model.pt2", "model.onnx"} and programs.any_length
    x_mv = prepare(torch.from_numpy(signal_uv.copy()))
    (found,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"x_mv": x_mv.numpy()})
    with torch.no_grad():
        (again,) = torch.export.load(io.BytesIO((out / "model.pt2").read_bytes())).module()(x_mv)
    np.testing.assert_allclose(found, again.numpy(), rtol=1e-3, atol=1e-4)
    predicted = beatray.load_model(str(out)).predict(signal_uv / 1000.0)  # the exported folder is a model itself
    assert predicted.waves is not None and found.shape == (3, 1, 4, 5000)
    for waves, chances in zip(predicted.waves, found, strict=True):
        runs = sum(len(runs_of(chances[0].argmax(0).astype(np.int8), value)) for value in (1, 2, 3))
        assert len(waves) > 5 and abs(runs - len(waves)) <= 1  # equal chances may fall to either side


def test_the_command_distinguishes_a_model_from_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, out = made_model(tmp_path / "made", "multilabel"), tmp_path / "out"
    assert main(["export", made, "--out", str(out), "--no-onnx"]) == 0
    output, card = capsys.readouterr().out, (out / "README.md").read_text()
    assert "model.pt2: equal to the model to" in output and "beatray.load_model(" in output
    assert "## Without beatray" in card and "Yes above [0.5, 0.4, 0.6], in this order" in card
    assert not (out / "model.onnx").exists()
    assert main(["export", made, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", made, "--out", str(tmp_path / "other"), "--results", "r.json"]) == 2
    assert "whose card has its scores" in capsys.readouterr().err
