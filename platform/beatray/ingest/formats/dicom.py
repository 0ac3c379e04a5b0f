"""DICOM ECG waveforms: the multiplex group that holds the rhythm, in millivolts.

The data set is parsed by pydicom (which never opens anything but the bytes it is given) under bounds of our own; the
samples are decoded here. Its warnings are silenced, because they quote values. Contract: `read(tree, path)` gives one
Record. Of several multiplex groups, which are recorded one after the other or derived from each other, exactly one is
read: the longest original one that holds I, II and a chest lead. A voltage is sample x sensitivity x correction factor
+ baseline, in the channel's unit; samples that equal the padding value are none; channels are moved by their skew.
Raises `RecordError`: HEADER, FORMAT, ABSURD_SIZE, BAD_RATE, BAD_UNITS, BAD_GAIN, TRUNCATED, TRAILING_BYTES and as
`formats.channels`. Source: DICOM PS3.3 section C.10.9 (Waveform), PS3.16 CID 3001 (leads) and CID 3226 to 3229.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channels import About, Channel, check_gain, check_rate, mv_per_unit, to_record
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.dicom_header import Group, about_patient, group_of
from beatray.ingest.formats.leads import columns_of_leads, is_enough
from beatray.ingest.formats.numbers import shown
from beatray.ingest.formats.people import id_of
from beatray.ingest.tree import Tree
from beatray.record import Reason, Record, RecordError

SUFFIXES = (".dcm", ".dicom")
MAX_DICOM_BYTES = 8 * 1024 * 1024
"""Eleven minutes of twelve leads at 500 Hz."""

MAX_ITEMS = 2_000
"""Items of all sequences together: pydicom needs 700 bytes and 20 us for each, however little it holds."""

ITEM = b"\xfe\xff\x00\xe0"
MAX_GROUPS = 32
WAVEFORM_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.9.1.1": "12-lead ECG",
    "1.2.840.10008.5.1.4.1.1.9.1.2": "general ECG",
    "1.2.840.10008.5.1.4.1.1.9.1.3": "ambulatory ECG",
}
TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit VR, little endian",
    "1.2.840.10008.1.2.1": "explicit VR, little endian",
}
DEFLATED = b"1.2.840.10008.1.2.1.99"
SAMPLE_TYPES = {
    ("SB", 8): "i1",
    ("UB", 8): "u1",
    ("SS", 16): "<i2",
    ("US", 16): "<u2",
    ("SL", 32): "<i4",
    ("UL", 32): "<u4",
}
MAX_SKEW_S = 1.0


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM file that holds an ECG."""
    return is_dicom(head) and any(kind.encode() in head for kind in WAVEFORM_CLASSES)


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are those of any DICOM file."""
    return head[128:132] == b"DICM"


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a file. Raises RecordError."""
    groups, about = _parse(tree.read(path, MAX_DICOM_BYTES))
    group = _choose(groups)
    notes: list[str] = []
    yield to_record(path, _channels(group, notes), group.rate_hz, about, notes)


def _parse(data: bytes) -> tuple[list[Group], About]:
    """Everything that is needed of the data set as plain values; whatever pydicom raises becomes a RecordError."""
    if not is_dicom(data):
        raise RecordError(Reason.HEADER, "no DICOM file: the mark DICM is missing at byte 128")
    if DEFLATED in data:
        raise RecordError(Reason.FORMAT, "a deflated transfer syntax: not supported, because it cannot be bounded")
    n_items = data.count(ITEM)
    if n_items > MAX_ITEMS:
        raise RecordError(Reason.ABSURD_SIZE, f"{n_items} items in sequences, limit {MAX_ITEMS}")
    try:
        import pydicom
    except ImportError as error:
        raise RecordError(Reason.FORMAT, "DICOM files need pydicom: pip install 'beatray[formats]'") from error
    with _quietly():
        try:
            return _take(pydicom.dcmread(io.BytesIO(data)))
        except RecordError:
            raise
        except Exception as error:
            raise RecordError(Reason.HEADER, f"the data set cannot be parsed ({type(error).__name__})") from error


def _take(dataset: Any) -> tuple[list[Group], About]:
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if syntax not in TRANSFER_SYNTAXES:
        raise RecordError(Reason.FORMAT, f"the transfer syntax is {shown(syntax)}: not supported")
    kind = str(dataset.get("SOPClassUID", ""))
    if kind not in WAVEFORM_CLASSES:
        raise RecordError(Reason.FORMAT, f"the SOP class is {shown(kind)}: no ECG waveform")
    passed("DICOM", f"{WAVEFORM_CLASSES[kind]} waveform, {TRANSFER_SYNTAXES[syntax]}")
    items = dataset.get("WaveformSequence") or []
    if not 0 < len(items) <= MAX_GROUPS:
        reason = Reason.ABSURD_SIZE if len(items) else Reason.HEADER
        raise RecordError(reason, f"{len(items)} multiplex groups, allowed 1 to {MAX_GROUPS}")
    person = about_patient(dataset)
    about = replace(person, patient_id=id_of(dataset.get("PatientID")))
    return [group_of(item) for item in items], about


