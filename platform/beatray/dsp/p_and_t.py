"""The P and the T wave of every beat, once the QRS bounds are known: the second half of `delineate`.

Both waves are looked for in the smoothed lead vector: T measured from the chord that joins the ends of its search
window, P from the middle of what lies before and after, as it often rides on the tail of a T. A P wave must also pass
a test of presence (`P_RULE`).

Contract: `slow_btl` is float32 (B, T, L), time before lead, at about 125 Hz; every position that goes in or comes out
is a sample of it. Beats of all records stand in one row, record after record (`Beats`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beatray.dsp.lead_weights import noise_shares

T_WINDOW_S, T_START_S, T_GAP_S, T_RR_SHARE = 0.62, 0.04, 0.04, 0.65
T_ONSET_REACH_S, T_OFFSET_REACH_S = 0.12, 0.13
P_WINDOW_S, P_END_S, P_HALF_S, P_BLEND = 0.32, 0.024, 0.08, 0.6
P_ONSET_REACH_S, P_OFFSET_REACH_S = 0.10, 0.065
T_BEFORE_END_S, P_AFTER_START_S = 0.04, 0.024
"""A T that ends nearer to the end of the recording, a P that begins nearer to its start, may be cut: it is left out. Of
T waves cut to a length of their own, 28 % end over 40 ms early without this, 1.8 % with it (bundled recordings)."""
MIN_WAVE_MV = 0.01
REPEATED_S, REPEATED_ALLOWANCE = 0.2, 1.9
"""See `lead_weights.noise_shares`: of the energy that does not repeat so long before the QRS."""
REPEATED_FLOOR_MV = 0.003
"""Less than this does no harm, and may be no more than the steps of a converter."""
BEATS_AT_ONCE = 64
"""Windows of so many beats, and what is taken off them, fit the cache together."""
P_HEIGHT_MV = (0.005, 0.1)
P_MOST_LEAN = 0.95
"""A wave that does not stand out from both sides is none: at 1 one of them is as high as the wave itself."""
P_RULE = {
    "bias": 4.3,
    "agreement": 0.9,
    "coherence": 4.5,
    "irregularity": -9.5,
    "prematurity": -0.9,
    "lean": -2.4,
    "log_height": 1.3,
}
"""P present if bias + sum of weight * feature > 0. `agreement`: correlation of the beat's P window with the mean of the
other beats; `coherence`: share of the windows' energy that repeats, (n |mean|^2 / mean |.|^2 - 1) / (n - 1);
`irregularity`: SD over mean of RR, at most 0.5; `prematurity`: RR before the beat over mean RR, at most 1.5; `lean`:
how much the two sides of the wave differ in level, in heights, at most 1.5; `log_height`: of the mV per lead."""


@dataclass(frozen=True, slots=True)
class Beats:
    """The beats of a chunk in one row: which record, whether its first or last beat, and R at the working rate."""

    owner: NDArray[np.int64]
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]
    r: NDArray[np.int64]


def _window(
    slow_btl: NDArray[np.float32], owner: NDArray[np.int64], start: NDArray[np.int64], width: int, step: int = 1
) -> NDArray[np.float32]:
    """(n_beats, width / step, L) samples from `start` on; the record's ends are held."""
    n_records, n_time, n_leads = slow_btl.shape
    at = np.clip(start[:, None] + np.arange(0, width, step), 0, n_time - 1) + owner[:, None] * n_time
    window: NDArray[np.float32] = slow_btl.reshape(n_records * n_time, n_leads).take(at, axis=0)
    return window


def _from_chord(window: NDArray[np.float32], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float32]:
    """The window minus the straight line through its samples `low` and `high`, per beat and lead."""
    row = np.arange(len(window))
    left = window[row, low]
    slope = (window[row, high] - left) / np.maximum(high - low, 1)[:, None].astype(np.float32)
    position = (np.arange(window.shape[1]) - low[:, None]).astype(np.float32)
    away: NDArray[np.float32] = window - left[:, None]
    for start in range(0, len(away), BEATS_AT_ONCE):
        part = slice(start, start + BEATS_AT_ONCE)
        away[part] -= slope[part, None] * position[part, :, None]
    return away


def weigh_by_repetition(
    slow_btl: NDArray[np.float32], rate_hz: float, beats: Beats, qrs_onset: NDArray[np.int64]
) -> None:
    """Scales down, in place, the leads of which much does not repeat from beat to beat in the 0.2 s before the QRS."""
    reach = max(1, round(REPEATED_S * rate_hz))
    window = _window(slow_btl, beats.owner, qrs_onset - reach, reach, 2)  # the leads are smooth
    width = window.shape[1]
    window -= np.einsum("nwl->nl", window)[:, None] / np.float32(width)
    starts = np.flatnonzero(beats.first)
    count = np.diff(np.append(starts, len(beats.r))).astype(np.float32)
    total = np.add.reduceat(window, starts, axis=0)
    energy = np.add.reduceat(np.einsum("nwl,nwl->nl", window, window), starts, axis=0)
    noise = energy - np.einsum("nwl,nwl->nl", total, total) / count[:, None]
    noise = np.maximum(noise, np.float32(width * REPEATED_FLOOR_MV**2) * np.maximum(count - 1, 1)[:, None])
    noise *= energy > 0
    shares = noise_shares(noise, REPEATED_ALLOWANCE)
    if shares is None:
        return
    for group in np.flatnonzero((shares != 1).any(axis=1)):
        slow_btl[beats.owner[starts[group]]] *= shares[group]


