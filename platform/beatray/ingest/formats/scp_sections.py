"""The frame of an SCP-ECG record: its checksums, its sections, and the content of sections 1, 3 and 7.

Contract: `sections_of(data)` gives the bodies of the sections that are there, after the length and the CRC of the whole
record and of each of them were found right. `leads_of` reads section 3, `about_of` sections 1 and 7. Raises
`RecordError`: HEADER, TRUNCATED, TRAILING_BYTES, CHECKSUM, ABSURD_SIZE.
Source: EN 1064:2005+A1:2007 / ISO 11073-91064:2009: 5.2 (structure, CRC-CCITT), 5.3 to 5.6 and 5.10; table 4 (leads).
"""

from __future__ import annotations

import struct
from binascii import crc_hqx
from dataclasses import dataclass

from beatray.ingest.formats.channels import About
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.leads import LEAD_OF_CODE
from beatray.ingest.formats.people import age_between, age_of, id_of, moment_of
from beatray.record import LEADS, Reason, RecordError

RECORD_HEADER = struct.Struct("<HI")
SECTION_HEADER = struct.Struct("<HHIBB6s")
POINTER = struct.Struct("<HII")
LEAD = struct.Struct("<IIB")
MARK = b"SCPECG"
MARK_AT = 16
MAX_POINTERS = 64
MAX_LEADS = 64
NOT_MEASURED = (29999, 29998, 29997)
NO_AXIS = 999

_AGE_UNITS = {1: "y", 2: "m", 3: "w", 4: "d", 5: "h"}


@dataclass(frozen=True, slots=True)
class Section:
    """The data part of a section, and the protocol version of its header (20 is 2.0)."""

    body: bytes
    protocol: int


@dataclass(frozen=True, slots=True)
class Lead:
    """One recorded lead: its name if it is one of the twelve, and its first and last sample.

    The standard counts samples from 1; some devices count from 0, and then the last one is the number of samples in
    some and one less in others (`scp.counted_from_one`).
    """

    name: str
    first: int
    last: int

    @property
    def n_samples(self) -> int:
        return self.last - self.first + 1


def sections_of(data: bytes) -> dict[int, Section]:
    """The sections that hold anything, by number; see the module's contract."""
    if data[MARK_AT : MARK_AT + 6] != MARK:
        raise RecordError(Reason.HEADER, "no SCP-ECG record: the mark SCPECG is missing in section 0")
    checksum, length = RECORD_HEADER.unpack_from(data)
    if length != len(data):
        reason = Reason.TRUNCATED if length > len(data) else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{len(data)} bytes, the record says {length}")
    if crc_hqx(data[2:], 0xFFFF) != checksum:
        raise RecordError(Reason.CHECKSUM, "the CRC of the record is not that of its bytes")
    pointers = _section(data, RECORD_HEADER.size, 0, None)
    n_pointers = len(pointers.body) // POINTER.size
    if not 0 < n_pointers <= MAX_POINTERS:
        raise RecordError(Reason.HEADER, f"{n_pointers} pointers in section 0, allowed 1 to {MAX_POINTERS}")
    sections: dict[int, Section] = {}
    for number in range(n_pointers):
        section_id, size, index = POINTER.unpack_from(pointers.body, number * POINTER.size)
        if section_id == 0 or size == 0 or index == 0:
            continue
        if section_id in sections:
            raise RecordError(Reason.HEADER, f"section {section_id} is there twice")
        sections[section_id] = _section(data, index - 1, section_id, size)
    passed("checksums", f"CRC of the record and of sections {', '.join(map(str, sorted(sections)))}")
    return sections


def _section(data: bytes, start: int, expected: int, size: int | None) -> Section:
    if start + SECTION_HEADER.size > len(data):
        raise RecordError(Reason.TRUNCATED, f"section {expected} begins after the end")
    checksum, section_id, length, _, protocol, _ = SECTION_HEADER.unpack_from(data, start)
    if section_id != expected or (size is not None and size != length):
        raise RecordError(
            Reason.HEADER, f"section {expected} of {size} bytes is section {section_id} of {length} bytes"
        )
    if not SECTION_HEADER.size <= length <= len(data) - start:
        raise RecordError(Reason.TRUNCATED, f"section {expected} of {length} bytes does not fit into the record")
    if crc_hqx(data[start + 2 : start + length], 0xFFFF) != checksum:
        raise RecordError(Reason.CHECKSUM, f"the CRC of section {expected} is not that of its bytes")
    return Section(data[start + SECTION_HEADER.size : start + length], protocol)


