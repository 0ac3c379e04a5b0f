"""From a record at its own rate and length to rows of the corpus: 500 Hz, 10 s, 1 uV integers.

Contract: `to_windows(record)` gives one Window per 10 s. A recording of 5 to 10 s is zero-padded; a longer one is cut
into consecutive windows `<id>#0`, `<id>#1`, ..., where a remainder of at least 5 s becomes a padded window of its own
and a shorter one is dropped (flag TAIL_DROPPED on the last window). Voltages are rounded half to even, at most 0.5 uV
off; up to 0.1 % of a lead's samples may saturate at the int16 limits (flag SATURATED), more are refused. A window of a
longer recording in which no lead moves (electrodes off) is left out: its number is missing, and the others carry the
flag PARTS_DROPPED. Nothing is filtered but by the anti-aliasing of a rate change.
Raises `RecordError`: BAD_RATE, LEADS_MISSING, TOO_SHORT, NOT_FINITE, AMPLITUDE, FLAT.
Resampling, in `pieces`: polyphase FIR, Kaiser window (beta 5, ten zero crossings of the slower rate on each side),
the recording continued beyond its ends by a straight line; Oppenheim & Schafer, Discrete-Time Signal Processing, 4.7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from enum import IntFlag
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from beatray.dsp.quality import Flag, clipped_leads
from beatray.ingest.pieces import pieces
from beatray.record import (
    ALL_LEADS_MASK,
    LEADS,
    RATE_HZ,
    WAVE_DTYPE,
    WAVE_KINDS,
    WINDOW_SAMPLES,
    Reason,
    Record,
    RecordError,
    Wave,
    Window,
    content_hash,
)

MIN_SAMPLES = WINDOW_SAMPLES // 2
RATE_LIMITS_HZ = (50.0, 10_000.0)
MAX_RATIO_TERM = 100_000
MAX_RATE_DENOMINATOR = 12
RATE_TOLERANCE = Fraction(2, 1_000_000)
"""Of a rate written with few decimals, 333.333: a hundredth of a sample in 10 s."""
MAX_AMPLITUDE_MV = 20.0
AMPLITUDE_PERCENTILE = 99.9
FLAT_MV = 0.010


class WindowFlag(IntFlag):
    """Bits of `Window.flags` that reading sets. The lower 16 bits belong to the quality measures, of which CLIPPED is
    set here for recordings of other rates."""

    SATURATED = 1 << 16  # voltages beyond +-32.767 mV were cut
    TAIL_DROPPED = 1 << 17  # less than 5 s at the recording's end are in no window
    RESAMPLED = 1 << 18  # the recording was not at 500 Hz
    GAPS_INTERPOLATED = 1 << 19
    LEADS_DROPPED = 1 << 20
    LEADS_COMPUTED = 1 << 21
    HEADER_IRREGULAR = 1 << 22  # the header deviates from the standard in a way that changes no voltage
    PTBXL_OVERLAP = 1 << 23  # a PTB-XL recording published under another name
    PARTS_DROPPED = 1 << 24  # other windows of the same long recording were not usable


MEANINGS = {
    WindowFlag.SATURATED: "Voltages beyond +-32.767 mV were cut (at most 0.1 % of a lead).",
    WindowFlag.TAIL_DROPPED: "Less than 5 s at the recording's end are in no row.",
    WindowFlag.RESAMPLED: "The recording was not at 500 Hz.",
    WindowFlag.GAPS_INTERPOLATED: "Invalid samples over at most 20 ms were interpolated.",
    WindowFlag.LEADS_DROPPED: "A lead with a longer gap was left out.",
    WindowFlag.LEADS_COMPUTED: "Limb leads that were not recorded were computed from I and II.",
    WindowFlag.HEADER_IRREGULAR: "The header deviates from the standard in a way that changes no voltage.",
    WindowFlag.PTBXL_OVERLAP: "A PTB-XL recording published under another name.",
    WindowFlag.PARTS_DROPPED: "Other windows of the same long recording were not usable, such as flat ones.",
}
"""The meaning of each bit, for those who look at a corpus."""

NOTE_FLAGS = {
    "gaps_interpolated": WindowFlag.GAPS_INTERPOLATED,
    "leads_dropped": WindowFlag.LEADS_DROPPED,
    "leads_computed": WindowFlag.LEADS_COMPUTED,
    "ptbxl_overlap": WindowFlag.PTBXL_OVERLAP,
    "resampled": WindowFlag.RESAMPLED,
    "parts_dropped": WindowFlag.PARTS_DROPPED,
}


def to_windows(record: Record) -> list[Window]:
    """Cut one record into corpus rows; see the module's contract."""
    ratio = rate_ratio(record.rate_hz)
    n_total = math.ceil(record.n_samples * ratio)
    if n_total < MIN_SAMPLES:
        raise RecordError(Reason.TOO_SHORT, f"{n_total / RATE_HZ:g} s, at least {MIN_SAMPLES / RATE_HZ:g} s are needed")
    _check_voltages(record)
    waves = _wave_table(record.waves, record.lead_mask, ratio)
    starts = [start for start in range(0, n_total, WINDOW_SAMPLES) if n_total - start >= MIN_SAMPLES]
    flags = _record_flags(record)
    windows: list[Window] = []
    n_beyond = np.zeros(12, np.int64)
    of_frank = None if record.frank_mv is None else pieces(record.frank_mv, ratio)
    for first, signal_uv, beyond in _in_microvolts(record, ratio):
        frank_uv = None if of_frank is None else quantise(next(of_frank)[1])[0]
        if beyond is not None:
            n_beyond += beyond.sum(axis=1)
        for start in range(0, signal_uv.shape[1], WINDOW_SAMPLES):
            number, stop = (first + start) // WINDOW_SAMPLES, min(start + WINDOW_SAMPLES, signal_uv.shape[1])
            if stop - start < MIN_SAMPLES:
                break
            if len(starts) > 1 and _is_flat(signal_uv[:, start:stop]):
                continue
            uv = _padded(signal_uv[:, start:stop])
            own = flags
            if beyond is not None and bool(beyond[:, start:stop].any()):
                own |= WindowFlag.SATURATED
            clipped = clipped_before(record, first + start, first + stop)
            windows.append(
                Window(
                    record_id=record.record_id if len(starts) == 1 else f"{record.record_id}#{number}",
                    source=record.source,
                    signal_uv=uv,
                    n_samples=stop - start,
                    lead_mask=record.lead_mask,
                    content_hash=content_hash(uv),
                    patient_id=record.patient_id,
                    fold=record.fold,
                    labels=record.labels,
                    waves=_waves_within(waves, first + start, first + stop),
                    age=record.age,
                    sex=record.sex,
                    acquired=record.acquired,
                    flags=int(own) | clipped,
                    frank_uv=None if frank_uv is None else _padded(frank_uv[:, start:stop]),
                )
            )
    if float(n_beyond.max() / n_total) > 1.0 - AMPLITUDE_PERCENTILE / 100.0:
        raise RecordError(Reason.AMPLITUDE, "a lead lies outside +-32.767 mV: its offset or its gain must be wrong")
    if not windows:
        raise RecordError(Reason.FLAT, f"in no window does a lead span {FLAT_MV * 1000:g} uV")
    if len(windows) < len(starts):
        windows = [replace(window, flags=int(window.flags | WindowFlag.PARTS_DROPPED)) for window in windows]
    if starts[-1] + WINDOW_SAMPLES < n_total:
        windows[-1] = replace(windows[-1], flags=int(windows[-1].flags | WindowFlag.TAIL_DROPPED))
    return windows


