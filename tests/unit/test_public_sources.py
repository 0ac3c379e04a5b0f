"""MIMIC-IV-ECG, CODE-15%, PTB, INCART, ZZU pECG and CPSC 2018, on real recordings where there are any.

Real: the PTB record, the CPSC struct and the ten CODE-15% recordings of the data folder. MIMIC-IV-ECG, INCART and ZZU
pECG are small copies that are written here after the published descriptions of their tables and headers.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from array_files import code15_part, mat
from beatray.dsp.analyse import AnalysisSettings
from beatray.ingest.canonical import to_windows
from beatray.ingest.long_record import windows_of
from beatray.ingest.plan import IngestSettings, Slice, list_items, plan, recipe_of, stamp_of
from beatray.ingest.sources import cinc, code15, cpsc, incart, mimic, ptb, zzu
from beatray.ingest.sources.item import Item
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import Tree, open_tree
from beatray.record import LEADS, MEASURED, Reason, Record, RecordError
from source_copies import INCART_TABLE, code15_copy, incart_copy, mimic_copy, tracing, zzu_copy
from wfdb_files import ecg_counts, header_text, write_record


def only(source: Any, tree: Tree, item: Item) -> Record:
    (record,) = list(source.read(tree, item))
    return record  # type: ignore[no-any-return]


def reason_of(source: Any, tree: Tree, item: Item) -> Reason:
    with pytest.raises(RecordError) as caught:
        list(source.read(tree, item))
    return caught.value.reason


# ---------------------------------------------------------------------------------------------------------- MIMIC


def test_mimic_by_name_not_by_position(tmp_path: Path) -> None:
    tree = mimic_copy(tmp_path)
    items = mimic.find(tree)
    assert [item.name for item in items] == ["40000017", "41420867", "42745010"]
    record = only(mimic, tree, items[1])
    assert (record.record_id, record.patient_id) == ("mimic/41420867", "mimic/10001725")
    assert (record.age, record.sex, record.labels, record.fold) == (None, None, (), None)
    np.testing.assert_array_equal(record.signal_mv, ecg_counts(seed=41420867 % 97).T / 1000.0)
    assert record.measured == {
        "rate_bpm": 75.0,
        "p_ms": 110.0,
        "pr_ms": 150.0,
        "qrs_ms": 90.0,
        "qt_ms": 390.0,
        "p_axis_deg": 55.0,
        "qrs_axis_deg": -12.0,
        "t_axis_deg": 40.0,
    }
    assert set(record.measured) <= set(MEASURED)
    assert only(mimic, tree, items[0]).measured == {"qrs_ms": 90.0, "t_axis_deg": 40.0}
    assert only(mimic, tree, items[2]).measured == {}
    assert len({only(mimic, tree, item).patient_id for item in items}) == 2


def test_mimic_rows_that_are_refused_by_name(tmp_path: Path) -> None:
    tree = mimic_copy(tmp_path)
    with (tmp_path / "record_list.csv").open("a") as table:
        table.write(
            "10001725,41420867,41420867,,files/x\nx,5,5,,files/y\n10001725,7,7,,../../etc/passwd\n1,8,8,,files/z\n"
        )
    items = mimic.find(tree)
    reasons = {
        item.name: reason_of(mimic, tree, item) for item in items if item.name in ("7", "8") or "row" in item.name
    }
    assert reasons == {
        "7": Reason.UNSAFE_PATH,
        "8": Reason.MISSING_FILE,
        "row-4": Reason.METADATA,
        "row-5": Reason.METADATA,
    }


def test_mimic_without_measurements(tmp_path: Path) -> None:
    tree = mimic_copy(tmp_path)
    (tmp_path / "machine_measurements.csv").unlink()
    tree = open_tree(str(tmp_path))
    assert all(only(mimic, tree, item).measured == {} for item in mimic.find(tree))


# ------------------------------------------------------------------------------------------------------------ PTB


def test_ptb_real_record(data_dir: Path, tmp_path: Path) -> None:
    """The published record in its published folder: Frank leads, age, sex and the reason for admission, no more."""
    folder = tmp_path / "patient001"
    folder.mkdir()
    for path in (data_dir / "misc" / "ptbdb").glob("s0010_re.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    tree = open_tree(str(tmp_path))
    (item,) = ptb.find(tree)
    record = only(ptb, tree, item)
    assert (record.record_id, record.patient_id, record.rate_hz) == ("ptb/s0010_re", "ptb/patient001", 1000.0)
    assert (record.age, record.sex, record.labels) == (81.0, "F", ("Myocardial infarction",))
    assert record.frank_mv is not None
    assert record.frank_mv.shape == (3, 38400)
    raw = np.frombuffer((folder / "s0010_re.xyz").read_bytes(), "<i2").reshape(-1, 3)
    np.testing.assert_array_equal(record.frank_mv, raw.T / 2000.0)
    windows = windows_of(record)
    assert [w.record_id for w in windows] == [f"ptb/s0010_re#{number}" for number in range(4)]
    assert all(w.frank_uv is not None and w.frank_uv.any() for w in windows)
    kept = repr(record)
    for private in ("1990", "Sep", "Diabetes", "RIVA", "Gamma"):
        assert private not in kept
    flat = open_tree(str(data_dir / "misc" / "ptbdb"))
    assert only(ptb, flat, ptb.find(flat)[0]).patient_id is None


def test_ptb_names_in_two_folders_are_not_lost(tmp_path: Path) -> None:
    for patient in ("patient001", "patient002"):
        (tmp_path / patient).mkdir()
        text = "# age: n/a\n# sex: male\n# Reason for admission: n/a\n"
        write_record(tmp_path / patient, "s0001_re", ecg_counts(), comments=text)
    tree = open_tree(str(tmp_path))
    first, second = ptb.find(tree)
    assert (only(ptb, tree, first).labels, only(ptb, tree, first).age) == ((), None)
    assert first.name != second.name
    assert reason_of(ptb, tree, second) is Reason.METADATA


# --------------------------------------------------------------------------------------------------------- INCART


@pytest.mark.parametrize("table", [INCART_TABLE, None])
def test_incart_patients_and_windows(tmp_path: Path, table: str | None) -> None:
    tree = incart_copy(tmp_path, table=table)
    items = incart.find(tree)
    records = [only(incart, tree, item) for item in items]
    assert [record.patient_id for record in records] == ["incart/1", "incart/1", "incart/2"]
    first = records[0]
    assert (first.record_id, first.age, first.sex, first.rate_hz) == ("incart/I01", 65.0, "F", 257.0)
    assert first.labels == ("Coronary artery disease", "arterial hypertension")
    assert records[2].labels == ()
    assert "noise" not in repr(first)
    assert [w.record_id for w in windows_of(first)] == ["incart/I01#0", "incart/I01#1", "incart/I01#2"]
    assert {item.rows for item in items} == {180}


def test_incart_table_and_header_must_agree(tmp_path: Path) -> None:
    tree = incart_copy(tmp_path, table="patient 1\nI01\npatient 2\nI02 I03\n")
    first, second, third = incart.find(tree)
    assert only(incart, tree, first).patient_id == "incart/1"
    assert reason_of(incart, tree, second) is Reason.METADATA
    assert only(incart, tree, third).patient_id == "incart/2"
    (tmp_path / incart.TABLE).write_text("patient 1\nI01\npatient 2\nI01\n")
    with pytest.raises(RecordError, match="patients 1 and 2"):
        incart.find(open_tree(str(tmp_path)))


def test_incart_half_hour_becomes_180_windows(tmp_path: Path) -> None:
    """The published length, 462,600 samples; one lead at the converter's limit throughout, as in published records."""
    adc = np.tile(ecg_counts(257 * 10, 257.0), (180, 1))
    adc[:, 8] = 32767
    (tmp_path / "I03.hea").write_text(header_text("I03", adc, rate="257", gain="1040", comments="# patient 2\n"))
    (tmp_path / "I03.dat").write_bytes(adc.astype("<i2").tobytes())
    tree = open_tree(str(tmp_path))
    windows = windows_of(only(incart, tree, incart.find(tree)[0]))
    assert len(windows) == 180
    assert {w.lead_mask for w in windows} == {0xFFF & ~(1 << 8)}


