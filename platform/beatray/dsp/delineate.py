"""Where each beat's P wave, QRS complex and T wave begin, peak and end, for many recordings at once.

All eight independent leads are read together and give one answer per beat. With `lead=` the P and T waves are looked
for in that lead only; the QRS, and the question whether there is a P wave, remain the business of all leads.

Method, per beat and without a loop over beats:
- QRS: the speed of the lead vector, sqrt(sum of squared slopes) at 250 Hz. The bounds are the ends of the first quiet
  run, of 12 ms before and 20 ms after, below a share of the beat's own top speed; quiet within a wide, notched or
  clipped QRS does not count, as there is a steep part (`CORE_SHARE`) on both sides of it.
- T: the smoothed lead vector (40 ms, 125 Hz) between the end of the QRS and the next beat, measured from the chord that
  joins the two ends, which takes drift and ST level out (the idea of a peak's prominence, with many leads). The peak is
  where the vector is farthest from the chord; the direction it has there projects the leads onto one curve; onset and
  offset are found on that curve by the largest trapezium (Vazquez-Seisdedos et al., BioMed Eng OnLine 2011, 10:43).
- P: between the end of the previous T and the QRS, where the vector stands out most from the middle of what lies 80 ms
  before and after: a wave does, the tail of a T wave does not. Each beat is blended with the mean of the record's other
  beats by how well they agree: a P wave repeats itself, noise and fibrillation do not.
- whether there is a P wave at all: a logistic rule on that agreement, on the record's coherence in the P window, on the
  irregularity of its RR intervals, on the beat's prematurity, and on the height and slant of what stands out, see
  `p_and_t.P_RULE`.
- leads: one that is noisier than the others counts less, in the speed by what it does in quiet times, for P and T by
  how much of it does not repeat before the QRS (`lead_weights.noise_shares`). In clean recordings all count in full.

Contract: `x_mv_blt` (B, L, T) millivolts at 250 to 1,000 Hz; answers are sample positions at `rate_hz`, -1 if absent,
ordered p_onset <= p_peak <= p_offset <= qrs_onset <= r_peak <= qrs_offset <= t_onset <= t_peak <= t_offset, at a
resolution of 4 ms (QRS) and 8 ms (P, T). Total: any content gives an answer, lower rates included, where the steps of
one sample are long: at 100 Hz a QRS comes out some 18 ms wider and a fifth of the P waves is missed.

Honesty: shares, windows and shifts were set on LUDB lead II, on which the accuracy test also measures. The weights of
the rule were fitted on one half of LUDB and QTDB (by a hash of the record's name) and its bias chosen so that as many P
waves are found as by the rule before it; `tests/benchmarks/bench_p_waves.py` shows both halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beatray.dsp.clean import decimate, hold_after, moving_sum, repair
from beatray.dsp.lead_weights import noise_shares
from beatray.dsp.p_and_t import Beats, find_p, find_t, weigh_by_repetition
from beatray.record import INDEPENDENT_LEADS, LEADS

FIELDS = ("p_onset", "p_peak", "p_offset", "qrs_onset", "r_peak", "qrs_offset", "t_onset", "t_peak", "t_offset")
BEAT_WAVES = np.dtype([(name, "<i4") for name in FIELDS])
"""One beat: sample positions at the rate of the signal, -1 where the wave is absent or cannot be measured, as where the
recording may have cut it."""

QRS_RATE_HZ = 250.0
QRS_REACH_S = (0.2, 0.24)
QRS_CORE_S = (0.05, 0.12)
ONSET_SHARE, OFFSET_SHARE, CORE_SHARE = 0.12, 0.10, 0.3
ONSET_QUIET_S, OFFSET_QUIET_S = 0.012, 0.02
ONSET_SHIFT_S = -0.004
FLAT_SPEED_MV = 1e-4
NOISE_BLOCK_S, NOISE_QUANTILE, NOISE_GAIN, NOISE_CAP = 0.1, 0.4, 3.0, 0.35
"""Quiet is at least this gain times the mean speed of the record's quieter blocks, at most this share of the top."""
QUIET_ALLOWANCE, QUIET_FLOOR_MV = 2.0, 0.004
"""See `lead_weights.noise_shares`: of the energy of a lead's slope in the quieter blocks. Steps of less than the floor
do no harm, and may be no more than those of a converter."""
CHUNK = 32
"""Records per pass: fewer pay more for starting each operation than they gain in the cache."""
BLOCK = 4
"""Records whose leads are thinned, repaired, squared and smoothed before the next ones come into the cache."""


