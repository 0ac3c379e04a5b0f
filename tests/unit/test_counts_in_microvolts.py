"""Files whose counts are microvolts: the row is the file's integers, and the same as by way of millivolts."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beatray.corpus.id_key import IdKey
from beatray.ingest.canonical import quantise, to_windows
from beatray.ingest.folder_tree import FolderTree
from beatray.ingest.formats.wfdb_record import TwelveLeads, read_twelve_leads
from beatray.ingest.patients import protect
from beatray.ingest.sources import wfdb_folder
from beatray.ingest.sources.item import Item
from beatray.record import MADE_LATER, Record, RecordError
from wfdb_files import ecg_counts, write_record


def read(folder: Path, adc: np.ndarray, **fields: object) -> TwelveLeads:
    write_record(folder, "r", adc, **fields)
    return read_twelve_leads(FolderTree(str(folder)), "r.hea")


def test_every_count_is_its_own_microvolts() -> None:
    counts = np.arange(-32768, 32768)[None].astype(np.float64)
    there_and_back, beyond = quantise(counts / 1000.0)
    assert beyond is None
    np.testing.assert_array_equal(there_and_back, counts)


@pytest.mark.parametrize("n_samples", [2500, 4999, 5000, 12_700])
def test_rows_are_the_same_either_way(tmp_path: Path, n_samples: int) -> None:
    write_record(tmp_path, "r", ecg_counts(n_samples), gain=1000)
    (record,) = wfdb_folder.read(FolderTree(str(tmp_path)), Item("r", "r.hea", {}))
    assert record.signal_uv is not None
    np.testing.assert_array_equal(record.signal_uv, quantise(record.signal_mv)[0])
    direct, through_mv = to_windows(record), to_windows(replace(record, signal_uv=None))
    assert len(direct) == len(through_mv) > 0
    for one, other in zip(direct, through_mv, strict=True):
        np.testing.assert_array_equal(one.signal_uv, other.signal_uv)
        assert (one.content_hash, one.flags, one.n_samples) == (other.content_hash, other.flags, other.n_samples)


@pytest.mark.parametrize("peak", [0, 9, 10, 11])
def test_refusals_are_the_same_either_way(tmp_path: Path, peak: int) -> None:
    """A span of 10 uV is the least that is no flat line, also where 0.110 - 0.100 is a little less than 0.010."""
    adc = np.full((5000, 12), 100, np.int64)
    adc[100:200] += peak
    adc[300, 0] += 1  # not constant, which reading would refuse by itself
    write_record(tmp_path, "r", adc, gain=1000)
    (record,) = wfdb_folder.read(FolderTree(str(tmp_path)), Item("r", "r.hea", {}))
    outcomes = []
    for one in (record, replace(record, signal_uv=None)):
        try:
            outcomes.append(to_windows(one)[0].content_hash)
        except RecordError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_other_files_go_by_way_of_millivolts(tmp_path: Path) -> None:
    whole = ecg_counts(5000)
    assert read(tmp_path, whole, gain=1000).signal_uv is not None
    assert read(tmp_path, whole // 2, gain=500).signal_uv is None
    gap = whole.copy()
    gap[700:705, 3] = -32768
    assert read(tmp_path, gap, gain=1000).signal_uv is None
    long = ecg_counts(10_000)
    long[700:720, 3] = 32767  # at the limit of the converter: interpolated where windows are judged one by one
    write_record(tmp_path, "r", long, gain=1000)
    assert read_twelve_leads(FolderTree(str(tmp_path)), "r.hea", by_window=True).signal_uv is None


def whole_microvolts(folder: Path) -> Record:
    write_record(folder, "r", ecg_counts(5000), gain=1000)
    (record,) = wfdb_folder.read(FolderTree(str(folder)), Item("r", "r.hea", {}))
    return record


def test_ingest_makes_no_millivolts_of_them(tmp_path: Path) -> None:
    record, _ = protect(replace_patient(whole_microvolts(tmp_path)), IdKey(b"0123456789abcdef-secret"))
    assert record.patient_id is not None and record.n_samples == 5000
    to_windows(record)
    assert record.given_mv is MADE_LATER


def replace_patient(record: Record) -> Record:
    return replace(record, signal_mv=record.given_mv, patient_id=f"{record.source}/7")


def test_millivolts_are_made_for_who_asks(tmp_path: Path) -> None:
    record = whole_microvolts(tmp_path)
    again = pickle.loads(pickle.dumps(record))
    assert record.signal_uv is not None
    np.testing.assert_array_equal(record.signal_mv, record.signal_uv / 1000.0)
    assert record.signal_mv.dtype == np.float64 and record.signal_mv.flags.c_contiguous
    assert record.signal_mv is record.signal_mv and record.given_mv is record.signal_mv
    np.testing.assert_array_equal(again.signal_mv, record.signal_mv)


def test_without_microvolts_there_is_nothing_to_make_them_of() -> None:
    record = Record("x", "x", MADE_LATER, 500.0)
    with pytest.raises(AttributeError, match="signal_mv"):
        record.signal_mv  # noqa: B018
    assert not hasattr(record, "something_else")


def test_a_recording_in_whole_microvolts_that_is_constant_is_refused(tmp_path: Path) -> None:
    adc = np.full((5000, 12), 40, np.int64)
    with pytest.raises(RecordError, match="constant"):
        read(tmp_path, adc, gain=1000)
    adc[4999, 11] += 1
    assert read(tmp_path, adc, gain=1000).signal_uv is not None
