"""The small parts that all device formats share: numbers, people, XML, the first bytes of files, missing libraries."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import device_files as made
from beatray.ingest.formats import safe_xml
from beatray.ingest.formats.checks import listening, passed
from beatray.ingest.formats.numbers import decimal, maybe, maybe_whole, shown, whole, whole_numbers
from beatray.ingest.formats.people import age_between, age_in, age_of, id_of, labels_of, sex_of
from beatray.ingest.formats.registry import FORMATS
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Reason, RecordError
from wfdb_files import ecg_counts


@pytest.mark.parametrize("text", ["1", " 2.5 ", "-3e2", "+.5", "0.000001"])
def test_plain_numbers(text: str) -> None:
    assert decimal(text, Reason.HEADER, "x") == float(text) == maybe(text)


@pytest.mark.parametrize(
    "text", ["", None, "nan", "inf", "1e999", "1_0", "\u0663", "0x1", "1,5", "one", "1 2", "9" * 30]
)
def test_other_numbers_are_refused(text: str | None) -> None:
    with pytest.raises(RecordError) as caught:
        decimal(text, Reason.BAD_GAIN, "x")
    assert caught.value.reason is Reason.BAD_GAIN and maybe(text) is None
    with pytest.raises(RecordError):
        whole(text, Reason.HEADER, "x")


def test_messages_show_no_text_that_could_be_personal() -> None:
    for text in ("0", "-1.5", "1e999", "nan", "uV", "mmHg", "1.2.840.10008.5.1.4.1.1.7"):
        assert shown(text) == repr(text)
    for text in ("Mustermann", "PAT-4711", "19641103", "4711-2024", "1.2.276.0.76.4711", "03-NOV-1964"):
        assert shown(text) == f"a text of {len(text)} characters"
    assert shown("") == shown(None) == "nothing"


def test_lists_of_whole_numbers() -> None:
    np.testing.assert_array_equal(whole_numbers("1 -2\n +3\t4", " ", "x"), [1, -2, 3, 4])
    np.testing.assert_array_equal(whole_numbers("1,-2,\n3", ",", "x"), [1, -2, 3])
    assert len(whole_numbers(" \n", " ", "x")) == 0
    for text in ("1 2.5", "1 a", "1 - 2", "--1", "1,2", "1_0", "99999999999999999999999", "nan", "1 2-", "-", "1 +"):
        with pytest.raises(RecordError):
            whole_numbers(text, " ", "x")
    np.testing.assert_array_equal(whole_numbers("1,2,\n", ",", "x"), [1, 2])
    for text in ("1,,2", ",1", "1 2", "1, ,2", "1,-"):
        with pytest.raises(RecordError):
            whole_numbers(text, ",", "x")


def test_ages() -> None:
    assert age_between("19641103", "20240217") == 59.0
    assert age_between("1964-02-17", "20240217101500") == 60.0
    assert age_between("19100101", "20240101") == 90.0  # above 89: as in public data sets
    assert [age_between(*days) for days in (("", "20240101"), ("19640231", "20240101"), ("20250101", "20240101"))] == [
        None
    ] * 3
    assert age_between("18000101", "20240101") is None
    assert (age_of(6.0, "Months"), age_of(52.0, "W"), age_of(30.0, "D")) == (0.5, 1.0, 0.08)
    assert (age_of(None), age_of(-1.0), age_of(500.0), age_of(5.0, "furlongs")) == (None, None, None, None)
    assert [sex_of(text) for text in ("F", "female", "MALE", "m", "O", "", None)] == [
        "F",
        "F",
        "M",
        "M",
        None,
        None,
        None,
    ]


def test_what_cells_say_about_a_person() -> None:
    ages = ("56", "56.0\n", ">89", "90+", "95", "300", "300.0", "0", "63Y", "18 months")
    assert [age_in(text) for text in ages] == [56, 56, 90, 90, 90, 90, 90, 0, 63, 1.5]
    assert [age_in(text) for text in ("", "NaN", "nan", "inf", "-1", "1e9", "old", "1_0", "126", None)] == [None] * 10
    ids = ("1234", "1234.0", " 01234 ", "12.7", "X1", "0", 0, 1234.0, "1.2.840.0")
    assert [id_of(text) for text in ids] == ["1234", "1234", "01234", "12.7", "X1", "0", "0", "1234", "1.2.840.0"]
    assert [id_of(text) for text in (None, "", " ", "nan", "NA", "None", "Unknown", "ANONYMOUS")] == [None] * 8
    cut_short = ("1.23457E+11", "1,23457e+11", "1E+11", " 12.3E+010 ", 1e22, "7" * 129)
    for number, text in enumerate(cut_short):
        with pytest.raises(RecordError, match="at most 128$" if number == len(cut_short) - 1 else "ids as text$"):
            id_of(text)
    whole = ("1E11", "E+11", "1.2.E+11", "A1E+11", "1E+1111", "7" * 128)
    assert [id_of(text) for text in whole] == list(whole)
    assert labels_of(["B", " A", "nan", "", "Unknown", "B"]) == ("B", "A")
    assert [maybe_whole(text) for text in ("7", "7.0", "007", "7.5", "-7", "", None)] == [
        7,
        7,
        7,
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("head", "root"),
    [
        (b'<?xml version="1.0"?>\n<!-- a <b> --><x:AnnotatedECG xmlns:x="y">', "AnnotatedECG"),
        ("<?xml?><restingecgdata/>".encode("utf-16"), "restingecgdata"),
        (b"\xef\xbb\xbf<RestingECG>", "RestingECG"),
        (b'<!DOCTYPE RestingECG SYSTEM "x">\n<RestingECG>', "RestingECG"),
        (b"not <xml>", ""),
        (b"", ""),
    ],
)
def test_root_of_the_first_bytes(head: bytes, root: str) -> None:
    assert safe_xml.root_of(head) == root


def test_first_bytes_of_files_in_every_kind_of_tree(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "x").write_bytes(data)
    (tmp_path / "in" / "empty").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(tmp_path / "in" / "deep" / "x", "deep/x")
        packed.write(tmp_path / "in" / "empty", "empty")
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(tmp_path / "in" / "deep" / "x", "deep/x")
            tar.add(tmp_path / "in" / "empty", "empty")
    for archive in ("in", "a.zip", "a.tar", "a.tar.gz"):
        tree: Tree = open_tree(str(tmp_path / archive))
        assert tree.head("deep/x", 100) == data[:100]
        assert tree.head("deep/x", 10**6) == data
        assert tree.head("empty", 10) == b""
        for name, reason in (("nowhere", Reason.MISSING_FILE), ("../x", Reason.UNSAFE_PATH)):
            with pytest.raises(RecordError) as caught:
                tree.head(name, 10)
            assert caught.value.reason is reason


def test_first_bytes_go_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "folder").mkdir()
    tree = open_tree(str(tmp_path / "in"))
    for name in ("link", "folder"):
        with pytest.raises(RecordError) as caught:
            tree.head(name, 10)
        assert caught.value.reason is Reason.UNSAFE_PATH


@pytest.mark.parametrize(("library", "name"), [("pydicom", "DICOM"), ("defusedxml.ElementTree", "MUSE XML")])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, name: str) -> None:
    counts = ecg_counts(2600)
    data = made.dicom([made.dicom_group(counts)]) if name == "DICOM" else made.muse_xml(counts)
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecordError, match=r"pip install 'beatray\[formats\]'") as caught:
        list(FORMATS[name].read(open_tree(str(tmp_path)), "x"))
    assert caught.value.reason is Reason.FORMAT


def test_checks_are_reported_only_inside_the_block() -> None:
    checks: list[tuple[str, str]] = []
    passed("before", 0)
    with listening(lambda what, seen: checks.append((what, seen))):
        passed("inside", 1)
    passed("after", 2)
    assert checks == [("inside", "1")]