def clipped_before(record: Record, start: int, stop: int) -> int:
    """CLIPPED or 0, of what lies between two samples of 500 Hz; 0 of a recording at 500 Hz, which `assess` judges."""
    if record.rate_hz == RATE_HZ:
        return 0
    ratio = rate_ratio(record.rate_hz)
    own = record.signal_mv[:, math.floor(start / ratio) : math.ceil(stop / ratio)]
    return int(Flag.CLIPPED) if bool(clipped_leads(own, record.rate_hz).any()) else 0


def _is_flat(signal_uv: NDArray[np.int16]) -> bool:
    spread = signal_uv.max(axis=1).astype(np.int32) - signal_uv.min(axis=1)
    return int(spread.max()) < FLAT_MV * 1000


def _in_microvolts(
    record: Record, ratio: Fraction
) -> Iterator[tuple[int, NDArray[np.int16], NDArray[np.bool_] | None]]:
    """Whole microvolts at 500 Hz, zero where a lead is not in the mask, and where the range was left, by pieces."""
    if record.signal_uv is not None and ratio == 1 and record.lead_mask == ALL_LEADS_MASK:
        yield 0, record.signal_uv, None
        return
    absent = [lead for lead in range(12) if not record.lead_mask >> lead & 1]
    for start, piece_mv in pieces(record.signal_mv, ratio):
        if absent:
            piece_mv = piece_mv.copy()
            piece_mv[absent] = 0.0
        yield start, *quantise(piece_mv)