def find_t(
    slow_btl: NDArray[np.float32],
    rate_hz: float,
    beats: Beats,
    qrs_onset: NDArray[np.int64],
    qrs_offset: NDArray[np.int64],
    last_sample: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Onset, peak, offset (3, n_beats) at the rate of `slow_btl`, and presence."""
    width = round(T_WINDOW_S * rate_hz)
    here = last_sample[beats.owner]
    until = np.where(beats.last, 2 * here + width, np.append(qrs_onset[1:], 0) - round(0.04 * rate_hz))
    rr = np.where(beats.last, np.where(beats.first, 0.8 * rate_hz, beats.r - np.append(0, beats.r[:-1])), 0)
    rr = np.where(beats.last, rr, np.append(beats.r[1:], 0) - beats.r)
    until = np.minimum(until, beats.r + (T_RR_SHARE * rr).astype(np.int64))
    may_be_cut = beats.last & (here < np.minimum(until, qrs_offset + width - 1))
    length = np.clip(np.minimum(until, here) - qrs_offset, 0, width - 1)
    low = np.minimum(round(T_START_S * rate_hz), length)
    window = _window(slow_btl, beats.owner, qrs_offset, width)
    away = _from_chord(window, low, length)
    column = np.arange(width)
    inside = (column >= low[:, None] + round(T_GAP_S * rate_hz)) & (column <= length[:, None] - round(0.02 * rate_hz))
    distance = np.where(inside, np.einsum("nwl,nwl->nw", away, away), 0)
    peak = distance.argmax(axis=1)
    curve, height = _project(window, away, peak)
    reach = np.minimum(length, peak + round(T_OFFSET_REACH_S * rate_hz))
    offset = _trapezium(curve, peak, reach, +1)
    onset = _trapezium(curve, peak, np.maximum(0, peak - round(T_ONSET_REACH_S * rate_hz)), -1)
    present = (length > round(0.1 * rate_hz)) & (height > MIN_WAVE_MV)
    present &= ~(may_be_cut & (qrs_offset + offset + round(T_BEFORE_END_S * rate_hz) > here))
    return qrs_offset + np.stack([onset, peak, offset]), present


def find_p(
    slow_btl: NDArray[np.float32],
    rate_hz: float,
    beats: Beats,
    qrs_onset: NDArray[np.int64],
    qrs_offset: NDArray[np.int64],
    t_offset: NDArray[np.int64],
    t_present: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Onset, peak, offset (3, n_beats) at the rate of `slow_btl`, and presence by `P_RULE`."""
    width = round(P_WINDOW_S * rate_hz)
    start = qrs_onset - width
    before = np.append(0, np.where(t_present, t_offset, qrs_offset + round(0.1 * rate_hz))[:-1])
    before = np.where(beats.first, np.maximum(0, beats.r - round(0.4 * rate_hz)), before)
    low = np.clip(np.maximum(before - start, -start), 0, width - 1)
    high = np.maximum(np.full(len(low), width - round(P_END_S * rate_hz)), low)
    window = _window(slow_btl, beats.owner, start, width + 1)
    column = np.arange(width + 1)
    inside = (column >= low[:, None]) & (column <= high[:, None])
    half = round(P_HALF_S * rate_hz)
    hump = _hump(window, np.maximum(column - half, low[:, None]), np.minimum(column + half, high[:, None]))
    hump *= inside[..., None].astype(np.float32)
    features, others = _agreement(hump, rate_hz, beats)
    share = (P_BLEND * np.clip(features["agreement"] / 0.4, 0, 1)).astype(np.float32)[:, None, None]
    others -= hump
    others *= share
    others += hump
    distance = np.einsum("nwl,nwl->nw", others, others)
    peak = np.clip(distance.argmax(axis=1), low, high)
    curve, height = _project(window, others, peak)
    reach = np.minimum(width, peak + round(P_OFFSET_REACH_S * rate_hz))
    offset = _trapezium(curve, peak, reach, +1)
    onset = _trapezium(curve, peak, np.maximum(low, peak - round(P_ONSET_REACH_S * rate_hz)), -1)
    row = np.arange(len(peak))
    vector = others[row, peak]
    sides = window[row, np.minimum(peak + half, high)] - window[row, np.maximum(peak - half, low)]
    tilt = np.abs(np.einsum("nl,nl->n", vector, sides)) / 2
    features["lean"] = np.minimum(tilt / np.maximum(np.einsum("nl,nl->n", vector, vector), 1e-12), 1.5)
    features["log_height"] = np.log(np.clip(height, *P_HEIGHT_MV))
    score = P_RULE["bias"] + sum(P_RULE[name] * value for name, value in features.items())
    present = (score > 0) & (features["lean"] < P_MOST_LEAN)
    present &= (high - low > round(0.05 * rate_hz)) & (height > MIN_WAVE_MV)
    present &= ~beats.first | (start + onset >= round(P_AFTER_START_S * rate_hz))
    return start + np.stack([onset, peak, offset]), present


def _hump(window: NDArray[np.float32], before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.float32]:
    """How far each sample stands out from the middle between the two at `before` and `after` (n_beats, width)."""
    n_beats, n_columns, n_leads = window.shape
    row = (np.arange(n_beats) * n_columns)[:, None]
    samples = window.reshape(n_beats * n_columns, n_leads)
    hump = np.empty_like(window)
    for start in range(0, n_beats, BEATS_AT_ONCE):
        part = slice(start, start + BEATS_AT_ONCE)
        middle = samples.take(np.minimum(before[part], n_columns - 1) + row[part], axis=0)
        middle += samples.take(np.maximum(after[part], 0) + row[part], axis=0)
        middle *= np.float32(0.5)
        np.subtract(window[part], middle, out=hump[part])
    return hump


def _agreement(
    hump: NDArray[np.float32], rate_hz: float, beats: Beats
) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.float32]]:
    """Four of the numbers of `P_RULE` per beat, and the mean P window of the record's other beats."""
    starts = np.flatnonzero(beats.first)
    count = np.diff(np.append(starts, len(beats.r)))
    group = np.cumsum(beats.first) - 1
    n = count[group].astype(np.float32)
    total = np.add.reduceat(hump, starts, axis=0)
    others = (total[group] - hump) / np.maximum(n - 1, 1)[:, None, None]
    own_energy = np.einsum("nwl,nwl->n", hump, hump)
    other_energy = np.einsum("nwl,nwl->n", others, others)
    agreement = np.einsum("nwl,nwl->n", hump, others) / np.sqrt(np.maximum(own_energy * other_energy, 1e-12))
    energy = np.maximum(np.add.reduceat(own_energy, starts), 1e-12)
    repeated = np.einsum("nwl,nwl->n", total, total) / energy
    coherence = ((repeated - 1) / np.maximum(count - 1, 1))[group]
    rr = np.where(beats.first, 0, beats.r - np.append(0, beats.r[:-1])).astype(np.float64)
    mean_rr = (np.add.reduceat(rr, starts) / np.maximum(count - 1, 1))[group]
    spread = np.where(beats.first, 0, (rr - mean_rr) ** 2)
    sd_rr = np.sqrt(np.add.reduceat(spread, starts) / np.maximum(count - 1, 1))[group]
    alone = n < 2  # nothing to compare with: neutral values, so that one clean beat keeps its P wave
    return {
        "agreement": np.where(alone, 0.7, agreement),
        "coherence": np.where(alone, 0.7, coherence),
        "irregularity": np.minimum(sd_rr / np.maximum(mean_rr, 1), 0.5),
        "prematurity": np.where(beats.first, 1.0, np.minimum(rr / np.maximum(mean_rr, 1), 1.5)),
    }, others


