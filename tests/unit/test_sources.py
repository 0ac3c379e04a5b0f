"""What each source lists and reads, on small copies of its published layout and on the published data."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from beatray.ingest.sources import cinc, ludb, ptbxl, wfdb_folder
from beatray.ingest.sources.item import Item
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Reason, Record, RecordError
from wfdb_files import ecg_counts, write_record

PTBXL_COLUMNS = "ecg_id,patient_id,age,sex,report,scp_codes,strat_fold,filename_lr,filename_hr\n"


def only(records: object) -> Record:
    (record,) = list(records)  # type: ignore[call-overload]
    return record


def reason_of(tree: Tree, source: str, item: Item) -> Reason:
    with pytest.raises(RecordError) as caught:
        list(SOURCES[source].read(tree, item))
    return caught.value.reason


def ptbxl_copy(root: Path, rows: str) -> Tree:
    for name, adc in (("00001", ecg_counts(seed=1)), ("00002", ecg_counts(seed=2)), ("00137", ecg_counts(seed=3))):
        (root / "records500/00000").mkdir(parents=True, exist_ok=True)
        write_record(root / "records500/00000", f"{name}_hr", adc)
    (root / "ptbxl_database.csv").write_text(PTBXL_COLUMNS + rows, encoding="utf-8")
    return open_tree(str(root))


def row(ecg_id: str, codes: str = "{'SR': 0.0, 'NORM': 100.0}", patient: str = "15.0", fold: str = "3") -> str:
    number = ecg_id.zfill(5)
    files = f"records100/00000/{number}_lr,records500/00000/{number}_hr"
    return f'{ecg_id},{patient},300.0,1,"Zeile eins\n\u00fcber zwei","{codes}",{fold},{files}\n'


def test_registry() -> None:
    assert set(SOURCES) == {
        *("ptbxl", "ludb", "cinc", "mimic", "code15", "ptb", "incart", "zzu", "cpsc", "arrays", "wfdb", "files"),
    }
    for name, source in SOURCES.items():
        assert source.name == name
        assert pickle.loads(pickle.dumps(source)) == source


def test_ptbxl_rows(tmp_path: Path) -> None:
    tree = ptbxl_copy(tmp_path, row("2") + row("1", patient="7"))
    items = ptbxl.find(tree)
    assert [item.name for item in items] == ["00001", "00002"]
    assert items[0].path == "records500/00000/00001_hr.hea"
    assert pickle.loads(pickle.dumps(items)) == items
    record = only(ptbxl.read(tree, items[1]))
    assert (record.record_id, record.source, record.patient_id) == ("ptbxl/00002", "ptbxl", "ptbxl/15")
    assert (record.fold, record.labels, record.age, record.sex) == (3, ("SR", "NORM"), 90.0, "F")
    np.testing.assert_array_equal(record.signal_mv, ecg_counts(seed=2).T / 1000.0)


@pytest.mark.parametrize(
    "bad",
    [
        row("137"),
        row("1", codes="__import__('os').abort()"),
        row("1", codes="[1, 2]"),
        row("1", codes="{1: 2}"),
        row("1", codes="{'SR': " * 400),
        row("1", patient="nobody"),
        row("1", fold="11"),
        row("1", fold=""),
        row("x"),
    ],
)
def test_ptbxl_rows_that_are_refused_by_name(tmp_path: Path, bad: str) -> None:
    tree = ptbxl_copy(tmp_path, row("2") + bad)
    items = ptbxl.find(tree)
    assert len(items) == 2
    refused = [item for item in items if "refused" in item.meta]
    assert len(refused) == 1
    assert reason_of(tree, "ptbxl", refused[0]) is Reason.METADATA


def test_ptbxl_row_listed_twice_and_file_missing(tmp_path: Path) -> None:
    tree = ptbxl_copy(tmp_path, row("1") + row("1") + row("3"))
    first, second, third = ptbxl.find(tree)
    assert "refused" not in first.meta
    assert reason_of(tree, "ptbxl", second) is Reason.METADATA
    assert reason_of(tree, "ptbxl", third) is Reason.MISSING_FILE


def test_ptbxl_falls_back_to_100_hz(tmp_path: Path) -> None:
    (tmp_path / "sub/records100/00000").mkdir(parents=True)
    write_record(tmp_path / "sub/records100/00000", "00005_lr", ecg_counts(1000, 100.0), rate="100")
    (tmp_path / "sub/ptbxl_database.csv").write_text(PTBXL_COLUMNS + row("5"), encoding="utf-8")
    tree = open_tree(str(tmp_path))
    (item,) = ptbxl.find(tree)
    assert only(ptbxl.read(tree, item)).rate_hz == 100.0


def test_ptbxl_file_path_that_leaves_the_folder(tmp_path: Path) -> None:
    bad = row("1").replace("records500/00000/00001_hr", "../../../etc/passwd")
    tree = ptbxl_copy(tmp_path, bad)
    assert reason_of(tree, "ptbxl", ptbxl.find(tree)[0]) is Reason.UNSAFE_PATH


@pytest.mark.parametrize("source", ["ptbxl", "ludb", "cinc", "wfdb"])
def test_the_wrong_folder_is_named(tmp_path: Path, source: str) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    file = {"ptbxl": "ptbxl_database.csv", "ludb": "ludb.csv"}.get(source, ".hea")
    with pytest.raises(RecordError, match=file):
        SOURCES[source].find(open_tree(str(tmp_path)))


def test_a_table_without_its_columns(tmp_path: Path) -> None:
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,age\n1,50\n")
    with pytest.raises(RecordError, match="no column patient_id"):
        ptbxl.find(open_tree(str(tmp_path)))


def test_two_tables_are_ambiguous_unless_one_lies_higher(tmp_path: Path) -> None:
    for folder in ("a", "b", "c/d"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "ptbxl_database.csv").write_text(PTBXL_COLUMNS)
    with pytest.raises(RecordError, match="two tables"):
        ptbxl.find(open_tree(str(tmp_path)))
    (tmp_path / "ptbxl_database.csv").write_text(PTBXL_COLUMNS)
    assert ptbxl.find(open_tree(str(tmp_path))) == []


def test_cinc_comments_of_both_spellings(tmp_path: Path) -> None:
    deep = tmp_path / "training" / "g1"
    deep.mkdir(parents=True)
    write_record(deep, "A0001", ecg_counts())
    spaced = "# Age: NaN\n# Sex: Male\n# Dx: 1, 2,1\n# Rx: Unknown\n"
    write_record(deep, "HR00001", ecg_counts(), comments=spaced)
    write_record(tmp_path, "E1", ecg_counts(), comments="#Age: -1\n#Sex: Unknown\n#Dx: nan, Unknown\n")
    tree = open_tree(str(tmp_path))
    items = cinc.find(tree)
    assert [item.name for item in items] == ["E1", "A0001", "HR00001"]
    empty, first, second = (only(cinc.read(tree, item)) for item in items)
    assert (first.record_id, first.age, first.sex) == ("cinc/A0001", 61.0, "F")
    assert first.labels == ("426783006", "164889003")
    assert (first.patient_id, first.fold, first.notes) == (None, None, ())
    assert (second.labels, second.age, second.sex, second.notes) == (("1", "2"), None, "M", ("ptbxl_overlap",))
    assert (empty.labels, empty.age, empty.sex) == ((), None, None)


def test_cinc_name_in_two_folders_is_not_lost(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_record(tmp_path / folder, "A0001", ecg_counts())
    tree = open_tree(str(tmp_path))
    first, second = cinc.find(tree)
    assert "refused" not in first.meta
    assert reason_of(tree, "cinc", second) is Reason.METADATA


def test_plain_folder_ids_are_paths_and_copy_no_comments(tmp_path: Path) -> None:
    (tmp_path / "p100" / "s1").mkdir(parents=True)
    write_record(tmp_path / "p100" / "s1", "x", ecg_counts())
    tree = open_tree(str(tmp_path))
    (item,) = wfdb_folder.find(tree)
    record = only(wfdb_folder.read(tree, item))
    assert record.record_id == "wfdb/p100/s1/x"
    assert (record.labels, record.age, record.sex, record.patient_id) == ((), None, None, None)


@pytest.mark.parametrize("source", ["cinc", "wfdb"])
def test_a_name_that_would_look_like_a_window_is_refused(tmp_path: Path, source: str) -> None:
    write_record(tmp_path, "x#1", ecg_counts())
    tree = open_tree(str(tmp_path))
    assert reason_of(tree, source, SOURCES[source].find(tree)[0]) is Reason.METADATA


def test_folder_and_archive_give_the_same(tmp_path: Path) -> None:
    root = tmp_path / "set"
    ptbxl_copy(root, row("1") + row("2"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_LZMA) as packed:
        for path in sorted(root.rglob("*.*")):
            packed.write(path, "ptb-xl-1.0/" + path.relative_to(root).as_posix())
    folder, archive = open_tree(str(root)), open_tree(str(tmp_path / "set.zip"))
    pairs = list(zip(ptbxl.find(folder), ptbxl.find(archive), strict=True))
    assert len(pairs) == 2
    for plain, packed_item in pairs:
        first, second = only(ptbxl.read(folder, plain)), only(ptbxl.read(archive, packed_item))
        assert first.record_id == second.record_id
        np.testing.assert_array_equal(first.signal_mv, second.signal_mv)


def test_published_ptbxl(ptbxl_dir: Path) -> None:
    tree = open_tree(str(ptbxl_dir))
    items = ptbxl.find(tree)
    assert len(items) == 434
    refused = {int(item.name) for item in items if "refused" in item.meta}
    assert refused == ptbxl.WITHDRAWN & {int(item.name) for item in items} != set()
    assert len(ptbxl.WITHDRAWN) == 21_837 - 21_799
    first = only(ptbxl.read(tree, items[0]))
    assert (first.record_id, first.patient_id, first.fold) == ("ptbxl/00001", "ptbxl/15709", 3)
    assert (first.labels, first.age, first.sex) == (("NORM", "LVOLT", "SR"), 56.0, "F")


def test_published_ludb_from_folder_and_tar(ludb_dir: Path, data_dir: Path) -> None:
    tree = open_tree(str(ludb_dir))
    items = ludb.find(tree)
    assert [item.name for item in items] == [str(number) for number in range(1, 201)]
    record = only(ludb.read(tree, items[0]))
    assert (record.record_id, record.patient_id, record.age, record.sex) == ("ludb/1", "ludb/1", 51.0, "F")
    assert record.labels[0] == "Sinus bradycardia"
    assert "Left ventricular hypertrophy" in record.labels
    assert record.notes == ()
    packed = open_tree(str(data_dir / "ludb" / "ludb-1.0.1.tar.xz"))
    other = only(ludb.read(packed, ludb.find(packed)[0]))
    assert other.waves == record.waves
    np.testing.assert_array_equal(other.signal_mv, record.signal_mv)


def test_ludb_without_an_annotation_file(ludb_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for path in (ludb_dir / "data").glob("1.*"):
        if path.suffix != ".v3":
            (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ludb.csv").write_bytes((ludb_dir / "ludb.csv").read_bytes())
    tree = open_tree(str(tmp_path))
    assert reason_of(tree, "ludb", ludb.find(tree)[0]) is Reason.MISSING_FILE
