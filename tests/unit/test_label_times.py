"""Tables with patients and times: which row labels which recording."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beatray.commands.labels import _times_lines
from beatray.corpus import label_times
from beatray.corpus.id_key import RECIPE_KEY, IdKey
from beatray.corpus.label_summary import summary
from beatray.corpus.splits import SplitPolicy, assign_roles
from beatray.errors import LabelError, SettingsError
from label_tables import index_of, read, values, written

ID_KEY = IdKey(b"0123456789abcdef-secret")
NAT = "NaT"
RECORDS = ("mine/a", "mine/b", "mine/c", "mine/d#0", "mine/d#1", "mine/e")
PATIENTS = ("mine/p1", "mine/p1", "mine/p2", "mine/p2", "mine/p2", "mine/p3")
TIMES = ("2024-03-01T08:00", "2024-03-10T08:00", "2024-03-05T23:30", "2024-04-01T12:00", "2024-04-01T12:00", NAT)
WINDOW = "labels.window=2d"


def labels_of(tmp_path: Path, text: str, *overrides: str):  # type: ignore[no-untyped-def]
    index = index_of(RECORDS, PATIENTS)
    return read(written(tmp_path, text), "labels.time=[time]", *overrides, index=index, acquired=TIMES)


def test_the_nearest_row_within_the_window_labels_a_recording(tmp_path: Path) -> None:
    table = (
        "patient,time,k\n"
        "p1,2024-02-29 08:00:00,3.1\n"  # a day before a
        "p1,2024-03-01 09:00:00,3.2\n"  # an hour after a: nearer
        "p1,2024-03-06 08:00:00,3.3\n"  # of none
        "p2,2024-03-31 13:00:00,5.0\n"  # d, 23 hours before
        "p3,2024-03-31 13:00:00,6.0\n"  # whose recording has no time
        "p2,,7.0\n"
    )
    found = labels_of(tmp_path, table, WINDOW)
    assert values(found, "k") == [3.2, None, None, 5.0, 5.0, None]
    assert found.table_row.tolist() == [1, -1, -1, 3, 3, -1]
    assert found.times is not None
    assert (found.times.rows_without_time, found.times.rows_near_none) == (1, 3)
    assert (found.times.recordings, found.times.recordings_without_time, found.times.recordings_labelled) == (5, 1, 2)
    early = labels_of(tmp_path, table, "labels.window=[2d,30min]")
    assert values(early, "k") == [3.1, None, None, 5.0, 5.0, None]
    assert values(labels_of(tmp_path, table, "labels.window=[22h,1h]"), "k")[:4] == [3.2, None, None, None]


def test_a_label_comes_from_the_nearest_row_that_has_it(tmp_path: Path) -> None:
    table = (
        "patient,time,k,lvef\np1,2024-03-01 08:10:00,,35\np1,2024-03-01 07:00:00,4.1,\np1,2024-03-02 07:00:00,4.4,60\n"
    )
    found = labels_of(
        tmp_path, table, WINDOW, "labels.targets.low=lvef < 40", "labels.targets.both=lvef < 40 and k < 5"
    )
    assert values(found, "k")[0] == 4.1 and values(found, "lvef")[0] == 35 and values(found, "low")[0] is True
    assert values(found, "both")[0] is False  # a condition reads one row: the third


def test_a_date_is_a_whole_day_and_a_recording_before_midnight_is_on_it(tmp_path: Path) -> None:
    table = "patient,time,ill\np2,2024-03-05,yes\np2,2024-03-06,no\np1,2024-03-09,yes\n"
    assert values(labels_of(tmp_path, table, "labels.window=0d"), "ill") == [None, None, True, None, None, None]
    assert values(labels_of(tmp_path, table, "labels.window=8h"), "ill")[1] is None
    assert values(labels_of(tmp_path, table, "labels.window=9h"), "ill")[1] is True
    midnights = table.replace(",yes", " 00:00:00,yes").replace(",no", " 00:00:00,no")  # as a data frame writes days
    assert values(labels_of(tmp_path, midnights, "labels.window=0d"), "ill")[2] is True
    one_moment = midnights.replace("03-09 00:00:00", "03-10 08:00:00")  # most are midnights: these stay days
    assert values(labels_of(tmp_path, one_moment, "labels.window=0d"), "ill")[1:3] == [True, True]


def test_fractions_of_a_second_are_left_out_on_both_sides(tmp_path: Path) -> None:
    """A device that wrote 08:00:00.700 is kept as 08:00:00, and a table may have all of it."""
    table = "patient,time,k\np1,2024-03-01 08:00:00.700,5\n"
    assert values(labels_of(tmp_path, table, "labels.window=0min"), "k")[0] == 5


def test_a_row_without_a_value_labels_nothing(tmp_path: Path) -> None:
    table = "patient,time,k,ill\np1,2024-03-01 08:00:00,,\np1,2024-03-10 08:00:00,4,\n"
    found = labels_of(tmp_path, table, WINDOW, "labels.columns=[k]")
    assert found.times is not None and found.times.recordings_labelled == 1
    nothing = "patient,time,k\np1,2024-03-01 08:00:00,\np1,2020-03-10 08:00:00,4\n"
    with pytest.raises(LabelError, match=r"no row of .* with a label lies near"):
        labels_of(tmp_path, nothing, WINDOW)


def test_of_two_as_near_the_one_before_the_recording(tmp_path: Path) -> None:
    table = "patient,time,k\np1,2024-03-01 09:00:00,5\np1,2024-03-01 07:00:00,4\n"
    assert values(labels_of(tmp_path, table, WINDOW), "k")[0] == 4


def test_periods(tmp_path: Path) -> None:
    table = "patient,from,to,ward\np1,2024-02-27,2024-03-01,A\np1,2024-03-02,2024-03-09,B\np2,2024-03-01,2024-04-01,C\n"
    index = index_of(RECORDS, PATIENTS)
    path = written(tmp_path, table)
    found = read(path, "labels.time=[from,to]", index=index, acquired=TIMES)
    assert values(found, "ward") == [{"A"}, None, {"C"}, {"C"}, {"C"}, None]
    found = read(path, "labels.time=[from,to]", "labels.window=1d", index=index, acquired=TIMES)
    assert values(found, "ward")[1] == {"B"}
    with pytest.raises(LabelError, match=r"3 rows end before they begin .*labels.time=\[from,to\]"):
        read(path, "labels.time=[to,from]", index=index, acquired=TIMES)
    overlap = written(tmp_path, table.replace("2024-03-02", "2024-03-01"), "overlap.csv")
    with pytest.raises(LabelError, match=r"1 recordings have two rows as near as each other .*ward in rows 1 and 2"):
        read(overlap, "labels.time=[from,to]", index=index, acquired=TIMES)


def test_rows_of_one_time_must_agree(tmp_path: Path) -> None:
    same = "patient,time,k,ill\np1,2024-03-01 08:00:00,4,1\np1,2024-03-01 08:00:00,4,\n"
    assert values(labels_of(tmp_path, same, WINDOW), "ill")[0] is True
    with pytest.raises(LabelError, match=r"1 recordings have two rows .*k in rows 1 and 2"):
        labels_of(tmp_path, same.replace("4,\n", "5,0\n"), WINDOW)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("patient,time,k\np1,17.02.2024 08:00,4\n", (WINDOW,), "'99.99.9999 99:99' is none.*labels.time_format="),
        ("patient,time,k\np1,2024-03-01T08:00Z,4\n", (WINDOW,), "with a zone"),
        ("patient,time,k\np1,,4\n", (WINDOW,), "no row has a time in 'time'"),
        ("patient,time,k\np3,2024-03-01,4\n", (WINDOW,), "has a time in the corpus.*--id-key-file"),
        ("patient,time,k\np1,2020-03-01,4\n", (WINDOW,), "lies near a recording.*2 days before .* and 2 after"),
        ("record,time,k\na,2024-03-01,4\n", (WINDOW,), "column 'record' is read as the key of recordings"),
        ("patient,time,k\np1,2024-03-01,4\n", (), "labels.window=24h or 30d"),
        ("patient,time,k\np1,2024-03-01,4\n", ("labels.window=2 weeks",), "window must be as 90min, 24h or 30d"),
        ("patient,time,k\np1,2024-03-01,4\n", ("labels.window=[1d,2d,3d]",), "one span, or two"),
        ("patient,when,k\np1,2024-03-01,4\n", (WINDOW,), "labels.time: .* has no column 'time'"),
        ("time,k\np1,4\n", (WINDOW,), "labels.time names 'time', which is the key"),
        ("patient,time,k\np1,2024-03-01,4\n", (WINDOW, "labels.columns=[time,k]"), "which is the time of the rows"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises((LabelError, SettingsError), match=message):
        labels_of(tmp_path, text, *overrides)


def test_a_window_without_times_and_three_times_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "patient,k\np1,4\n")
    with pytest.raises(SettingsError, match=r"labels\.window needs labels.time=COLUMN"):
        read(path, WINDOW, index=index_of(RECORDS, PATIENTS))
    with pytest.raises(SettingsError, match=r"labels\.time_format needs labels\.time=COLUMN"):
        read(path, "labels.time_format=%d.%m.%Y", index=index_of(RECORDS, PATIENTS))
    with pytest.raises(SettingsError, match="must have no zone"):
        read(path, "labels.time=k", "labels.time_format=%Y %Z", index=index_of(RECORDS, PATIENTS))
    with pytest.raises(SettingsError, match="one column, or two"):
        read(path, "labels.time=[a,b,c]", index=index_of(RECORDS, PATIENTS))


def test_several_values_of_a_patient_name_the_way_out(tmp_path: Path) -> None:
    path = written(tmp_path, "patient,taken,k\np1,2024-03-01,4\np1,2024-03-09,5\n")
    with pytest.raises(LabelError, match=r"different values .*labels.time=COLUMN and labels.window=30d"):
        read(path, index=index_of(RECORDS, PATIENTS))


def test_other_ways_of_writing_a_time(tmp_path: Path) -> None:
    german = "patient,time,k\np1,01.03.2024 08:00,4\np1,10.03.2024 09:00,5\n"
    found = labels_of(tmp_path, german, "labels.window=2h", "labels.time_format=%d.%m.%Y %H:%M")
    assert values(found, "k")[:2] == [4, 5]
    days = "patient,time,k\np1,3/1/2024,4\n"
    assert values(labels_of(tmp_path, days, "labels.window=0h", "labels.time_format=%m/%d/%Y"), "k")[0] == 4
    moments = pa.array([datetime(2024, 3, 1, 8, 30), None], pa.timestamp("us"))
    pq.write_table(pa.table({"patient": ["p1", "p2"], "time": moments, "k": [4.5, 1.0]}), tmp_path / "t.parquet")
    index = index_of(RECORDS, PATIENTS)
    found = read(tmp_path / "t.parquet", "labels.time=time", "labels.window=1h", index=index, acquired=TIMES)
    assert values(found, "k")[0] == 4.5 and found.times is not None and found.times.rows_without_time == 1


def test_an_exam_id_beside_it_is_not_taken_for_the_key(tmp_path: Path) -> None:
    found = labels_of(tmp_path, "exam_id,patient,time,k\n17,p1,2024-03-01,4\n", WINDOW)
    assert found.key == "patient" and values(found, "k")[0] == 4


def hashed_index() -> tuple[pd.DataFrame, list[str]]:
    """The index and times of a corpus that was made with the id key."""
    hashes = [ID_KEY.hashed(name.partition("/")[2]) for name in PATIENTS]
    index = index_of([f"files/{name[5:]}" for name in RECORDS], [f"files/{each}" for each in hashes])
    times = np.array(TIMES, "datetime64[s]") + np.array([ID_KEY.moved_by_s(h) for h in hashes], "timedelta64[s]")
    return index, [str(time) for time in times]


def test_where_ids_are_hashed_times_are_moved_alike_and_no_message_shows_either(tmp_path: Path) -> None:
    key_file = tmp_path / "id-key"
    key_file.write_bytes(ID_KEY.secret)
    index, times = hashed_index()
    recipe = {RECIPE_KEY: ID_KEY.fingerprint}
    text = "mrn,time,k\np1,2024-03-01 09:00:00,3.2\np2,2024-03-31 13:00:00,5.0\n"
    words = ("labels.time=time", "labels.window=1d", f"labels.id_key_file={key_file}")
    found = read(written(tmp_path, text), *words, index=index, recipe=recipe, acquired=times)
    assert values(found, "k") == [3.2, None, None, 5.0, 5.0, None]
    for bad in (
        text.replace("2024-03-01 09", "2024.03.01 09"),
        text.replace("09:00:00,3.2", "09:00:00,3.2\np1,2024-03-01 09:00:00,3.3"),
        text.replace("2024", "2020"),
        text.replace("mrn,time,k", "mrn,until,k"),
    ):
        with pytest.raises((LabelError, SettingsError)) as caught:
            read(written(tmp_path, bad), *words, index=index, recipe=recipe, acquired=times)
        for secret in ("p1", "p2", "2020-0", "2024-03", "2024.03", "09:00"):
            assert secret not in str(caught.value)


def test_real_patients_and_times_give_what_names_of_recordings_give(data_dir: Path, tmp_path: Path) -> None:
    """PTB-XL's own table by recording, and by patient and time; rows of one patient have different values."""
    table = pd.read_csv(data_dir / "ptbxl" / "ptbxl_database.csv", dtype=str)
    index = index_of(
        [f"ptbxl/{int(n):05d}" for n in table["ecg_id"]], [f"ptbxl/{float(p):.0f}" for p in table["patient_id"]]
    )
    by_name = read(written(tmp_path, table[["ecg_id", "weight", "age"]].to_csv(index=False), "names.csv"), index=index)
    shuffled = table[["patient_id", "recording_date", "weight", "age"]].sample(frac=1.0, random_state=1)
    path = written(tmp_path, shuffled.to_csv(index=False))
    words = ("labels.time=recording_date", "labels.window=0min", "labels.columns=[weight,age]")
    by_time = read(path, *words, index=index, acquired=table["recording_date"].tolist())
    several = table["patient_id"].duplicated(keep=False).to_numpy()
    assert several.sum() > 40
    for name in ("weight", "age"):
        assert values(by_time, name) == values(by_name, name)
    with pytest.raises(LabelError, match="rows with different values"):
        read(path, "labels.columns=[weight,age]", index=index)


