"""Philips Sierra and PageWriter ECG XML, documents of version 1.03, 1.04 and 1.04.01: the rhythm, not the median beats.

Contract: `read(tree, path)` gives one Record. Signals are base64 of 16-bit samples, channel after channel, either XLI
compressed (`philips_xli`) or plain; a plain text of numbers is refused as FORMAT, and so is any other version, since
the same names may mean something else there. The calibration pulse that the devices append is cut off. Measurements
are the interpretation's (global) ones, or else those over all leads. Raises `RecordError`: HEADER, FORMAT, ABSURD_SIZE,
BAD_RATE, BAD_GAIN, TRUNCATED, TRAILING_BYTES and as `formats.channels`.
Source: the files themselves; for XLI see `philips_xli`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channels import About, Channel, check_gain, check_rate, to_record
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.numbers import decimal, maybe, shown, whole
from beatray.ingest.formats.people import age_between, age_of, id_of, moment_of, sex_of
from beatray.ingest.formats.philips_xli import add_limb_leads, decode_xli
from beatray.ingest.formats.safe_xml import (
    MAX_XML_BYTES,
    base64_bytes,
    every,
    first,
    needed,
    parse_xml,
    root_of,
    text_at,
    value_at,
)
from beatray.ingest.tree import Tree
from beatray.record import LEADS, Reason, Record, RecordError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

ROOT = "restingecgdata"
VERSIONS = ("1.03", "1.04", "1.04.01")
MAX_CHANNELS = 16
MAX_SAMPLES = 300_000

_MEASURED = {
    "heartrate": "rate_bpm",
    "meanventrate": "rate_bpm",
    "pdur": "p_ms",
    "print": "pr_ms",
    "meanprint": "pr_ms",
    "qrsdur": "qrs_ms",
    "meanqrsdur": "qrs_ms",
    "qtint": "qt_ms",
    "meanqtint": "qt_ms",
    "qtcb": "qtc_ms",
    "meanqtc": "qtc_ms",
    "pfrontaxis": "p_axis_deg",
    "qrsfrontaxis": "qrs_axis_deg",
    "tfrontaxis": "t_axis_deg",
}


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of this format."""
    return root_of(head) == ROOT


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a file. Raises RecordError."""
    root = parse_xml(tree.read(path, MAX_XML_BYTES), ROOT)
    version = text_at(root, "documentinfo/documentversion")
    if version not in VERSIONS:
        raise RecordError(Reason.FORMAT, f"the document version is {shown(version)}, known are {', '.join(VERSIONS)}")
    passed("document version", version)
    how = needed(root, "dataacquisition/signalcharacteristics")
    waves = needed(root, "waveforms/parsedwaveforms")
    rate_hz = check_rate(decimal(_attribute(waves, how, "samplespersecond", "samplingrate"), Reason.BAD_RATE, "rate"))
    microvolts = _attribute(waves, how, "resolution", "signalresolution")
    gain = check_gain(decimal(microvolts, Reason.BAD_GAIN, "resolution") / 1e3, "resolution")
    passed("gain", f"{microvolts} uV per count")
    names = _lead_names(waves, how)
    counts = _counts(waves, how, len(names), _n_samples(waves, rate_hz))
    counts = _without_calibration(counts)
    channels = [Channel(name, row * gain) for name, row in zip(names, counts, strict=True)]
    yield to_record(path, channels, rate_hz, _about(root))


def _attribute(waves: Element, how: Element, attribute: str, element: str) -> str:
    """A value that version 1.04 writes at the waveforms and version 1.03 among the signal's characteristics."""
    return waves.get(attribute) or text_at(how, element) or text_at(how, attribute)


def _lead_names(waves: Element, how: Element) -> list[str]:
    """Names of the stored channels, which must be the twelve leads in Philips' order."""
    lead_labels = waves.get("leadlabels")
    n_channels = whole(
        _attribute(waves, how, "numberofleads", "numberchannelsvalid"), Reason.HEADER, "number of channels"
    )
    if not 0 < n_channels <= MAX_CHANNELS:
        raise RecordError(Reason.ABSURD_SIZE, f"{n_channels} channels, at most {MAX_CHANNELS}")
    if lead_labels is None and text_at(how, "acquisitiontype") not in ("STD-12", "10-WIRE"):
        raise RecordError(Reason.LEADS_MISSING, "an acquisition type whose leads are not known")
    names = list(LEADS) if lead_labels is None else lead_labels.split()
    if n_channels < 12 or [name.lower() for name in names[:12]] != [lead.lower() for lead in LEADS]:
        raise RecordError(Reason.LEADS_MISSING, f"{n_channels} channels that do not begin with the twelve leads")
    if len(names) < n_channels:
        names += [f"channel {number + 1}" for number in range(len(names), n_channels)]
    return names[:n_channels]