def find_waves(
    x_mv_blt: NDArray[np.generic],
    rate_hz: float,
    r_peaks: list[NDArray[np.int32]],
    *,
    n_samples: ArrayLike | None = None,
    lead_mask: ArrayLike | None = None,
    lead: int | None = None,
) -> list[NDArray[np.void]]:
    """Wave positions of every beat: one `BEAT_WAVES` array of shape (n_beats,) per record.

    `r_peaks` as `peaks.find_r_peaks` gives them, increasing. `n_samples` and `lead_mask` (B,) or scalar as there.
    `lead`: position of the only lead to look for P and T in; by default the eight independent ones are shared.
    Raises ValueError if the array is not three-dimensional, the rate not positive, or the lists differ in length.
    """
    x_blt = np.asarray(x_mv_blt)
    if x_blt.ndim != 3:
        raise ValueError(f"x_mv_blt must be (batch, lead, time), got shape {x_blt.shape}")
    if not rate_hz > 0:
        raise ValueError(f"rate_hz must be positive, got {rate_hz}")
    n_records, n_leads, n_time = x_blt.shape
    if len(r_peaks) != n_records:
        raise ValueError(f"{n_records} records but {len(r_peaks)} lists of R-peaks")
    lengths = np.broadcast_to(np.asarray(n_time if n_samples is None else n_samples, np.int64), (n_records,))
    lengths = np.clip(lengths, 0, n_time)
    masks = np.broadcast_to(np.asarray(-1 if lead_mask is None else lead_mask, np.int64), (n_records,))
    leads = INDEPENDENT_LEADS if n_leads == len(LEADS) else tuple(range(n_leads))
    waves: list[NDArray[np.void]] = []
    for start in range(0, n_records, CHUNK):
        part = slice(start, start + CHUNK)
        waves.extend(_delineate(x_blt[part], rate_hz, r_peaks[part], lengths[part], masks[part], leads, lead))
    return waves


def joined(waves: list[NDArray[np.void]]) -> NDArray[np.void]:
    """The beats of all records in one row; as plain integers, which NumPy copies faster than structures."""
    pieces = [np.ascontiguousarray(beats, BEAT_WAVES).view(np.int32) for beats in waves]
    return np.concatenate(pieces).view(BEAT_WAVES)


