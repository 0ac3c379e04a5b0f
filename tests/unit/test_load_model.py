"""`beatray.load_model`: models of every kind on real recordings, at other rates, and what is refused."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample_poly
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

import beatray
from beatray.errors import CheckpointError
from beatray.infer.model import EcgModel
from beatray.record import LEADS, WAVE_KINDS
from evaluation_rows import read_rows
from made_models import CLASSES, KINDS, made_model

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"


@pytest.fixture(scope="module")
def ecgs() -> NDArray[np.float64]:
    """12 recordings of 10 s at 500 Hz, mV."""
    return read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 12)).signal_uv / 1000.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: made_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def test_each_kind_predicts_what_it_knows_and_nothing_else(models: dict[str, str], ecgs: NDArray[np.float64]) -> None:
    for kind, path in models.items():
        model = beatray.load_model(path)
        found = model.predict(ecgs[:3])
        if kind == "waves":
            assert found.waves is not None and found.probabilities is None and len(found.waves) == 3
            assert {wave.lead for waves in found.waves for wave in waves} == {None} and found.names == WAVE_KINDS
        elif kind == "numbers":
            assert found.numbers is not None and found.numbers.shape == (3, 2) and found.decisions is None
        else:
            assert found.probabilities is not None and found.decisions is not None and found.names == CLASSES
            assert found.probabilities.shape == found.decisions.shape == (3, 3)
            sums = found.probabilities.sum(1)
            assert np.allclose(sums, 1) == (kind == "classes")
        one = model.predict(ecgs[1])
        if kind == "waves":
            assert found.waves is not None and one.waves == found.waves[1:2]
    per_lead = beatray.load_model(made_model(Path(models["waves"]) / "leads", "waves", leads="per_lead"))
    per_lead_waves = per_lead.predict(ecgs[:1]).waves
    assert (
        per_lead_waves is not None
        and {wave.lead for wave in per_lead_waves[0]} <= set(LEADS)
        and len({w.lead for w in per_lead_waves[0]}) > 6
    )


@pytest.mark.filterwarnings("ignore:at rate_hz=500 the hearts beat")
@pytest.mark.parametrize(("rate_hz", "bound"), [(1000, 0.001), (360, 0.002), (250, 0.003), (100, 0.03)])
def test_other_rates_give_the_same_answers_within_bounds(
    rate_hz: int, bound: float, models: dict[str, str], ecgs: NDArray[np.float64]
) -> None:
    """Below 500 Hz what lies above half of the rate is lost; the bounds are on probabilities."""
    other = resample_poly(ecgs, rate_hz, 500, axis=-1, padtype="line")
    for kind in ("multilabel", "classes"):
        model = beatray.load_model(models[kind])
        expected, found = model.predict(ecgs).probabilities, model.predict(other, rate_hz=rate_hz).probabilities
        assert expected is not None and found is not None
        worst = np.abs(found - expected).max()
        print(f"{kind} at {rate_hz} Hz: {worst:.5f}")
        assert worst < bound
        wrong = model.predict(np.concatenate([other] * 10, axis=-1)[..., :5000]).probabilities  # taken for 500 Hz
        assert wrong is not None and np.abs(wrong - expected).max() > 2 * worst


@pytest.mark.parametrize(("rate_hz", "agree"), [(1000, 1.0), (360, 1.0), (250, 0.98), (100, 0.98)])
def test_waves_and_numbers_at_other_rates(
    rate_hz: int, agree: float, models: dict[str, str], ecgs: NDArray[np.float64]
) -> None:
    """Waves of the bundled model whose ends lie within 20 ms of those at 500 Hz; numbers within a tenth of their SD."""
    other = resample_poly(ecgs, rate_hz, 500, axis=-1, padtype="line")
    model = beatray.load_model("beatray-waves")
    expected, found = model.predict(ecgs).waves, model.predict(other, rate_hz=rate_hz).waves
    assert expected is not None and found is not None
    near = [
        any(w.kind == v.kind and max(abs(w.onset_s - v.onset_s), abs(w.offset_s - v.offset_s)) <= 0.02 for v in there)
        for here, there in zip(expected, found, strict=True)
        for w in here
    ]
    assert len(near) > 200 and np.mean(near) >= agree
    assert abs(sum(map(len, found)) - len(near)) <= (1 - agree + 0.01) * len(near)
    numbers = beatray.load_model(models["numbers"])
    at_500, there = numbers.predict(ecgs).numbers, numbers.predict(other, rate_hz=rate_hz).numbers
    assert at_500 is not None and there is not None
    assert np.abs(there - at_500).max() < 0.1 * np.array(numbers.description["sd"]).max()


@pytest.mark.filterwarnings("ignore:leads are NaN")
@pytest.mark.parametrize("leads", [[0, 1, *range(6, 12)], [0, 1, *range(6, 10)], [0, 1, 7], [7, 8], [7]])
def test_recordings_of_few_leads_have_answers(
    leads: list[int], models: dict[str, str], ecgs: NDArray[np.float64]
) -> None:
    few = np.full_like(ecgs, np.nan)
    few[:, leads] = ecgs[:, leads]
    with_limbs = set(leads) | ({2, 3, 4, 5} if {0, 1} <= set(leads) else set())
    for kind, path in models.items():
        found, whole = beatray.load_model(path).predict(few), beatray.load_model(path).predict(ecgs)
        for name in ("probabilities", "numbers"):
            here, there = getattr(found, name), getattr(whole, name)
            assert (here is None) == (there is None)
            if here is not None:
                assert np.isfinite(here).all() and (len(leads) == 8 or not np.array_equal(here, there))
        if found.waves is not None:
            assert {w.lead for each in found.waves for w in each} <= {None, *(LEADS[lead] for lead in with_limbs)}, kind
    waves = beatray.load_model("beatray-waves").predict(few).waves
    assert waves is not None and sum(w.kind == "QRS" for each in waves for w in each) > 60


def test_what_cannot_be_read_is_named(models: dict[str, str], ecgs: NDArray[np.float64], tmp_path: Path) -> None:
    model = beatray.load_model(models["classes"])
    for x_mv, rate_hz, message in (
        ([ecgs[0], ecgs[1] * 1000], 500, "recording 1: .*Are these microvolts"),
        (ecgs[0], 20, "recording 0: .*20"),
        (ecgs[:, :6], 500, "has 6 leads; twelve are needed"),
        ([ecgs[0], ecgs[1][:, :1000]], 500, "recording 1: .*Is rate_hz right"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            model.predict(x_mv, rate_hz=rate_hz)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(CheckpointError, match="there is no model at"):
        beatray.load_model(str(tmp_path))


def test_a_doubtful_rate_and_missing_leads_are_told(models: dict[str, str], ecgs: NDArray[np.float64]) -> None:
    model = beatray.load_model(models["classes"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(ecgs)
    slow = ecgs[:, :, ::2]
    with pytest.warns(UserWarning, match="About 250 Hz would fit"):
        model.predict(np.concatenate([slow, slow], axis=-1))  # two times 5 s: long enough, and at the wrong rate
    without = ecgs[:2].copy()
    without[1, 10] = np.nan
    with pytest.warns(UserWarning, match="read as zero: V5 in 1 of 2 recordings") as warned:
        model.predict(without)
    assert warned[0].filename == __file__


def test_models_keep_the_conventions_of_scikit_learn(models: dict[str, str], ecgs: NDArray[np.float64]) -> None:
    model = beatray.load_model(models["multilabel"], rate_hz=250)
    again = clone(model)
    assert isinstance(again, EcgModel) and again is not model and again.get_params() == model.get_params()
    assert again.get_params() == {"path": models["multilabel"], "rate_hz": 250, "device": "cpu"}
    slow = ecgs[:3, :, ::2]
    expected = model.predict_proba(slow)
    np.testing.assert_array_equal(again.predict_proba(slow), expected)
    np.testing.assert_array_equal(make_pipeline(again).predict_proba(slow), expected)
    stored = pickle.dumps(model)
    assert len(stored) < 2000  # the weights stay where they are
    np.testing.assert_array_equal(pickle.loads(stored).predict_proba(slow), expected)
    other = again.set_params(path=models["classes"], rate_hz=500).predict(ecgs[:3])
    assert other.probabilities is not None and np.allclose(other.probabilities.sum(1), 1)
    with pytest.raises(ValueError, match="a model of waves has no probabilities of classes"):
        beatray.load_model(models["waves"]).predict_proba(ecgs[:1])


def test_an_ensemble_answers_with_means_and_spread(
    models: dict[str, str], ecgs: NDArray[np.float64], tmp_path: Path
) -> None:
    paths = [models["numbers"], *(made_model(tmp_path / str(seed), "numbers", seed=seed) for seed in (1, 2))]
    each = np.stack([beatray.load_model(path).predict(ecgs[:4]).numbers for path in paths])
    found = beatray.load_model(paths).predict(ecgs[:4])
    assert found.numbers is not None and found.spread is not None
    np.testing.assert_allclose(found.numbers, each.mean(0))
    np.testing.assert_allclose(found.spread, each.std(0, ddof=1))
    assert beatray.load_model(paths[:1]).predict(ecgs[:4]).spread is None
    twice = beatray.load_model([models["waves"], models["waves"]]).predict(ecgs[:2])
    assert twice.waves == beatray.load_model(models["waves"]).predict(ecgs[:2]).waves
    with pytest.raises(CheckpointError, match="are no ensemble: they differ in outputs"):
        beatray.load_model([models["waves"], models["classes"]])
    with pytest.raises(CheckpointError, match="no model is named"):
        beatray.load_model([])


def test_a_window_that_is_left_out_moves_no_wave(models: dict[str, str], ecgs: NDArray[np.float64]) -> None:
    """Thirty seconds whose second ten are flat: what follows keeps its time."""
    model = beatray.load_model(models["waves"])
    alone = model.predict([ecgs[0], ecgs[1]]).waves
    flat = np.concatenate([ecgs[0], np.zeros_like(ecgs[0]), ecgs[1]], axis=1)
    found = model.predict([flat]).waves
    assert alone is not None and found is not None and alone[0] and alone[1]
    moved = [replace(w, onset_s=w.onset_s + 20, peak_s=w.peak_s + 20, offset_s=w.offset_s + 20) for w in alone[1]]
    assert len(found[0]) == len(alone[0]) + len(moved)
    for wave, expected in zip(found[0], [*alone[0], *moved], strict=True):
        assert (wave.kind, wave.lead) == (expected.kind, expected.lead)
        times = (wave.onset_s, wave.peak_s, wave.offset_s)
        assert times == pytest.approx((expected.onset_s, expected.peak_s, expected.offset_s))
