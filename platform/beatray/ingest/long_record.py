"""Rows of a recording of many windows in which leads fail for a while: judged window by window.

An electrode that falls off for a minute, or an amplifier that stays at its limit, is common in ambulatory recordings of
half an hour and would cost the whole recording, or the lead in all of it, if the recording were judged as one.

Contract: `windows_of(record)` is `canonical.to_windows` for a record without `gaps`. With them, the recording is
resampled and cut as there, `<id>#0`, `<id>#1`, ...; a window that a gap touches goes without that lead (limb
leads are computed from I and II again where those are good), and a window that `to_windows` would refuse as a
recording of its own is left out: its number is missing and the other windows carry the flag PARTS_DROPPED. If none is
left, the first refusal is raised. Such records carry no waves.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from beatray.ingest.canonical import MIN_SAMPLES, WindowFlag, clipped_before, rate_ratio, to_windows
from beatray.ingest.formats.leads import CHEST_MASK, compute_limb_leads
from beatray.ingest.pieces import pieces
from beatray.record import RATE_HZ, WINDOW_SAMPLES, Reason, Record, RecordError, Window


def windows_of(record: Record) -> list[Window]:
    """All rows of a record. Raises RecordError."""
    gaps = record.gaps
    if gaps is None:
        return to_windows(record)
    ratio = rate_ratio(record.rate_hz)
    n_total = math.ceil(record.n_samples * ratio)
    if n_total < MIN_SAMPLES:
        raise RecordError(Reason.TOO_SHORT, f"{n_total / RATE_HZ:g} s, at least {MIN_SAMPLES / RATE_HZ:g} s are needed")
    notes = record.notes if ratio == 1 else (*record.notes, "resampled")
    alone = n_total < WINDOW_SAMPLES + MIN_SAMPLES
    windows: list[Window] = []
    refusals: list[RecordError] = []
    of_frank = None if record.frank_mv is None else pieces(record.frank_mv, ratio)
    for first, signal_mv in pieces(record.signal_mv, ratio):
        frank_mv = None if of_frank is None else next(of_frank)[1]
        for start in range(first, first + signal_mv.shape[1], WINDOW_SAMPLES):
            stop = min(start + WINDOW_SAMPLES, n_total)
            if stop - start < MIN_SAMPLES:
                break
            bad: NDArray[np.bool_] = np.any(gaps[:, math.floor(start / ratio) : math.ceil(stop / ratio)], axis=1)
            window = replace(
                record,
                record_id=record.record_id if alone else f"{record.record_id}#{start // WINDOW_SAMPLES}",
                signal_mv=signal_mv[:, start - first : stop - first].copy(),
                signal_uv=None,
                rate_hz=float(RATE_HZ),
                notes=notes,
                waves=(),
                gaps=None,
                frank_mv=None if frank_mv is None else frank_mv[:, start - first : stop - first],
            )
            clipped = clipped_before(record, start, stop)
            try:
                made = to_windows(_without_leads(window, bad))
                windows += [replace(each, flags=each.flags | clipped) for each in made]
            except RecordError as error:
                refusals.append(error)
    if not windows:
        raise refusals[0]
    return [_flagged(window, bool(refusals), last=window is windows[-1], n_total=n_total) for window in windows]


def _without_leads(piece: Record, bad: NDArray[np.bool_]) -> Record:
    """The piece without the leads that are bad in it; limb leads come back where I and II are good."""
    lost = sum(1 << lead for lead in np.flatnonzero(bad).tolist()) & piece.lead_mask
    if not lost:
        return piece
    mask = piece.lead_mask & ~lost
    if mask & 0b11 != 0b11 or not mask & CHEST_MASK:
        raise RecordError(Reason.NOT_FINITE, "I, II or every chest lead has a gap of more than 20 ms")
    notes: list[str] = []
    mask = compute_limb_leads(piece.signal_mv, mask, notes)
    if lost & ~mask:
        notes.append("leads_dropped")
    return replace(piece, lead_mask=mask, notes=(*piece.notes, *notes))


def _flagged(window: Window, parts_dropped: bool, *, last: bool, n_total: int) -> Window:
    flags = window.flags | (WindowFlag.PARTS_DROPPED if parts_dropped else 0)
    if last and 0 < n_total % WINDOW_SAMPLES < MIN_SAMPLES:
        flags |= WindowFlag.TAIL_DROPPED
    return replace(window, flags=int(flags))
