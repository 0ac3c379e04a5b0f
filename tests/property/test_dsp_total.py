"""Whatever an array holds, the signal code answers: no exception, the same twice, and the same in any company."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beatray.dsp.analyse import analyse
from beatray.dsp.beats import beat_boxes, cut_beats
from beatray.dsp.clean import highpass
from beatray.dsp.delineate import FIELDS, find_waves
from beatray.dsp.features import measure
from beatray.dsp.peaks import find_r_peaks
from beatray.dsp.quality import assess

SPECIAL = (0.0, np.nan, np.inf, -np.inf, 1e30, -1e38, 1e-30, 5.0)
fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """(x_mv_blt, rate_hz, n_samples, lead_mask): beats, steps, noise, drift, holes and impossible values."""
    n_records = draw(st.integers(1, 4))
    n_time = draw(st.one_of(st.integers(1, 60), st.integers(100, 3000)))
    rate_hz = draw(st.sampled_from([100.0, 125.0, 180.0, 250.0, 257.0, 360.0, 500.0, 1000.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.zeros((n_records, 12, n_time), draw(st.sampled_from([np.float32, np.float64])))
    for k in range(n_records):
        kind = draw(st.sampled_from(["flat", "noise", "beats", "steps", "drift", "white"]))
        if kind == "noise":
            x[k] = rng.normal(0, 10.0 ** rng.integers(-4, 5), x[k].shape)
        elif kind == "beats":
            x[k, :, :: max(2, int(rate_hz * rng.uniform(0.1, 1.5)))] = rng.normal(0, 1, (12, 1))
        elif kind == "steps":
            x[k] = rng.choice([-5.0, 5.0], size=x[k].shape)
        elif kind == "drift":
            x[k] = np.cumsum(rng.normal(0, 0.1, x[k].shape), axis=-1) + 1e4
        elif kind == "white":
            x[k] = rng.integers(-3, 4, x[k].shape)
        for _ in range(draw(st.integers(0, 3))):
            lead = draw(st.integers(0, 11))
            start = draw(st.integers(0, n_time - 1))
            x[k, lead, start : start + draw(st.integers(1, n_time))] = draw(st.sampled_from(SPECIAL))
        if draw(st.booleans()) and draw(st.booleans()):
            x[k] = draw(st.sampled_from(SPECIAL))
    lengths = np.array([draw(st.one_of(st.just(n_time), st.integers(0, n_time))) for _ in range(n_records)])
    masks = np.array([draw(st.one_of(st.just(4095), st.integers(0, 4095))) for _ in range(n_records)])
    return x, rate_hz, lengths, masks


def _everything(
    x: np.ndarray, rate_hz: float, lengths: np.ndarray, masks: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    r = find_r_peaks(x, rate_hz, n_samples=lengths, lead_mask=masks)
    waves = find_waves(x, rate_hz, r, n_samples=lengths, lead_mask=masks)
    beats, records = measure(x, rate_hz, waves, n_samples=lengths, lead_mask=masks)
    flags, usable = assess(x, lengths, masks, r_peaks=r, waves=waves, rate_hz=rate_hz)
    return r, waves, beats, records, flags, usable


@given(batches())
@fast
def test_never_raises_never_warns_and_keeps_its_promises(
    batch: tuple[np.ndarray, float, np.ndarray, np.ndarray],
) -> None:
    x, rate_hz, lengths, masks = batch
    before = x.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r, waves, beats, records, flags, usable = _everything(x, rate_hz, lengths, masks)
        highpassed = highpass(x, rate_hz)
    np.testing.assert_array_equal(x, before)
    assert np.isfinite(highpassed).all()
    assert not np.isinf(records).any()
    assert (usable & ~masks == 0).all()
    assert (flags >= 0).all()
    for k in range(len(x)):
        assert (np.diff(r[k]) > 0).all()
        assert ((r[k] >= 0) & (r[k] < max(1, lengths[k]))).all()
        if len(r[k]) > 1:
            assert np.diff(r[k]).min() >= 0.12 * rate_hz - 4
        assert len(beats[k]) == len(waves[k]) == len(r[k])
        assert not np.isinf(beats[k]).any()
        for row in np.stack([waves[k][name] for name in FIELDS], axis=1):
            known = row[row >= 0]
            assert (np.diff(known) >= 0).all()
            assert known.max() < max(1, lengths[k])
        boxes = beat_boxes(r[k], rate_hz, int(lengths[k]))
        assert boxes.shape == (len(r[k]), 2)
    cut_beats(x, r, 0.2, 0.4, rate_hz, n_samples=lengths)


@given(batches())
@fast
def test_alone_equals_together_bit_for_bit(batch: tuple[np.ndarray, float, np.ndarray, np.ndarray]) -> None:
    x, rate_hz, lengths, masks = batch
    together = _everything(x, rate_hz, lengths, masks)
    again = _everything(x, rate_hz, lengths, masks)
    for k in range(len(x)):
        alone = _everything(x[k : k + 1], rate_hz, lengths[k : k + 1], masks[k : k + 1])
        for found, repeated, single in zip(together, again, alone, strict=True):
            assert found[k].tobytes() == single[0].tobytes() == repeated[k].tobytes()
    one_by_one = np.concatenate([highpass(x[k : k + 1], rate_hz) for k in range(len(x))])
    assert highpass(x, rate_hz).tobytes() == one_by_one.tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([1, 30, 3000, 32767]))
@settings(max_examples=20, deadline=None)
def test_any_int16_can_be_analysed(seed: int, n_records: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    signal = rng.integers(-largest, largest, (n_records, 12, 5000), dtype=np.int16)
    found = analyse(signal, rng.integers(0, 5001, n_records), rng.integers(0, 4096, n_records))
    assert len(found.r_peaks) == n_records


@given(st.lists(st.integers(0, 999), max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_waves_accept_any_increasing_peaks(peaks: list[int], seed: int) -> None:
    r = np.unique(np.array(peaks, np.int32))
    x = np.random.default_rng(seed).normal(0, 1, (1, 12, 1000)).astype(np.float32)
    (waves,) = find_waves(x, 250.0, [r])
    assert waves["r_peak"].tolist() == r.tolist()


@pytest.mark.parametrize("n_time", [0, 1, 2, 3, 5, 9, 17, 33])
def test_tiny_signals(n_time: int) -> None:
    x = np.random.default_rng(n_time).normal(size=(2, 12, n_time))
    r = find_r_peaks(x, 500)
    waves = find_waves(x, 500, r)
    beats, records = measure(x, 500, waves)
    assert len(beats) == len(records) == 2
    assess(x, [n_time, max(0, n_time - 1)], [4095, 1], r_peaks=r, waves=waves)
