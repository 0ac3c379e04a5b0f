"""What is wrong with a recording, as bits: nothing here refuses a recording, it only marks what the reader should know.

Thresholds are absolute and in physical units. Those of NOISY, BASELINE_WANDER and LARGE_LEAD are what 95 of 100
recordings stay below that experts called acceptable, in one half of set A of the Challenge 2011 (Silva, Moody & Celi,
Computing in Cardiology 2011:273), rounded; what each flag finds in the other half is in docs/signal-analysis.md, by
`tests/benchmarks/bench_quality_flags.py`. The others lie well outside what LUDB and PTB-XL show. A flag means something
unusual, not that a recording is of no use.

Contract: `signal_mv_blt` (B, 12, T) millivolts in canonical lead order; answers depend on each recording alone and on
its first `n_samples` only. Total: no content raises.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beatray.dsp.clean import WORKING_RATE_HZ, decimate, repair
from beatray.dsp.delineate import joined
from beatray.record import ALL_LEADS_MASK, LEAD_INDEX, LEADS, RATE_HZ

F = TypeVar("F", bound=np.floating)


class Flag(IntFlag):
    """Quality bits of one recording, as stored in the corpus."""

    FLAT_LEAD = 1  # a lead that should be there moves less than FLAT_MV, or stands still for most of the time
    CLIPPED = 2  # a lead stays CLIPPED_S at its highest or lowest value and is large enough for that to matter
    NOISY = 4  # fast noise between the beats above NOISY_MV in some lead
    BASELINE_WANDER = 8  # the 1.2-s mean of some lead moves by more than WANDER_MV
    LEADS_INCONSISTENT = 16  # I + III - II departs from zero by more than EINTHOVEN_MV (RMS, offset removed)
    LIMB_SWAP_SUSPECT = 32  # P and QRS upside down in lead I while V6 points up, as after swapping the arms
    MIS_SCALED = 64  # beats of HUGE_MV in half of the leads, or no lead with TINY_MV from peak to peak: a wrong gain
    NO_BEATS = 128
    FEW_BEATS = 256  # fewer than one beat in 3 s
    SHORT = 512  # less than SHORT_S of signal
    NOT_FINITE = 1024  # a lead with invalid samples (NaN, infinite) in more than half of the recording
    LARGE_LEAD = 2048  # a lead is beyond HUGE_MV for HUGE_SHARE of the time: mostly a loose electrode
    NEUROKIT_UNACCEPTABLE = 4096  # NeuroKit2's verdict on one lead, only where an ingest asks for it


FLAT_MV = 0.01
STILL_SHARE = 0.8
CLIPPED_S, EDGE_S = 0.024, 0.2
CLIPPED_RANGE_MV = 1.0
CLIPPED_SAMPLES = 6
"""At low rates so many samples are more than CLIPPED_S: a few that are equal are no stay."""
NOISY_MV = 0.06
WANDER_MV = 1.5
EINTHOVEN_MV = 0.03
HUGE_MV, HUGE_SHARE = 5.0, 0.01
BEAT_BLOCK_S, BEAT_QUANTILE = 0.4, 0.75
"""The size of a lead's beats: this quantile of the range in blocks of so long, which slow drift hardly touches."""
TINY_MV = 0.1
SHORT_S = 5.0
FEW_BEATS_EVERY_S = 3.0
SWAP_P_MV, SWAP_QRS_MV, SWAP_V6_MV = -0.03, -0.05, 0.1

MEANINGS = {
    Flag.FLAT_LEAD: f"A lead moves less than {FLAT_MV * 1000:g} uV, or stands still {STILL_SHARE:.0%} of the time.",
    Flag.CLIPPED: f"A lead of over {CLIPPED_RANGE_MV:g} mV stays {CLIPPED_S * 1000:g} ms at its highest or lowest.",
    Flag.NOISY: f"Fast noise of more than {NOISY_MV * 1000:g} uV between the beats of a lead.",
    Flag.BASELINE_WANDER: f"The mean over 1.2 s of a lead moves by more than {WANDER_MV:g} mV.",
    Flag.LEADS_INCONSISTENT: f"I + III - II departs from zero by more than {EINTHOVEN_MV * 1000:g} uV (RMS).",
    Flag.LIMB_SWAP_SUSPECT: "P and QRS point down in lead I while V6 points up, as after swapping the arms.",
    Flag.MIS_SCALED: f"Beats of over {HUGE_MV:g} mV in half of the leads, or no lead that spans {TINY_MV:g} mV.",
    Flag.NO_BEATS: "No heartbeat was found.",
    Flag.FEW_BEATS: f"Fewer heartbeats than one in {FEW_BEATS_EVERY_S:g} s.",
    Flag.SHORT: f"Less than {SHORT_S:g} s of signal.",
    Flag.NOT_FINITE: "A lead has invalid samples in more than half of the recording.",
    Flag.LARGE_LEAD: f"More than {HUGE_SHARE:.0%} of a lead is beyond {HUGE_MV:g} mV, as with a loose electrode.",
    Flag.NEUROKIT_UNACCEPTABLE: "NeuroKit2 calls lead II, or the next best, unacceptable (quality=beatray+neurokit).",
}
"""The meaning of each bit, with its threshold, for those who look at a corpus."""

