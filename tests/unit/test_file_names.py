"""File names as people and disks write them: capitals from FAT and CDs, dots inside names, hidden files beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import device_files as made
from array_files import npy
from beatray.ingest.formats.channels import stem_of
from beatray.ingest.plan import IngestSettings, list_items
from beatray.ingest.sources import arrays, files, ptbxl
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.spelling import as_spelt
from beatray.ingest.tree import Tree, open_tree
from beatray.record import LEADS, Reason, RecordError
from wfdb_files import ecg_counts, header_text, mat4, pack, write_record

COUNTS = ecg_counts(3000)


def in_capitals(folder: Path, name: str, named: str) -> None:
    """A record of a FAT disk: NAME.HEA and NAME.DAT, whose header may still say what they were called before."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.upper()}.HEA").write_text(header_text(named, COUNTS, file_name=f"{named}.dat"))
    (folder / f"{name.upper()}.DAT").write_bytes(pack(COUNTS, 16))


@pytest.mark.parametrize("source", ["wfdb", "files", "cinc", "ptb", "incart"])
@pytest.mark.parametrize("named", ["a1", "A1"])
def test_a_record_in_capitals_is_read_like_any_other(tmp_path: Path, source: str, named: str) -> None:
    in_capitals(tmp_path / "x", "a1", named)
    write_record(tmp_path / "x", "b", COUNTS)
    tree = open_tree(str(tmp_path))
    items = SOURCES[source].find(tree)
    assert [item.name.rpartition("/")[2] for item in items] == ["A1", "b"]
    for item in items:
        (record,) = SOURCES[source].read(tree, item)
        np.testing.assert_array_equal(np.rint(record.signal_mv * 1000), COUNTS.T)
        assert ("record_name_case" in record.notes) == (item.name.endswith("A1") and named == "a1")
    assert SOURCES[source].others is None or not files.others(tree)  # A1.DAT belongs to A1.HEA


@pytest.mark.parametrize("source", ["wfdb", "cinc", "files"])
def test_a_matlab_signal_in_capitals_is_read_like_any_other(tmp_path: Path, source: str) -> None:
    (tmp_path / "A1.HEA").write_text(header_text("a1", COUNTS, storage="16+24", file_name="a1.mat"))
    (tmp_path / "A1.MAT").write_bytes(mat4(COUNTS))
    tree = open_tree(str(tmp_path))
    (item,) = SOURCES[source].find(tree)
    (record,) = SOURCES[source].read(tree, item)
    np.testing.assert_array_equal(np.rint(record.signal_mv * 1000), COUNTS.T)


def test_tables_find_files_in_capitals(tmp_path: Path) -> None:
    in_capitals(tmp_path / "RECORDS500", "00001_HR", "00001_hr")
    columns = "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
    (tmp_path / "PTBXL_DATABASE.CSV").write_text(columns + "1,7,50,0,{},3,records100/00001_lr,records500/00001_hr\n")
    tree = open_tree(str(tmp_path))
    (item,) = ptbxl.find(tree)
    (record,) = ptbxl.read(tree, item)
    assert (item.path, record.patient_id) == ("RECORDS500/00001_HR.HEA", "ptbxl/7")


def arrays_of(folder: Path, names: tuple[str, ...], table: str) -> Tree:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(npy(COUNTS.T.astype("<i2")))
    (folder / "PEOPLE.CSV").write_text(f"name,mrn\n{table}")
    plan = f"files: ['*.npy', 'x/*.npy']\nrate_hz: 500\nunits: uV\nleads: [{', '.join(LEADS)}]\ntable: people.csv\n"
    (folder / "recordings.yaml").write_text(plan + "columns: {file: name, patient: mrn}\n")
    return open_tree(str(folder))


@pytest.mark.parametrize("cell", ["A", "a", "A.NPY", "a.npy", "A.npy"])
def test_arrays_in_capitals(tmp_path: Path, cell: str) -> None:
    tree = arrays_of(tmp_path, ("A.NPY",), f"{cell},7\n")
    (item,) = arrays.find(tree)
    assert (item.name, next(arrays.read(tree, item)).patient_id) == ("A", "arrays/7")


