from __future__ import annotations

import numpy as np
import pytest

from beatray.dsp.clean import decimate, highpass, hold_after, moving_sum, repair

RATE_HZ = 500


def _tone(frequency_hz: float, seconds: float = 20.0) -> np.ndarray:
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return np.sin(2 * np.pi * frequency_hz * t)[None, None].astype(np.float32)


@pytest.mark.parametrize("frequency_hz", [0.1, 0.25, 0.5, 1.0, 2.0, 10.0])
def test_gain_is_the_squared_butterworth_response(frequency_hz: float) -> None:
    x = _tone(frequency_hz)
    middle = slice(3 * RATE_HZ, 17 * RATE_HZ)
    y = highpass(x, RATE_HZ, 0.5)[0, 0, middle]
    gain = np.dot(y, x[0, 0, middle]) / np.dot(x[0, 0, middle], x[0, 0, middle])
    ratio = (frequency_hz / 0.5) ** 4
    assert gain == pytest.approx(ratio / (1 + ratio), abs=0.02)


def test_phase_is_zero() -> None:
    x = np.zeros((1, 1, 5000), np.float32)
    x[0, 0, 2500] = 1.0
    y = highpass(x, RATE_HZ)[0, 0]
    assert y.argmax() == 2500
    np.testing.assert_allclose(y[2500 - 400 : 2500], y[2501 : 2501 + 400][::-1], atol=1e-6)


def test_offset_and_slow_drift_disappear_to_the_edges() -> None:
    t = np.arange(5000) / RATE_HZ
    x = (3.0 + 0.5 * np.cos(2 * np.pi * 0.05 * t))[None, None]
    assert np.abs(highpass(x, RATE_HZ)).max() < 0.05


def test_notch_takes_hum_and_leaves_the_rest() -> None:
    middle = slice(RATE_HZ, -RATE_HZ)
    assert np.abs(highpass(_tone(50.0), RATE_HZ, notch_hz=50)[0, 0, middle]).max() < 0.02
    np.testing.assert_allclose(
        highpass(_tone(15.0), RATE_HZ, notch_hz=50)[0, 0, middle], _tone(15.0)[0, 0, middle], atol=0.02
    )


def test_invalid_samples_are_bridged_before_filtering() -> None:
    x = _tone(5.0)
    broken = x.copy()
    broken[0, 0, 3000:3004] = np.nan
    broken[0, 0, 6000] = np.inf
    y = highpass(broken, RATE_HZ)
    assert np.isfinite(y).all()
    assert np.abs(y - highpass(x, RATE_HZ)).max() < 0.3
    assert np.isnan(broken[0, 0, 3000])  # the caller's array is left alone


@pytest.mark.parametrize("n_time", [0, 1, 2, 7])
def test_tiny_signals(n_time: int) -> None:
    assert highpass(np.ones((2, 12, n_time)), RATE_HZ).shape == (2, 12, n_time)


@pytest.mark.parametrize("arguments", [{"cutoff_hz": 0.0}, {"cutoff_hz": 300.0}, {"notch_hz": 250.0}])
def test_impossible_frequencies_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        highpass(np.zeros((1, 1, 100)), RATE_HZ, **arguments)


def test_decimate_is_the_mean_of_the_named_leads() -> None:
    x = np.random.default_rng(0).normal(size=(3, 12, 101))
    leads = (0, 1, 6, 9, 10)
    expected = x[:, leads, :100].reshape(3, 5, 25, 4).mean(axis=-1)
    np.testing.assert_allclose(decimate(x, 4, leads), expected, atol=1e-6)


def test_repair_marks_leads_that_are_mostly_invalid() -> None:
    x = np.ones((1, 3, 100), np.float32)
    x[0, 1, 20:24] = np.nan
    x[0, 2, :60] = np.inf
    x[0, 0, 50:] = [*range(50)]
    bad = repair(x)
    assert bad.tolist() == [[False, False, True]]
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[0, 1], 1.0)


def test_repair_judges_the_valid_part_only() -> None:
    x = np.ones((1, 1, 100), np.float32)
    x[0, 0, :30] = np.nan
    assert not repair(x.copy())[0, 0]
    assert repair(x.copy(), np.array([40]))[0, 0]


@pytest.mark.parametrize("half", [0, 1, 2, 5, 9, 10])
@pytest.mark.parametrize("axis", [1, 2])
def test_moving_sum_equals_convolution(half: int, axis: int) -> None:
    x = np.random.default_rng(1).normal(size=(2, 40, 30)).astype(np.float32)
    window = np.ones(2 * half + 1)
    expected = np.apply_along_axis(lambda v: np.convolve(v, window, mode="same"), axis, x)
    np.testing.assert_allclose(moving_sum(x, half, axis), expected, atol=1e-4)


def test_hold_after_repeats_the_last_valid_sample() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 1, 6)
    hold_after(x, np.array([3, 6]))
    assert x[0, 0].tolist() == [0, 1, 2, 2, 2, 2]
    assert x[1, 0].tolist() == [6, 7, 8, 9, 10, 11]