CHUNK = 16


def assess(
    signal_mv_blt: NDArray[np.generic],
    n_samples: ArrayLike,
    lead_mask: ArrayLike,
    *,
    r_peaks: list[NDArray[np.int32]] | None = None,
    waves: list[NDArray[np.void]] | None = None,
    rate_hz: float = RATE_HZ,
    low_mv_blt: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Quality bits (B,) int32 and the mask of leads fit to be read (B,) int16.

    `n_samples` and `lead_mask` (B,) or scalar. NO_BEATS and FEW_BEATS are set if `r_peaks` is given, LIMB_SWAP_SUSPECT
    if `waves` (as `delineate.find_waves` gives them) is. A lead is fit unless it is flat or mostly invalid.
    `low_mv_blt`: the leads by `clean.decimate` at the working rate, where the caller has them; it is repaired in place.
    Raises ValueError unless there are twelve leads.
    """
    x_blt = np.asarray(signal_mv_blt)
    if x_blt.ndim != 3 or x_blt.shape[1] != len(LEADS):
        raise ValueError(f"signal_mv_blt must be (batch, 12, time), got shape {x_blt.shape}")
    n_records, _, n_time = x_blt.shape
    lengths = np.clip(np.broadcast_to(np.asarray(n_samples, np.int64), (n_records,)), 0, n_time)
    masks = np.broadcast_to(np.asarray(lead_mask, np.int64), (n_records,)) & ALL_LEADS_MASK
    flags = np.zeros(n_records, np.int32)
    usable = np.zeros(n_records, np.int16)
    step = _step_of(rate_hz)
    whole = np.flatnonzero(lengths == n_time)
    groups = [(whole[start : start + CHUNK], n_time) for start in range(0, len(whole), CHUNK)]
    groups += [(np.array([k]), int(lengths[k])) for k in np.flatnonzero(lengths < n_time)]
    for rows, length in groups:
        contiguous = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
        some = slice(rows[0], rows[-1] + 1) if contiguous else rows
        part = x_blt[some, :, :length]
        if low_mv_blt is None:
            low = decimate(part, step, tuple(range(len(LEADS))))
        else:
            low = low_mv_blt[some, :, : length // step]
        flags[rows], usable[rows] = _signal_flags(part, low, masks[rows], rate_hz)
        if waves is not None:
            flags[rows] |= _swap_flag(part, [waves[k] for k in rows], masks[rows])
    if r_peaks is not None:
        beats = np.array([len(r) for r in r_peaks], np.int64)
        flags[beats == 0] |= Flag.NO_BEATS
        flags[beats * FEW_BEATS_EVERY_S * rate_hz < lengths] |= Flag.FEW_BEATS
    return flags, usable


def _step_of(rate_hz: float) -> int:
    return max(1, round(rate_hz / WORKING_RATE_HZ))


def _signal_flags(
    x_blt: NDArray[np.generic], low: NDArray[np.float32], masks: NDArray[np.int64], rate_hz: float
) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Flags of recordings that are valid to the last sample, and thinned out in `low`, which may be changed."""
    length = x_blt.shape[-1]
    present = ((masks[:, None] >> np.arange(len(LEADS))) & 1).astype(np.bool_)
    flags = np.zeros(len(low), np.int32)

    def mark(flag: Flag, by_lead: NDArray[np.bool_]) -> None:
        flags[(by_lead & present).any(axis=1)] |= flag

    if length < SHORT_S * rate_hz:
        flags |= Flag.SHORT
    rate_low_hz = rate_hz / _step_of(rate_hz)
    if low.shape[-1] < 4:
        flags[present.any(axis=1)] |= Flag.FLAT_LEAD
        return flags, np.zeros(len(low), np.int16)
    invalid = repair(low)
    mark(Flag.NOT_FINITE, invalid)
    highest, lowest = low.max(axis=-1), low.min(axis=-1)
    span = highest - lowest
    slope = low[..., 1:] - low[..., :-1]
    n_low = low.shape[-1]
    flat = (span < FLAT_MV) | (np.count_nonzero(slope == 0, axis=-1) > STILL_SHARE * n_low)
    mark(Flag.FLAT_LEAD, flat)
    mark(Flag.CLIPPED, _clipped(x_blt, low, (span > CLIPPED_RANGE_MV) & ~flat & present, rate_hz))
    mark(Flag.NOISY, _fast_noise(slope, rate_low_hz) > NOISY_MV)
    mark(Flag.BASELINE_WANDER, _wander(low, rate_low_hz) > WANDER_MV)
    mean = low.sum(axis=-1) / np.float32(n_low)
    huge = np.zeros_like(flat)
    for k, lead in np.argwhere(span > HUGE_MV):  # rare, so the count costs nothing
        huge[k, lead] = np.count_nonzero(np.abs(low[k, lead] - mean[k, lead]) > HUGE_MV) > HUGE_SHARE * n_low
    mark(Flag.LARGE_LEAD, huge)
    flags[~((span >= TINY_MV) & present).any(axis=1)] |= Flag.MIS_SCALED
    half = np.maximum(present.sum(axis=1), 1) / 2
    tall = (span > HUGE_MV) & present
    for k in np.flatnonzero(tall.sum(axis=1) >= half):
        if np.count_nonzero(_beat_size(low[k], rate_low_hz)[present[k]] > HUGE_MV) >= half[k]:
            flags[k] |= Flag.MIS_SCALED
    triangle = low[:, 0] + low[:, 2] - low[:, 1]
    triangle -= (mean[:, 0] + mean[:, 2] - mean[:, 1])[:, None]
    rms = np.sqrt(np.einsum("bt,bt->b", triangle, triangle) / np.float32(n_low))
    flags[(rms > EINTHOVEN_MV) & present[:, :3].all(axis=1)] |= Flag.LEADS_INCONSISTENT
    fit = present & ~flat & ~invalid
    return flags, (fit * (1 << np.arange(len(LEADS)))).sum(axis=1).astype(np.int16)


def _clipped(
    x_blt: NDArray[np.generic], low: NDArray[np.float32], looked_at: NDArray[np.bool_], rate_hz: float
) -> NDArray[np.bool_]:
    """Which of the leads (B, L) stand still at an end of their range: of few leads every sample has to be compared."""
    clipped = looked_at.copy()
    often = np.zeros(np.count_nonzero(clipped), np.bool_)
    step = _step_of(rate_hz)
    whole_means = max(1, round(CLIPPED_S * rate_hz) // step - 1)  # so many lie within any stay of that length
    body = _without_edges(low[clipped], rate_hz / step)
    for extreme in (body.max(axis=-1, keepdims=True), body.min(axis=-1, keepdims=True)):
        often |= np.count_nonzero(body == extreme, axis=-1) >= whole_means
    clipped[clipped] = often
    for record, lead in np.argwhere(clipped):
        with np.errstate(over="ignore"):
            samples = x_blt[record, lead].astype(np.float32)[None]
        repair(samples[None])
        clipped[record, lead] = _stays(_without_edges(samples, rate_hz)[0], round(CLIPPED_S * rate_hz))
    return clipped


def clipped_leads(signal_mv_lt: NDArray[np.floating], rate_hz: float) -> NDArray[np.bool_]:
    """Which leads of a recording (L, T), at the rate at which it was recorded, stay at an end of their range: (L,).

    `assess` sees CLIPPED at that rate only: of what was resampled, filters ripple where the recording stood still.
    """
    body = _without_edges(signal_mv_lt, rate_hz)
    if body.shape[-1] == 0:
        return np.zeros(len(body), np.bool_)
    long = max(round(CLIPPED_S * rate_hz), CLIPPED_SAMPLES)
    wide = body.max(axis=-1) - body.min(axis=-1) > CLIPPED_RANGE_MV
    return np.array([bool(large) and _stays(lead, long) for large, lead in zip(wide, body, strict=True)], np.bool_)


def _without_edges(leads: NDArray[F], rate_hz: float) -> NDArray[F]:
    """The leads (n, T) but for the first and last 0.2 s, which some recorders fill by repeating a sample."""
    edge = round(EDGE_S * rate_hz)
    return leads[:, edge:-edge] if leads.shape[-1] > 4 * edge else leads


def _stays(lead: NDArray[np.floating], long: int) -> bool:
    """Whether a lead (T,) spends `long` samples on end exactly at its highest or at its lowest value."""
    for extreme in (lead.max(), lead.min()):
        at = np.flatnonzero(lead == extreme)
        if len(at) >= long and bool((at[long - 1 :] - at[: len(at) - long + 1] == long - 1).any()):
            return True
    return False


def _beat_size(low: NDArray[np.float32], rate_hz: float) -> NDArray[np.float32]:
    """What a beat spans in each lead (L, T), in mV."""
    block = max(1, min(round(BEAT_BLOCK_S * rate_hz), low.shape[-1]))
    n_blocks = low.shape[-1] // block
    blocks = low[:, : n_blocks * block].reshape(len(low), n_blocks, block)
    size = np.sort(blocks.max(axis=-1) - blocks.min(axis=-1), axis=-1)
    return np.asarray(size[:, int(BEAT_QUANTILE * (n_blocks - 1))])


def _fast_noise(slope: NDArray[np.float32], rate_hz: float) -> NDArray[np.float32]:
    """Mean absolute second difference, in mV, of the quieter 80-ms blocks of each lead: what is left between waves."""
    bend = slope[..., 1:] - slope[..., :-1]
    np.abs(bend, out=bend)
    block = max(1, min(round(0.08 * rate_hz), bend.shape[-1]))
    n_blocks = bend.shape[-1] // block
    blocks = bend[..., : n_blocks * block].reshape(*bend.shape[:2], n_blocks, block)
    total = blocks[..., 0].copy()
    for k in range(1, block):
        total += blocks[..., k]
    rank = int(0.3 * (n_blocks - 1))
    quiet = np.partition(total, rank, axis=-1)[..., rank] * np.float32(1 / block)
    return np.asarray(quiet, np.float32)


def _wander(low: NDArray[np.float32], rate_hz: float) -> NDArray[np.float32]:
    """Range of the 1.2-s running mean of each lead, in mV, in steps of 0.4 s."""
    block = max(1, min(round(0.4 * rate_hz), low.shape[-1]))
    n_blocks = low.shape[-1] // block
    means = low[..., : n_blocks * block].reshape(*low.shape[:2], n_blocks, block).sum(axis=-1)
    wide = means[..., :-2] + means[..., 1:-1] + means[..., 2:] if n_blocks >= 3 else means * np.float32(3)
    extent: NDArray[np.float32] = (wide.max(axis=-1) - wide.min(axis=-1)) * np.float32(1 / (3 * block))
    return extent


def _swap_flag(
    x_blt: NDArray[np.generic], waves: list[NDArray[np.void]], masks: NDArray[np.int64]
) -> NDArray[np.int32]:
    """LIMB_SWAP_SUSPECT for recordings whose P and QRS are inverted in lead I but whose V6 is not."""
    counts = np.array([len(beats) for beats in waves])
    last = x_blt.shape[-1] - 1
    flags = np.zeros(len(x_blt), np.int32)
    if last < 0 or not counts.any():
        return flags
    beats, owner = joined(waves), np.repeat(np.arange(len(waves)), counts)
    full = (beats["p_peak"] >= 0) & (beats["qrs_onset"] >= 0)
    n_full = np.bincount(owner[full], minlength=len(waves))
    needed = (1 << LEAD_INDEX["i"]) | (1 << LEAD_INDEX["v6"])
    asked = ((masks & needed) == needed) & (2 * n_full >= counts) & (n_full >= 3)
    for name, first, peak, limit, sign in (
        ("i", "p_onset", "p_peak", SWAP_P_MV, -1),
        ("i", "qrs_onset", "r_peak", SWAP_QRS_MV, -1),
        ("v6", "qrs_onset", "r_peak", SWAP_V6_MV, +1),
    ):  # one after the other: nearly all stop at the P wave
        chosen = np.flatnonzero(full & asked[owner])
        if not chosen.size:
            return flags
        record, lead = owner[chosen], LEAD_INDEX[name]
        high, low = (x_blt[record, lead, np.minimum(beats[edge][chosen], last)] for edge in (peak, first))
        with np.errstate(invalid="ignore", over="ignore"):
            height = (high - low).astype(np.float64)
        # The upper median, at position n // 2 of the sorted values, is below a limit if more than n // 2 values are.
        below = np.bincount(record[height < limit if sign < 0 else height <= limit], minlength=len(waves))
        known = np.bincount(record[~np.isnan(height)], minlength=len(waves))
        middle = n_full // 2
        asked &= below > middle if sign < 0 else (below <= middle) & (known > middle)
    flags[asked] = Flag.LIMB_SWAP_SUSPECT
    return flags
