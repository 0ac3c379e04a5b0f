"""GE MUSE XML (RestingECG): the rhythm waveform, not the median complex.

I, II and V1 to V6 are stored as base64 of 16-bit little-endian samples with a CRC-32 of their bytes; the other limb
leads are sums of I and II and are computed. Real exports name a document type, `<!DOCTYPE RestingECG SYSTEM
"restecg.dtd">`; exactly that line, without an internal subset, is taken out before the parser, which refuses every
document type, sees the file. Nothing is ever fetched.

Contract: `read(tree, path)` gives one Record. A lead that the device marks as off is left out. Raises `RecordError`:
HEADER, FORMAT, ABSURD_SIZE, BAD_RATE, BAD_UNITS, BAD_GAIN, CHECKSUM, TRUNCATED, TRAILING_BYTES and as
`formats.channels`. Source: descriptions of MUSE exports in public readers (the vendor's reference is not public); the
rate is SampleBase * 10 ** SampleExponent.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from beatray.ingest.formats.channels import About, Channel, check_gain, lead_shown, mv_per_unit, to_record
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.numbers import decimal, maybe, shown, whole
from beatray.ingest.formats.people import age_between, age_of, id_of, moment_of, sex_of
from beatray.ingest.formats.safe_xml import MAX_XML_BYTES, base64_bytes, first, named, parse_xml, root_of, text_at
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

ROOT = "RestingECG"
MAX_LEADS = 32
DOCTYPE = re.compile(rb'<!DOCTYPE\s+RestingECG\s+SYSTEM\s+(?:"[\w.\-]{1,64}"|\'[\w.\-]{1,64}\')\s*>')
DOCTYPE_WITHIN = 1024
"""Bytes from the start in which the document type must stand."""

_MEASURED = {
    "VentricularRate": "rate_bpm",
    "PRInterval": "pr_ms",
    "QRSDuration": "qrs_ms",
    "QTInterval": "qt_ms",
    "QTCorrected": "qtc_ms",
    "PAxis": "p_axis_deg",
    "RAxis": "qrs_axis_deg",
    "TAxis": "t_axis_deg",
}


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of this format."""
    return root_of(head) == ROOT


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a file. Raises RecordError."""
    root = parse_xml(_without_doctype(tree.read(path, MAX_XML_BYTES)), ROOT)
    waves = _rhythm(root)
    base = decimal(text_at(waves, "SampleBase"), Reason.BAD_RATE, "SampleBase")
    exponent = whole(text_at(waves, "SampleExponent") or "0", Reason.BAD_RATE, "SampleExponent")
    if not -6 <= exponent <= 6:
        raise RecordError(Reason.BAD_RATE, f"SampleExponent {exponent}, allowed -6 to 6")
    leads = list(named(waves, "LeadData"))
    if len(leads) > MAX_LEADS:
        raise RecordError(Reason.ABSURD_SIZE, f"{len(leads)} leads, at most {MAX_LEADS}")
    notes: list[str] = []
    channels = [channel for lead in leads if (channel := _channel(lead, notes)) is not None]
    passed("checksums", f"{len(channels)} leads" + (", some without a CRC-32" if "checksum_absent" in notes else ""))
    units = (f"{text_at(s, 'LeadAmplitudeUnitsPerBit')} {text_at(s, 'LeadAmplitudeUnits').lower()}" for s in leads)
    passed("gain", ", ".join(dict.fromkeys(units)) + " per count")
    yield to_record(path, channels, base * 10.0**exponent, _about(root), notes)


def _without_doctype(data: bytes) -> bytes:
    """The file without MUSE's own document type line; any other stays, and the parser refuses it."""
    match = DOCTYPE.search(data[:DOCTYPE_WITHIN])
    if match is None:
        return data
    passed("document type", "MUSE's own, taken out unread")
    return data[: match.start()] + data[match.end() :]


def _rhythm(root: Element) -> Element:
    """The rhythm waveform; if there are several, the longest of the first ones."""
    waves = [wave for wave in named(root, "Waveform") if text_at(wave, "WaveformType").lower() == "rhythm"]
    if not waves:
        raise RecordError(Reason.HEADER, "there is no Waveform of WaveformType Rhythm")
    lengths = [maybe(text_at(first(wave, "LeadData"), "LeadSampleCountTotal")) or 0.0 for wave in waves]
    chosen = lengths.index(max(lengths))
    passed("waveform", f"rhythm {chosen + 1} of {len(waves)}; median complexes are not read")
    return waves[chosen]


def _channel(lead: Element, notes: list[str]) -> Channel | None:
    """One lead in millivolts; None if the device marks its electrode as off."""
    name = text_at(lead, "LeadID")
    what = lead_shown(name)
    if text_at(lead, "LeadOff").lower() == "true":
        notes.append("leads_dropped")
        return None
    if text_at(lead, "LeadSampleSize") not in ("", "2"):
        raise RecordError(Reason.FORMAT, f"{what}: samples of {shown(text_at(lead, 'LeadSampleSize'))} bytes, not 2")
    baseline = decimal(text_at(lead, "FirstSampleBaseline") or "0", Reason.HEADER, f"{what}: FirstSampleBaseline")
    delay = decimal(text_at(lead, "LeadTimeOffset") or "0", Reason.HEADER, f"{what}: LeadTimeOffset")
    if baseline or delay:
        raise RecordError(Reason.FORMAT, f"{what}: baseline {baseline:g} or time offset {delay:g} is not zero")
    data = base64_bytes(text_at(lead, "WaveFormData"), what)
    announced = len(data) & ~1
    if count := text_at(lead, "LeadSampleCountTotal"):
        announced = 2 * whole(count, Reason.HEADER, f"{what}: LeadSampleCountTotal")
    else:
        notes.append("length_absent")  # small carts leave it out
    if len(data) != announced:
        reason = Reason.TRUNCATED if len(data) < announced else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{what}: {len(data)} bytes, {announced} announced")
    checksum = text_at(lead, "LeadDataCRC32")
    if not checksum:
        notes.append("checksum_absent")
    elif whole(checksum, Reason.CHECKSUM, f"{what}: CRC-32") & 0xFFFFFFFF != zlib.crc32(data):
        raise RecordError(Reason.CHECKSUM, f"{what}: the CRC-32 is not that of the samples")
    per_bit = decimal(text_at(lead, "LeadAmplitudeUnitsPerBit"), Reason.BAD_GAIN, f"{what}: units per bit")
    gain = check_gain(per_bit * mv_per_unit(text_at(lead, "LeadAmplitudeUnits"), what), what)
    return Channel(name, np.frombuffer(data, "<i2") * gain)


def _about(root: Element) -> About:
    person = first(root, "PatientDemographics")
    age = age_of(maybe(text_at(person, "PatientAge")), text_at(person, "AgeUnits") or "years")
    day = _iso(text_at(root, "TestDemographics/AcquisitionDate"))
    if age is None:
        age = age_between(_iso(text_at(person, "DateofBirth")), day)
    table = first(root, "RestingECGMeasurements")
    measured = {name: maybe(text_at(table, element)) for element, name in _MEASURED.items()}
    acquired = moment_of(f"{day} {text_at(root, 'TestDemographics/AcquisitionTime')}")
    return About(id_of(text_at(person, "PatientID")), age, sex_of(text_at(person, "Gender")), measured, acquired)


def _iso(text: str) -> str:
    """YYYYMMDD from MM-DD-YYYY; anything else as it is."""
    month, _, rest = text.partition("-")
    day, _, year = rest.partition("-")
    return year + month + day if len(year) == 4 else text
