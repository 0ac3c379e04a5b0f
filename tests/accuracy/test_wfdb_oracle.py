"""The own WFDB reader against the `wfdb` package on every real record at hand: the same counts, to the last bit."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wfdb

from beatray.ingest.canonical import rate_ratio, to_windows
from beatray.ingest.formats.wfdb_annotation import parse_annotations
from beatray.ingest.formats.wfdb_record import read_counts, read_twelve_leads
from beatray.ingest.formats.wfdb_signal import to_physical
from beatray.ingest.pieces import resample
from beatray.ingest.sources import cinc, ludb, ptbxl, wfdb_folder
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, Reason, Record, RecordError
from wfdb_files import ecg_counts, header_text, pack


def compare_with_wfdb(folder: Path) -> int:
    """Read every record below `folder` with both readers; returns how many were compared."""
    tree = open_tree(str(folder))
    compared = 0
    for path in tree.names():
        if not path.endswith(".hea"):
            continue
        header, signals = read_counts(tree, path)
        stem = str(folder / path.removesuffix(".hea"))
        digital = wfdb.rdrecord(stem, physical=False)
        np.testing.assert_array_equal(signals.adc, digital.d_signal, err_msg=path)
        assert header.rate_hz == digital.fs
        assert [line.name for line in header.signals] == digital.sig_name
        gain = np.array([line.gain for line in header.signals], np.float64)
        physical = to_physical(signals.adc, gain, np.array([line.baseline for line in header.signals], np.float64))
        if signals.invalid is not None:
            physical[signals.invalid.T] = np.nan
        np.testing.assert_array_equal(physical.T, wfdb.rdrecord(stem).p_signal, err_msg=path)
        compared += 1
    return compared


def test_ludb_counts_and_voltages_equal_wfdb(ludb_dir: Path) -> None:
    assert compare_with_wfdb(ludb_dir) == 200


def test_ptbxl_counts_and_voltages_equal_wfdb(ptbxl_dir: Path) -> None:
    assert compare_with_wfdb(ptbxl_dir) == 434


def test_ptbxl_at_100_hz_equals_wfdb(ptbxl_100hz_dir: Path) -> None:
    assert compare_with_wfdb(ptbxl_100hz_dir) == 434


def compare_windows_with_wfdb(folder: Path) -> int:
    """Every window of every 12-lead record below `folder` against wfdb's voltages, resampled where they are not at
    500 Hz: never more than half a microvolt off, which is the rounding. Returns how many records were compared."""
    tree = open_tree(str(folder))
    compared = 0
    for path in tree.names():
        if not path.endswith(".hea"):
            continue
        leads = read_twelve_leads(tree, path)
        theirs = wfdb.rdrecord(str(folder / path.removesuffix(".hea")))
        columns = {name.lower(): column for column, name in enumerate(theirs.sig_name)}
        volts = theirs.p_signal.T[[columns[lead.lower()] for lead in LEADS]]
        expected = resample(volts, rate_ratio(theirs.fs)) * 1000.0
        windows = to_windows(Record("a/a", "a", leads.signal_mv, leads.rate_hz, leads.lead_mask))
        assert leads.lead_mask == 0xFFF
        start = 0
        for window in windows:
            part = expected[:, start : start + window.n_samples]
            assert np.abs(window.signal_uv[:, : window.n_samples] - part).max() <= 0.5 + 1e-6, path
            start += window.n_samples
        assert expected.shape[1] - start < 2500
        compared += 1
    return compared


def test_windows_of_ludb_and_ptbxl_keep_wfdbs_voltages(ludb_dir: Path, ptbxl_dir: Path, ptbxl_100hz_dir: Path) -> None:
    assert compare_windows_with_wfdb(ludb_dir) == 200
    assert compare_windows_with_wfdb(ptbxl_dir) == 434
    assert compare_windows_with_wfdb(ptbxl_100hz_dir) == 434


@pytest.mark.parametrize(("folder", "count"), [("cinc2021_samples", 10), ("ptbdb", 1)])
def test_windows_of_other_sets_keep_wfdbs_voltages(data_dir: Path, folder: str, count: int) -> None:
    assert compare_windows_with_wfdb(data_dir / "misc" / folder) == count


def test_mitdb_counts_and_voltages_equal_wfdb(mitdb_dir: Path) -> None:
    assert compare_with_wfdb(mitdb_dir) == 3


@pytest.mark.parametrize(("folder", "count"), [("cinc2021_samples", 10), ("ptbdb", 1), ("qtdb", 1)])
def test_other_sets_equal_wfdb(data_dir: Path, folder: str, count: int) -> None:
    assert compare_with_wfdb(data_dir / "misc" / folder) == count


def test_flac_formats_equal_wfdb(data_dir: Path) -> None:
    """Formats 508, 516 and 524 in one record, through the fallback."""
    folder = data_dir / "misc" / "wfdb_formats"
    header, signals = read_counts(open_tree(str(folder)), "flacformats.hea")
    assert [line.fmt for line in header.signals] == [508, 516, 524]
    np.testing.assert_array_equal(signals.adc, wfdb.rdrecord(str(folder / "flacformats"), physical=False).d_signal)


@pytest.mark.parametrize("path", ["041s/041s.hea", "041s/041s01.hea", "mixedsignals.hea"])
def test_several_segments_or_rates_are_refused(data_dir: Path, path: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_counts(open_tree(str(data_dir / "misc" / "wfdb_formats")), path)
    assert caught.value.reason is Reason.FORMAT


def test_what_becomes_of_each_format_sample(data_dir: Path) -> None:
    """FLAC is read, but these three signals are no leads; several segments or rates are refused as such."""
    tree = open_tree(str(data_dir / "misc" / "wfdb_formats"))
    reasons: dict[str, Reason] = {}
    for item in wfdb_folder.find(tree):
        with pytest.raises(RecordError) as caught:
            list(wfdb_folder.read(tree, item))
        reasons[item.name] = caught.value.reason
    assert reasons == {
        **dict.fromkeys(("041s/041s", "041s/041s01", "041s/041s02", "mixedsignals"), Reason.FORMAT),
        "flacformats": Reason.LEADS_MISSING,
    }


@pytest.mark.parametrize(("fmt", "subtype", "shift"), [(508, "PCM_S8", 8), (516, "PCM_16", 0), (524, "PCM_24", 0)])
def test_twelve_leads_in_flac(tmp_path: Path, fmt: int, subtype: str, shift: int) -> None:
    """FLAC holds at most eight channels, so twelve leads lie in two files; written here by libsndfile."""
    import soundfile

    adc = ecg_counts(3000) >> shift if shift else ecg_counts(3000)
    wide = {8: 24, 16: 16, 24: 8}[fmt - 500]
    scaled = (adc.astype(np.int32) << wide).astype(np.int32)
    for number, columns in enumerate((slice(0, 8), slice(8, 12))):
        soundfile.write(tmp_path / f"r.d{number}", scaled[:, columns], 500, subtype, format="FLAC")
    rows = header_text("r", adc, storage=str(fmt)).splitlines()
    for line in range(1, 13):
        rows[line] = rows[line].replace("r.dat", f"r.d{0 if line <= 8 else 1}", 1)
    (tmp_path / "r.hea").write_text("\n".join(rows) + "\n")
    tree = open_tree(str(tmp_path))
    (record,) = list(wfdb_folder.read(tree, wfdb_folder.find(tree)[0]))
    np.testing.assert_array_equal(record.signal_mv, adc.T / 1000.0)


@pytest.mark.parametrize("fmt", [8, 16, 24, 32, 61, 80, 160, 212, 310, 311])
@pytest.mark.parametrize("n_samples", [999, 1000])
def test_every_storage_format_equals_wfdb(tmp_path: Path, fmt: int, n_samples: int) -> None:
    """All uncompressed formats, with odd and even sample counts, against what was written and against wfdb."""
    adc = ecg_counts(n_samples)[:, :3] // 16  # fits 8 bits and 8-bit steps
    data = pack(adc, fmt)
    (tmp_path / "r.dat").write_bytes(data)
    (tmp_path / "r.hea").write_text(header_text("r", adc, storage=str(fmt), leads=("I", "II", "V1")))
    _, signals = read_counts(open_tree(str(tmp_path)), "r.hea")
    np.testing.assert_array_equal(signals.adc, adc)
    np.testing.assert_array_equal(signals.adc, wfdb.rdrecord(str(tmp_path / "r"), physical=False).d_signal)


def test_skew_equals_wfdb(tmp_path: Path) -> None:
    adc = ecg_counts(600)[:, :2]
    text = header_text("r", adc, leads=("I", "II")).splitlines()
    text[2] = text[2].replace(" 16 ", " 16:7 ", 1)
    (tmp_path / "r.hea").write_text("\n".join(text))
    (tmp_path / "r.dat").write_bytes(pack(adc, 16))
    _, signals = read_counts(open_tree(str(tmp_path)), "r.hea")
    assert signals.invalid is not None
    assert signals.invalid.sum() == 7
    expected = wfdb.rdrecord(str(tmp_path / "r"), ignore_skew=False).p_signal
    read = signals.adc / 1000.0
    read[signals.invalid] = np.nan
    np.testing.assert_array_equal(read[:593], expected[:593])
    np.testing.assert_array_equal(read[:, 0], expected[:, 0])


def compare_annotations(folder: Path, extensions: tuple[str, ...]) -> int:
    """Every annotation file of the given kinds against `wfdb.rdann`; returns how many were compared."""
    compared = 0
    for path in sorted(folder.iterdir()):
        extension = path.suffix[1:]
        if extension not in extensions:
            continue
        read = parse_annotations(path.read_bytes())
        theirs = wfdb.rdann(str(path.with_suffix("")), extension)
        np.testing.assert_array_equal(read.samples, theirs.sample, err_msg=str(path))
        assert list(read.symbols) == list(theirs.symbol), path
        assert list(read.subtypes) == list(theirs.subtype), path
        assert list(read.channels) == list(theirs.chan), path
        assert list(read.numbers) == list(theirs.num), path
        assert list(read.texts) == list(theirs.aux_note), path
        compared += 1
    return compared


def test_ludb_annotations_equal_wfdb(ludb_dir: Path) -> None:
    leads = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")
    assert compare_annotations(ludb_dir / "data", leads) == 2400


def test_other_annotations_equal_wfdb(data_dir: Path, mitdb_dir: Path) -> None:
    assert compare_annotations(mitdb_dir, ("atr",)) == 3
    assert compare_annotations(data_dir / "misc" / "qtdb", ("atr", "pu1")) == 2


def test_ludb_holds_the_published_waves(ludb_dir: Path) -> None:
    """Peaks of the published files: 16,797 P, 21,965 QRS, 19,661 T; every bound lies on its side of the peak.

    The README of the release says 21,966 QRS and 19,666 T. One QRS is explained: record 8, lead V5, has one with an
    onset (sample 1066) and an end (1138) but no peak, so it is no wave for whoever goes by peaks, as `wfdb` and this
    reader do. The other five T waves are nowhere in the files: there are 58,423 peaks and 58,423 ends, and no bracket
    without a peak but that one; what became of them is not known.
    """
    tree = open_tree(str(ludb_dir))
    kinds: Counter[str] = Counter()
    for item in ludb.find(tree):
        for record in ludb.read(tree, item):
            for wave in record.waves:
                kinds[wave.kind] += 1
                assert wave.peak is not None
                assert wave.onset is None or wave.onset <= wave.peak
                assert wave.offset is None or wave.offset >= wave.peak
    assert kinds == {"P": 16797, "QRS": 21965, "T": 19661}

    marks: Counter[str] = Counter()
    without_peak: list[tuple[str, int, int]] = []
    for path in sorted((ludb_dir / "data").iterdir()):
        if path.suffix in (".hea", ".dat"):
            continue
        found = parse_annotations(path.read_bytes())
        marks.update(found.symbols)
        text, at = "".join(found.symbols), found.samples.tolist()
        # A peak that lies a sample or two outside its own brackets is written before or behind them: N() and ()N.
        for match in re.finditer(r"\(\)", text):
            near = [k for k in (match.start() - 1, match.end()) if 0 <= k < len(text) and text[k] in "pNt"]
            reach = [min(abs(at[k] - at[match.start()]), abs(at[k] - at[match.end() - 1])) for k in near]
            if not any(distance <= 3 for distance in reach):
                without_peak.append((path.name, at[match.start()], at[match.end() - 1]))
    assert without_peak == [("8.v5", 1066, 1138)]
    assert marks == {"p": 16797, "N": 21965, "t": 19661, "(": 58321, ")": 58423}
    assert marks["p"] + marks["N"] + marks["t"] == marks[")"] == 58423


def test_one_ecg_from_two_data_sets_has_one_hash(data_dir: Path, ptbxl_dir: Path) -> None:
    """PTB-XL recordings that the Challenge published again as MATLAB matrices, under other headers."""
    tree = open_tree(str(ptbxl_dir))
    read = {item.name: item for item in ptbxl.find(tree)}
    hashes = {name: to_windows(_only(ptbxl.read(tree, read[name])))[0].content_hash for name in ("00001", "00002")}
    challenge = open_tree(str(data_dir / "misc" / "bad_headers"))
    items = {item.name: item for item in cinc.find(challenge)}
    second = _only(cinc.read(challenge, items["HR00002"]))
    assert to_windows(second)[0].content_hash == hashes["00002"]
    assert second.notes == ("unit_spelling", "ptbxl_overlap")


def test_wild_header_faults(data_dir: Path, tmp_path: Path) -> None:
    """What happens to four headers of an early Challenge release. No gain is guessed.

    A gain that is wrong by five cannot be distinguished from a small or a large heart by its size alone, so those two
    are read as they claim; a gain that is wrong by two thousand leaves no signal.
    """
    folder = data_dir / "misc" / "bad_headers"
    tree = open_tree(str(folder))
    items = {item.name: item for item in cinc.find(tree)}
    named_mat = _only(cinc.read(tree, items["E00001"]))
    assert "record_name_with_suffix" in named_mat.notes
    assert len(to_windows(named_mat)) == 1
    assert len(to_windows(_only(cinc.read(tree, items["HR00001"])))) == 1

    (tmp_path / "S0001.hea").write_bytes((folder / "S0001.hea").read_bytes())
    (tmp_path / "S0001.mat").write_bytes((data_dir / "misc" / "cinc2021_samples" / "S0001.mat").read_bytes())
    tiny_tree = open_tree(str(tmp_path))
    with pytest.raises(RecordError) as caught:
        to_windows(_only(cinc.read(tiny_tree, cinc.find(tiny_tree)[0])))
    assert caught.value.reason is Reason.FLAT


def test_windows_are_within_half_a_microvolt(ludb_dir: Path) -> None:
    """LUDB gains are odd numbers per lead, so every sample is rounded: never by more than 0.5 uV."""
    tree = open_tree(str(ludb_dir))
    worst = 0.0
    for item in ludb.find(tree):
        record = _only(ludb.read(tree, item))
        (window,) = to_windows(record)
        worst = max(worst, float(np.abs(window.signal_uv - record.signal_mv * 1000.0).max()))
    assert 0.49 < worst <= 0.5 + 1e-9


def test_ptb_record_at_1000_hz_keeps_its_shape(data_dir: Path) -> None:
    """Against a band-limited (Fourier) resampling of the same 38.4 s, below 100 Hz and away from the ends."""
    tree = open_tree(str(data_dir / "misc" / "ptbdb"))
    record = _only(wfdb_folder.read(tree, wfdb_folder.find(tree)[0]))
    assert record.rate_hz == 1000.0
    windows = to_windows(record)
    assert [window.record_id for window in windows] == [f"wfdb/s0010_re#{number}" for number in range(4)]
    assert [window.n_samples for window in windows] == [5000, 5000, 5000, 4200]
    read = np.concatenate([window.signal_uv[:, : window.n_samples] for window in windows], axis=1) / 1000.0
    expected = np.fft.irfft(np.fft.rfft(record.signal_mv)[:, :9601], n=19200) / 2.0
    difference = np.fft.rfft((read - expected)[:, 500:-500] * np.hanning(18200))
    band = np.fft.rfftfreq(18200, 1 / 500) < 100.0
    power = np.fft.rfft(expected[:, 500:-500] * np.hanning(18200))
    ratio = np.linalg.norm(difference[:, band], axis=1) / np.linalg.norm(power[:, band], axis=1)
    assert float(ratio.max()) < 0.005


def _only(records: object) -> Record:
    (record,) = list(records)  # type: ignore[call-overload]
    return record
