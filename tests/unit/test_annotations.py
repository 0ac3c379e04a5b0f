"""The annotation parser on bytes laid out by hand, and how marks become waves."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from beatray.ingest.formats.wfdb_annotation import SYMBOLS, Annotations, parse_annotations, waves_of_lead
from beatray.record import Reason, RecordError, Wave

END = b"\0\0"


def override(code: int, step: int) -> bytes:
    return struct.pack("<H", code << 10 | step)


def skip(step: int) -> bytes:
    """The high word comes first."""
    value = step & 0xFFFFFFFF
    return override(59, 0) + struct.pack("<HH", value >> 16, value & 0xFFFF)


def marks(*events: tuple[str, int]) -> Annotations:
    before, data = 0, b""
    for symbol, sample in events:
        data += override(SYMBOLS.index(symbol), sample - before)
        before = sample
    return parse_annotations(data + END)


def test_plain_marks() -> None:
    parsed = parse_annotations(override(39, 10) + override(1, 5) + override(40, 7) + END)
    assert parsed.symbols == ("(", "N", ")")
    np.testing.assert_array_equal(parsed.samples, [10, 15, 22])
    assert parsed.samples.dtype == np.int64
    assert parsed.rate_hz is None


def test_long_steps_forward_and_back() -> None:
    parsed = parse_annotations(skip(100_000) + override(1, 3) + skip(-50_000) + override(5, 1) + END)
    np.testing.assert_array_equal(parsed.samples, [100_003, 50_004])


def test_attached_fields() -> None:
    text = override(63, 3) + b"AFI\0"
    data = override(1, 4) + override(60, 0xFF) + override(61, 2) + override(62, 7) + text + override(1, 4) + END
    parsed = parse_annotations(data)
    assert parsed.numbers == (-1, -1)  # number and channel hold on, subtype and text do not
    assert parsed.channels == (7, 7)
    assert parsed.subtypes == (2, 0)
    assert parsed.texts == ("AFI", "")


def test_time_resolution_is_read_and_left_out() -> None:
    note = b"## time resolution: 360.5"
    data = override(22, 0) + override(63, len(note)) + note + b"\0" + override(1, 9) + END
    parsed = parse_annotations(data)
    assert parsed.rate_hz == 360.5
    assert parsed.symbols == ("N",)


def test_marks_that_are_no_events_move_time_only() -> None:
    parsed = parse_annotations(override(0, 100) + override(1, 1) + END + END)
    np.testing.assert_array_equal(parsed.samples, [101])


def test_an_empty_file_of_marks_is_legal() -> None:
    parsed = parse_annotations(END)
    assert parsed.symbols == ()
    assert parsed.samples.shape == (0,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        override(1, 5),  # no end mark
        override(1, 5) + b"\0",
        skip(5),  # a step to nowhere
        override(59, 0) + b"\1\0",
        override(60, 1) + override(1, 5) + END,  # a number for no mark
        override(1, 5) + override(63, 200) + b"abc\0",  # a text longer than the file
        override(55, 5) + END,  # not assigned
        override(1, 5) + END + override(1, 5) + END,  # data after the end
        skip(-5) + override(1, 1) + END,  # before the recording
        skip(2**31 - 1) + override(1, 1000) + END,
    ],
)
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        parse_annotations(data)
    assert caught.value.reason is Reason.ANNOTATION


def test_whole_waves() -> None:
    found = waves_of_lead(marks(("(", 5), ("p", 9), (")", 12), ("(", 20), ("N", 25), (")", 30)), 4, 100)
    assert found == (Wave(4, "P", 5, 9, 12), Wave(4, "QRS", 20, 25, 30))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((("N", 25), (")", 30)), (Wave(0, "QRS", None, 25, 30),)),
        ((("(", 20), ("N", 25)), (Wave(0, "QRS", 20, 25, None),)),
        ((("(", 20), ("N", 25), ("(", 40), ("t", 50)), (Wave(0, "QRS", 20, 25, None), Wave(0, "T", 40, 50, None))),
        ((("(", 20), ("N", 25), ("t", 50)), (Wave(0, "QRS", 20, 25, None), Wave(0, "T", None, 50, None))),
        (((")", 3), ("N", 25), (")", 30), (")", 33)), (Wave(0, "QRS", None, 25, 30),)),
        ((("(", 3), ("(", 20), ("N", 25)), (Wave(0, "QRS", 20, 25, None),)),
        ((("(", 3),), ()),
    ],
)
def test_missing_bounds_are_none(events: tuple[tuple[str, int], ...], expected: tuple[Wave, ...]) -> None:
    assert waves_of_lead(marks(*events), 0, 100) == expected


def test_marks_outside_or_out_of_order_are_refused() -> None:
    with pytest.raises(RecordError, match="outside"):
        waves_of_lead(marks(("N", 100)), 0, 100)
    backwards = parse_annotations(override(1, 50) + skip(-20) + override(1, 0) + END)
    with pytest.raises(RecordError, match="out of order"):
        waves_of_lead(backwards, 0, 100)
