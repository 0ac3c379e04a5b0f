"""From the channels of a device's file to a Record: units, lengths, leads, all checked in one place.

A format's own file parses; what it hands over is a list of `Channel`s, each already in millivolts, with a mask of the
samples that the file marks as none. Contract: `to_record(...)` gives a Record whose `record_id` is the path without its
suffix and whose source is empty: the source that read it fills both in. Raises `RecordError`: LEADS_MISSING,
DUPLICATE_LEADS, BAD_RATE, BAD_UNITS, BAD_GAIN, TRUNCATED, NOT_FINITE, FLAT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_keys import SUFFIX
from beatray.ingest.formats.checks import passed
from beatray.ingest.formats.leads import assemble, check_enough, columns_of_leads, lead_of_name
from beatray.ingest.formats.numbers import shown
from beatray.record import LEADS, MEASURED, Reason, Record, RecordError

RATE_LIMITS_HZ = (50.0, 10_000.0)
MAX_GAIN_MV = 1e3
"""More millivolts per count than any converter has."""

MV_PER_UNIT = {
    **dict.fromkeys(("nv", "nanovolt", "nanovolts"), 1e-6),
    **dict.fromkeys(("uv", "\u00b5v", "\u03bcv", "microvolt", "microvolts"), 1e-3),
    **dict.fromkeys(("mv", "millivolt", "millivolts"), 1.0),
    **dict.fromkeys(("v", "volt", "volts"), 1e3),
}


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel in millivolts; `invalid` marks samples that are none."""

    name: str
    signal_mv: NDArray[np.float64]
    invalid: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class About:
    """What a file holds beside its signal. `measured` may hold anything; only finite values of MEASURED are kept."""

    patient_id: str | None = None
    age: float | None = None
    sex: str | None = None
    measured: dict[str, float | None] = field(default_factory=dict)
    acquired: datetime | None = None


def mv_per_unit(unit: str, what: str) -> float:
    """Millivolts of one `unit`. Raises RecordError(BAD_UNITS)."""
    value = MV_PER_UNIT.get(unit.strip().lower())
    if value is None:
        raise RecordError(Reason.BAD_UNITS, f"{what}: the unit is {shown(unit)}, not nV, uV, mV or V")
    return value


def check_gain(mv_per_count: float, what: str) -> float:
    """Millivolts per count that a converter can have. Raises RecordError(BAD_GAIN)."""
    if not 0.0 < mv_per_count < MAX_GAIN_MV:
        raise RecordError(Reason.BAD_GAIN, f"{what}: {mv_per_count:g} mV per count is no calibration")
    return mv_per_count


def check_rate(rate_hz: float) -> float:
    """A sampling rate that an electrocardiograph can have. Raises RecordError(BAD_RATE)."""
    if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
        raise RecordError(Reason.BAD_RATE, f"sampling rate {rate_hz:g} Hz, allowed 50 to 10000")
    return rate_hz


def pick_leads(names: Sequence[str]) -> dict[int, int]:
    """Canonical lead to position among `names`. Raises RecordError(DUPLICATE_LEADS, LEADS_MISSING)."""
    columns = columns_of_leads(names)
    check_enough(columns, names)
    picked = {lead: column - 1 for lead, column in enumerate(columns) if column}
    others = len(names) - len(picked)
    passed(
        "leads", " ".join(LEADS[lead] for lead in picked) + (f" ({others} other channels left out)" if others else "")
    )
    return picked


def to_record(
    path: str, channels: Sequence[Channel], rate_hz: float, about: About, notes: Sequence[str] = ()
) -> Record:
    """The Record of a file's channels; see the module's contract."""
    picked = pick_leads([channel.name for channel in channels])
    passed("sampling rate", f"{check_rate(rate_hz):g} Hz")
    used = {lead: channels[position] for lead, position in picked.items()}
    lengths = {len(channel.signal_mv) for channel in used.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise RecordError(Reason.TRUNCATED, f"leads of {min(lengths)} to {max(lengths)} samples")
    (n_samples,) = lengths
    passed("length", f"{n_samples} samples, {n_samples / rate_hz:g} s")
    signal_mv = np.stack([channel.signal_mv for channel in used.values()])
    all_notes = list(notes)
    invalid = None
    if any(channel.invalid is not None and bool(channel.invalid.any()) for channel in used.values()):
        none = np.zeros(n_samples, bool)
        invalid = np.stack([none if c.invalid is None else c.invalid for c in used.values()])
        signal_mv[invalid] = 0.0
    twelve, mask = assemble(signal_mv, list(used), rate_hz, invalid, all_notes)
    passed("gaps", "none" if invalid is None else f"{int(invalid.any(axis=0).sum())} samples in at least one lead")
    return Record(
        record_id=stem_of(path),
        source="",
        signal_mv=twelve,
        rate_hz=rate_hz,
        lead_mask=mask,
        patient_id=about.patient_id,
        patient_is_private=about.patient_id is not None,
        age=about.age,
        sex=about.sex,
        notes=tuple(dict.fromkeys(all_notes)),
        measured=_known(about.measured),
        acquired=about.acquired,
    )


def lead_shown(name: str) -> str:
    """A channel for a message: its lead, or that it is none of the twelve; never the name as written."""
    lead = lead_of_name(name)
    return "another channel" if lead is None else f"lead {LEADS[lead]}"


def stem_of(path: str) -> str:
    """A path without the suffix of a format; another end behind a dot is a part of the name: ECG.001, 1.2.840.17."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (SUFFIX.sub("", name) or name)


def _known(measured: dict[str, float | None]) -> dict[str, float]:
    return {name: float(v) for name in MEASURED if (v := measured.get(name)) is not None and math.isfinite(v)}
