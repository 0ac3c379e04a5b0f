"""Schiller EDI XML: the rhythm of a resting ECG (ECG_RHYTHMS), not its averages.

Contract: `read(tree, path)` gives one Record. Samples are comma-separated whole numbers per channel; any other storage
is refused as FORMAT. The sampling rate is written as a value and an exponent; only exponent 1 is known and taken as the
value itself. Measurements are the event's global ones; QTc by the device's own rule. Raises `RecordError`: HEADER,
FORMAT, ABSURD_SIZE, BAD_RATE, BAD_UNITS, BAD_GAIN, TRUNCATED and as `formats.channels`.
Source: files of the Schiller SEMA export (com.xiriuz.sema.xml.schillerEDI); the vendor's manual is not
public.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from beatray.ingest.formats.channels import About, Channel, check_gain, lead_shown, mv_per_unit, to_record
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.numbers import decimal, maybe, shown, whole, whole_numbers
from beatray.ingest.formats.people import age_between, id_of, moment_of, sex_of
from beatray.ingest.formats.safe_xml import MAX_XML_BYTES, named, needed, parse_xml, root_of, text_at
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

ROOT = "com.xiriuz.sema.xml.schillerEDI.SchillerEDI"
RHYTHM = "ECG_RHYTHMS"
MAX_CHANNELS = 32

_MEASURED = {
    "HR": "rate_bpm",
    "P": "p_ms",
    "PQ": "pr_ms",
    "QRS": "qrs_ms",
    "QT": "qt_ms",
    "QTC": "qtc_ms",
    "AXIS_P": "p_axis_deg",
    "AXIS_QRS": "qrs_axis_deg",
    "AXIS_T": "t_axis_deg",
}


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of this format."""
    return root_of(head) == ROOT


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a file. Raises RecordError."""
    root = parse_xml(tree.read(path, MAX_XML_BYTES), ROOT)
    event, waves = _rhythm(root)
    exponent = text_at(waves, "resolution/samplerate/exponent")
    if exponent != "1":
        raise RecordError(Reason.BAD_RATE, f"the sampling rate has exponent {shown(exponent)}: only 1 is known")
    rate_hz = decimal(text_at(waves, "resolution/samplerate/value"), Reason.BAD_RATE, "sampling rate")
    unit = text_at(waves, "resolution/yres/units")
    per_bit = decimal(text_at(waves, "resolution/yres/unitperbit"), Reason.BAD_GAIN, "unit per bit")
    gain = check_gain(per_bit * mv_per_unit(unit, "the signal"), "unit per bit")
    passed("gain", f"{per_bit:g} {unit} per count")
    found = list(named(waves, "channel"))
    if len(found) > MAX_CHANNELS:
        raise RecordError(Reason.ABSURD_SIZE, f"{len(found)} channels, at most {MAX_CHANNELS}")
    channels = [_channel(element, gain) for element in found]
    passed("signal", f"{len(channels)} channels as text, each as long as its samplecount")
    yield to_record(path, channels, rate_hz, _about(root, event))


def _rhythm(root: Element) -> tuple[Element, Element]:
    """The one rhythm of the file and the event it belongs to."""
    found = [
        (event, waves)
        for event in named(needed(root, "eventdata"), "event")
        for waves in named(event, "wavedata")
        if text_at(waves, "type") == RHYTHM
    ]
    if len(found) != 1:
        raise RecordError(Reason.FORMAT, f"{len(found)} rhythm recordings ({RHYTHM}) in one file, one expected")
    return found[0]


def _channel(element: Element, gain: float) -> Channel:
    name = text_at(element, "name")
    what = lead_shown(name)
    stored = text_at(element, "datastype")
    if stored != "COMMASEPARATE":
        raise RecordError(Reason.FORMAT, f"{what} is stored as {shown(stored)}, not COMMASEPARATE")
    announced = whole(text_at(element, "samplecount"), Reason.HEADER, "samplecount")
    counts = whole_numbers(text_at(element, "data"), ",", what)
    if len(counts) != announced:
        reason = Reason.TRUNCATED if len(counts) < announced else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{what}: {len(counts)} samples, {announced} announced")
    return Channel(name, counts.astype(np.float64) * gain)


def _about(root: Element, event: Element) -> About:
    measured = {
        _MEASURED[name]: maybe(text_at(element, "value"))
        for element in named(event, "annotation_global")
        if (name := text_at(element, "name")) in _MEASURED
    }
    taken = text_at(root, "examdescript/startdatetime/date")
    age = age_between(text_at(root, "patdata/birthdate"), taken)
    acquired = moment_of(f"{taken} {text_at(root, 'examdescript/startdatetime/time')}")
    return About(id_of(text_at(root, "patdata/id")), age, sex_of(text_at(root, "patdata/gender")), measured, acquired)