def _padded(signal_uv: NDArray[np.int16]) -> NDArray[np.int16]:
    if signal_uv.shape[1] == WINDOW_SAMPLES and signal_uv.flags.c_contiguous:
        return signal_uv
    padded = np.zeros((len(signal_uv), WINDOW_SAMPLES), np.int16)
    padded[:, : signal_uv.shape[1]] = signal_uv
    return padded


@lru_cache(maxsize=64)
def rate_ratio(rate_hz: float) -> Fraction:
    """500 Hz over the record's rate as an exact fraction. Raises RecordError(BAD_RATE)."""
    if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
        raise RecordError(Reason.BAD_RATE, f"sampling rate {rate_hz} Hz, allowed 50 to 10000")
    ratio = RATE_HZ / Fraction(repr(float(rate_hz)))  # the decimal that the header wrote, not its binary neighbour
    too_fine = max(ratio.numerator, ratio.denominator) > MAX_RATIO_TERM
    interval_us = round(1e6 / rate_hz)
    if too_fine and math.isclose(1e6 / interval_us, rate_hz, rel_tol=1e-12):
        return Fraction(RATE_HZ * interval_us, 1_000_000)  # 1953 us between samples, as SCP-ECG and aECG write it
    if too_fine:
        # 1000/3 Hz has no end as a decimal: the simple fraction that what is written rounds
        near = Fraction(rate_hz).limit_denominator(MAX_RATE_DENOMINATOR)
        if abs(near - Fraction(rate_hz)) > near * RATE_TOLERANCE:
            raise RecordError(
                Reason.BAD_RATE,
                f"sampling rate {rate_hz} Hz has no simple ratio to {RATE_HZ} Hz: write the rate of the device if this "
                "is one that was measured, or resample the recording",
            )
        ratio = RATE_HZ / near
    return ratio


def quantise(signal_mv: NDArray[np.float64]) -> tuple[NDArray[np.int16], NDArray[np.bool_] | None]:
    """Millivolts to whole microvolts, half to even; where the int16 range was left (None: nowhere)."""
    uv = signal_mv * 1000.0
    np.rint(uv, out=uv)
    beyond: NDArray[np.bool_] | None = None
    if uv.max(initial=0.0) > 32767.0 or uv.min(initial=0.0) < -32768.0:
        beyond = (uv > 32767.0) | (uv < -32768.0)
        np.clip(uv, -32768.0, 32767.0, out=uv)
    return uv.astype(np.int16), beyond


