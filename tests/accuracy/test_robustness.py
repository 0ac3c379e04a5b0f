"""Noise and missing leads: physics and levels, and that only test recordings meet them.

The real noise is that of the Noise Stress Test segments; the WFDB reading is tried on a file that this test writes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wfdb
from real_noise import add_noise
from real_noise import read_noise as reference_noise

from beatray.corpus.reader import Rows
from beatray.evaluate.encoders import EncoderSpec, prepared
from beatray.evaluate.robustness import (
    LEADS_KEPT,
    LEVELS,
    condition_names,
    modelled_noise,
    qrs_height,
    read_noise,
    real_noise,
    under,
)
from beatray.evaluate.run import evaluate
from beatray.evaluate.settings import RobustnessSettings, quick
from beatray.evaluate.table import as_text, make_table
from beatray.record import LEADS
from evaluation_rows import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 8), ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 24))


def put(rows: Rows, condition: str, settings: RobustnessSettings) -> np.ndarray:
    lengths = rows.n_samples.astype(np.int64)
    return under(condition, rows.signal_uv, lengths, rows.lead_mask, rows.r_peaks, rows.record_id, settings)


def test_limb_leads_agree_under_every_noise(rows: Rows) -> None:
    signal_mv = rows.signal_uv[0] / 1000.0
    steady = np.random.default_rng(1).normal(size=(2, 9000))
    for noise in (
        modelled_noise(6, 5000, np.random.default_rng(0)),
        real_noise(signal_mv, rows.r_peaks[0], steady, 6, np.random.default_rng(0)),
    ):
        by_name = dict(zip(LEADS, noise, strict=True))
        assert np.allclose(by_name["III"], by_name["II"] - by_name["I"])
        assert np.allclose(by_name["aVR"], -(by_name["I"] + by_name["II"]) / 2)
        assert np.allclose(by_name["aVL"], by_name["I"] - by_name["II"] / 2)
        assert np.allclose(by_name["aVF"], by_name["II"] - by_name["I"] / 2)
        assert abs(np.corrcoef(by_name["V1"], by_name["V5"])[0, 1]) < 0.98


def test_modelled_noise_has_the_parts_and_sizes_of_its_level() -> None:
    """Muscle noise: white, SD uniform up to the level's. Power line: lines at 50, 100, 150 Hz and nowhere else."""
    for level, (_, muscle, line, _) in LEVELS.items():
        spread, lines = [], []
        for seed in range(60):
            noise = modelled_noise(level, 5000, np.random.default_rng(seed))[6]
            power = np.abs(np.fft.rfft(noise)) ** 2 / 5000
            spread.append(np.sqrt(np.median(power[1600:2400]) / np.log(2)))  # 160-240 Hz: muscle alone
            lines.append(2 * np.sqrt(power[500] / 5000))
        assert max(spread) <= muscle * 1.15 and np.mean(spread) == pytest.approx(muscle / 2, rel=0.3)
        assert 0.1 * line < max(lines) < 1.1 * line + 0.15 * muscle
    slow = modelled_noise(6, 5000, np.random.default_rng(3))
    assert np.abs(slow).max() < 15  # mV
    with pytest.raises(ValueError, match="level 7"):
        modelled_noise(7, 5000, np.random.default_rng(0))


def test_the_wander_is_the_sum_of_cosines_below_half_a_hertz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, 1, (0.05, 0.0, 0.0, 0.0))
    noise = modelled_noise(1, 5000, np.random.default_rng(5))[0]
    chance = np.random.default_rng(5)
    size, *_ = [chance.uniform(0, most) for most in (0.05, 0.0, 0.0, 0.0)]
    amplitude, phase = chance.uniform(0, 1, (8, 50)), chance.uniform(0, 2 * np.pi, (8, 50))
    t = np.arange(5000) / 500
    plain = sum(amplitude[0, k - 1] * np.cos(2 * np.pi * 0.01 * k * t + phase[0, k - 1]) for k in range(1, 51))
    assert noise == pytest.approx(size * plain, abs=1e-12)


@pytest.mark.parametrize("kind", ["BW", "EM", "MA"])
def test_real_noise_has_the_level_of_the_reference_and_its_pieces(rows: Rows, data_dir: Path, kind: str) -> None:
    """`real_noise.add_noise` of the R-peak tests is the independent code: same ratio, to 0.05 dB, in every lead."""
    folder = data_dir / "misc" / "nstdb_segments"
    noise = read_noise(str(folder), kind)
    assert noise == pytest.approx(reference_noise(folder, kind))
    signal_mv = (rows.signal_uv[:6] / 1000.0).astype(np.float32)
    theirs = add_noise(signal_mv, rows.r_peaks[:6], noise, 6, seed=0) - signal_mv
    for row in range(6):
        added = real_noise(signal_mv[row].astype(np.float64), rows.r_peaks[row], noise, 6, np.random.default_rng(row))
        for lead in (0, 1, 6, 11):
            reference = float(np.mean(theirs[row, lead].astype(np.float64) ** 2))
            assert 10 * np.log10(np.mean(added[lead] ** 2) / reference) == pytest.approx(0, abs=0.05)
            power = qrs_height(signal_mv[row, lead].astype(np.float64), rows.r_peaks[row]) ** 2 / 8
            assert 10 * np.log10(power / np.mean(added[lead] ** 2)) == pytest.approx(6, abs=0.01)


