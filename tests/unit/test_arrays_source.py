"""A plain folder of arrays: what a recordings.yaml can say, what it may not, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from array_files import ecg_table, npy, npz, parquet
from beatray.ingest.sources import arrays
from beatray.ingest.sources.arrays_plan import read_plan
from beatray.ingest.tree import Tree, open_tree
from beatray.record import LEADS, Reason, Record, RecordError
from wfdb_files import ecg_counts

STACK = np.array([ecg_counts(3000, seed=seed).T for seed in range(4)])
PLAN = "rate_hz: 500\nleads: [I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6]\nunits: uV\n"


def folder(root: Path, plan: str, **files: bytes | str) -> Tree:
    (root / "recordings.yaml").write_text(plan, encoding="utf-8")
    for name, content in files.items():
        path = root / name.replace("__", ".").replace("--", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_tree(str(root))


def records_of(tree: Tree) -> list[Record]:
    return [record for item in arrays.find(tree) for record in arrays.read(tree, item)]


def check_stack(records: list[Record]) -> None:
    assert len(records) == 4
    for record, expected in zip(records, STACK, strict=True):
        np.testing.assert_allclose(record.signal_mv, expected / 1000.0, atol=1e-9)
        assert (record.rate_hz, record.source, record.lead_mask) == (500.0, "arrays", 0xFFF)
        assert record.patient_is_private


def test_one_npy_per_recording_with_a_table(tmp_path: Path) -> None:
    for number, values in enumerate(STACK):
        (tmp_path / "signals").mkdir(exist_ok=True)
        (tmp_path / "signals" / f"e{number}.npy").write_bytes(npy(values.T.astype("<i2")))
    plan = PLAN + "files: signals/*.npy\naxes: [samples, leads]\ntable: people.csv\nseparator: '|'\n"
    plan += "columns: {file: name, id: exam, patient: mrn, age: years, sex: sex, labels: codes, fold: fold}\n"
    table = "name,exam,mrn,years,sex,codes,fold,surname\n"
    table += "e0,X1,77,61,female,A| B|A,3,Doe\nsignals/e1.npy,X2,77,>89,M,,,Doe\n"
    table += "e2.npy,X3,78,,,C,10,Roe\nsignals/e3,,,,,,,\n"

    records = records_of(folder(tmp_path, plan, people__csv=table))
    check_stack(records)
    assert [record.record_id for record in records] == ["arrays/X1", "arrays/X2", "arrays/X3", "arrays/signals/e3"]
    assert [record.patient_id for record in records] == ["arrays/77", "arrays/77", "arrays/78", None]
    assert [record.age for record in records] == [61.0, 90.0, None, None]
    assert [record.sex for record in records] == ["F", "M", None, None]
    assert [record.labels for record in records] == [("A", "B"), (), ("C",), ()]
    assert [record.fold for record in records] == [3, None, 10, None]
    assert "Doe" not in repr(records)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path, mark: str) -> None:
    """Where a comma is a decimal, cells are separated otherwise."""
    plan = PLAN + "files: signals/*.npy\naxes: [leads, samples]\ntable: people.csv\n"
    plan += "columns: {file: name, patient: mrn, age: years}\n"
    table = f'name{mark}"mrn"{mark}years\r\ne0{mark}77{mark}61\r\ne1{mark}7,8{mark}\r\n'
    signals = {f"signals--e{k}__npy": npy(STACK[k].astype("<i2")) for k in (0, 1)}
    first, second = records_of(folder(tmp_path, plan, people__csv=table, **signals))
    assert (first.patient_id, first.age) == ("arrays/77", 61.0)
    assert (second.patient_id, second.age) == ("arrays/7,8", None)


def test_one_person_however_a_table_writes_the_id_and_nobody_where_it_says_so(tmp_path: Path) -> None:
    plan = PLAN + "files: all.npy\naxes: [recordings, leads, samples]\ntable: t.csv\n"
    plan += "columns: {id: id, patient: mrn, age: age, sex: sex, labels: codes}\n"
    same, nobody = ("1234", "1234.0", " 1234.00"), ("nan", "NaN", "None", "NA", "<NA>", "unknown", "", "anonymous")
    others = ("01234", "0", "A-12.0")
    cut_short = ("1.23457E+11", '"1,23457E+11"', "1E+11", "x" * 129)
    ids = [*same, *nobody, *others, *cut_short]
    lines = [f"{'nan' if n == 0 else f'{n}.0'},{mrn},{'nan' if n else 91},Unknown,nan; A;" for n, mrn in enumerate(ids)]
    data = npy(np.stack([STACK[0]] * len(ids)))
    tree = folder(tmp_path, plan, all__npy=data, t__csv="\n".join(["id,mrn,age,sex,codes", *lines]))
    found = arrays.find(tree)
    items, refused = found[: -len(cut_short)], found[-len(cut_short) :]
    records = [record for item in items for record in arrays.read(tree, item)]
    expected = ["arrays/1234"] * 3 + [None] * len(nobody) + ["arrays/01234", "arrays/0", "arrays/A-12.0"]
    assert [record.patient_id for record in records] == expected
    assert [record.record_id for record in records[:3]] == ["arrays/all/0", "arrays/1", "arrays/2"]
    assert {(record.labels, record.sex) for record in records} == {(("A",), None)}
    assert [record.age for record in records] == [90.0] + [None] * (len(records) - 1)
    first = len(items)
    for number, item in enumerate(refused):
        assert (item.name, list(item.meta)) == (f"all/{first + number}", ["refused"])
        assert item.meta["refused"].startswith(f"t.csv line {first + number + 1}, patient: ")
    rounded, too_long = refused[:-1], refused[-1]
    assert all("has rounded an id" in item.meta["refused"] and "as text" in item.meta["refused"] for item in rounded)
    assert "an id of 129 characters: give one of at most 128" in too_long.meta["refused"]


@pytest.mark.parametrize("suffix", ["npy", "npz", "packed.npz"])
def test_a_stack_in_one_file(tmp_path: Path, suffix: str) -> None:
    single = STACK.astype("<f4")
    data = npy(single) if suffix == "npy" else npz(packed=suffix[0] == "p", ecg=single, other=np.eye(2))
    plan = PLAN + f"files: all.{suffix}\naxes: [recordings, leads, samples]\narray: ecg\n"
    (tmp_path / f"all.{suffix}").write_bytes(data)
    records = records_of(folder(tmp_path, plan))
    check_stack(records)
    stem = f"all.{suffix}".rpartition(".")[0]
    assert [record.record_id for record in records] == [f"arrays/{stem}/{row}" for row in range(4)]


def test_a_stack_with_a_table_in_row_order_and_by_row(tmp_path: Path) -> None:
    plan = PLAN + "files: all.npy\naxes: [recordings, samples, leads]\ntable: t.csv\n"
    data = npy(STACK.transpose(0, 2, 1).copy())
    in_order = folder(tmp_path, plan + "columns: {id: id}\n", all__npy=data, t__csv="id\nd\nc\nb\na\n")
    records = records_of(in_order)
    check_stack(records)
    assert [record.record_id for record in records] == ["arrays/d", "arrays/c", "arrays/b", "arrays/a"]
    by_row = folder(tmp_path, plan + "columns: {id: id, row: n}\n", t__csv="id,n\nd,3\nc,2.0\nb,1\na,0\n")
    assert [record.record_id for record in records_of(by_row)] == ["arrays/a", "arrays/b", "arrays/c", "arrays/d"]


@pytest.mark.parametrize("column", ["flat", "nested", "bytes", "fixed"])
@pytest.mark.parametrize("lead_major", [True, False])
def test_parquet_is_its_own_table(tmp_path: Path, column: str, lead_major: bool) -> None:
    stack = STACK if lead_major else STACK.transpose(0, 2, 1)
    people = {"mrn": [5, 5, 6, None], "years": [61.0, 62.5, None, 300.0], "codes": [["A", "B;b"], [], ["C;c"], None]}
    table = ecg_table(stack)
    for name, values in people.items():
        table = table.append_column(name, pa.array(values))
    order = "[leads, samples]" if lead_major else "[samples, leads]"
    plan = PLAN + f"files: '*.parquet'\narray: {column}\ndtype: int16\naxes: {order}\n"
    plan += "columns: {id: id, patient: mrn, age: years, labels: codes}\n"
    records = records_of(folder(tmp_path, plan, a__parquet=parquet(table, row_group_size=3)))
    check_stack(records)
    assert [record.record_id for record in records] == [f"arrays/r{number}" for number in range(4)]
    assert [record.patient_id for record in records] == ["arrays/5", "arrays/5", "arrays/6", None]
    assert [record.age for record in records] == [61.0, 62.5, None, 90.0]
    assert [record.labels for record in records] == [("A", "B;b"), (), ("C;c",), ()]


def test_units_leads_and_a_subfolder(tmp_path: Path) -> None:
    order = ["V6", "II", "I", "V1"]
    values = STACK[0][[LEADS.index(lead) for lead in order]] / 10.0
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.npy").write_bytes(npy(values))
    (tmp_path / "y.npy").write_bytes(b"outside the plan's folder")
    plan = f"files: '*.npy'\nrate_hz: 500.0\nleads: {order}\nunits: 0.01\n"
    folder(tmp_path / "deep", plan)
    (record,) = records_of(open_tree(str(tmp_path)))
    assert record.record_id == "arrays/x"
    assert record.lead_mask == 0b100001111111
    np.testing.assert_allclose(record.signal_mv[[0, 1, 6, 11]], STACK[0][[0, 1, 6, 11]] / 1000.0)


def test_several_stacks_and_parquet_files_with_one_table(tmp_path: Path) -> None:
    plan = PLAN + "files: ['*.npy', '*.parquet']\narray: flat\naxes: [recordings, leads, samples]\ntable: t.csv\n"
    files = {"a__npy": npy(STACK[:2]), "b__npy": npy(STACK[2:]), "c__parquet": parquet(ecg_table(STACK))}
    text = "f,n,mrn\nb,1,B1\na.npy,0,A0\nc,3,C3\n"
    tree = folder(tmp_path, plan + "columns: {file: f, row: n, patient: mrn}\n", **files, t__csv=text)
    patients = {record.record_id: record.patient_id for record in records_of(tree)}
    expected = {"arrays/a/0": "arrays/A0", "arrays/b/1": "arrays/B1", "arrays/c/3": "arrays/C3"}
    assert patients == {**dict.fromkeys(patients), **expected}
    assert len(patients) == 8
    with pytest.raises(RecordError, match=r"columns\.row is needed"):
        arrays.find(folder(tmp_path, plan + "columns: {file: f, patient: mrn}\n", **files, t__csv=text))


def test_ids_that_come_twice_are_refused_not_lost(tmp_path: Path) -> None:
    plan = PLAN + "files: all.npy\naxes: [recordings, leads, samples]\ntable: t.csv\ncolumns: {id: id}\n"
    tree = folder(tmp_path, plan, all__npy=npy(STACK), t__csv="id\na\na\nb#1\nb\n")
    items = arrays.find(tree)
    assert len({item.name for item in items}) == 4
    reasons = []
    for item in items:
        try:
            list(arrays.read(tree, item))
            reasons.append(None)
        except RecordError as error:
            reasons.append(error.reason)
    assert reasons == [None, Reason.METADATA, Reason.METADATA, None]


def test_lines_and_files_without_each_other_are_told(tmp_path: Path) -> None:
    plan = PLAN + "files: '*.npy'\ntable: t.csv\ncolumns: {file: f, id: id, fold: fold}\n"
    files = {"a__npy": npy(STACK[0]), "b__npy": npy(STACK[1]), "c__npy": npy(STACK[2])}
    tree = folder(tmp_path, plan, **files, t__csv="f,id,fold\na,x,1\nz,y,2\nc,w,1000\n")
    refused = {item.name: item.meta.get("refused", "") for item in arrays.find(tree)}
    assert refused["x"] == refused["b"] == ""
    assert "which is not there" in refused["table/z"]
    assert "0 to 127" in refused["c"]


def test_a_file_that_cannot_be_listed_is_one_refusal(tmp_path: Path) -> None:
    plan = PLAN + "files: ['*.npy', '*.parquet']\narray: flat\naxes: [recordings, leads, samples]\n"
    files = {"a__npy": npy(STACK), "b__npy": npy(STACK)[:-5], "c__parquet": b"PAR1junkPAR1", "d__npy": npy(STACK[0])}
    items = arrays.find(folder(tmp_path, plan, **files))
    assert {item.name: item.meta["reason"] for item in items if "refused" in item.meta} == {
        "b.npy": Reason.TRUNCATED,
        "c.parquet": Reason.ABSURD_SIZE,
        "d.npy": Reason.HEADER,
    }
    assert len(items) == 4 + 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rate: 500", "unknown key 'rate'; did you mean 'rate_hz'?"),
        ("Leads: [I]", "unknown key 'Leads'; did you mean 'leads'?"),
        ("xyz: 1", "unknown key 'xyz'; there are files, rate_hz"),
        ("columns: {patients: p}\ntable: t.csv", "columns: unknown key 'patients'; did you mean 'patient'?"),
        ("columns: {patient: p}", "columns need a table"),
        ("columns: [patient]\ntable: t.csv", "columns: it must name"),
        ("columns: {patient: 5}\ntable: t.csv", "columns.patient: '5' is not a text"),
        ("table: ../people.csv", "table: '../people.csv' is not a relative path"),
        ("table: /etc/passwd.csv", "is not a relative path"),
        ("table: t.xlsx", "ends in .csv"),
        ("axes: [leads, sample]", "axes: unknown axis 'sample'; did you mean 'samples'?"),
        ("axes: [leads]", "axes: ['leads'] are not"),
        ("axes: [leads, samples, recordings]", "recordings first"),
        ("dtype: object", "dtype 'object' is none of"),
        ("separator: ''", "separator: '' is not a text"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_slips_are_refused_with_the_nearest_right_name(change: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_plan((PLAN + "files: '*.npy'\n" + change).encode())
    assert caught.value.reason is Reason.METADATA
    assert message in caught.value.detail
    assert caught.value.detail.startswith("recordings.yaml: ")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PLAN, "files is missing"),
        ("files: a.npy\nleads: [I, II, V1]\nunits: mV", "rate_hz is missing"),
        (PLAN.replace("500", "'500'") + "files: a.npy", "rate_hz: '500' is not a number"),
        (PLAN.replace("500", ".nan") + "files: a.npy", "rate_hz: nan is not within 50 to 10000"),
        (PLAN.replace("500", "true") + "files: a.npy", "rate_hz"),
        (PLAN.replace("500", "5") + "files: a.npy", "rate_hz: 5 is not within"),
        (PLAN.replace("uV", "mmHg") + "files: a.npy", "units: 'mmHg' is none of"),
        (PLAN.replace("uV", "-1") + "files: a.npy", "units"),
        (PLAN.replace("uV", ".inf") + "files: a.npy", "units"),
        (PLAN.replace("III", "II") + "files: a.npy", "leads: signals 2 and 3 are both II"),
        (PLAN.replace("V", "X") + "files: a.npy", "leads: found: I, II, III, beside 9 other channels"),
        (PLAN + "files: []", "files: it must be"),
        (PLAN + "files: ['']", "files: '' is not a text"),
        (PLAN + "files: /data/*.npy", "files: '/data/*.npy' is not a relative path"),
        (PLAN + "files: ../*.npy", "is not a relative path"),
        (PLAN + "files: '*.pkl'", "ends in .npy, .npz, .parquet"),
        (PLAN + "files: '*.npz'", "array is missing"),
        (PLAN + "files: a.npy\nfiles: [", "it is not YAML"),
        ("- a\n- b", "list of keys and values"),
        ("", "list of keys and values"),
        ("!!python/object/apply:os.system ['true']", "it is not YAML"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: " + "[" * 60_000, "nested more than 16 deep"),
        ("#" * 70_000, "limit 65536"),
    ],
)
def test_plans_that_are_refused(plan: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_plan(plan.encode())
    assert caught.value.reason is Reason.METADATA
    assert message in caught.value.detail


@pytest.mark.parametrize(
    ("plan", "table", "message"),
    [
        ("files: '*.npy'\ntable: t.csv\ncolumns: {id: id}", "id\na\n", "columns.file is needed, there are 2 files"),
        ("files: '*.npy'\ntable: t.csv\ncolumns: {file: f, id: nowhere}", "f\na\n", "no column nowhere"),
        ("files: '*.npy'\ntable: t.csv\ncolumns: {file: f}", "f\na\na\n", "a second time"),
        ("files: '*.npz'\narray: x", "", "no file is called"),
        ("files: '*.npy'\ntable: nowhere.csv\ncolumns: {file: f}", "", "nowhere.csv is not there"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, plan: str, table: str, message: str) -> None:
    tree = folder(tmp_path, PLAN + plan, a__npy=npy(STACK[0]), b__npy=npy(STACK[1]), t__csv=table)
    with pytest.raises(RecordError, match=message):
        arrays.find(tree)


@pytest.mark.parametrize(
    ("values", "axes", "reason"),
    [
        (STACK[0].T, "[leads, samples]", Reason.HEADER),
        (STACK[0][0], "[leads, samples]", Reason.HEADER),
        (np.zeros((12, 0)), "[leads, samples]", Reason.TOO_SHORT),
        (np.zeros((12, 500)), "[leads, samples]", Reason.FLAT),
        (np.full((12, 500), np.inf), "[leads, samples]", Reason.NOT_FINITE),
    ],
)
def test_arrays_that_are_no_recording(tmp_path: Path, values: Any, axes: str, reason: Reason) -> None:
    tree = folder(tmp_path, PLAN + f"files: a.npy\naxes: {axes}\n", a__npy=npy(values))
    with pytest.raises(RecordError) as caught:
        records_of(tree)
    assert caught.value.reason is reason