def leads_of(section: Section) -> tuple[list[Lead], bool]:
    """The recorded leads, in stored order, and whether reference beats were subtracted."""
    body = section.body
    if len(body) < 2:
        raise RecordError(Reason.TRUNCATED, "section 3 ends before the number of leads")
    n_leads, flags = body[0], body[1]
    if not 0 < n_leads <= MAX_LEADS:
        raise RecordError(Reason.ABSURD_SIZE, f"{n_leads} leads, allowed 1 to {MAX_LEADS}")
    if 2 + n_leads * LEAD.size > len(body):
        raise RecordError(Reason.TRUNCATED, f"section 3 ends before the last of {n_leads} leads")
    leads: list[Lead] = []
    for number in range(n_leads):
        start, last, code = LEAD.unpack_from(body, 2 + number * LEAD.size)
        if not start <= last:
            raise RecordError(Reason.HEADER, f"lead {number + 1} has samples {start} to {last}")
        position = LEAD_OF_CODE.get(code)
        leads.append(Lead(f"code {code}" if position is None else LEADS[position], start, last))
    return leads, bool(flags & 1)


def about_of(sections: dict[int, Section]) -> About:
    """Patient and measurements; what cannot be read is left out."""
    tags = _tags(sections[1].body) if 1 in sections else {}
    sex = {b"\x01": "M", b"\x02": "F"}.get(tags.get(8, b""))
    age = None
    if len(tags.get(4, b"")) == 3:
        value, unit = struct.unpack("<HB", tags[4])
        age = age_of(float(value) if value else None, _AGE_UNITS.get(unit, ""))
    if age is None:
        age = age_between(_day(tags.get(5, b"")), _day(tags.get(25, b"")))
    patient = tags.get(2, b"").split(b"\0")[0].decode("latin-1")
    clock = ":".join(f"{part:02d}" for part in tags.get(26, b""))
    acquired = moment_of(f"{_day(tags.get(25, b''))} {clock}")
    return About(id_of(patient), age, sex, _measured(sections[7].body) if 7 in sections else {}, acquired)


def _tags(body: bytes) -> dict[int, bytes]:
    """The tagged fields of section 1, the first of each kind, as far as they can be followed."""
    tags: dict[int, bytes] = {}
    position = 0
    while position + 3 <= len(body) and body[position] != 255:
        size = struct.unpack_from("<H", body, position + 1)[0]
        tags.setdefault(body[position], body[position + 3 : position + 3 + size])
        position += 3 + size
    return tags


def _day(field: bytes) -> str:
    if len(field) != 4:
        return ""
    year, month, day = struct.unpack("<HBB", field)
    return f"{year:04d}{month:02d}{day:02d}"


def _measured(body: bytes) -> dict[str, float | None]:
    """The first block of section 7, which is that of the reference beat, and the values after the QRS types."""
    if len(body) < 22 or not body[0]:
        return {}
    n_blocks, n_spikes, rr = struct.unpack_from("<BBH", body)
    p_on, p_off, qrs_on, qrs_off, t_off = struct.unpack_from("<5H", body, 6)
    axes = struct.unpack_from("<3h", body, 16)
    measured: dict[str, float | None] = {
        "p_ms": _between(p_on, p_off),
        "pr_ms": _between(p_on, qrs_on),
        "qrs_ms": _between(qrs_on, qrs_off),
        "qt_ms": _between(qrs_on, t_off),
    }
    names = ("p_axis_deg", "qrs_axis_deg", "t_axis_deg")
    measured |= {name: float(axis) for name, axis in zip(names, axes, strict=True) if axis != NO_AXIS}
    if 150 <= rr <= 4000:
        measured["rate_bpm"] = 60_000.0 / rr
    position = 6 + 16 * n_blocks + 10 * n_spikes
    if position + 2 <= len(body):
        position += 2 + struct.unpack_from("<H", body, position)[0]
        if position + 6 <= len(body):
            rate, _, qtc = struct.unpack_from("<3H", body, position)
            if 15 <= rate <= 400:
                measured["rate_bpm"] = float(rate)
            if 150 <= qtc <= 1000:
                measured["qtc_ms"] = float(qtc)
    return measured


def _between(start: int, end: int) -> float | None:
    known = start not in NOT_MEASURED and end not in NOT_MEASURED and end > start
    return float(end - start) if known else None