@contextmanager
def _quietly() -> Iterator[None]:
    """Without pydicom's warnings and log lines, which quote the values they complain about."""
    import pydicom.config

    logger, settings = logging.getLogger("pydicom"), pydicom.config.settings
    disabled, mode = logger.disabled, settings.reading_validation_mode
    logger.disabled, settings.reading_validation_mode = True, pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled, settings.reading_validation_mode = disabled, mode


def _choose(groups: list[Group]) -> Group:
    """The longest original group with enough leads; a derived one (a median beat) is refused."""

    def enough(group: Group) -> bool:
        try:
            return is_enough(columns_of_leads([channel.name for channel in group.channels]))
        except RecordError:
            return len(groups) == 1  # the only one: let the reader report what is wrong with it

    fit = [group for group in groups if enough(group)]
    if not fit:
        raise RecordError(
            Reason.LEADS_MISSING,
            f"none of {len(groups)} multiplex groups has I, II and a chest lead; groups are not simultaneous and are "
            "not joined",
        )
    original = [group for group in fit if group.is_rhythm]
    if not original:
        raise RecordError(Reason.LEADS_MISSING, "only derived multiplex groups (median beats), no recorded rhythm")
    chosen = max(original, key=lambda group: group.n_samples / group.rate_hz if group.rate_hz > 0.0 else 0.0)
    check_rate(chosen.rate_hz)
    passed(
        "multiplex group",
        f"number {groups.index(chosen) + 1} of {len(groups)}: the longest original one with enough leads, "
        f"{len(chosen.channels)} channels of {chosen.n_samples} samples",
    )
    return chosen


def _channels(group: Group, notes: list[str]) -> list[Channel]:
    kind = SAMPLE_TYPES.get((group.interpretation, group.bits))
    if kind is None:
        raise RecordError(
            Reason.FORMAT, f"samples as {shown(group.interpretation)} of {group.bits} bits: not supported"
        )
    n_channels, sample_bytes = len(group.channels), group.bits // 8
    expected = n_channels * group.n_samples * sample_bytes
    if len(group.data) not in (expected, expected + expected % 2):  # a value of odd length is padded to an even one
        reason = Reason.TRUNCATED if len(group.data) < expected else Reason.TRAILING_BYTES
        raise RecordError(reason, f"{len(group.data)} bytes of samples, {expected} announced")
    raw = np.frombuffer(group.data, kind, n_channels * group.n_samples).reshape(group.n_samples, n_channels)
    passed("signal", f"{len(group.data)} bytes as {group.interpretation}, {group.bits} bits")
    padding = _padding(group, kind)
    shifts = [_shift(channel.skew_samples, group.rate_hz, notes) for channel in group.channels]
    start, stop = max(shifts), group.n_samples + min(shifts)
    if start >= stop:
        raise RecordError(Reason.TRUNCATED, "the channels' skews leave no common time")
    channels, gains = [], dict[str, None]()
    for column, (channel, shift) in enumerate(zip(group.channels, shifts, strict=True)):
        if columns_of_leads([channel.name]) == [0] * 12:
            continue
        unit = mv_per_unit(channel.unit, f"lead {channel.name}")
        gain = check_gain(channel.sensitivity * channel.correction * unit, f"lead {channel.name}")
        if not math.isfinite(channel.baseline):
            raise RecordError(Reason.BAD_GAIN, f"lead {channel.name}: baseline {channel.baseline} is not finite")
        counts = raw[start - shift : stop - shift, column]
        gains[f"{channel.sensitivity:g} {channel.unit} x {channel.correction:g}"] = None
        channels.append(
            Channel(
                channel.name,
                counts * gain + channel.baseline * unit,
                None if padding is None else counts == padding,
            )
        )
    passed("gain", ", ".join(gains) + " per count")
    return channels


def _padding(group: Group, kind: str) -> NDArray[Any] | None:
    """The value that stands for no sample, if the group names one."""
    size = np.dtype(kind).itemsize
    if len(group.padding) < size:
        return None
    value: NDArray[Any] = np.frombuffer(group.padding, kind, 1)[0]
    passed("padding value", value)
    return value


def _shift(skew_samples: float, rate_hz: float, notes: list[str]) -> int:
    """Whole samples by which a channel lies after the group's start."""
    if not abs(skew_samples) <= MAX_SKEW_S * rate_hz:
        raise RecordError(Reason.ABSURD_SIZE, f"skew of {skew_samples:g} samples, at most one second")
    shift = round(skew_samples)
    if abs(skew_samples - shift) > 0.01:
        notes.append("skew_rounded")
    return shift
