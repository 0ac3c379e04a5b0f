"""SCP-ECG (EN 1064, ISO 11073-91064): the rhythm data of section 6 in millivolts.

Contract: `read(tree, path)` gives one Record. Read are plain and Huffman coded samples, as values or as first or second
differences, and residuals after subtraction of reference beats (sections 4 and 5), which are added back. Refused as
FORMAT is bimodal compression with decimation (samples between the heartbeats at a lower rate): what is left out cannot
be had back. Leads recorded one after the other are LEADS_MISSING. Raises `RecordError`: as `scp_sections` and
`scp_huffman`, and BAD_RATE, BAD_GAIN and as `formats.channels`.
Source: EN 1064:2005+A1:2007, 5.7 (section 4), 5.8 (section 5), 5.9 (section 6), annex C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channels import Channel, check_gain, check_rate, pick_leads, to_record
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.scp_huffman import HuffmanTable, decode, rest_after, tables_of
from beatray.ingest.formats.scp_sections import MARK, MARK_AT, Lead, Section, about_of, leads_of, sections_of
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

SUFFIXES = (".scp",)
MAX_SCP_BYTES = 16 * 1024 * 1024
MAX_SAMPLES = 120_000
MAX_BEATS = 10_000
NEW_PROTOCOL = 30
"""From version 3.0 on there is neither bimodal compression nor subtraction of beats."""

ENCODINGS = {0: "values", 1: "first differences", 2: "second differences"}
_ZONE = struct.Struct("<HIII")


@dataclass(frozen=True, slots=True)
class Coded:
    """The head of sections 5 and 6, and the coded bytes of each lead."""

    nanovolts: int
    interval_us: int
    encoding: int
    bimodal: bool
    leads: list[bytes]


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an SCP-ECG record."""
    return head[MARK_AT : MARK_AT + len(MARK)] == MARK


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a file. Raises RecordError."""
    sections = sections_of(tree.read(path, MAX_SCP_BYTES))
    absent = [number for number in (1, 3, 6) if number not in sections]
    if absent:
        raise RecordError(Reason.HEADER, f"section {absent[0]} is missing")
    leads, subtracted = leads_of(sections[3])
    coded = _coded(sections[6], 6, len(leads))
    if coded.interval_us == 0:
        raise RecordError(Reason.BAD_RATE, "the sample interval is 0")
    rate_hz = check_rate(1e6 / coded.interval_us)
    subtracted = subtracted and sections[6].protocol < NEW_PROTOCOL
    tables = tables_of(sections[2].body) if 2 in sections else []
    beats = _coded(sections[5], 5, len(leads)) if 5 in sections and (subtracted or coded.bimodal) else None
    if coded.bimodal and (beats is None or beats.interval_us != coded.interval_us):
        raise RecordError(
            Reason.FORMAT,
            "bimodal compression, which leaves samples out between the heartbeats: export it without compression",
        )
    passed(
        "compression",
        f"{ENCODINGS[coded.encoding]}, {'Huffman coded' if tables else '16 bits each'}"
        + (", reference beats subtracted" if subtracted else ""),
    )
    gain = check_gain(coded.nanovolts * 1e-6, "the rhythm")
    passed("gain", f"{coded.nanovolts} nV per count")
    used = pick_leads([lead.name for lead in leads])
    if any(leads[number].first == 0 for number in used.values()):
        if subtracted:
            raise RecordError(
                Reason.FORMAT,
                "samples are counted from 0 and reference beats subtracted, which leaves open where they belong: "
                "export it without subtraction of beats",
            )
        leads = counted_from_one(leads, used, coded, tables)
    first = max(leads[number].first for number in used.values())
    last = min(leads[number].last for number in used.values())
    if last <= first:
        raise RecordError(Reason.LEADS_MISSING, "the leads were recorded one after the other, not together")
    channels = []
    for number in used.values():
        lead = leads[number]
        counts = _samples(tables, coded, number, lead.n_samples)
        signal_mv = counts.astype(np.float64) * gain
        if subtracted:
            _add_beats(signal_mv, sections, tables, beats, number, lead)
        channels.append(Channel(lead.name, signal_mv[first - lead.first : last - lead.first + 1]))
    yield to_record(path, channels, rate_hz, about_of(sections))


def _coded(section: Section, number: int, n_leads: int) -> Coded:
    body = section.body
    start = 6 + 2 * n_leads
    if len(body) < start:
        raise RecordError(Reason.TRUNCATED, f"section {number} ends before the lengths of {n_leads} leads")
    nanovolts, interval_us, encoding, bimodal = struct.unpack_from("<HHBB", body)
    if encoding not in ENCODINGS:
        raise RecordError(Reason.FORMAT, f"section {number}: encoding {encoding} is not 0, 1 or 2")
    leads: list[bytes] = []
    for size in struct.unpack_from(f"<{n_leads}H", body, 6):
        if start + size > len(body):
            raise RecordError(Reason.TRUNCATED, f"section {number}: {size} bytes of a lead, {len(body) - start} left")
        leads.append(body[start : start + size])
        start += size
    return Coded(
        nanovolts, interval_us, encoding, number == 6 and bimodal == 1 and section.protocol < NEW_PROTOCOL, leads
    )


def counted_from_one(leads: list[Lead], used: dict[int, int], coded: Coded, tables: list[HuffmanTable]) -> list[Lead]:
    """The leads of a device that counts samples from 0; those in `used` counted from 1. Raises RecordError(HEADER).

    The last number is that of the last sample or the count of all, whichever the bytes of every lead hold. Codes can be
    shorter than a byte, so that packed ones may hold both: a bit that is set after the count then belongs to a sample,
    since what fills a byte up is zeros. With zeros alone it is the count, unless one more makes a multiple of ten, as
    recordings of whole tenths of a second have it.
    """
    mine = [leads[number] for number in used.values()]
    if any(lead.first != 0 for lead in mine):
        begin = ", ".join(f"{lead.name} {lead.first}" for lead in mine)
        raise RecordError(
            Reason.HEADER, f"some leads are counted from sample 0, others begin later ({begin}): export it again"
        )
    by_count, by_last = (
        [_rest(tables, coded.leads[number], leads[number].last + more) for number in used.values()] for more in (0, 1)
    )
    if (None in by_count) != (None in by_last):
        more = int(None in by_count)
    else:
        more = int(any("1" in (rest or "") for rest in by_count) or all(lead.last % 10 == 9 for lead in mine))
    passed("sample numbers", "counted from 0 instead of 1")
    found = list(leads)
    for number in used.values():
        found[number] = Lead(leads[number].name, 1, leads[number].last + more)
    return found


def _rest(tables: list[HuffmanTable], data: bytes, n_samples: int) -> str | None:
    """The bits that fill the last byte of a lead of so many samples; None where its bytes hold fewer or more."""
    if not tables:
        return "" if len(data) == 2 * n_samples else None
    try:
        rest = rest_after(tables, data, n_samples)
    except RecordError:
        return None
    return rest if len(rest) < 8 else None


def _samples(tables: list[HuffmanTable], coded: Coded, number: int, n_samples: int) -> NDArray[np.int64]:
    """The `n_samples` counts of one lead."""
    data = coded.leads[number]
    if n_samples > MAX_SAMPLES:
        raise RecordError(Reason.ABSURD_SIZE, f"{n_samples} samples in a lead, at most {MAX_SAMPLES}")
    if tables:
        values = decode(tables, data, n_samples)
    elif len(data) != 2 * n_samples:
        reason = Reason.TRUNCATED if len(data) < 2 * n_samples else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{len(data)} bytes of a lead of {n_samples} samples")
    else:
        values = np.frombuffer(data, "<i2").astype(np.int64)
    if coded.encoding == 1:
        return np.cumsum(values)
    if coded.encoding == 2 and len(values) > 1:
        slopes = np.cumsum(np.concatenate([values[1:2] - values[:1], values[2:]]))
        return np.concatenate([values[:1], values[0] + np.cumsum(slopes)])
    return values


def _add_beats(
    signal_mv: NDArray[np.float64],
    sections: dict[int, Section],
    tables: list[HuffmanTable],
    beats: Coded | None,
    number: int,
    lead: Lead,
) -> None:
    """Add the reference beat back, in place, wherever one of its kind was subtracted."""
    body = sections[4].body if 4 in sections else b""
    if beats is None or len(body) < 6:
        raise RecordError(Reason.HEADER, "reference beats were subtracted, but sections 4 and 5 are missing")
    length_ms, fiducial, n_beats = struct.unpack_from("<3H", body)
    if n_beats > MAX_BEATS or 6 + n_beats * _ZONE.size > len(body):
        raise RecordError(Reason.TRUNCATED, f"section 4 ends before the last of {n_beats} heartbeats")
    n_samples = round(length_ms * 1000 / beats.interval_us) if beats.interval_us else 0
    beat_mv = _samples(tables, beats, number, n_samples) * check_gain(beats.nanovolts * 1e-6, "the reference beat")
    for k in range(n_beats):
        kind, start, at, end = _ZONE.unpack_from(body, 6 + k * _ZONE.size)
        if kind != 0 or end == 0:
            continue  # of another kind: recorded as it is
        begin = fiducial - 1 + start - at  # of the zone, within the reference beat
        if not lead.first <= start <= end <= lead.last or begin < 0 or begin + end - start + 1 > n_samples:
            raise RecordError(Reason.HEADER, f"heartbeat {k + 1}: its zone leaves the lead or the reference beat")
        signal_mv[start - lead.first : end - lead.first + 1] += beat_mv[begin : begin + end - start + 1]
