"""What one recording is: the twelve leads, their order and units, and how a bad one is refused.

Everything above this module describes recordings in these terms. A `Record` is what a source file holds, already in
the canonical lead order and in millivolts, but still at its own sampling rate and length; `ingest.canonical` brings it
to the corpus grid (500 Hz, 10 s, 1 uV integers).

Contract: `signal_mv` is float64 of shape (12, n) at `rate_hz`; leads that the file does not have are zero and absent
from `lead_mask`. A file that cannot be trusted raises `RecordError` with a `Reason`; ingest turns it into a
quarantine row and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""Canonical lead order of every array in the project."""

INDEPENDENT_LEADS = (0, 1, 6, 7, 8, 9, 10, 11)
"""Positions of I, II, V1..V6: the eight leads the other four are computed from."""

LEAD_INDEX = {name.lower(): position for position, name in enumerate(LEADS)}
"""Lower-case lead name to canonical position."""

ALL_LEADS_MASK = (1 << len(LEADS)) - 1

RATE_HZ = 500
"""Sampling rate of the corpus."""

WINDOW_SAMPLES = 5000
"""Length of a corpus row: 10 s at `RATE_HZ`."""

WAVE_KINDS = ("P", "QRS", "T")


class Reason(StrEnum):
    """Why a recording was refused. The value is what the quarantine table and the summary print."""

    HEADER = "header"  # not a header of the format it claims to be
    MISSING_FILE = "missing_file"  # a file the header names is not there
    UNSAFE_PATH = "unsafe_path"  # absolute, outside the record's folder, or a link
    HIDDEN = "hidden"  # a file or folder with a dot in front, or left by a file manager
    ABSURD_SIZE = "absurd_size"  # counts or lengths no ECG has
    FORMAT = "format"  # a storage format that is not supported
    TRUNCATED = "truncated"  # fewer bytes than the header promises
    TRAILING_BYTES = "trailing_bytes"  # more bytes than the header promises
    CHECKSUM = "checksum"  # the stored checksum is not that of the samples
    BAD_GAIN = "bad_gain"  # gain zero, negative, infinite or not a number
    BAD_UNITS = "bad_units"  # not a unit of voltage
    BAD_RATE = "bad_rate"  # sampling rate zero, not a number or outside 50..10,000 Hz
    LEADS_MISSING = "leads_missing"  # too few of the twelve leads
    DUPLICATE_LEADS = "duplicate_leads"  # one lead name twice
    TOO_SHORT = "too_short"  # less signal than one usable window
    NOT_FINITE = "not_finite"  # samples marked invalid (NaN) beyond repair
    FLAT = "flat"  # every lead constant
    AMPLITUDE = "amplitude"  # voltages no heart makes: the declared gain must be wrong
    ANNOTATION = "annotation"  # an annotation file that cannot be parsed
    METADATA = "metadata"  # the source's own table contradicts the file
    READER_FAULT = "reader_fault"  # the reader itself failed on it: a bug to report
    CORRUPT_ARCHIVE = "corrupt_archive"  # a zip or tar member that cannot be read back


class RecordError(ValueError):
    """A recording that must not enter the corpus.

    `reason` is the category, `detail` one sentence that names the field and the value.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RecordError], tuple[Reason, str]]:
        return (RecordError, (self.reason, self.detail))  # crosses process borders unchanged


@dataclass(frozen=True, slots=True)
class Wave:
    """One annotated wave of one lead: samples at the record's own rate; a missing boundary is None."""

    lead: int
    kind: str
    onset: int | None
    peak: int | None
    offset: int | None


MADE_LATER: Any = None
"""Given as `signal_mv`: it is made of `signal_uv` on first access."""


class InMillivolts:
    """Gives a dataclass its `signal_mv` only on access, if it was given None and has a `signal_uv`.

    Most archives store whole microvolts, which is what a corpus holds, so that ingest needs no millivolts: half a
    megabyte of float64 a recording, whose making and dividing took a tenth of its time.
    """

    __slots__ = ()
    signal_mv: NDArray[np.float64]
    signal_uv: NDArray[np.int16] | None

    def __post_init__(self) -> None:
        if self.signal_mv is MADE_LATER:
            object.__delattr__(self, "signal_mv")  # from here on `__getattr__` is asked for it

    if not TYPE_CHECKING:  # a type checker would take it for "any name is there"

        def __getattr__(self, name: str) -> NDArray[np.float64]:
            if name != "signal_mv" or self.signal_uv is None:
                raise AttributeError(f"{type(self).__name__} has no {name!r}")
            signal_mv = self.signal_uv.astype(np.float64, order="C")
            signal_mv /= 1000.0
            object.__setattr__(self, name, signal_mv)
            return signal_mv

    @property
    def given_mv(self) -> Any:
        """`signal_mv` if it is there, else MADE_LATER: to hand it on without making it."""
        try:
            return object.__getattribute__(self, "signal_mv")
        except AttributeError:
            return MADE_LATER

    @property
    def n_samples(self) -> int:
        """Samples of each lead, at the rate of the recording."""
        return int((self.signal_mv if self.signal_uv is None else self.signal_uv).shape[1])


