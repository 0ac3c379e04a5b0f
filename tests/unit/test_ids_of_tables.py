"""Ids that stand for several people, in the tables of public sets and of one's own: the row is refused by its number,
and says how to fix it; the other rows are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from array_files import ecg_table, parquet
from beatray.ingest.sources import arrays
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import Tree, open_tree
from beatray.record import LEADS, RecordError
from source_copies import code15_copy, mimic_copy, zzu_copy
from wfdb_files import ecg_counts


def ptbxl_copy(root: Path) -> Tree:
    columns = "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
    (root / "ptbxl_database.csv").write_text(columns + "1,7.0,50,0,{},3,lr/1,hr/1\n2,15709.0,50,0,{},3,lr/2,hr/2\n")
    return open_tree(str(root))


@pytest.mark.parametrize(
    ("source", "copy", "table", "row"),
    [
        ("ptbxl", ptbxl_copy, "ptbxl_database.csv", "{n},{id},50,0,{{}},3,lr/3,hr/3"),
        ("ptbxl", ptbxl_copy, "ptbxl_database.csv", "{id},8,50,0,{{}},3,lr/3,hr/3"),
        ("mimic", mimic_copy, "record_list.csv", "{id},{n},5,,files/x"),
        ("mimic", mimic_copy, "record_list.csv", "5,{id},5,,files/x"),
        ("code15", code15_copy, "exams.csv", "{id},50,True,1,,,,,,,5,,,False,exams_part2.hdf5"),
        ("code15", code15_copy, "exams.csv", "{n},50,True,1,,,,,,,{id},,,False,exams_part2.hdf5"),
        ("zzu", zzu_copy, "AttributesDictionary.csv", "x,E{n},{id},5d,Male,,12,,,,"),
        ("zzu", zzu_copy, "AttributesDictionary.csv", "x,{id},P,5d,Male,,12,,,,"),
    ],
)
def test_ids_that_were_cut_short_are_refused(
    tmp_path: Path, source: str, copy: Callable[[Path], Tree], table: str, row: str
) -> None:
    tree = copy(tmp_path)
    good = SOURCES[source].find(tree)
    text = (tmp_path / table).read_text()
    rounded, too_long = ("1E+11", '"1,23457E+11"'), "7" * 129
    rows = (row.format(id=each, n=number) for number, each in enumerate((*rounded, too_long), start=70))
    (tmp_path / table).write_text(text + "".join(f"{row}\n" for row in rows))
    tree = open_tree(str(tmp_path))
    items = SOURCES[source].find(tree)
    refused = [item for item in items if item not in good]
    assert len(items) == len(good) + len(refused)
    first = len(text.splitlines())
    for number, item in enumerate(sorted(refused, key=lambda item: item.meta["refused"])):
        with pytest.raises(RecordError, match=f"row {first + number} of {table}: .*(ids as text|at most 128)$"):
            list(SOURCES[source].read(tree, item))
    assert [item.meta["refused"].endswith("at most 128") for item in refused].count(True) == 1


def arrays_copy(root: Path, ids: pa.Array) -> Tree:
    table = ecg_table(np.stack([ecg_counts(2500).T] * 3)).append_column("mrn", ids)
    (root / "a.parquet").write_bytes(parquet(table))
    plan = (
        f"files: a.parquet\narray: flat\nrate_hz: 500\nunits: uV\naxes: [leads, samples]\nleads: [{', '.join(LEADS)}]\n"
    )
    (root / "recordings.yaml").write_text(plan + "columns: {patient: mrn}\n")
    return open_tree(str(root))


def test_ids_of_parquet_that_are_none(tmp_path: Path) -> None:
    tree = arrays_copy(tmp_path, pa.array([2.0**53 - 1, 2.0**53, 1.2e30]))
    first, *others = arrays.find(tree)
    (record,) = arrays.read(tree, first)
    assert record.patient_id == "arrays/9007199254740991"
    assert [item.meta["refused"].partition(":")[0] for item in others] == ["row 1, patient", "row 2, patient"]
    assert all("has rounded an id" in item.meta["refused"] for item in others)
    (whole,) = arrays.find(arrays_copy(tmp_path, pa.array([b"1", b"2", b"3"])))
    assert whole.meta["refused"].endswith("the values of column 'mrn' are binary, no text: write them as text")
