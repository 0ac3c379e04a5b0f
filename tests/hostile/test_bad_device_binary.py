"""Damaged and malicious SCP-ECG, EDF and DICOM files: refused with a reason, in bounded memory, opening nothing else.

SCP-ECG is changed inside its sections and wrapped anew with right checksums, so that faults reach the parser.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import device_files as made
from bad_device_files import COUNTS, GOOD, refused, warm_up
from beatray.record import Reason


@pytest.fixture(autouse=True)
def warm(tmp_path: Path) -> None:
    warm_up(tmp_path)


# --- SCP-ECG


def scp(**changed: Callable[[bytearray], None] | bytes | None) -> bytes:
    """A record with sections changed (`s3=...`) or left out, wrapped with right checksums."""
    bodies: dict[int, bytes] = dict(made.scp_bodies(COUNTS))
    for key, change in changed.items():
        number = int(key[1:])
        if change is None:
            bodies.pop(number)
        elif isinstance(change, bytes):
            bodies[number] = change
        else:
            body = bytearray(bodies[number])
            change(body)
            bodies[number] = bytes(body)
    return made.scp_record(bodies)


def patched(at: int, value: bytes) -> Callable[[bytearray], None]:
    return lambda body: body.__setitem__(slice(at, at + len(value)), value)


def ends(last: int) -> Callable[[bytearray], None]:
    """All eight leads end with this sample."""

    def change(body: bytearray) -> None:
        for lead in range(8):
            struct.pack_into("<I", body, 2 + 9 * lead + 4, last)

    return change


def subtracted(body: bytearray) -> None:
    """Section 3 says that reference beats were subtracted."""
    body[1] |= 1


def raw(change: Callable[[bytearray], None]) -> Callable[[], bytes]:
    def changed() -> bytes:
        data = bytearray(GOOD["SCP-ECG"])
        change(data)
        return bytes(data)

    return changed


SCP_FAULTS: dict[str, tuple[Callable[[], bytes], Reason]] = {
    "cut": (lambda: GOOD["SCP-ECG"][:-1], Reason.TRUNCATED),
    "longer": (lambda: GOOD["SCP-ECG"] + b"\0", Reason.TRAILING_BYTES),
    "empty": (lambda: b"", Reason.HEADER),
    "mark only": (lambda: bytes(16) + b"SCPECG", Reason.TRAILING_BYTES),
    "a flipped bit": (raw(lambda d: d.__setitem__(900, d[900] ^ 1)), Reason.CHECKSUM),
    "no section 1": (lambda: scp(s1=None), Reason.HEADER),
    "no section 3": (lambda: scp(s3=None), Reason.HEADER),
    "no section 6": (lambda: scp(s6=None), Reason.HEADER),
    "no Huffman table": (lambda: scp(s2=None), Reason.TRUNCATED),
    "20,000 tables": (lambda: scp(s2=struct.pack("<H", 20_000)), Reason.FORMAT),
    "a table of 60,000 codes": (lambda: scp(s2=struct.pack("<HH", 1, 60_000)), Reason.TRUNCATED),
    "a table without codes": (lambda: scp(s2=struct.pack("<HH", 1, 0)), Reason.TRUNCATED),
    "a code of no bits": (lambda: scp(s2=struct.pack("<HHBBBhI", 1, 1, 0, 0, 1, 0, 0)), Reason.FORMAT),
    "a code of 200 bits": (lambda: scp(s2=struct.pack("<HHBBBhI", 1, 1, 1, 200, 1, 0, 0)), Reason.FORMAT),
    "a code before another": (
        lambda: scp(s2=struct.pack("<HHBBBhIBBBhI", 1, 2, *(1, 1, 1, 0, 0), *(2, 2, 1, 0, 0))),
        Reason.FORMAT,
    ),
    "a switch to nowhere": (lambda: scp(s2=struct.pack("<HHBBBhI", 1, 1, 1, 1, 0, 9, 0)), Reason.FORMAT),
    "a switch to itself for ever": (lambda: scp(s2=struct.pack("<HHBBBhI", 1, 1, 1, 1, 0, 1, 0)), Reason.TRUNCATED),
    "no leads": (lambda: scp(s3=b"\0\0"), Reason.ABSURD_SIZE),
    "255 leads": (lambda: scp(s3=patched(0, b"\xff")), Reason.ABSURD_SIZE),
    "more leads than written": (lambda: scp(s3=patched(0, b"\x09")), Reason.TRUNCATED),
    "a lead of 4e9 samples": (lambda: scp(s3=ends(0xFFFFFFFF)), Reason.ABSURD_SIZE),
    "a lead that ends before it begins": (lambda: scp(s3=patched(2, struct.pack("<I", 5000))), Reason.HEADER),
    "a lead twice": (lambda: scp(s3=patched(2 + 9 * 3 + 8, b"\x03")), Reason.DUPLICATE_LEADS),
    "no lead I": (lambda: scp(s3=patched(2 + 8, b"\x09")), Reason.LEADS_MISSING),
    "interval 0": (lambda: scp(s6=patched(2, b"\0\0")), Reason.BAD_RATE),
    "interval 1 us": (lambda: scp(s6=patched(2, b"\1\0")), Reason.BAD_RATE),
    "gain 0": (lambda: scp(s6=patched(0, b"\0\0")), Reason.BAD_GAIN),
    "encoding 7": (lambda: scp(s6=patched(4, b"\7")), Reason.FORMAT),
    "bimodal": (lambda: scp(s6=patched(5, b"\1")), Reason.FORMAT),
    "lead of 65,535 bytes": (lambda: scp(s6=patched(6, b"\xff\xff")), Reason.TRUNCATED),
    "section 6 of 3 bytes": (lambda: scp(s6=b"\1\2\3"), Reason.TRUNCATED),
    "samples that are not coded": (lambda: scp(s3=ends(9000)), Reason.TRUNCATED),
    "fewer samples than coded": (lambda: scp(s3=ends(2550)), Reason.TRAILING_BYTES),
    "beats subtracted, none there": (lambda: scp(s3=subtracted), Reason.HEADER),
    "beats beyond the section": (
        lambda: scp(s3=subtracted, s4=struct.pack("<3H", 600, 100, 9999), s5=made.scp_bodies(COUNTS)[6]),
        Reason.TRUNCATED,
    ),
    "a beat outside the lead": (
        lambda: scp(
            s3=subtracted,
            s4=struct.pack("<3H", 5200, 1, 1) + struct.pack("<HIII", 0, 2000, 2000, 2_000_000_000),
            s5=made.scp_bodies(COUNTS)[6],
        ),
        Reason.HEADER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", SCP_FAULTS)
def test_scp_faults(tmp_path: Path, fault: str) -> None:
    build, reason = SCP_FAULTS[fault]
    assert refused(tmp_path, "SCP-ECG", build()) is reason


# --- EDF


def edf_field(at: int, width: int, value: str) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + f"{value:<{width}}".encode()[:width] + data[at + width :]


SIGNALS = 13
EDF_FAULTS: dict[str, tuple[Callable[[bytes], bytes], Reason]] = {
    "empty": (lambda d: b"", Reason.HEADER),
    "one byte short": (lambda d: d[:-1], Reason.TRUNCATED),
    "one byte long": (lambda d: d + b"\0", Reason.TRAILING_BYTES),
    "half a header": (lambda d: d[:300], Reason.TRUNCATED),
    "no signals": (edf_field(252, 4, "0"), Reason.ABSURD_SIZE),
    "9999 signals": (edf_field(252, 4, "9999"), Reason.ABSURD_SIZE),
    "other header length": (edf_field(184, 8, "256"), Reason.HEADER),
    "records unknown": (edf_field(236, 8, "-1"), Reason.HEADER),
    "99,999,999 records": (edf_field(236, 8, "99999999"), Reason.HEADER),
    "9,999,999 records": (edf_field(236, 8, "9999999"), Reason.ABSURD_SIZE),
    "records nan": (edf_field(236, 8, "nan"), Reason.HEADER),
    "duration 0": (edf_field(244, 8, "0"), Reason.BAD_RATE),
    "duration nan": (edf_field(244, 8, "nan"), Reason.BAD_RATE),
    "duration 1e9": (edf_field(244, 8, "1e9"), Reason.BAD_RATE),
    "interrupted": (
        lambda data: edf_field(192, 44, "EDF+D")(data).replace(b"+3\x14\x14", b"+9\x14\x14"),
        Reason.FORMAT,
    ),
    "a lead twice": (edf_field(256 + 16, 16, "ECG I"), Reason.DUPLICATE_LEADS),
    "no lead I": (edf_field(256, 16, "ECG MLII"), Reason.LEADS_MISSING),
    "unit of temperature": (edf_field(256 + 96 * SIGNALS, 8, "degC"), Reason.BAD_UNITS),
    "no physical range": (edf_field(256 + 104 * SIGNALS, 8, "32767"), Reason.BAD_GAIN),
    "physical range inf": (edf_field(256 + 104 * SIGNALS, 8, "-inf"), Reason.BAD_GAIN),
    "digital range upside down": (edf_field(256 + 120 * SIGNALS, 8, "32767"), Reason.BAD_GAIN),
    "digital range too wide": (edf_field(256 + 120 * SIGNALS, 8, "-99999"), Reason.BAD_GAIN),
    "samples 0": (edf_field(256 + 216 * SIGNALS, 8, "0"), Reason.ABSURD_SIZE),
    "samples 99999999": (edf_field(256 + 216 * SIGNALS, 8, "99999999"), Reason.ABSURD_SIZE),
    "one lead slower": (edf_field(256 + 216 * SIGNALS, 8, "250"), Reason.FORMAT),
}


@pytest.mark.parametrize("fault", EDF_FAULTS)
def test_edf_faults(tmp_path: Path, fault: str) -> None:
    change, reason = EDF_FAULTS[fault]
    assert refused(tmp_path, "EDF", change(GOOD["EDF"])) is reason


# --- DICOM


def nested(depth: int) -> bytes:
    """Sequences within sequences, each of undefined length."""
    opening = struct.pack("<HH2sHI", 0x5400, 0x100, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    head = made.dicom([])
    return head[: head.rindex(struct.pack("<HH", 0x5400, 0x100))] + opening * depth


def grown(tag: tuple[int, int], n_bytes: int) -> bytes:
    """The file with a wrong length of one long element."""
    data = bytearray(GOOD["DICOM"])
    at = data.index(struct.pack("<HH", *tag))
    struct.pack_into("<I", data, at + 8, n_bytes)
    return bytes(data)


def group(**changed: object) -> bytes:
    return made.dicom([made.dicom_group(COUNTS, **changed)])  # type: ignore[arg-type]


def with_count(value: int) -> bytes:
    data = bytearray(GOOD["DICOM"])
    at = data.index(struct.pack("<HH2sH", 0x3A, 0x10, b"UL", 4))
    struct.pack_into("<I", data, at + 8, value)
    return bytes(data)


DICOM_FAULTS: dict[str, tuple[Callable[[], bytes], Reason]] = {
    "empty": (lambda: b"", Reason.HEADER),
    "no mark": (lambda: GOOD["DICOM"][132:], Reason.HEADER),
    "cut in the header": (lambda: GOOD["DICOM"][:400], Reason.HEADER),
    "cut in the samples": (lambda: made.dicom([made.dicom_group(COUNTS)])[:-5000], Reason.TRUNCATED),
    "no groups": (lambda: made.dicom([]), Reason.HEADER),
    "100 groups": (lambda: made.dicom([b""] * 100), Reason.ABSURD_SIZE),
    "a million empty items": (lambda: made.dicom([b""] * 700_000), Reason.ABSURD_SIZE),
    "larger than any ECG": (lambda: GOOD["DICOM"] + bytes(9 << 20), Reason.ABSURD_SIZE),
    "sequences in sequences": (lambda: nested(2_000), Reason.HEADER),
    "samples of 4 GB": (lambda: grown((0x5400, 0x1010), 0xFFFFFFF0), Reason.TRAILING_BYTES),
    "4e9 samples announced": (lambda: with_count(0xFFFFFFFF), Reason.ABSURD_SIZE),
    "one sample more announced": (lambda: with_count(len(COUNTS) + 1), Reason.TRUNCATED),
    "one sample less announced": (lambda: with_count(len(COUNTS) - 1), Reason.TRAILING_BYTES),
    "big endian": (lambda: made.dicom([], syntax="1.2.840.10008.1.2.2"), Reason.FORMAT),
    "rate 0": (lambda: group(rate="0"), Reason.BAD_RATE),
    "rate nan": (lambda: group(rate="nan"), Reason.BAD_RATE),
    "rate is a word": (lambda: group(rate="fast"), Reason.HEADER),
    "sensitivity 0": (lambda: group(sensitivity="0"), Reason.BAD_GAIN),
    "sensitivity nan": (lambda: group(sensitivity="nan"), Reason.BAD_GAIN),
    "sensitivity missing": (lambda: group(sensitivity=""), Reason.BAD_GAIN),
    "correction -1": (lambda: group(correction="-1"), Reason.BAD_GAIN),
    "baseline inf": (lambda: group(baseline="inf"), Reason.BAD_GAIN),
    "unit of pressure": (lambda: group(unit="mm[Hg]"), Reason.BAD_UNITS),
    "skew of an hour": (lambda: group(skews=["1800000"] * 12), Reason.ABSURD_SIZE),
    "skew nan": (lambda: group(skews=["nan"] * 12), Reason.ABSURD_SIZE),
    "only a median beat": (lambda: group(originality="DERIVED"), Reason.LEADS_MISSING),
    "12 bits": (lambda: GOOD["DICOM"].replace(b"SS", b"MB"), Reason.FORMAT),
}


@pytest.mark.parametrize("fault", DICOM_FAULTS)
def test_dicom_faults(tmp_path: Path, fault: str) -> None:
    build, reason = DICOM_FAULTS[fault]
    assert refused(tmp_path, "DICOM", build()) is reason
