"""The page of `beatray predict --show`: recordings, answers, waves, and where a model looks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

from beatray.commands.predict import settings_from
from beatray.commands.predicted_page import page_lead, page_title, recordings_shown
from beatray.errors import SettingsError
from beatray.infer.attribution import attribution, need_captum
from beatray.infer.model import EcgModel
from beatray.infer.predict_plan import PredictPlan, prepare_plan
from beatray.preprocess import prepare
from beatray.record import LEADS
from beatray.report.prediction_page import BIN_SAMPLES, bins_of, prediction_page
from evaluation_rows import read_rows
from made_models import CLASSES, SAMPLE, made_model

pytestmark = pytest.mark.usefixtures("one_thread")
LUDB = str(SAMPLE / "ludb-sample.zip")
WITH_CAPTUM = find_spec("captum") is not None


def plan_of(model: str, out: Path) -> PredictPlan:
    overrides = [f"model={model}", f"files={LUDB}", "source=ludb", f"out={out}"]
    return prepare_plan(settings_from([*overrides, "predict.recordings_per_task=8"]))


def test_waves_are_drawn_for_recordings_from_all_over(tmp_path: Path) -> None:
    plan = plan_of(made_model(tmp_path / "model", "waves", seed=4), tmp_path / "out")
    shown = recordings_shown(plan, 3)
    titles = [each.title for each in shown]
    assert len(set(titles)) == 3 and titles[0] == "ludb/1" and len(shown[0].x_mv) == 12
    assert all(each.waves is not None and each.shares is None for each in shown)
    page = prediction_page(page_title(plan), page_lead(plan), shown)
    assert page.count("<img") == 3 and all(title in page for title in titles) and "Not a medical device" in page


def test_a_recording_that_begins_flat_is_shown_from_its_first_window(tmp_path: Path) -> None:
    """Its window #0 is left out when it is read."""
    paths = tmp_path / "files"
    paths.mkdir()
    for number, flat_s in enumerate((10, 0)):
        x_mv = np.cumsum(np.random.default_rng(number).normal(0, 0.006, (12, 12500)), axis=1)
        x_mv[:, : flat_s * 500] = 0.0
        wfdb.wrsamp(
            f"r{number}", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=x_mv.T, fmt=["16"] * 12,
            adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(paths),
        )  # fmt: skip
    model = made_model(tmp_path / "model", "waves", seed=4)
    plan = prepare_plan(settings_from([f"model={model}", f"files={paths}", f"out={tmp_path / 'out'}"]))
    assert [each.title for each in recordings_shown(plan, 2)] == ["files/r0#1", "files/r1#0"]


@pytest.mark.skipif(WITH_CAPTUM, reason="captum is installed")
def test_without_captum_the_remedy_is_said() -> None:
    with pytest.raises(SettingsError, match=r"pip install 'beatray\[explain\]', or leave --show out"):
        need_captum()


@pytest.mark.skipif(not WITH_CAPTUM, reason="needs beatray[explain]")
@pytest.mark.parametrize("members", [1, 2])
def test_shares_add_up_to_what_the_ecg_moves_the_output_by(members: int, tmp_path: Path) -> None:
    paths = [made_model(tmp_path / str(seed), "classes", seed=seed) for seed in range(members)]
    model = EcgModel(paths).fit()
    rows = read_rows(ludb=(LUDB, 2))
    shares = attribution(model, rows.signal_uv[1], 4900, 2)
    assert shares.shape == (12, 4900)
    valid = torch.tensor([4900])
    x_mv = prepare(torch.from_numpy(rows.signal_uv[1:2].copy()), 500.0, valid)
    with torch.inference_mode():
        moved = [
            float((each.network(x_mv, valid) - each.network(torch.zeros_like(x_mv), valid))[0, 2])
            for each in model.load()
        ]
    assert shares.sum() == pytest.approx(np.mean(moved), abs=0.05 * max(1.0, abs(np.mean(moved))))
    assert bins_of(shares).shape == (12, 245) and bins_of(shares).sum() == pytest.approx(shares.sum())
    assert bins_of(shares[:, : BIN_SAMPLES + 1]).shape == (12, 2)


@pytest.mark.skipif(not WITH_CAPTUM, reason="needs beatray[explain]")
def test_probabilities_stand_beside_where_the_model_looks(tmp_path: Path) -> None:
    models = ",".join(made_model(tmp_path / str(seed), "multilabel", seed=seed) for seed in range(2))
    plan = plan_of(models, tmp_path / "out")
    (shown,) = recordings_shown(plan, 1)
    assert shown.shares is not None and shown.output in CLASSES and [row[0] for row in shown.answers] == list(CLASSES)
    page = prediction_page(page_title(plan), page_lead(plan), [shown])
    assert "integrated gradients" in page and "an ensemble of 2" in page and "±" in page and "probability" in page
