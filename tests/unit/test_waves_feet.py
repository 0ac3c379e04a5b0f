"""What was made faster in wave finding says what its definition, in plain loops, says."""

from __future__ import annotations

import numpy as np
import pytest

from beatray.dsp.delineate import BEAT_WAVES, FIELDS, joined
from beatray.dsp.p_and_t import BEATS_AT_ONCE, _from_chord, _trapezium
from beatray.dsp.quality import SWAP_P_MV, SWAP_QRS_MV, SWAP_V6_MV, Flag, assess


def foot_by_definition(curve: np.ndarray, peak: int, reference: int, side: int) -> int:
    """The foot of one wave, sample by sample over the whole curve; of equals the first."""
    between = [t for t in range(len(curve)) if (t - peak) * side >= 0 and (reference - t) * side >= 0]
    ends = (0, len(curve) - 1)
    slope = {t: np.float32(0) if t in ends else (curve[t + 1] - curve[t - 1]) * np.float32(side) for t in between}
    m = min(between, key=lambda t: slope[t])
    beyond = [t for t in between if (t - m) * side >= 0]
    return max(beyond, key=lambda t: np.float64(curve[m] - curve[t]) * ((2 * reference - m - t) * side))


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("whole_numbers", [False, True])  # whole numbers give many equals
def test_foot_of_a_wave(side: int, whole_numbers: bool) -> None:
    rng = np.random.default_rng(2 + side)
    curve = rng.normal(size=(300, 41)).astype(np.float32)
    if whole_numbers:
        curve = np.round(curve)
    peak = rng.integers(0, 41, 300)
    reference = np.clip(peak + side * rng.integers(0, 17, 300), 0, 40)
    expected = [foot_by_definition(*each, side) for each in zip(curve, peak.tolist(), reference.tolist(), strict=True)]
    assert _trapezium(curve, peak, reference, side).tolist() == expected


def test_away_from_the_chord_does_not_depend_on_the_other_beats() -> None:
    rng = np.random.default_rng(0)
    window = rng.normal(size=(BEATS_AT_ONCE + 5, 30, 8)).astype(np.float32)
    low, high = rng.integers(0, 15, len(window)), rng.integers(15, 30, len(window))
    together = _from_chord(window, low, high)
    for k in range(len(window)):
        np.testing.assert_array_equal(together[k], _from_chord(window[k : k + 1], low[k : k + 1], high[k : k + 1])[0])
        np.testing.assert_allclose(together[k, [low[k], high[k]]], 0, atol=1e-6)


def test_beats_joined_in_one_row() -> None:
    rng = np.random.default_rng(0)
    pieces = [np.zeros(n, BEAT_WAVES) for n in (3, 0, 1, 5)]
    for piece in pieces:
        for name in FIELDS:
            piece[name] = rng.integers(-1, 5000, len(piece))
    row = joined([pieces[0], pieces[1], pieces[2], pieces[3][::-1]])
    assert row.dtype == BEAT_WAVES and len(row) == 9
    np.testing.assert_array_equal(row, np.concatenate([*pieces[:3], pieces[3][::-1]]))


def swapped_by_definition(x_lt: np.ndarray, beats: np.ndarray, mask: int) -> bool:
    full = [beat for beat in beats if beat["p_peak"] >= 0 and beat["qrs_onset"] >= 0]
    if not mask & 1 or not mask >> 6 & 1 or 2 * len(full) < len(beats) or len(full) < 3:
        return False

    def middle(lead: int, first: str, peak: str) -> float:
        return float(np.sort([x_lt[lead, beat[peak]] - x_lt[lead, beat[first]] for beat in full])[len(full) // 2])

    return (
        middle(0, "p_onset", "p_peak") < SWAP_P_MV
        and middle(0, "qrs_onset", "r_peak") < SWAP_QRS_MV
        and middle(11, "qrs_onset", "r_peak") > SWAP_V6_MV
    )


def test_swapped_arms_by_the_upper_median() -> None:
    rng = np.random.default_rng(0)
    n_records = 400
    x = rng.normal(scale=0.2, size=(n_records, 12, 600)).astype(np.float32)
    waves = []
    bounds = {"p_onset": (0, 50), "p_peak": (50, 90), "qrs_onset": (100, 150), "r_peak": (150, 600)}
    for k in range(n_records):
        beats = np.zeros(int(rng.integers(0, 9)), BEAT_WAVES)
        for name, (bottom, top) in bounds.items():
            beats[name] = rng.integers(bottom, top, len(beats))
        beats["p_peak"][rng.random(len(beats)) < 0.2] = -1
        x[k, 0, 50:90] -= 0.1
        x[k, 0, 150:] -= 0.1
        x[k, 11, 150:] += 0.2
        waves.append(beats)
    masks = np.where(rng.random(n_records) < 0.1, 4095 & ~1, 4095)
    flags, _ = assess(x, 600, masks, waves=waves)
    expected = [
        swapped_by_definition(signal, beats, int(mask)) for signal, beats, mask in zip(x, waves, masks, strict=True)
    ]
    assert ((flags & Flag.LIMB_SWAP_SUSPECT) != 0).tolist() == expected
    assert 50 < sum(expected) < n_records - 50
