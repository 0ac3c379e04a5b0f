"""An array whose rows have lead names becomes twelve leads: for formats that hold numbers and no more.

Contract: `twelve_from_array(values, names, mv_per_unit, rate_hz, notes)` takes numbers (len(names), n) in one unit and
gives what `formats.leads.assemble` gives. NaN and infinity mark samples that are none. Raises `RecordError`: HEADER
(the shape contradicts the names), BAD_RATE, BAD_GAIN, DUPLICATE_LEADS, LEADS_MISSING, NOT_FINITE, FLAT, TOO_SHORT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.leads import assemble, check_enough, columns_of_leads
from beatray.ingest.formats.wfdb_header import RATE_LIMITS_HZ
from beatray.record import Reason, RecordError

MAX_SAMPLES = 1 << 26
"""Most numbers in one recording: ten hours of twelve leads at 150 Hz."""


def twelve_from_array(
    values: NDArray[Any], names: Sequence[str], mv_per_unit: float, rate_hz: float, notes: list[str]
) -> tuple[NDArray[np.float64], int]:
    """Twelve leads (12, n) in mV and their mask; see the module's contract."""
    if values.ndim != 2 or values.shape[0] != len(names):
        raise RecordError(Reason.HEADER, f"an array of shape {values.shape}, {len(names)} leads are named")
    if not 0 < values.size <= MAX_SAMPLES:
        reason = Reason.ABSURD_SIZE if values.size else Reason.TOO_SHORT
        raise RecordError(reason, f"an array of shape {values.shape}")
    if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
        raise RecordError(Reason.BAD_RATE, f"sampling rate {rate_hz} Hz, allowed 50 to 10000")
    if not (math.isfinite(mv_per_unit) and mv_per_unit > 0):
        raise RecordError(Reason.BAD_GAIN, f"{mv_per_unit} mV per unit")
    columns = columns_of_leads(names)
    check_enough(columns, names)
    present = [lead for lead, column in enumerate(columns) if column]
    with np.errstate(invalid="ignore"):  # single-precision NaN of the signalling kind
        picked = values[[columns[lead] - 1 for lead in present]].astype(np.float64)
    invalid = ~np.isfinite(picked)
    has_gaps = bool(invalid.any())
    if has_gaps:
        picked[invalid] = 0.0
    picked *= mv_per_unit
    return assemble(picked, present, rate_hz, invalid if has_gaps else None, notes)