@dataclass(frozen=True, slots=True)
class Record(InMillivolts):
    """One recording as its file holds it, in canonical lead order.

    `record_id` is `<source>/<name>`; `patient_id` is prefixed with the source so that two sources never share one.
    `labels` are the codes as published. `waves` hold P, QRS and T boundaries where the source has them. `frank_mv` is
    float64 (3, n), the Frank leads X, Y, Z where they were recorded. `patient_is_private` says that `patient_id` is a
    hospital's own, which may be stored only hashed. `measured` are the measurements of the device that recorded it,
    under the names of `MEASURED`. `gaps` is for recordings of many windows: (12, n), true where a lead that is
    otherwise there holds no signal for long (an electrode off, an amplifier at its limit); the signal is finite there
    but means nothing, and a window that such a gap touches goes without that lead. `signal_uv` is for files whose
    counts are whole microvolts: int16 (12, n), exactly `signal_mv` * 1000 rounded, so that it need not be computed
    again; with it `signal_mv` may be `MADE_LATER`. `acquired` is when the recording began, by the clock where it was
    taken; it goes wherever `patient_id` goes, and is as private.
    """

    record_id: str
    source: str
    signal_mv: NDArray[np.float64]
    rate_hz: float
    lead_mask: int = ALL_LEADS_MASK
    patient_id: str | None = None
    fold: int | None = None
    labels: tuple[str, ...] = ()
    waves: tuple[Wave, ...] = ()
    age: float | None = None
    sex: str | None = None  # "F", "M" or None
    notes: tuple[str, ...] = field(default=())  # flags raised while reading, e.g. "gain_repaired"
    frank_mv: NDArray[np.float64] | None = None
    patient_is_private: bool = False
    measured: dict[str, float] = field(default_factory=dict)
    gaps: NDArray[np.bool_] | None = None
    signal_uv: NDArray[np.int16] | None = None
    acquired: datetime | None = None


MEASURED = ("rate_bpm", "p_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "p_axis_deg", "qrs_axis_deg", "t_axis_deg")
"""Measurements of a device that are read for comparison with beatray's; never stored in a corpus."""

WAVE_DTYPE = np.dtype([("lead", "i1"), ("kind", "i1"), ("onset", "i4"), ("peak", "i4"), ("offset", "i4")])
"""Wave boundaries on the corpus grid: `kind` indexes `WAVE_KINDS`, samples at 500 Hz, -1 where missing."""


@dataclass(frozen=True, slots=True)
class Window:
    """Up to 10 s of a record on the corpus grid: what becomes one corpus row once it is measured.

    `signal_uv` is int16 (12, 5000), 1 uV per unit, zero after `n_samples`. `content_hash` is the same for two windows
    whose eight independent leads are the same voltages, whatever file they came from.
    """

    record_id: str
    source: str
    signal_uv: NDArray[np.int16]
    n_samples: int
    lead_mask: int
    content_hash: bytes
    patient_id: str | None = None
    fold: int | None = None
    labels: tuple[str, ...] = ()
    waves: NDArray[np.void] = field(default_factory=lambda: np.empty(0, WAVE_DTYPE))
    age: float | None = None
    sex: str | None = None
    acquired: datetime | None = None  # when the recording began, for each of its windows
    flags: int = 0
    frank_uv: NDArray[np.int16] | None = None  # (3, 5000), X, Y, Z


def content_hash(signal_uv: NDArray[np.int16]) -> bytes:
    """16 bytes that are equal for equal microvolts (12, 5000) in I, II and V1 to V6, whatever file they came from."""
    leads = np.ascontiguousarray(signal_uv, dtype="<i2")
    digest = blake2b(leads[:2].data, digest_size=16)  # INDEPENDENT_LEADS, without a copy
    digest.update(leads[6:].data)
    return digest.digest()


BLANK = content_hash(np.zeros((len(LEADS), WINDOW_SAMPLES), np.int16))
"""The hash of a window without any voltage, as corpora of version 0.1 may hold: no sign that two are of one person."""
