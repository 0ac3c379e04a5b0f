"""Which heartbeats of a record are contrasted, where they lie in the crop, and views with beats in another order.

3KG turns and masks leads but never moves a sample, so a box around an R-peak of the clean record is right in both
views.

Contract: r_peaks (B, P) int64 samples of the record, -1 where there is none; the result has `max_beats` slots per
record, in time order, the same whatever the batch.

`shuffle_beats` is the view of PhysioCLR (Maghsoodi et al., arXiv 2509.08116): the same heartbeats in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.draws import Draws


@dataclass(frozen=True, slots=True)
class BeatBox:
    """Where a beat's box lies around its R-peak, in seconds, and at how many points it is read."""

    before_s: float = 0.35
    after_s: float = 0.55
    bins: int = 8


MIN_INSIDE = 0.75
"""A box with less of its length inside the signal is left out."""

CUT_BEFORE = 0.4
"""Beats are parted so far before an R-peak, as a part of the way back to the last: between T wave and P wave at most
rates."""


def select_beats(
    r_peaks: Tensor,
    crop_start: Tensor,
    n_valid: Tensor,
    draws: Draws,
    *,
    before_smp: float,
    after_smp: float,
    max_beats: int,
) -> tuple[Tensor, Tensor]:
    """At most `max_beats` beats of each record, drawn at random: boxes and numbers.

    n_valid (B,): samples of the crop that are signal. Returns boxes (B, max_beats, 2) float32, samples of the crop,
    and index (B, max_beats) int64 into r_peaks, -1 (with a box of zeros) where there is no beat.
    """
    device = r_peaks.device
    peaks = (r_peaks - crop_start.to(device)[:, None]).cpu().numpy()
    start, end = peaks - before_smp, peaks + after_smp
    limit = n_valid.cpu().numpy()[:, None]
    inside = np.minimum(end, limit) - np.maximum(start, 0.0)
    usable = (r_peaks >= 0).cpu().numpy() & (inside >= MIN_INSIDE * (before_smp + after_smp))
    order = draws.uniform("beats", peaks.shape[1])
    order[~usable] = 2.0  # behind every usable beat
    slots = min(max_beats, peaks.shape[1])
    absent = peaks.shape[1]
    chosen = np.argsort(order, axis=1, kind="stable")[:, :slots]
    chosen = np.sort(np.where(np.take_along_axis(usable, chosen, axis=1), chosen, absent), axis=1)
    there = chosen < absent
    index = np.full((len(peaks), max_beats), -1, np.int64)
    boxes = np.zeros((len(peaks), max_beats, 2), np.float32)
    index[:, :slots] = np.where(there, chosen, -1)
    chosen = np.minimum(chosen, absent - 1)
    boxes[:, :slots, 0] = np.where(there, np.take_along_axis(start, chosen, axis=1), 0.0)
    boxes[:, :slots, 1] = np.where(there, np.take_along_axis(end, chosen, axis=1), 0.0)
    return torch.as_tensor(boxes).to(device), torch.as_tensor(index).to(device)


def all_beats(r_peaks: Tensor, n_samples: Tensor, before_smp: float, after_smp: float) -> tuple[Tensor, Tensor]:
    """All usable beats of whole records: boxes (n, P, 2), and their positions among the R-peaks (n, P), -1 for none."""
    n, most = r_peaks.shape
    return select_beats(
        r_peaks,
        torch.zeros(n, dtype=torch.int64),
        n_samples,
        Draws(np.zeros(n, np.int64), 0, 0),  # the draw among beats: all are taken, so it does not matter
        before_smp=before_smp,
        after_smp=after_smp,
        max_beats=most,
    )


def take_beats(values: Tensor, index: Tensor, missing: float | int) -> Tensor:
    """Values of the chosen beats: (B, P, ...) and index (B, K) -> (B, K, ...), `missing` where there is no beat."""
    if values.shape[1] == 0:
        return values.new_full((*index.shape, *values.shape[2:]), missing)
    safe = index.clamp_min(0)
    absent = index < 0
    if values.dim() == 3:
        safe = safe[..., None].expand(-1, -1, values.shape[2])
        absent = absent[..., None]
    return values.gather(1, safe).masked_fill(absent, missing)


def shuffle_beats(x: Tensor, peaks_smp: Tensor, n_valid: Tensor, drawn: NDArray[np.float64]) -> Tensor:
    """The heartbeats of each record in another order, all leads together: (B, L, T) -> (B, L, T).

    peaks_smp (B, P) samples of x, -1 where there is none; n_valid (B,) samples of x that are signal; drawn (B, P) in
    [0, 1): beats come in the order of these numbers. Beats are parted before their P wave and not at the R-peak, which
    would join the halves of different QRS complexes. All up to the second beat stays, and so does what follows the last
    cut, a beat that the end may cut off: no sample is lost, the beats that move are whole, and with three beats or
    fewer nothing moves.
    """
    order = np.tile(np.arange(x.shape[-1]), (len(x), 1))
    rows = zip(order, peaks_smp.cpu().numpy(), n_valid.tolist(), drawn, strict=True)
    for taken, peaks, end, numbers in rows:
        inside = np.unique(peaks[(peaks >= 0) & (peaks < end)])
        cuts = inside[1:] - (CUT_BEFORE * np.diff(inside)).astype(np.int64)
        if len(cuts) > 2:
            beats = np.split(np.arange(cuts[0], cuts[-1]), cuts[1:-1] - cuts[0])
            turn = np.argsort(numbers[: len(beats)], kind="stable")
            taken[cuts[0] : cuts[-1]] = np.concatenate([beats[i] for i in turn])
    index = torch.from_numpy(order).to(x.device)
    return x.gather(2, index[:, None].expand_as(x))