def scale_samples(samples: NDArray[np.int64], ratio: Fraction) -> NDArray[np.int64]:
    """Sample positions at another rate, exactly, rounded half to even."""
    whole, rest = np.divmod(samples * ratio.numerator, ratio.denominator)
    twice = 2 * rest
    up = (twice > ratio.denominator) | ((twice == ratio.denominator) & (whole % 2 == 1))
    scaled: NDArray[np.int64] = whole + up
    return scaled


def _check_voltages(record: Record) -> None:
    """Refuse what no electrode records: NaN, all leads dead, or a level that only a wrong gain explains."""
    leads = [lead for lead in range(12) if record.lead_mask >> lead & 1]
    if not leads:
        raise RecordError(Reason.LEADS_MISSING, "the lead mask is empty")
    if record.signal_uv is not None:  # the least microvolts are the least millivolts
        low, high = (uv[leads] / 1000.0 for uv in (record.signal_uv.min(axis=1), record.signal_uv.max(axis=1)))
    else:
        some = [record.signal_mv] if len(leads) == 12 else [record.signal_mv[k : k + 1] for k in leads]  # not a copy
        low, high = (np.concatenate([end(x, axis=1) for x in some]) for end in (np.min, np.max))
    spread = high - low
    if not bool(np.isfinite(spread).all()):
        raise RecordError(Reason.NOT_FINITE, "the signal holds NaN or infinite values")
    if bool((spread < FLAT_MV).all()):
        raise RecordError(Reason.FLAT, f"no lead spans {FLAT_MV * 1000:g} uV; the largest {spread.max() * 1000:.3g} uV")
    for row in np.flatnonzero(spread > MAX_AMPLITUDE_MV).tolist():
        lead_mv = record.signal_mv[leads[row]]
        level = float(np.percentile(np.abs(lead_mv - np.median(lead_mv)), AMPLITUDE_PERCENTILE))
        if level > MAX_AMPLITUDE_MV:
            raise RecordError(
                Reason.AMPLITUDE, f"lead {LEADS[leads[row]]} reaches {level:.3g} mV from its median, limit 20 mV"
            )


def _record_flags(record: Record) -> WindowFlag:
    flags = WindowFlag.RESAMPLED if record.rate_hz != RATE_HZ else WindowFlag(0)
    for note in record.notes:
        flags |= NOTE_FLAGS.get(note, WindowFlag.HEADER_IRREGULAR)
    return flags


def _wave_table(waves: tuple[Wave, ...], lead_mask: int, ratio: Fraction) -> NDArray[np.int64]:
    """(n, 5): lead, kind, onset, peak, offset at 500 Hz; -1 for a missing bound, leads that are absent left out."""
    rows = [
        (wave.lead, WAVE_KINDS.index(wave.kind), *map(_or_missing, (wave.onset, wave.peak, wave.offset)))
        for wave in waves
        if lead_mask >> wave.lead & 1
    ]
    table = np.array(rows, np.int64).reshape(len(rows), 5)
    if ratio != 1:
        table[:, 2:] = np.where(table[:, 2:] < 0, -1, scale_samples(table[:, 2:], ratio))
    return table


def _or_missing(sample: int | None) -> int:
    return -1 if sample is None else sample


def _waves_within(table: NDArray[np.int64], start: int, stop: int) -> NDArray[np.void]:
    """The waves whose peak lies in [start, stop), counted from start; bounds outside become -1."""
    if not len(table):
        return np.empty(0, WAVE_DTYPE)
    chosen = table[(table[:, 3] >= start) & (table[:, 3] < stop)]
    waves = np.empty(len(chosen), WAVE_DTYPE)
    waves["lead"], waves["kind"] = chosen[:, 0], chosen[:, 1]
    for column, name in ((2, "onset"), (3, "peak"), (4, "offset")):
        at = chosen[:, column]
        waves[name] = np.where((at >= start) & (at < stop), at - start, -1)
    return waves
