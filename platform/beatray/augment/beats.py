"""Which heartbeats of a record are contrasted, and where they lie in the crop.

3KG turns and masks leads but never moves a sample, so a box around an R-peak of the clean record is right in both
views.

Contract: r_peaks (B, P) int64 samples of the record, -1 where there is none; the result has `max_beats` slots per
record, in time order, the same whatever the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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
    nobody = peaks.shape[1]
    chosen = np.argsort(order, axis=1, kind="stable")[:, :slots]
    chosen = np.sort(np.where(np.take_along_axis(usable, chosen, axis=1), chosen, nobody), axis=1)
    there = chosen < nobody
    index = np.full((len(peaks), max_beats), -1, np.int64)
    boxes = np.zeros((len(peaks), max_beats, 2), np.float32)
    index[:, :slots] = np.where(there, chosen, -1)
    chosen = np.minimum(chosen, nobody - 1)
    boxes[:, :slots, 0] = np.where(there, np.take_along_axis(start, chosen, axis=1), 0.0)
    boxes[:, :slots, 1] = np.where(there, np.take_along_axis(end, chosen, axis=1), 0.0)
    return torch.as_tensor(boxes).to(device), torch.as_tensor(index).to(device)


def all_beats(r_peaks: Tensor, n_samples: Tensor, before_smp: float, after_smp: float) -> tuple[Tensor, Tensor]:
    """All usable beats of whole records: boxes (n, P, 2), and their places among the R-peaks (n, P), -1 for none."""
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