def _delineate(
    x_blt: NDArray[np.generic],
    rate_hz: float,
    r_peaks: list[NDArray[np.int32]],
    lengths: NDArray[np.int64],
    masks: NDArray[np.int64],
    leads: tuple[int, ...],
    lead: int | None,
) -> list[NDArray[np.void]]:
    counts = np.array([len(r) for r in r_peaks])
    n_beats = int(counts.sum())
    found = np.full(n_beats, -1, BEAT_WAVES)
    ends = np.cumsum(counts)
    pieces = [found[end - count : end] for count, end in zip(counts, ends, strict=True)]
    step = max(1, round(rate_hz / QRS_RATE_HZ))
    if n_beats == 0 or x_blt.shape[-1] < 4 * step:
        for piece, r in zip(pieces, r_peaks, strict=True):
            piece["r_peak"] = r
        return pieces
    owner = np.repeat(np.arange(len(r_peaks)), counts)
    r = np.clip(np.concatenate(r_peaks).astype(np.int64), 0, x_blt.shape[-1] - 1)
    found["r_peak"] = r
    first = np.append(True, owner[1:] != owner[:-1])
    last = np.append(first[1:], True)
    rate_fast_hz = rate_hz / step
    block = max(1, round(NOISE_BLOCK_S * rate_fast_hz))
    squared, slow = _prepare(x_blt, step, leads, lengths, masks, block)
    beats = Beats(owner, first, last, np.minimum(r // step, squared.shape[-1] - 1))
    onset, offset, known = _qrs_bounds(squared, rate_fast_hz, beats, lengths // step, block)
    limit = np.maximum(lengths[owner] - 1, 0)
    centre = (step - 1) // 2
    found["qrs_onset"] = np.where(known, np.minimum(onset * step + centre, r), -1)
    found["qrs_offset"] = np.where(known, np.maximum(np.minimum(offset * step + centre, limit), r), -1)
    bounds = onset // 2, offset // 2, np.minimum(lengths // (2 * step), slow.shape[1]) - 1
    beats = Beats(owner, first, last, np.minimum(r // (2 * step), slow.shape[1] - 1))
    weigh_by_repetition(slow, rate_fast_hz / 2, beats, bounds[0])
    t_rows, t_present = find_t(slow, rate_fast_hz / 2, beats, *bounds)
    p_rows, p_present = find_p(slow, rate_fast_hz / 2, beats, *bounds[:2], t_rows[2], t_present)
    if lead is not None:
        _, alone = _prepare(x_blt, step, (lead,), lengths, masks, block)
        t_rows, t_present = find_t(alone, rate_fast_hz / 2, beats, *bounds)
        p_rows, _ = find_p(alone, rate_fast_hz / 2, beats, *bounds[:2], t_rows[2], t_present)
    centre = (2 * step - 1) // 2
    bottom, top = found["qrs_onset"], found["qrs_offset"]
    for name, p_row, t_row in zip(("onset", "peak", "offset"), p_rows, t_rows, strict=True):
        p_at = np.clip(p_row * 2 * step + centre, 0, bottom)
        t_at = np.clip(t_row * 2 * step + centre, top, np.maximum(limit, top))
        found[f"p_{name}"] = np.where(p_present & known, p_at, -1)
        found[f"t_{name}"] = np.where(t_present & known, t_at, -1)
    return pieces


def _prepare(
    x_blt: NDArray[np.generic],
    step: int,
    leads: tuple[int, ...],
    lengths: NDArray[np.int64],
    masks: NDArray[np.int64],
    block: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The squared speed of the lead vector at the QRS rate (B, n), and the smoothed leads at half of it (B, n // 2, L).

    The leads start at zero, are repaired, zero where they are not usable, and held after their end. `block` samples are
    a tenth of a second.
    """
    n_leads, n_fast = len(leads), x_blt.shape[-1] // step
    bits = np.array([1 << lead for lead in leads], np.int64)
    squared = np.zeros((len(x_blt), n_fast), np.float32)
    slow = np.empty((len(x_blt), n_fast // 2, n_leads), np.float32)
    buffer = np.empty((BLOCK, n_leads, n_fast), np.float32)
    for start in range(0, len(x_blt), BLOCK):
        part = slice(start, start + BLOCK)
        ends = lengths[part] // step
        fast = decimate(x_blt[part], step, leads, buffer[: len(ends)])
        bad = repair(fast, ends)
        fast -= fast[..., :1].copy()  # without the copy NumPy would copy the whole, as the two overlap
        usable = ~bad & ((masks[part, None] & bits) != 0)
        if not usable.all():
            fast *= usable[..., None].astype(np.float32)
        hold_after(fast, ends)
        slope = fast[..., 2:] - fast[..., :-2]
        slope *= slope
        for record in np.flatnonzero(ends < n_fast):
            slope[record, :, max(ends[record] - 2, 0) :] = 0  # the step to what is held is none of the recording's
        shares = _quiet_shares(slope, ends - 2, block)
        if shares is not None:
            slope *= (shares * shares)[..., None]
        np.add.reduce(slope, axis=1, out=squared[part, 1:-1])  # lead by lead
        mean = moving_sum(decimate(fast, 2, tuple(range(n_leads))), 2)
        np.divide(mean.transpose(0, 2, 1), np.float32(5), out=slow[part])  # one beat's window is one run of memory
    return squared, slow


def _quiet_shares(squared_bln: NDArray[np.float32], ends: NDArray[np.int64], block: int) -> NDArray[np.float32] | None:
    """What each lead counts in the speed, by its energy in the quieter ones of every other tenth of a second."""
    n_blocks = squared_bln.shape[-1] // (2 * block)
    if n_blocks == 0:
        return None
    blocks = squared_bln[..., : 2 * n_blocks * block].reshape(*squared_bln.shape[:2], n_blocks, 2 * block)
    energy = np.einsum("blnw->bln", blocks[..., :block])
    moves = energy.max(axis=-1) > 0
    noise = np.maximum(_quieter(energy, ends // (2 * block)), np.float32(block * QUIET_FLOOR_MV**2))
    noise *= moves
    return noise_shares(noise, QUIET_ALLOWANCE)


def _quieter(blocks: NDArray[np.float32], n_whole: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the quieter ones of the blocks (B, ..., n) do, of which each record has `n_whole` (B,) and the rest is what
    stands behind it; `blocks` is changed."""
    n_blocks = blocks.shape[-1]
    n_whole = np.clip(n_whole, 1, n_blocks)
    for record in np.flatnonzero(n_whole < n_blocks):
        blocks[record, ..., n_whole[record] :] = np.inf
    ranks = (NOISE_QUANTILE * (n_whole - 1)).astype(np.int64)
    chosen = np.unique(ranks)
    blocks.partition(chosen, axis=-1)
    at = ranks.reshape(-1, *[1] * (blocks.ndim - 1))
    level: NDArray[np.float32] = np.take_along_axis(blocks, np.broadcast_to(at, (*blocks.shape[:-1], 1)), -1)[..., 0]
    return level


def _qrs_bounds(
    squared: NDArray[np.float32], rate_hz: float, beats: Beats, ends: NDArray[np.int64], block: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Onset and offset at the rate of `squared` (B, n), and whether there was any movement to bound."""
    n_time = squared.shape[-1]
    speed = moving_sum(np.sqrt(squared), 1) / np.float32(3)
    before, after = (round(s * rate_hz) for s in QRS_REACH_S)
    at = beats.r[:, None] + np.arange(-before, after + 1)
    v = speed.ravel().take(np.clip(at, 0, n_time - 1) + beats.owner[:, None] * n_time)
    noise = _quiet_level(speed, block, ends)[beats.owner]
    core = slice(before - round(QRS_CORE_S[0] * rate_hz), before + round(QRS_CORE_S[1] * rate_hz))
    top = v[:, core].max(axis=1)
    floor = np.minimum(NOISE_GAIN * noise, NOISE_CAP * top)
    strong = np.zeros(v.shape, np.bool_)
    strong[:, core] = v[:, core] >= CORE_SHARE * top[:, None]
    start, stop = _first(strong), _last(strong)
    column = np.arange(v.shape[1])
    level = np.maximum(ONSET_SHARE * top, floor)[:, None]
    quiet = _run_below(v < level, max(1, round(ONSET_QUIET_S * rate_hz)))
    quiet &= column <= start[:, None]
    onset = np.where(quiet.any(axis=1), _last(quiet), start - round(0.04 * rate_hz))
    hold = max(1, round(OFFSET_QUIET_S * rate_hz))
    level = np.maximum(OFFSET_SHARE * top, floor)[:, None]
    quiet = _run_below((v < level)[:, ::-1], hold)[:, ::-1] & (column >= stop[:, None])
    offset = np.where(quiet.any(axis=1), _first(quiet), stop + round(0.04 * rate_hz))
    shift = round(ONSET_SHIFT_S * rate_hz)
    onset = np.clip(beats.r - before + onset + shift, 0, n_time - 1)
    offset = np.clip(beats.r - before + offset, 0, n_time - 1)
    return np.minimum(onset, beats.r), np.maximum(offset, beats.r), top > FLAT_SPEED_MV


def _quiet_level(speed: NDArray[np.float32], block: int, ends: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean speed of the quieter tenths of a second of each record: what noise alone does."""
    n_blocks = max(1, speed.shape[1] // block)
    width = min(block, speed.shape[1])
    blocks = speed[:, : n_blocks * width].reshape(len(speed), n_blocks, width).sum(axis=-1) / np.float32(width)
    return _quieter(blocks, ends // width)


def _first(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    at: NDArray[np.int64] = mask.argmax(axis=1)
    return at


def _last(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    at: NDArray[np.int64] = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    return at


def _run_below(below: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """True where this column and the `length` - 1 before it are all True."""
    run = below.copy()
    for k in range(1, length):
        run[:, k:] &= below[:, :-k]
        run[:, k - 1] = False
    return run
