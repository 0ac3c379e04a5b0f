"""Heartbeats as regions of a recording: the box around each R-peak, and windows cut at R-peaks.

A box is the beat's region of interest for beat-level contrast: from 0.35 RR before the R-peak to 0.65 RR after it, so
that P, QRS and T of one beat fall inside at any heart rate, with both sides kept within physiological limits. RR is the
local median, so one early beat does not shrink its neighbours' boxes.

Contract: positions are samples at `rate_hz`; boxes are float32 [start, end) and may reach outside the recording. No
content raises.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BEFORE_RR, AFTER_RR = 0.35, 0.65
BEFORE_LIMITS_S = (0.25, 0.45)
AFTER_LIMITS_S = (0.35, 0.75)
LONE_RR_S = 0.8
"""RR assumed for the only beat of a recording: 75 beats per minute."""
MOST_OUTSIDE = 0.25
"""A box with a larger share outside the recording shows too little of its beat to be compared."""


def local_rr(r_peaks: NDArray[np.integer], rate_hz: float) -> NDArray[np.float64]:
    """Median of the up to four RR intervals around each beat (two before, two after), in samples; (n_beats,)."""
    n_beats = len(r_peaks)
    if n_beats < 2:
        return np.full(n_beats, LONE_RR_S * rate_hz)
    padded = np.full(n_beats + 3, np.inf)
    padded[2:-2] = np.diff(np.asarray(r_peaks, np.float64))
    around = np.sort(np.lib.stride_tricks.sliding_window_view(padded, 4), axis=1)
    known = np.isfinite(around).sum(axis=1)
    row = np.arange(n_beats)
    median: NDArray[np.float64] = (around[row, (known - 1) // 2] + around[row, known // 2]) / 2
    return median


def beat_boxes(r_peaks: NDArray[np.integer], rate_hz: float, n_samples: int) -> NDArray[np.float32]:
    """One [start, end) box per beat of one recording, (n_beats, 2) float32 samples.

    Boxes stay as they are at the ends of the recording, so that positions inside every box mean the same; a box too far
    outside `n_samples` to be of use (`box_is_inside`) is NaN, so no reader can take it for a region.
    """
    r = np.asarray(r_peaks, np.float64)
    rr = local_rr(r_peaks, rate_hz)
    before = np.clip(BEFORE_RR * rr, BEFORE_LIMITS_S[0] * rate_hz, BEFORE_LIMITS_S[1] * rate_hz)
    after = np.clip(AFTER_RR * rr, AFTER_LIMITS_S[0] * rate_hz, AFTER_LIMITS_S[1] * rate_hz)
    boxes = np.stack([r - before, r + after], axis=1).astype(np.float32)
    boxes[~box_is_inside(boxes, n_samples)] = np.nan
    return boxes


def box_is_inside(boxes: NDArray[np.float32], n_samples: int | NDArray[np.integer]) -> NDArray[np.bool_]:
    """True for each [start, end) box of (..., 2) with at most `MOST_OUTSIDE` of its length outside [0, n_samples)."""
    start, end = boxes[..., 0], boxes[..., 1]
    shown = np.minimum(end, n_samples) - np.maximum(start, 0)
    inside: NDArray[np.bool_] = shown >= (1 - MOST_OUTSIDE) * (end - start)
    return inside


def cut_beats(
    x_blt: NDArray[np.generic],
    r_peaks: list[NDArray[np.int32]],
    before_s: float,
    after_s: float,
    rate_hz: float,
    *,
    n_samples: ArrayLike | None = None,
) -> tuple[NDArray[np.generic], NDArray[np.int64], NDArray[np.bool_]]:
    """A window of all leads around every R-peak.

    Returns windows (n, L, w) of the dtype of `x_blt` with the R-peak at sample round(before_s * rate_hz), the record
    each came from (n,), and whether it lies wholly inside its recording (n,); the parts outside are zero.
    """
    n_records, n_leads, n_time = x_blt.shape
    before, after = round(before_s * rate_hz), round(after_s * rate_hz)
    if before < 0 or after < 0 or before + after == 0:
        raise ValueError(f"a window needs some length, got {before_s} s before and {after_s} s after")
    counts = [len(r) for r in r_peaks]
    owner = np.repeat(np.arange(n_records), counts)
    if owner.size == 0 or n_time == 0:
        shape = (owner.size, n_leads, before + after)
        return np.zeros(shape, x_blt.dtype), owner, np.zeros(owner.size, np.bool_)
    length = np.broadcast_to(np.asarray(n_time if n_samples is None else n_samples, np.int64), (n_records,))[owner]
    start = np.concatenate(r_peaks).astype(np.int64) - before
    width = before + after
    inside = (start >= 0) & (start + width <= np.minimum(length, n_time))
    windows = np.zeros((owner.size, n_leads, width), x_blt.dtype)
    whole, partly = np.flatnonzero(inside), np.flatnonzero(~inside)
    if whole.size:
        runs = np.lib.stride_tricks.sliding_window_view(x_blt, width, axis=2)  # each window is one run of memory
        windows[whole] = runs[owner[whole], :, start[whole]]
    for k in partly:
        low, high = max(int(start[k]), 0), min(int(start[k]) + width, int(length[k]), n_time)
        if low < high:
            windows[k, :, low - start[k] : high - start[k]] = x_blt[owner[k], :, low:high]
    return windows, owner, inside