def _n_samples(waves: Element, rate_hz: float) -> int:
    milliseconds = whole(waves.get("durationperchannel"), Reason.HEADER, "duration per channel")
    n_samples = milliseconds * rate_hz / 1e3
    if not 0 < n_samples <= MAX_SAMPLES or n_samples != int(n_samples):
        raise RecordError(Reason.ABSURD_SIZE, f"{milliseconds} ms at {rate_hz:g} Hz are no whole number of samples")
    return int(n_samples)


def _counts(waves: Element, how: Element, n_channels: int, n_samples: int) -> NDArray[np.int64]:
    """Samples (n_channels, n_samples) in counts."""
    bits = _attribute(waves, how, "bitspersample", "bitspersample")
    signed = _attribute(waves, how, "signalsigned", "signalsigned")
    offset = _attribute(waves, how, "signaloffset", "signaloffset")
    if (bits, signed.lower(), offset) != ("16", "true", "0"):
        raise RecordError(
            Reason.FORMAT, f"samples of {shown(bits)} bits, signed {shown(signed)}, offset {shown(offset)}"
        )
    encoding = waves.get("dataencoding", "")
    method = waves.get("compressmethod") or waves.get("compression") or "none"
    if waves.get("compressflag", "True").lower() == "false":
        method = "none"
    if encoding != "Base64" or method.lower() not in ("xli", "none", "uncompressed"):
        raise RecordError(Reason.FORMAT, f"signals as {shown(encoding)}, compressed by {shown(method)}: not supported")
    data = base64_bytes(waves.text, "the waveforms")
    expected = 2 * n_channels * n_samples
    # A code of ten bits stands for at most 768 bytes, so this bounds what is allocated by what is there.
    if expected > 800 * len(data):
        raise RecordError(Reason.TRUNCATED, f"{len(data)} bytes cannot hold {n_channels} channels of {n_samples}")
    if method.lower() == "xli":
        counts = decode_xli(data, n_channels, n_samples)
        add_limb_leads(counts)
    elif len(data) != expected:
        reason = Reason.TRUNCATED if len(data) < expected else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{len(data)} bytes of signal, {expected} announced")
    else:
        counts = np.frombuffer(data, "<i2").reshape(n_channels, n_samples).astype(np.int64)
    passed("signal", f"{n_channels} channels of {n_samples} samples from {len(data)} bytes, compression {method}")
    return counts


def _without_calibration(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without the end, where all leads are the same: the devices append a pulse of 1 mV and zeros."""
    moving = np.flatnonzero((counts[:12] != counts[0]).any(axis=0))
    end = int(moving[-1]) + 1 if len(moving) else counts.shape[1]
    if end < counts.shape[1]:
        passed("calibration pulse", f"{counts.shape[1] - end} samples cut off at the end, where all leads are equal")
    return counts[:, :end]


def _about(root: Element) -> About:
    person = first(root, "patient/generalpatientdata")
    day, clock = (value_at(root, "dataacquisition", name) for name in ("date", "time"))
    age = age_between(text_at(person, "age/dateofbirth"), day)
    if age is None:
        age = age_of(maybe(text_at(person, "age/years")))
    measured: dict[str, float | None] = {}
    for block in ("crossleadmeasurements", "globalmeasurements", "interpretationmeasurements"):
        for element in every(root, block):
            for child in element:
                name = _MEASURED.get(child.tag.rpartition("}")[2])
                value = maybe(child.text)
                if name is not None and value is not None:
                    measured[name] = value
    sex = sex_of(text_at(person, "sex"))
    return About(id_of(text_at(person, "patientid")), age, sex, measured, moment_of(f"{day} {clock}"))
