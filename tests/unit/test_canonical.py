"""Records to corpus windows: rates, lengths, rounding, gates, hashes and waves."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from beatray.dsp.quality import Flag
from beatray.ingest.canonical import WindowFlag, quantise, rate_ratio, scale_samples, to_windows
from beatray.ingest.long_record import windows_of
from beatray.record import BLANK, INDEPENDENT_LEADS, Reason, Record, RecordError, Wave, content_hash


def tones(n_samples: int, rate_hz: float) -> NDArray[np.float64]:
    """Twelve leads of three tones of at most 30 Hz, in mV: known exactly at every instant."""
    time_s = np.arange(n_samples) / rate_hz
    parts = [(1.1, 0.8), (7.3, 0.5), (30.0, 0.2)]
    return np.array([sum(a * np.sin(2 * np.pi * f * time_s + lead) for f, a in parts) for lead in range(12)])


def record(signal_mv: NDArray[np.float64], rate_hz: float = 500.0, **fields: object) -> Record:
    return Record("test/r", "test", signal_mv, rate_hz, **fields)  # type: ignore[arg-type]


def reason_of(bad: Record) -> Reason:
    with pytest.raises(RecordError) as caught:
        to_windows(bad)
    return caught.value.reason


@pytest.mark.parametrize("rate_hz", [100.0, 240.0, 250.0, 257.0, 360.0, 400.0, 500.0, 999.56, 1000.0, 2000.0])
def test_rates_meet_the_true_signal(rate_hz: float) -> None:
    """Away from the ends the resampled tones are the tones themselves, to 0.3 % and the rounding."""
    (window,) = to_windows(record(tones(round(10 * rate_hz), rate_hz), rate_hz))
    expected = tones(5000, 500.0) * 1000.0
    error = np.abs(window.signal_uv[:, 250:-250] - expected[:, 250:-250]).max()
    assert error <= (0.51 if rate_hz == 500.0 else 4.0)
    assert window.n_samples == 5000
    assert bool(window.flags & WindowFlag.RESAMPLED) is (rate_hz != 500.0)


@pytest.mark.parametrize("rate_hz", [250.0, 360.0, 1000.0])
def test_a_constant_offset_makes_no_edge_artefact(rate_hz: float) -> None:
    signal = np.full((12, round(10 * rate_hz)), 5.0)
    signal[:, ::2] += 0.011
    (window,) = to_windows(record(signal, rate_hz))
    assert np.abs(window.signal_uv - 5005.5).max() <= 12.0


def test_filtering_removes_what_the_new_rate_cannot_hold() -> None:
    time_s = np.arange(10_000) / 1000.0
    signal = np.tile(np.sin(2 * np.pi * 400.0 * time_s), (12, 1))
    signal += np.sin(2 * np.pi * 2.0 * time_s)
    (window,) = to_windows(record(signal, 1000.0))
    expected = 1000.0 * np.sin(2 * np.pi * 2.0 * np.arange(5000) / 500.0)
    assert np.abs(window.signal_uv[:, 100:-100] - expected[100:-100]).max() < 5.0


@pytest.mark.parametrize(
    ("seconds", "lengths", "dropped"),
    [
        (5.0, [2500], False),
        (7.0, [3500], False),
        (10.0, [5000], False),
        (14.998, [5000], True),
        (15.0, [5000, 2500], False),
        (20.0, [5000, 5000], False),
        (24.0, [5000, 5000], True),
        (38.4, [5000, 5000, 5000, 4200], False),
    ],
)
def test_lengths(seconds: float, lengths: list[int], dropped: bool) -> None:
    signal = tones(round(500 * seconds), 500.0)
    windows = to_windows(record(signal))
    assert [window.n_samples for window in windows] == lengths
    ids = [f"test/r#{number}" for number in range(len(lengths))] if len(lengths) > 1 else ["test/r"]
    assert [window.record_id for window in windows] == ids
    assert bool(windows[-1].flags & WindowFlag.TAIL_DROPPED) is dropped
    assert not any(window.flags & WindowFlag.TAIL_DROPPED for window in windows[:-1])
    for number, window in enumerate(windows):
        assert window.signal_uv.shape == (12, 5000)
        assert window.signal_uv.dtype == np.int16
        part = signal[:, 5000 * number : 5000 * number + window.n_samples]
        np.testing.assert_array_equal(window.signal_uv[:, : window.n_samples], np.rint(part * 1000.0))
        assert not window.signal_uv[:, window.n_samples :].any()


@pytest.mark.parametrize(("n_samples", "rate_hz"), [(2499, 500.0), (1799, 360.0), (499, 100.0), (0, 500.0), (1, 500.0)])
def test_less_than_five_seconds(n_samples: int, rate_hz: float) -> None:
    assert reason_of(record(np.zeros((12, n_samples)), rate_hz)) is Reason.TOO_SHORT


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, 49.9, 10_001.0, float("nan"), float("inf"), 499.98765432])
def test_rates_that_are_refused(rate_hz: float) -> None:
    assert reason_of(record(tones(5000, 500.0), rate_hz)) is Reason.BAD_RATE


def test_rounding_is_half_to_even() -> None:
    uv, beyond = quantise(np.array([[0.0005, 0.0015, 0.0025, -0.0005, -0.0015, 0.0014999]]))
    np.testing.assert_array_equal(uv, [[0, 2, 2, 0, -2, 1]])
    assert beyond is None


def test_saturation_is_flagged_where_it_happens() -> None:
    signal = tones(10_000, 500.0)
    signal[3, 7000:7004] = 40.0
    signal[4, 7000:7004] = -40.0
    first, second = to_windows(record(signal))
    assert not first.flags & WindowFlag.SATURATED
    assert second.flags & WindowFlag.SATURATED
    assert second.signal_uv[3, 2000] == 32767
    assert second.signal_uv[4, 2000] == -32768


@pytest.mark.parametrize("rate_hz", [100.0, 250.0, 257.0, 360.0, 1000.0])
def test_clipping_is_seen_at_the_rate_of_the_recording(rate_hz: float) -> None:
    n = round(25 * rate_hz)
    wave = 0.8 * np.sin(2 * np.pi * 2.5 * np.arange(n) / rate_hz)  # rounded tops: 30 ms within 1 % of the highest
    signal_mv = np.tile(np.round(wave, 3), (12, 1))
    assert [window.flags & Flag.CLIPPED for window in to_windows(record(signal_mv, rate_hz))] == [0, 0, 0]
    second = slice(round(10 * rate_hz), round(20 * rate_hz))
    signal_mv[7, second] = signal_mv[7, second].clip(-0.6, 0.6)  # 90 ms at the highest
    found = [window.flags & Flag.CLIPPED for window in to_windows(record(signal_mv, rate_hz))]
    assert found == [0, Flag.CLIPPED, 0]
    gaps = np.zeros(signal_mv.shape, np.bool_)
    gaps[8, : round(rate_hz)] = True  # the second window is whole
    found = [window.flags & Flag.CLIPPED for window in windows_of(record(signal_mv, rate_hz, gaps=gaps))]
    assert found == [0, Flag.CLIPPED, 0]


def test_amplitude_gate_looks_past_single_spikes_and_offsets() -> None:
    signal = tones(5000, 500.0) + 25.0
    signal[0, :4] = 90.0
    assert len(to_windows(record(signal))) == 1
    assert reason_of(record(tones(5000, 500.0) * 40.0)) is Reason.AMPLITUDE
    one_lead = tones(5000, 500.0)
    one_lead[7] *= 40.0
    with pytest.raises(RecordError, match=r"lead V2 reaches \d+(\.\d+)? mV from its median") as refused:
        to_windows(record(one_lead))
    assert refused.value.reason is Reason.AMPLITUDE
    assert len(to_windows(record(one_lead, lead_mask=0xFFF & ~(1 << 7)))) == 1


def test_flat_gate() -> None:
    assert reason_of(record(tones(5000, 500.0) * 0.003)) is Reason.FLAT
    one_alive = tones(5000, 500.0) * 0.001
    one_alive[5] *= 1000.0
    assert len(to_windows(record(one_alive))) == 1


def test_flat_windows_of_a_longer_recording_are_left_out() -> None:
    signal = tones(22_000, 500.0)
    signal[:, 5000:10_000] = 0.0
    windows = to_windows(record(signal))
    assert [window.record_id for window in windows] == ["test/r#0", "test/r#2", "test/r#3"]
    assert [window.n_samples for window in windows] == [5000] * 3  # and a tail of 4 s
    assert all(window.flags & WindowFlag.PARTS_DROPPED for window in windows)
    assert [bool(window.flags & WindowFlag.TAIL_DROPPED) for window in windows] == [False, False, True]
    apart = np.repeat(np.arange(2.0), 5000)[None].repeat(12, axis=0)  # each half is flat, the whole is not
    assert reason_of(record(apart)) is Reason.FLAT
    assert content_hash(np.zeros((12, 5000), np.int16)) == BLANK


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(bad: float) -> None:
    signal = tones(5000, 500.0)
    signal[2, 100] = bad
    assert reason_of(record(signal)) is Reason.NOT_FINITE


def test_absent_leads_are_zero() -> None:
    signal = tones(5000, 500.0)
    signal[9] = np.nan
    (window,) = to_windows(record(signal, lead_mask=0b000011111111))
    assert not window.signal_uv[8:].any()
    assert window.signal_uv[:8].any(axis=1).all()


def test_no_lead_at_all() -> None:
    assert reason_of(record(tones(5000, 500.0), lead_mask=0)) is Reason.LEADS_MISSING


def test_hash_follows_the_independent_leads() -> None:
    signal = tones(5000, 500.0)
    (window,) = to_windows(record(signal))
    assert len(window.content_hash) == 16
    for lead in range(12):
        other = signal.copy()
        other[lead, 17] += 0.002
        (changed,) = to_windows(record(other))
        assert (changed.content_hash != window.content_hash) is (lead in INDEPENDENT_LEADS)
    tiny = signal + 1e-7
    np.copyto(tiny, np.rint(signal * 1000.0) / 1000.0 + 1e-7)
    (same,) = to_windows(record(tiny))
    assert same.content_hash == window.content_hash


def test_notes_become_flags() -> None:
    (window,) = to_windows(record(tones(5000, 500.0), notes=("gaps_interpolated", "leads_computed", "unit_spelling")))
    expected = WindowFlag.GAPS_INTERPOLATED | WindowFlag.LEADS_COMPUTED | WindowFlag.HEADER_IRREGULAR
    assert window.flags == expected


def test_waves_move_into_their_window() -> None:
    waves = (
        Wave(0, "P", 4990, 4995, 5003),  # its end lies in the next window
        Wave(1, "QRS", 4998, 5001, 5010),
        Wave(2, "T", None, 9000, None),
        Wave(3, "T", 9990, 10_100, 10_200),  # beyond the last window
        Wave(11, "P", 100, 110, 120),  # of a lead that is absent
    )
    first, second = to_windows(record(tones(11_000, 500.0), waves=waves, lead_mask=0x7FF))
    assert first.waves.tolist() == [(0, 0, 4990, 4995, -1)]
    assert second.waves.tolist() == [(1, 1, -1, 1, 10), (2, 2, -1, 4000, -1)]


def test_waves_scale_exactly() -> None:
    waves = (Wave(0, "QRS", 1, 3, 7), Wave(0, "T", None, 12_001, 12_003))
    first, second = to_windows(record(tones(20_000, 1000.0), 1000.0, waves=waves))
    assert first.waves.tolist() == [(0, 1, 0, 2, 4)]
    assert second.waves.tolist() == [(0, 2, -1, 1000, 1002)]


def test_scaling_is_half_to_even() -> None:
    samples = np.arange(0, 4000, dtype=np.int64)
    for rate_hz in (257.0, 360.0, 1000.0, 999.56):
        ratio = rate_ratio(rate_hz)
        assert scale_samples(samples, ratio).tolist() == [round(int(sample) * ratio) for sample in samples]
    assert rate_ratio(999.56) == Fraction(12_500, 24_989)