def test_a_name_in_a_table_means_one_file_or_none(tmp_path: Path) -> None:
    names = ("a.NPY", "A.npy", "x/a.NPY", "x/b.NPY")
    tree = arrays_of(tmp_path, names, "a.NPY,1\nA.npy,2\nx/a.npy,3\nb.npy,4\n")
    assert {item.path: item.meta["patient"] for item in arrays.find(tree)} == dict(zip(names, "1234", strict=True))
    for cell in ("a.npy", "A.Npy"):
        with pytest.raises(RecordError, match=f"line 1: '{cell}' may be several files: write the path"):
            arrays.find(arrays_of(tmp_path, names, f"{cell},1\n"))


def test_two_names_that_differ_only_in_case_are_two(tmp_path: Path) -> None:
    write_record(tmp_path, "a", COUNTS)
    in_capitals(tmp_path, "a", "A")
    tree = open_tree(str(tmp_path))
    assert [item.name for item in SOURCES["wfdb"].find(tree)] == ["A", "a"]
    assert (as_spelt(tree, "a.hea"), as_spelt(tree, "A.hea"), as_spelt(tree, "none")) == ("a.hea", "A.hea", "none")
    (tmp_path / "a.HEA").write_bytes(b"x")  # a second header for the name a
    names = {item.name: "refused" in item.meta for item in SOURCES["wfdb"].find(open_tree(str(tmp_path)))}
    assert names == {"A": False, "a": False, "a (2)": True}


def test_a_missing_signal_file_is_called_as_the_header_calls_it(tmp_path: Path) -> None:
    write_record(tmp_path, "a", COUNTS)
    (tmp_path / "a.dat").unlink()
    tree = open_tree(str(tmp_path))
    with pytest.raises(RecordError, match=r"a\.dat is not there") as caught:
        list(SOURCES["wfdb"].read(tree, SOURCES["wfdb"].find(tree)[0]))
    assert caught.value.reason is Reason.MISSING_FILE


def test_the_signal_of_another_recording_is_not_taken(tmp_path: Path) -> None:
    other = ecg_counts(3000, seed=5)
    write_record(tmp_path, "a", COUNTS)
    write_record(tmp_path, "A", other)
    (tmp_path / "A.dat").unlink()
    wfdb = SOURCES["wfdb"]
    tree = open_tree(str(tmp_path))
    upper, lower = wfdb.find(tree)
    assert (upper.name, lower.name) == ("A", "a") and len(list(wfdb.read(tree, lower))) == 1
    with pytest.raises(RecordError, match=r"A\.dat is not there"):
        list(wfdb.read(tree, upper))
    (tmp_path / "A.hea").rename(tmp_path / "A.HEA")  # of a FAT disk, whose header still says a.dat
    (tmp_path / "A.HEA").write_text(header_text("a", other, file_name="a.dat"))
    (tmp_path / "A.DAT").write_bytes(pack(other, 16))
    tree = open_tree(str(tmp_path))
    for item, expected in zip(wfdb.find(tree), (other, COUNTS), strict=True):
        (record,) = wfdb.read(tree, item)
        np.testing.assert_array_equal(np.rint(record.signal_mv * 1000), expected.T)


def test_names_with_dots_stay_whole(tmp_path: Path) -> None:
    names = ("ECG.001", "ECG.002", "1.2.840.10008.17", "smith.2024.01")
    for name in names:
        (tmp_path / name).write_bytes(made.scp_record(made.scp_bodies(COUNTS)))
    (tmp_path / "jones.2024.01.XML").write_bytes(made.aecg_xml(COUNTS))
    items = files.find(open_tree(str(tmp_path)))
    assert [item.name for item in items] == sorted([*names, "jones.2024.01"])
    assert not any("refused" in item.meta for item in items)
    assert [stem_of(f"d.1/{n}") for n in ("a.dcm", "a.b", "a")] == ["d.1/a", "d.1/a.b", "d.1/a"]


def test_hidden_files_are_counted_and_not_read(tmp_path: Path) -> None:
    write_record(tmp_path, "a", COUNTS)
    for below in (".Trash", ".ipynb_checkpoints", "x/.dvc", "__MACOSX"):
        (tmp_path / below).mkdir(parents=True)
        write_record(tmp_path / below, "a", COUNTS)
    (tmp_path / "._a.hea").write_bytes(b"\0\5\x16\7")  # and two files in each of four folders
    ((_, (items, unlisted)),) = list_items(IngestSettings(out="none", sources={"wfdb": str(tmp_path)})).items()
    assert [item.name for item in items] == ["a"]
    assert [(other.reason, other.count) for other in unlisted] == [(Reason.HIDDEN, 9)]