def test_noise_is_read_from_wfdb_too_and_asked_for_by_name(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).normal(size=(7200, 2))
    wfdb.wrsamp("em", fs=360, units=["mV"] * 2, sig_name=["a", "b"], p_signal=signal, fmt=["16"] * 2,
                write_dir=str(tmp_path))  # fmt: skip
    noise = read_noise(str(tmp_path), "EM")
    assert noise.shape == (2, 10000) and np.allclose(noise.std(axis=1), 1) and np.allclose(noise.mean(axis=1), 0)
    with pytest.raises(ValueError, match=r"no ma.hea and no MA.mat in .*: evaluate.robustness.noise_folder"):
        condition_names(RobustnessSettings(noise_folder=str(tmp_path), noise_kinds=("MA",)))
    with pytest.raises(ValueError, match=r"the noise lasts 2\.0 s"):
        real_noise(np.zeros((12, 5000)), np.empty(0, np.int32), noise[:, :1000], 6, np.random.default_rng(0))


def test_a_condition_depends_on_recording_and_name_alone(rows: Rows) -> None:
    settings = RobustnessSettings(noise_levels=(3, 4))
    whole = put(rows, "noise 3", settings)
    alone = put(rows.take([5]), "noise 3", settings)
    assert np.array_equal(whole[5], alone[0])
    other = put(rows.take([5]), "noise 4", settings)
    clean = prepared(rows.signal_uv[5:6], rows.n_samples[5:6])
    assert not np.array_equal(other, alone) and not np.array_equal(alone[0], clean[0])
    short = replace(rows.take([5]), n_samples=np.array([3000], np.int32), lead_mask=np.array([0b111], np.int16))
    found = put(short, "noise 3", settings)
    assert not found[0, :, 3000:].any()
    unchanged = prepared(short.signal_uv, short.n_samples)
    assert np.array_equal(found[0, 3:], unchanged[0, 3:]) and not np.array_equal(found[0, 0], unchanged[0, 0])


@pytest.mark.parametrize("count", LEADS_KEPT)
def test_missing_leads_are_zero_and_the_others_as_they_were(rows: Rows, count: int) -> None:
    clean = prepared(rows.signal_uv[:3], rows.n_samples[:3])
    found = put(rows.take([0, 1, 2]), f"{count} leads", RobustnessSettings(leads=(count,)))
    kept = [LEADS.index(name) for name in LEADS_KEPT[count]]
    assert len(kept) == count and np.array_equal(found[:, kept], clean[:, kept])
    gone = [k for k in range(12) if k not in kept]
    assert not found[:, gone].any()


def test_rows_under_noise_stand_beside_the_clean_ones_which_stay_as_they_are(rows: Rows, data_dir: Path) -> None:
    tests = np.array([i % 3 == 0 for i in range(len(rows))])
    owners = [p or r for p, r in zip(rows.patient_id, rows.record_id, strict=True)]
    tested = {owners[i] for i in np.flatnonzero(tests)}
    train = np.array([i for i in np.flatnonzero(~tests) if owners[i] not in tested])
    test = np.flatnonzero(tests)
    plain = replace(quick(), segment_fractions=(0.5, 1.0), permutations=0)
    noisy = replace(
        plain,
        robustness=RobustnessSettings(
            noise_levels=(1, 6), leads=(12, 2, 1), noise_folder=str(data_dir / "misc" / "nstdb_segments"),
            noise_kinds=("EM",), snr_db=(0,),
        ),
    )  # fmt: skip
    spec = [EncoderSpec("tiny")]
    before, after = evaluate(rows, train, test, spec, plain), evaluate(rows, train, test, spec, noisy)
    clean = [run for run in after.runs if run.condition == "clean"]
    assert [r.metrics for r in clean] == [pytest.approx(r.metrics, nan_ok=True) for r in before.runs]
    names = ["noise 1", "noise 6", "EM 0 dB", "12 leads", "2 leads", "1 lead"]
    for task, protocol in (
        ("segment", "linear_probe"),
        ("segment", "finetune"),
        ("classify", "linear_probe"),
        ("classify", "finetune"),
    ):
        here = [r for r in after.runs if (r.task, r.protocol, r.variant) == (task, protocol, "random")]
        assert [r.condition for r in here if r.fraction == 1.0] == ["clean", *names]
        assert all(r.condition == "clean" for r in here if r.fraction < 1.0)
        by_name = {r.condition: r.metrics for r in here if r.fraction == 1.0}
        unchanged = {name: value for name, value in by_name["clean"].items() if name in by_name["12 leads"]}
        assert by_name["12 leads"] == pytest.approx(unchanged, abs=1e-6, nan_ok=True)
        chosen_by = {"validation_auroc"} if task == "classify" else set()
        assert by_name["clean"].keys() - unchanged.keys() == chosen_by
        assert by_name["noise 6"] != by_name["clean"]
    text = as_text(make_table(after))
    assert max(len(line) for line in text.splitlines()) <= 120
    assert text.count("EM 0 dB") == sum(row.condition == "EM 0 dB" for row in make_table(after).rows) > 0
