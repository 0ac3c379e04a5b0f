"""Signals under lead names become twelve leads in millivolts: what every format shares after its own parsing.

Leads are taken by name, never by position, since archives differ in order (one large set stores aVF before aVL), in
spelling, and in what else they record. Nothing is guessed or repaired but short gaps and the limb leads that are sums
of others, and each repair leaves a note.

Contract: `lead_of_name(name)` knows the spellings of devices and standards ("Lead I (Einthoven)", "MDC_ECG_LEAD_AVR",
"ECG V1", "DII") and nothing else: a modified, inverted or derived lead ("MLII", "-aVR", "V4R") is none of the twelve.
Sets of names are known together where one alone could be something else: C1 to C6 (IEC 60601-2-25; C3 is an electrode
of an EEG, too) and D1, D2, D3.
`columns_of_leads(names)` finds which signal holds which lead; `assemble(...)` gives float64 (12, n) in the
order of `record.LEADS`, mV, zero where a lead is absent from `lead_mask`. Raises `RecordError`: DUPLICATE_LEADS,
LEADS_MISSING, NOT_FINITE, FLAT. Limb leads: Einthoven's and Goldberger's relations, III = II - I,
aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.formats.channel_names import is_known
from beatray.record import ALL_LEADS_MASK, LEAD_INDEX, LEADS, Reason, RecordError

MAX_GAP_S = 0.020
LONG_S = 15.0
"""From this length on a recording gives more than one window."""
FEW_SAMPLES = 64
"""Samples after which a recording nearly always shows that it is not constant."""
LIMB_WEIGHTS = {2: (-1.0, 1.0), 3: (-0.5, -0.5), 4: (1.0, -0.5), 5: (-0.5, 1.0)}
"""Weights of I and II that give III, aVR, aVL and aVF."""

MAX_CACHED_NAME = 64
"""A longer name is looked at each time: no file may fill the cache with more than a few kilobytes."""

CHEST_MASK = 0b1111_1100_0000

LEAD_OF_CODE = {1: 0, 2: 1, 61: 2, 62: 3, 63: 4, 64: 5, **{code: code + 3 for code in range(3, 9)}}
"""Lead codes of SCP-ECG (EN 1064, table 4), which ISO/IEEE 11073-10102 and DICOM share, to canonical positions."""

_TOGETHER = (
    {f"c{number}": number + 5 for number in range(1, 7)},
    {f"d{number}": number - 1 for number in range(1, 4)},
)
"""Names that stand for leads where all of a set are there, and none of those leads has its usual name."""
_LATIN = {"di": 0, "dii": 1, "diii": 2}
_AFTER = re.compile(r"\s*\((?:einthoven|goldberger|wilson|mason[- ]likar|standard|[um\u00b5\u03bc]v)\)$")
MAX_SHOWN = 24
"""Names of channels that a refusal spells out."""
_PREFIX = re.compile(r"(?:mdc_ecg_lead_|mdc_ecg_elec_potl_|(?:e[ck]g[ _:]+)?(?:lead[ _:]*)?)", re.ASCII)


def lead_of_name(name: str) -> int | None:
    """The canonical position of a lead by its name, whatever its case; None for any other name."""
    return _lead_of_name(name) if len(name) <= MAX_CACHED_NAME else _lead_of_name.__wrapped__(name)


@lru_cache(maxsize=256)
def _lead_of_name(name: str) -> int | None:
    plain = _plain(_AFTER.sub("", name.strip().lower()))
    return LEAD_INDEX.get(plain, _LATIN.get(plain))


def _plain(text: str) -> str:
    """A name in lower case without what marks it as one of an ECG."""
    match = _PREFIX.match(text)
    return text[match.end() :] if match else text


def columns_of_leads(names: Sequence[str]) -> list[int]:
    """For each of the twelve leads the 1-based position of its name; 0 where no signal has it."""
    columns = [0] * 12
    for number, name in enumerate(names, start=1):
        lead = lead_of_name(name)
        if lead is None:
            continue
        if columns[lead]:
            raise RecordError(Reason.DUPLICATE_LEADS, f"signals {columns[lead]} and {number} are both {LEADS[lead]}")
        columns[lead] = number
    if 0 not in columns:
        return columns
    plain = [_plain(name.strip().lower()) for name in names]
    for together in _TOGETHER:
        if all(plain.count(name) == 1 for name in together) and not any(columns[lead] for lead in together.values()):
            for name, lead in together.items():
                columns[lead] = plain.index(name) + 1
    return columns


def is_enough(columns: Sequence[int]) -> bool:
    """Whether I, II and a chest lead are there."""
    return bool(columns[0] and columns[1] and any(columns[6:]))


def check_enough(columns: Sequence[int], names: Sequence[str]) -> None:
    """Raise RecordError(LEADS_MISSING), with what was found, unless I, II and a chest lead are there."""
    if is_enough(columns):
        return
    found = [lead for lead, column in zip(LEADS, columns, strict=True) if column]
    others = [name.strip() for number, name in enumerate(names, start=1) if number not in columns]
    if found == ["I", "II"]:
        what = "I and II only"
    elif len(found) == 1 and len(names) == 1:
        what = f"a single lead ({found[0]})"
    else:
        what = f"found: {', '.join(found) or 'none of the twelve'}"
    shown = [name for name in dict.fromkeys(others) if is_known(name)][:MAX_SHOWN]
    beside = f", beside {len(others)} other channels" if others else ""
    beside += f" ({', '.join(shown)}{', ...' if len(shown) < len(others) else ''})" if shown else ""
    raise RecordError(Reason.LEADS_MISSING, f"{what}{beside}; I, II and a chest lead are needed")


def assemble(
    signal_mv: NDArray[np.float64],
    present: Sequence[int],
    rate_hz: float,
    invalid: NDArray[np.bool_] | None,
    notes: list[str],
) -> tuple[NDArray[np.float64], int]:
    """Twelve leads (12, n) and their mask from the signals (k, n) of the leads `present`.

    `invalid` (k, n) marks samples that are none. `signal_mv` may be changed; repairs are added to `notes`.
    """
    mask = sum(1 << lead for lead in present)
    if invalid is not None:
        dropped = close_gaps(signal_mv, invalid, int(MAX_GAP_S * rate_hz), notes)
        mask &= ~sum(1 << present[row] for row in dropped)
        if not mask & CHEST_MASK:
            raise RecordError(Reason.NOT_FINITE, "every chest lead has a gap of more than 20 ms")
    twelve = signal_mv
    if list(present) != list(range(12)):
        twelve = np.zeros((12, signal_mv.shape[1]))
        twelve[list(present)] = signal_mv
    mask = compute_limb_leads(twelve, mask, notes)
    check_not_constant(twelve if mask == ALL_LEADS_MASK else twelve[[lead for lead in range(12) if mask >> lead & 1]])
    return twelve, mask


def check_not_constant(signal: NDArray[np.generic]) -> None:
    """Raise RecordError(FLAT) if every lead of (k, n) is the same from its first sample to its last."""
    if _constant(signal[:, :FEW_SAMPLES]) and _constant(signal):
        raise RecordError(Reason.FLAT, "every lead is constant")


def _constant(signal: NDArray[np.generic]) -> bool:
    return bool((signal == signal[:, :1]).all())


def close_gaps(signal_mv: NDArray[np.float64], invalid: NDArray[np.bool_], max_gap: int, notes: list[str]) -> list[int]:
    """Interpolate short gaps in place; returns the rows with a longer one, set to zero."""
    dropped: list[int] = []
    for row in np.flatnonzero(invalid.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(invalid[row], prepend=False, append=False))
        if int((edges[1::2] - edges[0::2]).max()) > max_gap:
            signal_mv[row] = 0.0
            dropped.append(row)
            continue
        good = np.flatnonzero(~invalid[row])
        gaps = np.flatnonzero(invalid[row])
        signal_mv[row, gaps] = np.interp(gaps, good, signal_mv[row, good])
        notes.append("gaps_interpolated")
    if 2 * len(dropped) > invalid.shape[0]:
        raise RecordError(
            Reason.NOT_FINITE, f"{len(dropped)} of {invalid.shape[0]} leads have a gap of more than 20 ms"
        )
    if dropped:
        notes.append("leads_dropped")
    return dropped


def mark_gaps(
    signal_mv: NDArray[np.float64], invalid: NDArray[np.bool_], max_gap: int, notes: list[str]
) -> NDArray[np.bool_] | None:
    """Interpolate all invalid samples in place; returns (k, n), true in gaps of more than `max_gap` samples, or None.

    For recordings of many windows, where a lead that fails for a while is good before and after.
    """
    gaps: NDArray[np.bool_] | None = None
    for row in np.flatnonzero(invalid.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(invalid[row], prepend=False, append=False))
        good, bad = np.flatnonzero(~invalid[row]), np.flatnonzero(invalid[row])
        signal_mv[row, bad] = np.interp(bad, good, signal_mv[row, good]) if good.size else 0.0
        long = edges[1::2] - edges[0::2] > max_gap
        if not bool(long.all()):
            notes.append("gaps_interpolated")
        for start, stop in zip(edges[0::2][long].tolist(), edges[1::2][long].tolist(), strict=True):
            gaps = np.zeros(invalid.shape, bool) if gaps is None else gaps
            gaps[row, start:stop] = True
    return gaps


def gaps_of_twelve(marked: NDArray[np.bool_], present: Sequence[int]) -> NDArray[np.bool_]:
    """Gaps by canonical lead; a limb lead that is computed has those of I and II."""
    gaps = np.zeros((12, marked.shape[1]), bool)
    gaps[list(present)] = marked
    for lead in LIMB_WEIGHTS:
        if lead not in present:
            gaps[lead] = gaps[0] | gaps[1]
    return gaps


def compute_limb_leads(signal_mv: NDArray[np.float64], mask: int, notes: list[str]) -> int:
    """Fill in III, aVR, aVL and aVF where they are missing and I and II are there; returns the new mask."""
    if mask & 0b11 != 0b11:
        return mask
    for lead, (of_one, of_two) in LIMB_WEIGHTS.items():
        if not mask >> lead & 1:
            signal_mv[lead] = of_one * signal_mv[0] + of_two * signal_mv[1]
            mask |= 1 << lead
            notes.append("leads_computed")
    return mask
