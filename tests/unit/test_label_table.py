"""Tables of a user's own labels: which rows the keys mean, and what columns hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beatray.corpus.id_key import RECIPE_KEY, IdKey
from beatray.corpus.label_columns import whole_number
from beatray.corpus.label_settings import label_settings, split_label_overrides
from beatray.corpus.label_targets import parse
from beatray.errors import LabelError, SettingsError
from label_tables import index_of, many, read, values, written

SECRET = b"0123456789abcdef-secret"


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        ("ptbxl/00001", [0]),
        ("00002", [1]),
        ("2", [1]),
        ("2.0", [1]),
        ("17", [2]),
        ("ludb/1", [3]),
        ("/data/ludb/1.dat", [3]),
        ("records500/00000/00017.hea", [2]),
        (r"D:\scans\ward b\ecg1.dcm", [6]),
        ("ward a/ecg1", [5]),
        ("files/ward a/ecg1.xml", [5]),
        ("smith.2024", [7]),
        ("smith.2024.xml", [7]),
        ("long", [8, 9]),
        ("mine/long", [8, 9]),
    ],
)
def test_a_recording_may_be_written_in_many_ways(tmp_path: Path, key: str, rows: list[int]) -> None:
    found = read(written(tmp_path, f"record,ill\n{key},1\n"))
    assert np.flatnonzero(found.table_row >= 0).tolist() == rows and found.key_kind == "recording"
    assert [values(found, "ill")[row] for row in rows] == [True] * len(rows)


@pytest.mark.parametrize("key", ["1", "1.0", "ecg1", "ecg1.dcm"])
def test_a_key_that_could_mean_two_recordings_is_not_guessed(tmp_path: Path, key: str) -> None:
    table = written(tmp_path, f"record,ill\n{key},1\n90,0\n")
    with pytest.raises(LabelError, match=rf"1 of 2 rows could mean two of the corpus \(e\.g\. {key}\).*labels\.source"):
        read(table)


def test_a_source_decides_between_two_recordings(tmp_path: Path) -> None:
    table = written(tmp_path, "record,ill\n1,1\n2,0\n")
    assert values(read(table, "labels.source=ptbxl"), "ill") == [True, False, *[None] * 8]
    with pytest.raises(SettingsError, match=r"labels\.source=ptb: the corpus has files, ludb, mine, ptbxl"):
        read(table, "labels.source=ptb")


def test_a_patient_stands_for_all_recordings_of_hers(tmp_path: Path) -> None:
    for key in ("15709", "15709.0", "ptbxl/15709"):
        found = read(written(tmp_path, f"patient_id;lvef\n{key};35,5\np7;60\n"))
        assert found.key_kind == "patient"
        assert values(found, "lvef") == [35.5, 35.5, *[None] * 6, 60.0, 60.0]


def test_hashed_patient_ids_are_met_by_hashing_those_of_the_table(tmp_path: Path) -> None:
    id_key = IdKey(SECRET)
    index = index_of(["files/a", "files/b"], [f"files/{id_key.hashed('1234')}", f"files/{id_key.hashed('MR 5')}"])
    recipe = {RECIPE_KEY: id_key.fingerprint}
    table = written(tmp_path, "mrn,ill\n1234.0,1\nfiles/MR 5,0\n")
    secret = written(tmp_path, SECRET + b"\n", "id-key")
    found = read(table, f"labels.id_key_file={secret}", index=index, recipe=recipe)
    assert values(found, "ill") == [True, False]
    with pytest.raises(LabelError, match=rf"hashed with the id key of fingerprint {id_key.fingerprint}.*id_key_file"):
        read(table, "labels.key_kind=patient", index=index, recipe=recipe)
    other = written(tmp_path, b"another-secret-of-16", "other")
    with pytest.raises(LabelError, match="give the one of the ingest"):
        read(table, f"labels.id_key_file={other}", index=index, recipe=recipe)
    with pytest.raises(LabelError, match="without an id key"):
        read(table, f"labels.id_key_file={secret}", index=index)


def test_a_column_of_patients_is_never_read_as_one_of_recordings(tmp_path: Path) -> None:
    id_key = IdKey(SECRET)
    records = [f"files/{k}" for k in range(1, 6)]
    table = written(tmp_path, "mrn,ill\n1,1\n2,0\n3,1\n")
    with pytest.raises(LabelError, match="no recording of the corpus has a patient id"):
        read(table, index=index_of(records, [None] * 5))
    hashed = index_of(records, [f"files/{id_key.hashed(str(9 - k))}" for k in range(5)])
    with pytest.raises(LabelError, match=r"hashed .*: set labels\.id_key_file=PATH"):
        read(table, index=hashed, recipe={RECIPE_KEY: id_key.fingerprint})
    labels = read(table, "labels.key_kind=recording", index=index_of(records, [None] * 5))
    assert values(labels, "ill") == [True, False, True, None, None]
    with pytest.raises(LabelError, match="match nothing"):
        read(written(tmp_path, "record,ill\np1,1\np2,0\n"), index=index_of(records, [f"files/p{k}" for k in range(5)]))


def test_a_source_before_a_patient_is_kept_where_ids_are_hashed(tmp_path: Path) -> None:
    id_key = IdKey(SECRET)
    secret = written(tmp_path, SECRET, "id-key")
    index = index_of(["files/a", "mine/b"], [f"files/{id_key.hashed('1234')}", f"mine/{id_key.hashed('1234')}"])
    overrides, recipe = f"labels.id_key_file={secret}", {RECIPE_KEY: id_key.fingerprint}
    found = read(written(tmp_path, "mrn,ill\nmine/1234,1\n"), overrides, index=index, recipe=recipe)
    assert values(found, "ill") == [None, True]
    with pytest.raises(LabelError, match="could mean two"):
        read(written(tmp_path, "mrn,ill\n1234,1\n"), overrides, index=index, recipe=recipe)


@pytest.mark.parametrize(
    ("key", "records"),
    [("12.7", ["files/12"]), ("1.2.840.1.17", ["files/1.2.840.1"]), ("smith.2024", ["files/smith"])],
)
def test_what_stands_behind_a_dot_is_a_part_of_the_name(tmp_path: Path, key: str, records: list[str]) -> None:
    with pytest.raises(LabelError, match="match nothing"):
        read(written(tmp_path, f"record,ill\n{key},1\n"), index=index_of(records, [None]))
    for suffix in (".xml", ".DCM", ".hea", ".edf.gz"):
        found = read(written(tmp_path, f"record,ill\nx/{records[0][6:]}{suffix},1\n"), index=index_of(records, [None]))
        assert values(found, "ill") == [True]


def test_unknown_numbers_are_known_by_their_value(tmp_path: Path) -> None:
    table = written(tmp_path, "record,ef\n00001,35.5\n00002,-9.0\n00017,60.0\n")
    found = read(table, "labels.unknown=[NA,-9]", "labels.targets.low=ef < 40")
    assert values(found, "ef")[:3] == [35.5, None, 60.0] and values(found, "low")[:3] == [True, None, False]


@pytest.mark.parametrize("unknown", [(), ("labels.unknown=[NA,-9]",)])
def test_thousands_in_groups_are_refused_with_a_spelling_that_is_a_number(
    tmp_path: Path, unknown: tuple[str, ...]
) -> None:
    table = written(tmp_path, 'record,bnp\n00001,"1,234,567"\n00002,"12,5"\n00017,-9\n')
    with pytest.raises(LabelError, match=r"column 'bnp': write 1234567 instead of 1,234,567$"):
        read(table, *unknown)


@pytest.mark.parametrize("encoding", ["auto", "utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, encoding: str) -> None:
    table = tmp_path / "marked.csv"
    table.write_bytes("\ufeffrecord,patient,ill\n00001,p1,1\n00002,p2,0\n".encode())
    found = read(table, f"labels.encoding={encoding}")
    assert found.key == "record" and values(found, "ill")[:2] == [True, False]


def test_entries_of_lists_are_words(tmp_path: Path) -> None:
    table = written(tmp_path, "record,no,010\n00001,1,0\n00002,0,null\n00017,1,1\n")
    found = read(table, "labels.columns=[no,010]", "labels.unknown=[NA,null]")
    assert values(found, "no")[:3] == [True, False, True] and values(found, "010")[:3] == [False, None, True]


def test_codes_keep_their_spelling_unless_all_are_whole_numbers(tmp_path: Path) -> None:
    def classes(cells: str) -> tuple[str, ...]:
        rows = zip(("00001", "00002", "00017"), cells.split(), strict=True)
        text = "record,c\n" + "".join(f"{record},{cell}\n" for record, cell in rows)
        return read(written(tmp_path, text), "labels.types.c=classes").targets[0].classes

    assert classes("401.0 401 401.00") == ("401", "401.0", "401.00")
    assert classes("1.0 2 1") == ("1", "2") and classes("01 1 2") == ("01", "1", "2")


def test_the_id_key_may_lie_in_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    id_key = IdKey(SECRET)
    written(tmp_path, SECRET, "id-key")
    index = index_of(["files/a"], [f"files/{id_key.hashed('7')}"])
    recipe = {RECIPE_KEY: id_key.fingerprint}
    found = read(written(tmp_path, "mrn,ill\n7,1\n"), "labels.id_key_file=~/id-key", index=index, recipe=recipe)
    assert values(found, "ill") == [True]


def test_owners_are_those_of_the_table_where_the_corpus_has_none(tmp_path: Path) -> None:
    index = index_of(["files/a", "files/b", "files/c", "mine/d"], [None, None, None, "mine/p"])
    found = read(written(tmp_path, "record,mrn,ill\na,5,1\nb,5,0\nd,6,1\n"), index=index)
    owners = found.owners(np.arange(4), index["patient_id"].tolist())
    assert owners[0] == owners[1] is not None and owners[2:] == [None, "mine/p"]


def test_whom_the_corpus_knows_by_one_recording_alone_is_one_patient_with_the_others_of_the_table(
    tmp_path: Path,
) -> None:
    names, patients = [f"mine/{n}" for n in range(6)], ["mine/p", None, None, None, "mine/q", None]
    table = written(tmp_path, "record_id,patient,af\n0,7,1\n1,7,0\n2,8,1\n3,8,0\n4,9,1\n5,,0\n")
    found = read(table, "labels.patient=patient", index=index_of(names, patients))
    owners = found.owners(np.arange(6), patients)
    assert owners[:2] == ["mine/p", "mine/p"] and owners[4:] == ["mine/q", None]
    assert owners[2] == owners[3] not in (None, "mine/p", "mine/q")
    backwards = found.owners(np.arange(6)[::-1], patients[::-1])
    assert backwards[::-1] == owners
    assert found.owners(np.arange(0), []) == []


def test_keys_of_no_telling_name_that_fit_both_are_refused(tmp_path: Path) -> None:
    index = index_of([f"mine/{k}" for k in range(9)], [f"mine/{8 - k}" for k in range(9)])
    table = written(tmp_path, "no,ill\n" + "".join(f"{k},{k % 2}\n" for k in range(9)))
    with pytest.raises(LabelError, match=r"recordings in 9 and patients in 9 rows: set labels\.key_kind"):
        read(table, index=index)
    by_patient = read(table, "labels.key_kind=patient", index=index)
    by_record = read(table, "labels.key_kind=recording", index=index)
    assert by_patient.table_row.tolist() == list(range(8, -1, -1)) == by_record.table_row.tolist()[::-1]
    named = written(tmp_path, table.read_text().replace("no,", "patient_id,"))
    assert read(named, index=index).key_kind == "patient"


@pytest.mark.parametrize(
    ("cells", "kind", "found"),
    [
        (("1", "0", ""), "binary", [True, False, None]),
        (("1.0", "0.0", "NaN"), "binary", [True, False, None]),
        (("TRUE", "false", "Unknown"), "binary", [True, False, None]),
        (("Yes", " no ", "NA"), "binary", [True, False, None]),
        (("2", "0.5", "None"), "numbers", [2.0, 0.5, None]),
        (("-1e3", ".5", "7."), "numbers", [-1000.0, 0.5, 7.0]),
        (("AF", "SR", "AF"), "classes", [{"AF"}, {"SR"}, {"AF"}]),
        (("MI|STTC", "NORM", "|"), "multilabel", [{"MI", "STTC"}, {"NORM"}, set()]),
        (("MI; STTC ;", "NORM", "null"), "multilabel", [{"MI", "STTC"}, {"NORM"}, None]),
        (("1", "2", "1;2"), "multilabel", [{"1"}, {"2"}, {"1", "2"}]),
    ],
)
def test_types_are_read_off_the_cells(tmp_path: Path, cells: tuple[str, ...], kind: str, found: list[object]) -> None:
    rows = "".join(f'{name},"{cell}"\n' for name, cell in zip(("00001", "00002", "00017"), cells, strict=True))
    labels = read(written(tmp_path, f"record,x\n{rows}"))
    assert labels.targets[0].kind == kind and values(labels, "x")[:3] == found


def test_types_separators_and_unknown_values_can_be_set(tmp_path: Path) -> None:
    table = written(tmp_path, "record,grade,drugs,valve\n00001,1,a+b,none\n00002,2,a,mild\n00017,-9,c,none\n")
    overrides = (
        "labels.types.grade=classes",
        "labels.separator=+",
        "labels.unknown=[NA,-9]",
        "labels.columns=[grade,drugs,valve]",
    )
    found = read(table, *overrides)
    assert values(found, "grade")[:3] == [{"1"}, {"2"}, None]
    assert values(found, "drugs")[:3] == [{"a", "b"}, {"a"}, {"c"}]
    assert values(found, "valve")[:3] == [{"none"}, {"mild"}, {"none"}]
    with pytest.raises(LabelError, match=r"'valve' has classes and the value none.*labels\.unknown"):
        read(table)
    assert read(table, "labels.columns=[grade]").targets[0].kind == "numbers"
    commas = written(tmp_path, "record;codes\n00001;1,2\n00002;3\n00017;2,3\n", "commas.csv")
    assert values(read(commas), "codes")[:3] == [1.2, 3.0, 2.3]
    assert values(read(commas, "labels.separator=,"), "codes")[:3] == [{"1", "2"}, {"3"}, {"2", "3"}]


def test_ids_dates_and_text_are_no_labels(tmp_path: Path) -> None:
    index = many(30)
    rows = "".join(f"{k},p{k},{k % 28 + 1:02}.03.2021,finding number {k},,{k % 2}\n" for k in range(1, 31))
    found = read(written(tmp_path, f"record,patient_id,day,report,empty,ill\n{rows}"), index=index)
    assert [column.name for column in found.targets] == ["ill"] and found.owner == "patient_id"
    why = {each.name: each.why for each in found.left_out}
    assert list(why) == ["day", "report", "empty", "patient_id"]
    assert why["day"] == "dates" and "free text, 30" in why["report"] and "no row" in why["empty"]
    with pytest.raises(LabelError, match=r"column 'report' is no label: free text, 30 .*labels\.types\.report=classes"):
        read(tmp_path / "labels.csv", "labels.columns=[report]", index=index)


def test_what_is_not_given_is_unknown_and_windows_share_a_label(tmp_path: Path) -> None:
    found = read(written(tmp_path, "record,ill\nlong,1\n00002,\n"))
    assert values(found, "ill") == [*[None] * 8, True, True]
    assert found.rows_known == 3 and found.unmatched == 0


def test_a_repeated_row_counts_once_if_its_values_are_the_same(tmp_path: Path) -> None:
    found = read(written(tmp_path, "record,lvef,note\n00001,35,a\nptbxl/00001,35.0,b\n00002,60,c\n", "twice.csv"),
                 "labels.columns=[lvef]")  # fmt: skip
    assert found.repeated == 1 and values(found, "lvef")[:2] == [35.0, 60.0]


def test_conditions_make_targets_and_unknown_stays_unknown(tmp_path: Path) -> None:
    rows = "00001,35,70\n00002,45,\n00017,,50\nludb/1,,\nludb/90,30,\n"
    table = written(tmp_path, f"record,LV EF (%),age\n{rows}")
    overrides = [
        "labels.targets.low=LV EF (%) < 40",
        "labels.targets.both=LV EF (%) <= 35 and age >= 60",
        "labels.targets.either=LV EF (%) < 40 or age == 50",
        "labels.targets.not_45=LV EF (%) != 45",
    ]
    found = read(table, *overrides)
    assert values(found, "low")[:5] == [True, False, None, None, True]
    assert values(found, "both")[:5] == [True, False, False, None, None]
    assert values(found, "either")[:5] == [True, None, True, None, True]
    assert values(found, "not_45")[:5] == [True, False, None, None, True]
    assert [each.kind for each in found.targets] == ["numbers", "numbers", *["binary"] * 4]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.targets.low=lvef", r"labels\.targets\.low: 'lvef' is no comparison"),
        ("labels.targets.low=lvef < forty", "is no comparison"),
        ("labels.targets.low=30 < lvef < 40", "is no comparison"),
        ("labels.targets.low=__import__('os').system('id') < 1", r"no column \"__import__\('os'\)"),
        ("labels.targets.low=lvf < 40", r"no column 'lvf'; did you mean 'lvef'"),
        ("labels.targets.lvef=lvef < 40", "has the name of a column"),
        (
            "labels.targets.low=site < 40",
            r"column 'site' is set to hold numbers, and holds 2 other values \('a', 'b'\)",
        ),
        ("labels.columns=[lvf]", r"labels\.columns: .* no column 'lvf'; did you mean 'lvef'"),
        ("labels.columns=[record]", "which is the key"),
        ("labels.types.lvf=numbers", "no column 'lvf'"),
        ("labels.types.lvef=number", r"labels\.types\.lvef must be one of binary, classes, multilabel, numbers"),
        ("labels.types.lvef=binary", "column 'lvef' is no binary one"),
        (
            "labels.key=patient",
            r"labels\.key: .* no column 'patient' \(it has record, lvef, site\)|no column 'patient'",
        ),
        ("labels.kye=record", r"there is no setting 'labels\.kye'; did you mean 'key'"),
        ("labels.separator=||", "must be one character"),
        ("labels.unmatched=maybe", r"labels\.unmatched must be one of refuse, ignore"),
    ],
)
def test_overrides_that_fit_nothing_are_refused(tmp_path: Path, override: str, message: str) -> None:
    table = written(tmp_path, "record,lvef,site\n00001,35,a\n00002,60,b\n")
    with pytest.raises((SettingsError, LabelError), match=message):
        read(table, override)


def test_the_settings_of_a_table_are_taken_from_a_command_line() -> None:
    labels, others = split_label_overrides(
        [
            "corpus=/c",
            "labels=/t.csv",
            "labels.types.LV EF.2=numbers",
            "labels.columns=[LV EF.2, age]",
            "labels.key=a=b",
        ]
    )
    assert others == ["corpus=/c"]
    settings = label_settings(labels)
    assert settings.types == {"LV EF.2": "numbers"} and settings.columns == ("LV EF.2", "age") and settings.key == "a=b"
    for override in ("labels=", "labels.targets=low", "labels.columns=[a"):
        with pytest.raises(SettingsError):
            split_label_overrides([override])


def test_one_spelling_of_whole_numbers() -> None:
    assert {whole_number(override) for override in ("1234", "1234.0", "01234", "1234.00")} == {"1234"}
    assert [whole_number(w) for w in ("0", "0.0", "12.5", "a1", "1e3", "\u0661")] == [
        "0",
        "0",
        "12.5",
        "a1",
        "1e3",
        "\u0661",
    ]
    assert parse("x", "a b < 1 and c >= -2.5e1 or d != 0").columns == ("a b", "c", "d")
