"""Recordings of many windows in which leads fail for a while: which windows they cost."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from beatray.ingest.canonical import WindowFlag, rate_ratio, to_windows
from beatray.ingest.formats.wfdb_record import read_twelve_leads
from beatray.ingest.long_record import windows_of
from beatray.ingest.pieces import PIECE_SAMPLES, pieces, resample
from beatray.ingest.plan import IngestSettings, plan, recipe_of
from beatray.ingest.sources.registry import Item
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, WAVE_KINDS, WINDOW_SAMPLES, Reason, Record, RecordError, Wave
from wfdb_files import ecg_counts, write_record

SECONDS = 44


def record(rate_hz: float = 500.0, **fields: object) -> Record:
    counts = ecg_counts(round(SECONDS * rate_hz), rate_hz)
    return Record("test/r", "test", counts.T / 1000.0, rate_hz, **fields)  # type: ignore[arg-type]


def gaps_of(good: Record, *cuts: tuple[int, float, float]) -> Record:
    gaps = np.zeros(good.signal_mv.shape, bool)
    for lead, start_s, stop_s in cuts:
        gaps[lead, round(start_s * good.rate_hz) : round(stop_s * good.rate_hz)] = True
    return replace(good, gaps=gaps)


@pytest.mark.parametrize("rate_hz", [257.0, 500.0, 1000.0])
def test_without_gaps_it_is_what_to_windows_gives(rate_hz: float) -> None:
    good = record(rate_hz, frank_mv=ecg_counts(round(SECONDS * rate_hz), rate_hz).T[:3] / 500.0)
    found, plain = windows_of(gaps_of(good)), to_windows(good)
    assert [w.record_id for w in found] == [f"test/r#{number}" for number in range(4)]
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one.signal_uv, other.signal_uv)
        np.testing.assert_array_equal(one.frank_uv, other.frank_uv)
        assert (one.record_id, one.flags, one.n_samples, one.lead_mask, one.content_hash) == (
            *(other.record_id, other.flags, other.n_samples, other.lead_mask),
            other.content_hash,
        )


@pytest.mark.parametrize("rate_hz", [257.0, 360.01, 500.0, 1000.0])
def test_pieces_put_together_are_the_whole_to_the_bit(rate_hz: float) -> None:
    ratio = rate_ratio(rate_hz)
    signal = np.random.default_rng(1).normal(0, 1, (2, round(6 * 60 * rate_hz) + 137)).cumsum(axis=1)
    starts, parts = zip(*pieces(signal, ratio), strict=True)
    assert len(parts) >= 2
    assert all(start % WINDOW_SAMPLES == 0 for start in starts)
    assert np.array_equal(np.concatenate(parts, axis=1), resample(signal, ratio))


def test_what_stands_on_both_sides_of_a_seam_is_what_the_whole_recording_has() -> None:
    """11 minutes at 257 Hz, nowhere the same, are three pieces and half a second that is in no window."""
    rate_hz, n_windows, seam = 257.0, 66, PIECE_SAMPLES
    ratio, rng = rate_ratio(rate_hz), np.random.default_rng(3)
    signal_mv, frank_mv = (rng.normal(0, 0.3, (leads, 660 * 257 + 137)) for leads in (12, 3))
    peaks = [100, *(round(seam / ratio) + k for k in (-30, -1, 0, 1, 30)), 100_000, 660 * 257 + 2]
    waves = [Wave(lead, "QRS", peak - 20, peak, peak + 20) for lead, peak in enumerate(peaks)]
    long = Record("test/r", "test", signal_mv, rate_hz, waves=tuple(waves), frank_mv=frank_mv)
    whole_uv, whole_frank = (np.rint(resample(mv, ratio) * 1000.0).astype(np.int16) for mv in (signal_mv, frank_mv))
    gapped = windows_of(gaps_of(long, (8, 401.0, 402.0)))  # V3, in window 40, of the second piece
    for windows, lost in ((to_windows(long), None), (gapped, 40)):
        assert [w.record_id for w in windows] == [f"test/r#{number}" for number in range(n_windows)]
        for number, window in enumerate(windows):
            start, stop = number * WINDOW_SAMPLES, (number + 1) * WINDOW_SAMPLES
            expected = whole_uv[:, start:stop].copy()
            if number == lost:
                expected[8] = 0
            assert window.lead_mask == (0xFFF & ~(1 << 8) if number == lost else 0xFFF)
            np.testing.assert_array_equal(window.signal_uv, expected)
            np.testing.assert_array_equal(window.frank_uv, whole_frank[:, start:stop])
            found = [tuple(wave) for wave in window.waves.tolist()]
            assert found == ([] if lost else [w for w in map(on_the_grid(ratio, start), waves) if w[3] >= 0])


def on_the_grid(ratio: Fraction, start: int) -> Callable[[Wave], tuple[int, ...]]:
    """A wave as lead, kind, onset, peak and offset from `start` on, -1 for what lies in another window."""

    def at(sample: int | None) -> int:
        position = round((sample or 0) * ratio) - start
        return position if 0 <= position < WINDOW_SAMPLES else -1

    return lambda wave: (wave.lead, WAVE_KINDS.index(wave.kind), at(wave.onset), at(wave.peak), at(wave.offset))


@pytest.mark.parametrize("gaps", [False, True])
def test_hours_take_hardly_more_memory_than_what_is_read_and_what_is_kept(gaps: bool) -> None:
    minutes, rate_hz = 25, 250.0
    signal_mv = np.tile(ecg_counts(round(60 * rate_hz), rate_hz).T / 1000.0, minutes)
    long = Record("test/r", "test", signal_mv, rate_hz, gaps=np.zeros(signal_mv.shape, bool) if gaps else None)
    tracemalloc.start()
    windows = windows_of(long)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(window.signal_uv.nbytes for window in windows)
    assert kept == minutes * 6 * 12 * 5000 * 2
    assert peak < kept + 6 * 12 * PIECE_SAMPLES * 8  # a single copy of the whole at 500 Hz is 5 of these


@pytest.mark.parametrize("rate_hz", [257.0, 500.0])
def test_a_gap_costs_its_windows_one_lead(rate_hz: float) -> None:
    windows = windows_of(gaps_of(record(rate_hz), (7, 19.9, 20.1)))
    assert [w.lead_mask >> 7 & 1 for w in windows] == [1, 0, 0, 1]
    assert [bool(w.flags & WindowFlag.LEADS_DROPPED) for w in windows] == [False, True, True, False]
    assert not any(w.flags & WindowFlag.PARTS_DROPPED for w in windows)
    assert not windows[1].signal_uv[7].any()
    assert bool(windows[-1].flags & WindowFlag.TAIL_DROPPED)


def test_a_limb_lead_is_computed_again() -> None:
    windows = windows_of(gaps_of(record(), (3, 11.0, 12.0)))
    assert [w.lead_mask for w in windows] == [0xFFF] * 4
    assert [bool(w.flags & WindowFlag.LEADS_COMPUTED) for w in windows] == [False, True, False, False]
    np.testing.assert_allclose(
        windows[1].signal_uv[3], -(windows[1].signal_uv[0] + windows[1].signal_uv[1]) / 2, atol=1
    )


def test_windows_that_are_of_no_use_are_left_out_and_told() -> None:
    bad = gaps_of(record(), (0, 0.0, 1.0), *((lead, 25.0, 26.0) for lead in range(6, 12)))
    windows = windows_of(bad)
    assert [w.record_id for w in windows] == ["test/r#1", "test/r#3"]
    assert all(w.flags & WindowFlag.PARTS_DROPPED for w in windows)


def test_voltages_are_judged_window_by_window() -> None:
    loud = record()
    loud.signal_mv[9, 10_000:15_000] *= 60.0
    with pytest.raises(RecordError):
        to_windows(loud)
    assert [w.record_id for w in windows_of(gaps_of(loud))] == ["test/r#0", "test/r#1", "test/r#3"]


def test_none_left_raises_the_first_reason() -> None:
    with pytest.raises(RecordError) as caught:
        windows_of(gaps_of(record(), (1, 0.0, SECONDS)))
    assert caught.value.reason is Reason.NOT_FINITE


def test_reading_a_file_with_an_amplifier_at_its_limit(tmp_path: Path) -> None:
    """V3 at the limit of 16 bits for 4 s, V4 throughout, aVR marked invalid for 1 s: as in published Holter files."""
    adc = ecg_counts(round(SECONDS * 257), 257.0)
    adc[257 * 12 : 257 * 16, 8] = 32767
    adc[:, 9] = -32767
    adc[257 * 35 : 257 * 36, 3] = -32768
    adc[100:102, 0] = -32768
    write_record(tmp_path, "r", adc, rate="257")
    tree = open_tree(str(tmp_path))
    with pytest.raises(RecordError):  # the recording as one: both stretches are beyond any heart
        leads = read_twelve_leads(tree, "r.hea")
        to_windows(Record("t/r", "t", leads.signal_mv, leads.rate_hz, leads.lead_mask))
    leads = read_twelve_leads(tree, "r.hea", by_window=True)
    assert leads.gaps is not None
    assert leads.gaps.any(axis=1).nonzero()[0].tolist() == [3, 8, 9]
    assert "gaps_interpolated" in leads.notes
    whole = Record("t/r", "t", leads.signal_mv, leads.rate_hz, leads.lead_mask, notes=leads.notes, gaps=leads.gaps)
    windows = windows_of(whole)
    absent = [[LEADS[lead] for lead in range(12) if not w.lead_mask >> lead & 1] for w in windows]
    assert absent == [["V4"], ["V3", "V4"], ["V4"], ["V4"]]
    assert all(np.abs(w.signal_uv).max() < 5000 for w in windows)


def test_a_short_recording_is_read_as_before(tmp_path: Path) -> None:
    adc = ecg_counts(5000)
    adc[1000:1100, 7] = -32768
    write_record(tmp_path, "r", adc)
    tree = open_tree(str(tmp_path))
    one, other = read_twelve_leads(tree, "r.hea"), read_twelve_leads(tree, "r.hea", by_window=True)
    assert other.gaps is None
    assert (one.lead_mask, one.notes) == (other.lead_mask, other.notes)


def test_slices_are_cut_by_expected_rows() -> None:
    settings = IngestSettings({"wfdb": "/nowhere"}, "/nowhere/out", items_per_shard=10)
    rows = [1, 1, 1, 9, 1, 25, 2, 2, 2, 2, 2, 2]
    items = [Item(f"r{number}", f"r{number}.hea", rows=count) for number, count in enumerate(rows)]
    slices = list(plan(settings, recipe_of(settings), {("wfdb", "/nowhere"): (items, ())}, set()))
    assert [[item.rows for item in part.items] for part in slices] == [[1, 1, 1], [9, 1], [25], [2, 2, 2, 2, 2], [2]]
    assert [item for part in slices for item in part.items] == items
    assert [part.name.split("-")[1] for part in slices] == [f"{number:05d}" for number in range(5)]
