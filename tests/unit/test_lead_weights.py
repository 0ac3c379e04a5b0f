from __future__ import annotations

import numpy as np
import pytest
from synthetic_ecg import RATE_HZ, synthetic_ecg

from beatray.dsp.delineate import find_waves
from beatray.dsp.lead_weights import ALL_ALIKE, block_width, lead_weights, noise_shares, weigh
from beatray.dsp.p_and_t import Beats, weigh_by_repetition
from beatray.dsp.peaks import find_r_peaks

RATE_LOW_HZ = 125.0
R = np.arange(450, 4700, 430).astype(np.int32)


def _beats(n: int = 1250, every: int = 100) -> np.ndarray:
    slope = np.full(n, 0.05, np.float32)
    for start in range(40, n, every):
        slope[start : start + 10] = 5
    return slope


def _noise(n: int = 1250, seed: int = 0) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(0, 1, n)).astype(np.float32)


def _weights(*leads: np.ndarray) -> np.ndarray:
    slope = np.stack(leads)[None]
    n = slope.shape[-1]
    return lead_weights(slope, block_width(n, RATE_LOW_HZ), np.array([n]))[0]


def test_clean_leads_all_count_in_full() -> None:
    assert (_weights(_beats(), 7 * _beats(), _beats()) == 1).all()


def test_noise_beside_beats_counts_next_to_nothing() -> None:
    beats, noise = _weights(_beats(), _noise())
    assert (beats == 1).all()
    assert noise.max() < 2 * ALL_ALIKE


def test_leads_that_are_noisy_alike_count_alike() -> None:
    weights = _weights(*(_noise(seed=seed) for seed in range(8)))
    assert weights.min() > 0.2


def test_noise_for_a_while_is_remembered_for_8_s_and_no_longer() -> None:
    n = round(60 * RATE_LOW_HZ)
    noisy = _beats(n)
    noisy[: n // 6] = _noise(n // 6)
    _, weights = _weights(_beats(n), noisy)
    seconds = np.arange(len(weights)) * 60 / len(weights)
    assert weights[seconds < 17].max() < 0.1
    assert weights[seconds > 20].min() == 1


def test_a_lead_at_rest_does_not_count_in_either_direction() -> None:
    rests = _beats()
    rests[:400] = 0
    beats, weights = _weights(_beats(), rests)
    assert (beats == 1).all()
    assert weights[0] < 0.1
    assert (weights[2:] == 1).all()


def test_energy_is_weighed_to_the_last_sample() -> None:
    energy = np.ones((1, 2, 1253), np.float32)
    weights = np.array([[[1] * 6, [0.5, 1, 1, 1, 1, 0.25]]], np.float32)
    weigh(energy, weights, block_width(1253, RATE_LOW_HZ))
    assert (energy[0, 0] == 1).all()
    assert energy[0, 1, 0] == 0.5
    assert energy[0, 1, -1] == energy[0, 1, -200] == 0.25


def test_noise_shares() -> None:
    usual = np.full((2, 8), 3.0, np.float32)
    assert noise_shares(usual, 2.0) is None
    usual[0, 5] = 3 * 2 * 8 * 10  # ten times what is allowed
    shares = noise_shares(usual, 2.0)
    assert shares is not None
    assert (shares[1] == 1).all()
    assert shares[0].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.1, 1, 1])
    two = noise_shares(np.array([[0, 1, 0, 40]], np.float32), 2.0)  # of two leads that move the better one is usual
    assert two is not None
    assert two[0].tolist() == pytest.approx([1, 1, 1, 0.1])
    none = noise_shares(np.zeros((1, 2), np.float32), 2.0)
    assert none is not None
    assert (none == 1).all()


@pytest.mark.parametrize(("noise_mv", "least", "most"), [(0.002, 1.0, 1.0), (0.05, 0.001, 0.2)])
def test_what_repeats_next_to_what_does_not(noise_mv: float, least: float, most: float) -> None:
    """Two leads of ten beats, the first the same in each: steps of a converter are no noise beside it."""
    n_beats, every = 10, 100
    slow = np.tile(np.sin(np.arange(every, dtype=np.float32) / 7)[:, None], (n_beats, 2))[None]
    slow[0, :, 1] += np.random.default_rng(0).normal(0, noise_mv, n_beats * every)
    before = slow.copy()
    r = np.arange(n_beats) * every + 60
    ends = np.eye(n_beats, dtype=bool)
    beats = Beats(np.zeros(n_beats, np.int64), ends[0], ends[-1], r)
    weigh_by_repetition(slow, RATE_LOW_HZ, beats, r - 5)
    np.testing.assert_array_equal(slow[..., 0], before[..., 0])
    share = slow[0, 0, 1] / before[0, 0, 1]
    assert least <= share <= most
    np.testing.assert_allclose(slow[..., 1], share * before[..., 1], rtol=1e-5)


@pytest.mark.parametrize("position", [0, 1])
def test_two_leads_of_which_one_is_noise(position: int) -> None:
    clean = synthetic_ecg(R)[0, 1]
    noise = np.random.default_rng(4).normal(0, 1, clean.shape).astype(np.float32)
    noise[2000:2600] *= 3
    pair = np.stack([noise, clean] if position == 0 else [clean, noise])[None]
    (found,) = find_r_peaks(pair, RATE_HZ)
    np.testing.assert_array_equal(found, R)
    together, alone = find_waves(pair, RATE_HZ, [R])[0], find_waves(clean[None, None], RATE_HZ, [R])[0]
    for name in ("p_peak", "qrs_onset", "qrs_offset", "t_peak"):
        assert (together[name] >= 0).all(), name
        assert np.abs(together[name] - alone[name]).max() <= 12, name  # 24 ms


@pytest.mark.parametrize("seconds", [2.6, 5.0, 7.0, 9.9])
def test_what_stands_behind_a_recording_changes_nothing(seconds: float) -> None:
    """Noisy recordings of two leads alone, and with padding to 10 s: the same beats and the same waves."""
    n = round(seconds * RATE_HZ)
    draw = np.random.default_rng(round(10 * seconds))
    both = np.repeat(synthetic_ecg(R)[:, :2], 20, axis=0)
    noise = draw.normal(0, 1, both.shape) * draw.uniform(0.02, 0.4, (20, 2, 1))
    x = (both + noise).astype(np.float32)
    padded = x.copy()
    padded[..., n:] = 0
    alone = find_r_peaks(x[..., :n], RATE_HZ)
    beside = find_r_peaks(padded, RATE_HZ, n_samples=np.full(20, n))
    assert [a.tolist() for a in alone] == [b.tolist() for b in beside]
    waves, others = find_waves(x[..., :n], RATE_HZ, alone), find_waves(padded, RATE_HZ, alone, n_samples=np.full(20, n))
    for one, other in zip(waves, others, strict=True):
        assert np.array_equal(one[:-1], other[:-1])  # the last T wave may lie at the end
