from __future__ import annotations

import numpy as np
import pytest
from synthetic_ecg import RATE_HZ, WAVES, synthetic_ecg

from beatray.dsp.delineate import BEAT_WAVES, find_waves
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES, measure

R = np.arange(450, 4700, 430).astype(np.int32)


def _named(r: np.ndarray, signal: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    beats, records = measure(signal, RATE_HZ, find_waves(signal, RATE_HZ, [r]))
    return (
        dict(zip(BEAT_FEATURES, beats[0].T, strict=True)),
        dict(zip(RECORD_FEATURES, records[0].tolist(), strict=True)),
    )


def test_names_are_unique_and_carry_units() -> None:
    units = ("_s", "_mv", "_per_10s", "_half_turns", "_fraction", "_ratio", "_present")
    for names in (BEAT_FEATURES, RECORD_FEATURES):
        assert len(set(names)) == len(names)
        assert all(name.endswith(units) for name in names)


def test_known_signal() -> None:
    beat, record = _named(R, synthetic_ecg(R))
    assert record["rr_mean_s"] == pytest.approx(0.86)
    assert record["heart_rate_per_10s"] == pytest.approx(10 / 0.86)
    assert record["rr_sd_s"] == pytest.approx(0, abs=1e-6)
    assert record["rr_rmssd_s"] == pytest.approx(0, abs=1e-6)
    assert record["p_fraction"] == 1
    assert record["r_ii_mv"] == pytest.approx(1.0, abs=0.06)
    assert record["r_i_mv"] == pytest.approx(0.6, abs=0.04)
    assert record["s_ii_mv"] == pytest.approx(-0.2, abs=0.06)
    assert record["t_ii_mv"] == pytest.approx(0.3, abs=0.04)
    assert record["st_ii_mv"] == pytest.approx(0.0, abs=0.04)
    assert record["qtc_fridericia_s"] == pytest.approx(record["qt_s"] / 0.86 ** (1 / 3), rel=1e-5)
    assert record["pr_s"] == pytest.approx(0.16, abs=0.03)
    expected_axis = np.degrees(np.arctan2((2 * 0.3 - 0.2) / np.sqrt(3), 0.2)) / 180
    assert record["t_axis_half_turns"] == pytest.approx(expected_axis, abs=0.02)
    assert np.isnan(beat["rr_previous_s"][0])
    assert np.isnan(beat["rr_next_s"][-1])
    np.testing.assert_allclose(beat["rr_previous_s"][1:], 0.86, rtol=1e-5)


def test_rr_statistics_of_an_irregular_rhythm() -> None:
    r = np.array([400, 800, 1300, 1600, 2200, 2600, 3200, 3500], np.int32)
    rr = np.diff(r) / RATE_HZ
    beat, record = _named(r, synthetic_ecg(r))
    assert record["rr_sd_s"] == pytest.approx(rr.std(), rel=1e-5)
    assert record["rr_rmssd_s"] == pytest.approx(np.sqrt(np.mean(np.diff(rr) ** 2)), rel=1e-5)
    assert beat["rr_ratio"][3] == pytest.approx(rr[2] / rr[3], rel=1e-5)


def test_drift_and_offset_hardly_change_amplitudes() -> None:
    signal = synthetic_ecg(R)
    drift = (2.0 + 0.3 * np.sin(2 * np.pi * 0.15 * np.arange(5000) / RATE_HZ)).astype(np.float32)
    _, plain = _named(R, signal)
    _, moved = _named(R, signal + drift)
    for name in RECORD_FEATURES:
        if name.endswith("_mv"):
            assert moved[name] == pytest.approx(plain[name], abs=0.05), name


def test_inverting_lead_one_turns_the_axis() -> None:
    signal = synthetic_ecg(R)
    _, normal = _named(R, signal)
    turned = signal.copy()
    turned[0, 0] *= -1
    _, inverted = _named(R, turned)
    assert 0 < normal["qrs_axis_half_turns"] < 0.5
    assert 0.5 < inverted["qrs_axis_half_turns"] < 240 / 180


def test_missing_is_nan() -> None:
    signal = synthetic_ecg(R)
    waves = find_waves(signal, RATE_HZ, [R])
    _, records = measure(signal, RATE_HZ, waves, lead_mask=4095 & ~(1 << 6))
    record = dict(zip(RECORD_FEATURES, records[0].tolist(), strict=True))
    assert np.isnan(record["r_v1_mv"])
    assert np.isfinite(record["r_v2_mv"])
    _, none = measure(signal, RATE_HZ, [np.empty(0, BEAT_WAVES)])
    assert np.isnan(none).all()
    one = np.full(1, -1, BEAT_WAVES)
    one["r_peak"] = 2500
    beats, records = measure(signal, RATE_HZ, [one])
    record = dict(zip(RECORD_FEATURES, records[0].tolist(), strict=True))
    assert not np.isfinite(list(record.values())).any()  # not even whether there was a P wave
    assert beats[0].shape == (1, len(BEAT_FEATURES))
    one["qrs_onset"], one["qrs_offset"] = 2480, 2530
    _, records = measure(signal, RATE_HZ, [one])
    assert records[0, RECORD_FEATURES.index("p_fraction")] == 0


def test_amplitudes_after_the_end_are_nan() -> None:
    r = np.array([1000, 1430], np.int32)
    signal = synthetic_ecg(r, 5000)
    waves = find_waves(signal, RATE_HZ, [r])
    end = int(waves[0]["qrs_offset"][-1]) + 10
    beats, _ = measure(signal, RATE_HZ, waves, n_samples=end)
    t, r_wave = BEAT_FEATURES.index("t_ii_mv"), BEAT_FEATURES.index("r_ii_mv")
    assert np.isfinite(beats[0][:, r_wave]).tolist() == [True, True]
    assert np.isfinite(beats[0][:, t]).tolist() == [True, False]
    with pytest.raises(ValueError, match="batch, 12, time"):
        measure(signal[:, :8], RATE_HZ, waves)


def test_p_width_is_about_right() -> None:
    _, record = _named(R, synthetic_ecg(R))
    assert record["p_s"] == pytest.approx(4.6 * WAVES["p"][1], abs=0.04)