def _project(
    window: NDArray[np.float32], away: NDArray[np.float32], peak: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The window's leads projected on the direction the vector has at its peak, and its length there per lead."""
    vector = away[np.arange(len(away)), peak]
    height = np.sqrt(np.einsum("nl,nl->n", vector, vector))
    direction = vector / np.maximum(height, 1e-9)[:, None]
    return np.einsum("nwl,nl->nw", window, direction), height / np.float32(np.sqrt(max(1, window.shape[2])))


def _trapezium(
    curve: NDArray[np.float32], peak: NDArray[np.int64], reference: NDArray[np.int64], side: int
) -> NDArray[np.int64]:
    """Foot of a wave on one side of its peak.

    From the steepest point m between peak and reference, the foot is the t that makes the trapezium with corners at
    curve[m], curve[t] and the reference largest: (curve[m] - curve[t]) * (2 * reference - t - m). The reference must
    not lie on the other side of the peak; only the samples between the two, a fifth of a curve, are looked at.
    """
    n_beats, width = curve.shape
    row = np.arange(n_beats)
    first = np.minimum(peak, reference)
    reach = int(np.abs(reference - peak).max(initial=0))
    column = first[:, None] + np.arange(-1, reach + 2)
    near = curve.ravel().take(np.clip(column, 0, width - 1) + (row * width)[:, None])
    column, here = column[:, 1:-1], near[:, 1:-1]
    slope = (near[:, 2:] - near[:, :-2]) * np.float32(side)
    slope[(column == 0) | (column == width - 1)] = 0
    between = np.arange(reach + 1) <= np.abs(reference - peak)[:, None]
    at = np.where(between, slope, np.inf).argmin(axis=1)
    level, steepest = here[row, at][:, None], (first + at)[:, None]
    area = (level - here) * ((2 * reference[:, None] - steepest - column) * side)
    beyond = between & ((column - steepest) * side >= 0)
    foot: NDArray[np.int64] = first + np.where(beyond, area, -np.inf).argmax(axis=1)
    return foot
