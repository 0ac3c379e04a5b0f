"""Tables of labels as spreadsheets and scripts leave them: each gives the right values or one line with a remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beatray.cli import main
from beatray.errors import LabelError
from label_tables import many, read, values, written

GOOD = 'record,lvef,note\n00001,35.5,"a, b"\n00002,60,"two\nlines"\n'


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace('"a, b"', '"say ""b"""'),
        "\n\n" + GOOD,
        GOOD + "\n\n",
        GOOD.replace(",", ";").replace("35.5", "35,5").replace('"a; b"', '"a; b"'),
        "sep=;\n" + GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace("lvef", " lvef ").replace("35.5", " 35.5\u00a0"),
    ],
)
def test_what_can_be_read_is_read_alike(tmp_path: Path, content: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        table = written(tmp_path, content.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
        assert values(read(table, "labels.columns=[lvef]"), "lvef")[:3] == [35.5, 60.0, None]


BAD = {
    "empty": ("", "is empty"),
    "blank": (" \n\n", "is empty"),
    "no rows": ("record,ill\n", "has column names and no rows"),
    "one column": ("record\n00001\n", r"has one column \(record\)"),
    "twice": ("record,ill,ill\n00001,1,0\n", r"has the column 'ill' 2 times"),
    "twice but for blanks": ("record,ill, ill \n00001,1,0\n", r"has the column 'ill' 2 times"),
    "nameless": ("record,,ill\n00001,1,0\n", "column 2 has no name"),
    "header again": ("record,ill\n00001,1\nrecord,ill\n00002,0\n", "row 2 is the line of column names again"),
    "ragged": ("record,ill\n00001,1,7\n00002,0\n", "is no table with ','.*quotes"),
    "stray quotes": (
        'record,ill,c\n00001,1,"foo\n00002,0,x\n00017,1,"baz\n',
        "a quote that begins after line 1 ends within",
    ),
    "unknown beside a class": (
        "record,c\n00001,MI|unknown\n00002,MI\n",
        r"'MI\|unknown' holds a value for unknown beside",
    ),
    "open quote": ('record,ill\n00001,"1\n00002,0\n', "quote that begins after line 1 is never closed"),
    "mixed decimals": ("record;k\n00001;3,5\n00002;4.5\n", r"with a comma \(3,5\) and with a point \(4\.5\)"),
    "thousands": ("record;k\n00001;1,500\n00002;4,200\n", r"1,500 may be a thousand or a fraction"),
    "limits": ("record,k\n00001,3.5\n00002,4.5\n00017,<2\n", r"'k' holds numbers and 1 other value \('<2'\)"),
    "excel dates": ("record,k\n00001,3.5\n00002,4.5\n00017,05. Mrz\n", r"numbers and 1 other value \('05\. Mrz'\)"),
    "infinite": ("record,k\n00001,3.5\n00002,1e999\n", "larger than any number"),
    "two separators": ("record,c\n00001,a|b\n00002,a;c\n", r"holds both \| and ;.*labels\.separator"),
    "all unknown": ("record,ill\n00001,NA\n00002,\n", r"no column that is a label \(ill: no row has a value\)"),
    "all unmatched": (
        "record,ill\n77777,1\n88888,0\n",
        r"2 of 2 rows match nothing \(e\.g\. 77777, 88888\).*ptbxl/00001",
    ),
    "some unmatched": (
        "record,ill\n00001,1\n00002,0\n88888,0\n",
        r"1 of 3 rows match nothing .*88888.*labels\.unmatched=ignore",
    ),
    "no key": ("record,ill\n00001,1\n,0\n00002,0\n", r"1 of 3 rows match nothing .*\(e\.g\. an empty one\)"),
    "doubled": ("record,ill\n1.0,1\nptbxl/00001,0\n", "could mean two"),
    "doubled, unequal": (
        "record,k\n00001,1.5\nptbxl/00001,2.5\n00002,1\n",
        r"1 recording has rows with different values \(e\.g\. 00001: k is 1\.5 in row 1 and 2\.5 in row 2\)",
    ),
    "doubled, one unknown": ("record,k\n00001,1.5\nptbxl/00001,\n", "k is 1.5 in row 1 and unknown in row 2"),
    "visits": (
        "patient_id,day,k\n15709,2020-01-01,1.5\n15709,2021-01-01,2.5\n",
        r"1 patient has rows .*values of different times.*labels\.time=COLUMN and labels\.window=30d",
    ),
    "binary junk": (b"\x00\x01\x02\x00record,ill", "is no text"),
    "workbook": (b"PK\x03\x04rest", "is a workbook"),
    "latin": ("record,ort\n00001,Köln\n".encode("cp1252"), r"is not UTF-8 \(line 2\).*labels\.encoding=cp1252"),
    "broken gzip": (b"\x1f\x8b\x08\x00", "cannot be unpacked"),
    "broken parquet": (b"PAR1xxxxPAR1", "no Parquet file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_understood_is_one_line(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(LabelError, match=message) as refused:
        read(written(tmp_path, content))
    assert "\n" not in str(refused.value)


def test_an_encoding_can_be_said(tmp_path: Path) -> None:
    table = written(tmp_path, "record,ort\n00001,Köln\n00002,Bonn\n".encode("cp1252"))
    assert values(read(table, "labels.encoding=cp1252"), "ort")[:2] == [{"Köln"}, {"Bonn"}]
    with pytest.raises(LabelError, match="is no encoding"):
        read(table, "labels.encoding=klingon")


def test_unmatched_rows_may_be_left_out_but_not_all(tmp_path: Path) -> None:
    table = written(tmp_path, "record,ill\n00001,1\n88888,0\n99999,0\n,0\n")
    found = read(table, "labels.unmatched=ignore")
    assert found.unmatched == 3 and values(found, "ill")[:2] == [True, None]
    with pytest.raises(LabelError, match="2 of 2 rows match nothing"):
        read(written(tmp_path, "record,ill\nx,1\ny,0\n"), "labels.unmatched=ignore")


def test_paths_that_hold_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabelError, match="there is no table"):
        read(tmp_path / "none.csv")
    with pytest.raises(LabelError, match="is a folder"):
        read(tmp_path)
    for overrides, message in (
        (["corpus=/c"], "which table?"),
        (["labels.csv"], "for which corpus?"),
        (["a.csv", "b.csv", "corpus=/c"], "one table at a time"),
        (["a.csv", "corpus=/c", "labels.kye=x"], "did you mean 'key'"),
    ):
        assert main(["labels", "check", *overrides]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_million_rows(tmp_path: Path) -> None:
    """Keys as files on a share, with a suffix; each is found."""
    n = 1_000_000
    numbers = np.random.default_rng(0).integers(0, 100, n)
    lines = "".join(f"{k % 1000 + 1},{v},{'AF' if v > 50 else 'SR'}\n" for k, v in enumerate(numbers.tolist()))
    table = written(tmp_path, "record,k,rhythm\n" + lines)
    index = many(1000)
    with pytest.raises(LabelError, match=r"1,000 recordings have rows with different values"):
        read(table, index=index)
    equal = "".join(f"{k % 1000 + 1},{(k % 1000) % 7},{'AF' if k % 2 else 'SR'}\n" for k in range(n))
    found = read(written(tmp_path, "record,k,rhythm\n" + equal), index=index)
    assert found.repeated == n - 1000 and values(found, "k")[:8] == [0, 1, 2, 3, 4, 5, 6, 0]
