from __future__ import annotations

import numpy as np
import pytest
from synthetic_ecg import RATE_HZ, WAVES, synthetic_ecg

from beatray.dsp.delineate import BEAT_WAVES, FIELDS, find_waves
from beatray.dsp.peaks import find_r_peaks

R = np.arange(450, 4700, 430).astype(np.int32)


def _late_ms(waves: np.ndarray, name: str, expected_s: float) -> np.ndarray:
    return (waves[name] - waves["r_peak"]) * 1000 / RATE_HZ - 1000 * expected_s


def test_positions_on_a_signal_with_known_waves() -> None:
    waves = find_waves(synthetic_ecg(R), RATE_HZ, [R])[0]
    assert waves.dtype == BEAT_WAVES
    assert waves["r_peak"].tolist() == R.tolist()
    assert np.abs(_late_ms(waves, "p_peak", WAVES["p"][0])).max() <= 10
    assert np.abs(_late_ms(waves, "t_peak", WAVES["t"][0])).max() <= 10
    # a Gaussian wave is over after about 2.5 widths; annotators and algorithms agree to a few 10 ms
    for name, side in (("onset", -1), ("offset", 1)):
        for kind in ("p", "t"):
            centre, width, _ = WAVES[kind]
            assert np.abs(_late_ms(waves, f"{kind}_{name}", centre + side * 2.3 * width)).max() <= 30
    assert np.abs(_late_ms(waves, "qrs_onset", -0.025 - 2.5 * 0.008)).max() <= 12
    assert np.abs(_late_ms(waves, "qrs_offset", 0.028 + 2.5 * 0.009)).max() <= 12


def test_missing_p_wave_is_reported_missing() -> None:
    rng = np.random.default_rng(3)
    signal = synthetic_ecg(R, without="p")
    signal += rng.normal(0, 0.02, signal.shape).astype(np.float32)
    waves = find_waves(signal, RATE_HZ, [R])[0]
    assert (waves["p_peak"] < 0).mean() > 0.8
    assert ((waves["p_onset"] < 0) == (waves["p_peak"] < 0)).all()
    assert (waves["t_peak"] >= 0).all()


def test_the_tail_of_a_t_wave_before_a_paced_beat_is_no_p_wave() -> None:
    """Spike, wide QRS, a T wave whose tail runs into the next beat; nothing else, and the same in every beat."""
    t = np.arange(5000) / RATE_HZ
    lead = np.zeros(5000)
    for r in R / RATE_HZ:
        lead += 1.5 * (np.abs(t - r + 0.06) < 0.002)  # the spike of the pacemaker
        lead -= 2.0 * np.exp(-0.5 * ((t - r) / 0.03) ** 2)
        after = np.maximum(t - r - 0.3, 0)
        lead += 0.8 * np.where(t > r + 0.3, np.exp(-after / 0.15), np.exp(-0.5 * ((t - r - 0.3) / 0.06) ** 2)) * (t > r)
    signal = (np.linspace(0.5, 1.2, 12)[:, None] * lead)[None]
    signal += np.random.default_rng(2).normal(0, 0.004, signal.shape)
    waves = find_waves(signal.astype(np.float32), RATE_HZ, [R])[0]
    assert (waves["p_peak"] < 0).all()


@pytest.mark.parametrize("clip_mv", [None, 0.9])
def test_wide_and_clipped_qrs_is_bounded_at_its_two_ends(clip_mv: float | None) -> None:
    """160 ms: a fast upstroke, 50 ms of rest at the top, and a downstroke of less than half its speed."""
    t = np.arange(5000) / RATE_HZ
    corners_s, level = (-0.05, -0.02, 0.03, 0.11), (0, 1, 1, 0)
    lead = sum(np.interp(t - r / RATE_HZ, corners_s, level) for r in R)
    if clip_mv is not None:
        lead = np.minimum(lead, clip_mv)
    signal = (np.linspace(0.5, 1.2, 12)[:, None] * lead)[None].astype(np.float32)
    waves = find_waves(signal, RATE_HZ, [R])[0]
    assert np.abs(_late_ms(waves, "qrs_onset", corners_s[0])).max() <= 16
    assert np.abs(_late_ms(waves, "qrs_offset", corners_s[-1])).max() <= 24


def test_lead_option_reads_p_and_t_in_that_lead() -> None:
    signal = synthetic_ecg(R)
    later = np.roll(synthetic_ecg(R, without="pqrs")[0, 1], 20)
    signal[0, 1] = synthetic_ecg(R, without="t")[0, 1] + later  # only lead II has its T wave 40 ms later
    shared = find_waves(signal, RATE_HZ, [R])[0]
    alone = find_waves(signal, RATE_HZ, [R], lead=1)[0]
    assert np.abs(np.median(_late_ms(alone, "t_peak", WAVES["t"][0])) - 40) <= 8
    assert np.abs(np.median(_late_ms(shared, "t_peak", WAVES["t"][0]))) <= 20
    np.testing.assert_array_equal(alone["qrs_onset"], shared["qrs_onset"])


def test_order_holds_at_any_rate() -> None:
    for rate_hz in (100, 128, 250, 257, 360, 500, 1000):
        r = (R * rate_hz / RATE_HZ).astype(np.int32)
        waves = find_waves(synthetic_ecg(r, 10 * rate_hz, rate_hz), rate_hz, [r])[0]
        assert (waves["p_peak"] >= 0).mean() > 0.9, rate_hz
        assert (waves["t_peak"] >= 0).mean() > 0.8, rate_hz
        table = np.stack([waves[name] for name in FIELDS], axis=1)
        for row in table:
            assert (np.diff(row[row >= 0]) >= 0).all()


def test_padding_is_not_read() -> None:
    signal = synthetic_ecg(R)
    short = signal.copy()
    short[..., 3000:] = 0
    r = R[R < 3000]
    padded = find_waves(short, RATE_HZ, [r], n_samples=3000)[0]
    assert max(padded[name].max() for name in FIELDS) < 3000
    np.testing.assert_array_equal(padded[:-1], find_waves(signal, RATE_HZ, [R])[0][: len(r) - 1])


def test_masked_lead_does_not_matter() -> None:
    signal = synthetic_ecg(R)
    spoilt = signal.copy()
    spoilt[0, 7] = np.random.default_rng(0).normal(0, 2, signal.shape[-1])
    mask = 4095 & ~(1 << 7)
    np.testing.assert_array_equal(
        find_waves(spoilt, RATE_HZ, [R], lead_mask=mask)[0], find_waves(signal, RATE_HZ, [R], lead_mask=mask)[0]
    )


def test_no_beats_and_flat_signal() -> None:
    assert find_waves(synthetic_ecg(R), RATE_HZ, [np.array([], np.int32)])[0].shape == (0,)
    flat = find_waves(np.zeros((1, 12, 5000)), RATE_HZ, [R])[0]
    assert flat["r_peak"].tolist() == R.tolist()
    assert all((flat[name] == -1).all() for name in FIELDS if name != "r_peak")


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="batch, lead, time"):
        find_waves(np.zeros((12, 5000)), RATE_HZ, [R])
    with pytest.raises(ValueError, match="lists of R-peaks"):
        find_waves(np.zeros((2, 12, 5000)), RATE_HZ, [R])


def test_detector_finds_the_synthetic_beats() -> None:
    (found,) = find_r_peaks(synthetic_ecg(R), RATE_HZ)
    np.testing.assert_array_equal(found, R)