# ------------------------------------------------------------------------------------------------------------ ZZU


@pytest.mark.parametrize("prefix", ["Child_ecg/", ""])
def test_zzu_twelve_and_nine_leads(tmp_path: Path, prefix: str) -> None:
    tree = zzu_copy(tmp_path, prefix)
    twelve, nine = (only(zzu, tree, item) for item in zzu.find(tree))
    assert (twelve.record_id, twelve.patient_id, twelve.sex) == ("zzu/P00001_E01", "zzu/P00001", "F")
    assert twelve.age == pytest.approx(572 / 365)
    assert twelve.labels == ("aha:C21", "icd10:Q21.0")
    assert nine.labels == ("aha:D31", "aha:Left ventricular high voltage", "icd10:D31", "icd10:(F) I40.0")
    assert [LEADS[k] for k in range(12) if not nine.lead_mask >> k & 1] == ["V2", "V4", "V6"]
    assert nine.age == pytest.approx(11.0)
    (window,) = to_windows(nine)
    assert window.n_samples == 2500
    assert not window.signal_uv[[7, 9, 11]].any()
    assert "2017" not in repr(twelve)


# ----------------------------------------------------------------------------------------------------------- CPSC


def test_cpsc_real_struct_and_labels(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "misc/cpsc2018_original_mat/A1980.mat"
    (tmp_path / "TrainingSet1").mkdir()
    (tmp_path / "TrainingSet1/A1980.mat").write_bytes(path.read_bytes())
    (tmp_path / "REFERENCE.csv").write_text("Recording,First_label,Second_label,Third_label\nA1980,5,2,\n")
    tree = open_tree(str(tmp_path))
    (item,) = cpsc.find(tree)
    record = only(cpsc, tree, item)
    assert (record.record_id, record.age, record.sex, record.labels) == ("cpsc/A1980", 52.0, "M", ("RBBB", "AF"))
    assert record.patient_id is None
    one, two, three = record.signal_mv[:3]
    assert np.abs(one + three - two).max() < 0.005  # the published doubles keep Einthoven's relation
    assert len(to_windows(record)) == 1


def test_cpsc_tables_and_files_that_are_refused(data_dir: Path, tmp_path: Path) -> None:
    good = (data_dir / "misc/cpsc2018_original_mat/A1980.mat").read_bytes()
    files = {
        **dict.fromkeys(("A1", "A2", "A3"), good),
        "A4": mat(ECG={"data": np.zeros((12, 100), "<i2")}),
        "A5": mat(ecg=np.eye(3)),
        "A6": (data_dir / "misc/cinc2021_samples/A0001.mat").read_bytes(),
    }
    for name, data in files.items():
        (tmp_path / f"{name}.mat").write_bytes(data)
    (tmp_path / "REFERENCE.csv").write_text(
        "Recording,First_label,Second_label,Third_label\nA1,5,,\nA1,4,,\nA2,12,,\nA3,NaN,nan,\nA4,1,,\nA5,1,,\nA6,1.0,,\n"
    )
    tree = open_tree(str(tmp_path))
    reasons = {item.name: reason_of(cpsc, tree, item) for item in cpsc.find(tree)}
    assert reasons == {
        **dict.fromkeys(("A1", "A2", "A3"), Reason.METADATA),
        **dict.fromkeys(("A4", "A5", "A6"), Reason.FORMAT),
    }
    (tmp_path / "REFERENCE.csv").unlink()
    unlabelled = open_tree(str(tmp_path))
    assert only(cpsc, unlabelled, cpsc.find(unlabelled)[0]).labels == ()


# -------------------------------------------------------------------------------------------------------- CODE-15%


@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": "gzip"}])
def test_code15_rows_labels_and_padding(tmp_path: Path, options: dict[str, Any]) -> None:
    tree = code15_copy(tmp_path, **options)
    items = code15.find(tree)
    assert [item.name for item in items] == ["101", "57", "3000000", "9"]  # by part and row, filler rows left out
    records = {item.name: only(code15, tree, item) for item in items}
    assert {name: record.signal_mv.shape[1] for name, record in records.items()} == {
        "101": 2934,
        "57": 4096,
        "3000000": 4000,
        "9": 2800,
    }
    for name, record in records.items():
        expected = np.float32(tracing(record.signal_mv.shape[1], int(name) % 89)).T
        np.testing.assert_array_equal(record.signal_mv, expected)
    first = records["101"]
    assert (first.record_id, first.patient_id, first.rate_hz) == ("code15/101", "code15/12", 400.0)
    assert (first.labels, first.age, first.sex) == (("RBBB", "LBBB"), 54.0, "M")
    assert (records["57"].labels, records["9"].labels) == (("normal_ecg",), ("SB",))
    assert records["57"].patient_id == records["9"].patient_id == "code15/7"
    assert [len(to_windows(record)) for record in records.values()] == [1, 1, 1, 1]


def test_code15_from_a_stored_zip_and_from_a_packed_one(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    tree = code15_copy(tmp_path / "set")
    expected = [only(code15, tree, item).signal_mv for item in code15.find(tree)]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / f"{method}.zip", "w", method) as packed:
            for path in (tmp_path / "set").iterdir():
                packed.write(path, f"code-15/{path.name}")
        other = open_tree(str(tmp_path / f"{method}.zip"))
        for item, values in zip(code15.find(other), expected, strict=True):
            np.testing.assert_array_equal(only(code15, other, item).signal_mv, values)


def test_code15_missing_parts_and_contradictions_are_told(tmp_path: Path) -> None:
    tree = code15_copy(tmp_path)
    with (tmp_path / "exams.csv").open("a") as table:
        table.write("77,50,True,1,,,,,,,5,,,False,exams_part2.hdf5\n")  # in no part
        table.write("78,50,True,1,,,,,,,5,,,False,exams_part3.hdf5\n")  # its part is not there
        table.write("79,50,True,1,,,,,,,5,,,False,exams_part3.hdf5\n")
        table.write("9,50,True,1,,,,,,,5,,,False,exams_part10.hdf5\n")  # a second time
        table.write("80,50,True,1,,,,,,,5,,,False,../exams_part2.hdf5\n")
    code15_part(tmp_path / "exams_part4.hdf5", [200], [tracing(4000, 1)])
    with (tmp_path / "exams.csv").open("a") as table:
        table.write("201,50,True,1,,,,,,,5,,,False,exams_part4.hdf5\n")
    tree = open_tree(str(tmp_path))
    items = code15.find(tree)
    reasons = {item.name: reason_of(code15, tree, item) for item in items if "refused" in item.meta}
    assert reasons == {
        "77": Reason.METADATA,
        "exams_part3.hdf5": Reason.MISSING_FILE,
        "9 (2)": Reason.METADATA,
        "row-9": Reason.METADATA,
        "exams_part4.hdf5-row-0": Reason.METADATA,
        "201": Reason.METADATA,
    }
    (missing,) = (item for item in items if item.name == "exams_part3.hdf5")
    assert "2 exams" in missing.meta["refused"]
    assert len(items) == 4 + len(reasons)


def test_code15_empty_tracing_and_a_part_that_changed(tmp_path: Path) -> None:
    tree = code15_copy(tmp_path)
    code15_part(tmp_path / "exams_part2.hdf5", [101, 57], [np.zeros((4096, 12)), tracing(4096, 57)])
    tree = open_tree(str(tmp_path))
    items = code15.find(tree)
    assert reason_of(code15, tree, items[0]) is Reason.FLAT
    code15_part(tmp_path / "exams_part2.hdf5", [57, 101], [tracing(4096, 57), tracing(2934, 12)])
    assert reason_of(code15, tree, items[1]) is Reason.METADATA


def test_code15_only_archives_or_no_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = code15_copy(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    code15._kept.clear()
    items = code15.find(tree)
    assert [item.name for item in items] == ["exams_part2.hdf5", "exams_part10.hdf5"]
    with pytest.raises(RecordError, match=r"pip install 'beatray\[formats\]'"):
        list(code15.read(tree, items[0]))
    for path in tmp_path.glob("*.hdf5"):
        path.rename(path.with_suffix(".zip"))
    with pytest.raises(RecordError, match=r"unpack exams_part\*.zip"):
        code15.find(open_tree(str(tmp_path)))


def test_code15_opens_a_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = code15_copy(tmp_path)
    items = code15.find(tree)
    code15._kept.clear()
    opened: list[str] = []
    true_open = code15._open_part
    monkeypatch.setattr(code15, "_open_part", lambda file: (opened.append(file.member), true_open(file))[1])
    for item in items:
        list(code15.read(tree, item))
    assert opened == ["exams_part2.hdf5", "exams_part10.hdf5"]


# ---------------------------------------------------------------------------------------------- Challenge, and all


def test_every_corpus_of_the_challenge(data_dir: Path) -> None:
    """One or two published records of CPSC, CPSC-Extra, Georgia, PTB, PTB-XL and Chapman-Shaoxing-Ningbo.

    None of INCART is at hand: its layout is tested on the PTB record, which is long as well.
    """
    tree = open_tree(str(data_dir / "misc" / "cinc2021_samples"))
    records = {item.name: only(cinc, tree, item) for item in cinc.find(tree)}
    found = {name: (r.rate_hz, r.signal_mv.shape[1], r.labels, r.age, r.sex) for name, r in records.items()}
    assert found == {
        "A0001": (500.0, 7500, ("59118001",), 74.0, "M"),
        "A0004": (500.0, 5974, ("164889003",), 45.0, "M"),
        "E00001": (500.0, 5000, ("426783006",), None, "F"),
        "E00002": (500.0, 5000, ("426783006",), None, "F"),
        "HR06000": (500.0, 5000, ("164934002", "426783006"), 59.0, "F"),
        "JS01048": (500.0, 5000, ("426177001",), 56.0, "F"),
        "JS02990": (500.0, 5000, ("426177001",), 85.0, "M"),
        "Q0001": (500.0, 5000, ("164867002", "427084000"), 53.0, "M"),
        "Q0010": (500.0, 6000, ("427172004", "164865005"), 72.0, "M"),
        "S0001": (1000.0, 38400, ("251146004", "426783006"), 81.0, "F"),
    }
    windows = {name: len(windows_of(record)) for name, record in records.items()}
    assert windows == {**dict.fromkeys(records, 1), "A0001": 2, "S0001": 4}
    assert [name for name, r in records.items() if "ptbxl_overlap" in r.notes] == ["HR06000"]
    assert {item.name: item.rows for item in cinc.find(tree) if item.rows > 1} == {"S0001": 12}


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_an_empty_folder_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(RecordError) as caught:
        SOURCES[source].find(open_tree(str(tmp_path)))
    assert caught.value.reason is Reason.MISSING_FILE


@pytest.mark.parametrize("copy", [mimic_copy, incart_copy, zzu_copy, code15_copy])
def test_a_slice_becomes_a_shard(tmp_path: Path, copy: Any) -> None:
    """Listing, planning and converting without Ray: every recording ends up in rows or in the quarantine."""
    from beatray.ingest.convert import convert_slice
    from beatray.storage.store import Store

    tree = copy(_made(tmp_path / "set"))
    name = copy.__name__.removesuffix("_copy")
    settings = IngestSettings({name: tree.location}, str(tmp_path / "out"))
    slices = list(plan(settings, recipe_of(settings), list_items(settings), set()))
    results = [convert_slice(Store(settings.out), part, AnalysisSettings()) for part in slices]
    assert [result.refused for result in results] == [[]] * len(slices)
    assert sum(result.read for result in results) == len(SOURCES[name].find(tree))
    rows = sum(shard["rows"] for result in results for shard in result.shards)
    assert rows == {"mimic": 3, "incart": 9, "zzu": 2, "code15": 4}[name]


def test_a_slice_of_files_that_changed_is_done_again(tmp_path: Path) -> None:
    """The stamp of a slice covers the file that its recordings lie in, whatever it is called."""
    tree = code15_copy(tmp_path)
    part = Slice("code15", tree.location, tuple(code15.find(tree)), "x")
    before = stamp_of(part)
    assert stamp_of(part) == before
    os.utime(tmp_path / "exams_part10.hdf5", ns=(1, 1))
    assert stamp_of(part) != before


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("copy", [mimic_copy, incart_copy, zzu_copy, code15_copy])
def test_ids_are_unique_and_bear_the_source(tmp_path: Path, copy: Any) -> None:
    tree = copy(tmp_path)
    module = sys.modules[f"beatray.ingest.sources.{copy.__name__.removesuffix('_copy')}"]
    items = module.find(tree)
    records = [only(module, tree, item) for item in items]
    assert len({record.record_id for record in records}) == len(items)
    for item, record in zip(items, records, strict=True):
        assert record.record_id == f"{module.NAME}/{item.name}"
        assert record.source == module.NAME
        assert record.patient_id is not None
        assert record.patient_id.startswith(f"{module.NAME}/")
        assert not record.patient_is_private