def test_random_tables_against_every_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and recordings in blocks give what comparing each with each gives."""
    monkeypatch.setattr(label_times, "PAIRS_AT_ONCE", 50)
    draw = np.random.default_rng(3)
    start = datetime(2024, 1, 1)
    n, rows = 120, 400
    whose, when = draw.integers(0, 25, n), draw.integers(0, 40 * 24 * 60, n) * 60
    row_whose, row_when = draw.integers(0, 27, rows), draw.choice(40 * 24 * 60, rows, replace=False) * 60 + 7
    level = draw.normal(4, 1, rows).round(3)
    missing = draw.random(rows) < 0.2
    lines = [
        f"p{p},{start + timedelta(seconds=int(t))},{'' if gone else v}"
        for p, t, v, gone in zip(row_whose, row_when, level, missing, strict=True)
    ]
    path = written(tmp_path, "\n".join(["patient,time,k", *lines]) + "\n")
    index = index_of([f"mine/r{k}" for k in range(n)], [f"mine/p{p}" for p in whose])
    times = [(start + timedelta(seconds=int(t))).isoformat() for t in when]
    words = ("labels.time=time", "labels.window=[36h,5d]", "labels.unmatched=ignore")
    found = read(path, *words, index=index, acquired=times)
    expected = []
    for p, t in zip(whose.tolist(), when.tolist(), strict=True):
        near = [
            (abs(t - at), v)
            for q, at, v, gone in zip(row_whose.tolist(), row_when.tolist(), level.tolist(), missing, strict=True)
            if q == p and not gone and -5 * 86_400 <= t - at <= 36 * 3600
        ]
        expected.append(min(near)[1] if near else None)
    assert values(found, "k") == expected and 20 < sum(each is not None for each in expected) < n


def test_the_summary_says_how_rows_were_chosen(tmp_path: Path) -> None:
    found = labels_of(tmp_path, "patient,time,k\np1,2024-03-01,4\np3,2024-03-01,5\n", "labels.window=[7d,24h]")
    index = index_of(RECORDS, PATIENTS)
    about = summary(found, index, assign_roles(index, SplitPolicy()))
    assert about["recordings_in_table"] == 1
    lines = _times_lines(about["times"])
    assert "at most 168 h before and 24 h after a recording" in lines[0]
    assert "1 of these patients' 3 recordings have such a row; 1 have no time" in lines[1]


def test_names_are_no_labels_and_no_row_is_shown(tmp_path: Path) -> None:
    """A column with one value for each patient in all of her rows is left out unless it is asked for."""
    records = [f"mine/r{k}" for k in range(24)]
    index = index_of(records, [f"mine/p{k // 2}" for k in range(24)])
    rows = "".join(f"p{k // 2},Name{k // 2},{k % 3},{k % 2}\n" for k in range(24))
    path = written(tmp_path, "record,name,grade,ill\n" + "".join(f"r{k},Name{k // 2},{k % 3},1\n" for k in range(24)))
    assert [each.name for each in read(path, index=index).left_out] == []  # one row for each key says nothing
    times = [f"2024-03-{k + 1:02}T08:00" for k in range(24)]
    lines = "".join(f"{row.rstrip()},2024-03-{k + 1:02}\n" for k, row in enumerate(rows.splitlines()))
    path = written(tmp_path, "patient,name,grade,ill,time\n" + lines)
    found = read(path, "labels.time=time", "labels.window=0d", index=index, acquired=times)
    assert [each.name for each in found.left_out] == ["name"] and len(found.targets) == 2
    broken = written(tmp_path, "patient,k\np1,5\np2,Huber,2024-03-01,5,0\n")
    with pytest.raises(LabelError, match="Expected 2 columns, got 5") as caught:
        read(broken, index=index)
    assert "Huber" not in str(caught.value)


def test_zeros_in_front_of_a_hashed_id_are_part_of_it(tmp_path: Path) -> None:
    key_file = tmp_path / "id-key"
    key_file.write_bytes(ID_KEY.secret)
    index = index_of(["files/a"], [f"files/{ID_KEY.hashed('57')}"])
    recipe, words = {RECIPE_KEY: ID_KEY.fingerprint}, (f"labels.id_key_file={key_file}", "labels.unmatched=ignore")
    for written_id, label in (("57", True), ("57.0", True), ("057", None)):
        path = written(tmp_path, f"mrn,ill\n{written_id},1\n99,0\n")
        if label is None:
            with pytest.raises(LabelError, match="match nothing"):
                read(path, *words, index=index, recipe=recipe)
            path = written(tmp_path, "mrn,ill\n57,1\n57,1\n057,1\n")
            with pytest.raises(LabelError, match=r"1 of 3 rows match nothing .*zeros in front of an id"):
                read(path, words[0], index=index, recipe=recipe)
        else:
            assert values(read(path, *words, index=index, recipe=recipe), "ill") == [label]
