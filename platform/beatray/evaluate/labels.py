"""What the segmentation asks for: one wave mask per LUDB record, or one per lead.

LUDB marks P, QRS and T in each of the 12 leads by itself (Kalyakulina et al., IEEE Access 8:186181, 2020),
while an encoder of 12 leads has one time axis. The shared target calls a sample a wave where at least `min_leads`
leads do; QRS wins over T, T over P. The edges of LUDB records are not annotated, so only samples 500..4499 between the
record's first and last mark are scored, the others are `metrics.IGNORE`.

Per-lead target: the same for each lead by itself, with that lead's own marks and its own first and last one.

Contract: waves are `record.WAVE_DTYPE` arrays on the 500-Hz grid; masks are int8 (5000,): 0 background, 1 P, 2 QRS,
3 T.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.metrics import IGNORE
from beatray.record import LEADS, WAVE_KINDS, WINDOW_SAMPLES

WAVE_CLASSES = ("background", *WAVE_KINDS)

SCORED_SAMPLES = (500, 4500)
"""First scored sample and one past the last: the first and last second of a LUDB record are not fully annotated."""

MIN_LEADS = 3

_PAINT_ORDER = ("P", "T", "QRS")  # the last one painted wins a conflict


def closed_waves(waves: NDArray[np.void]) -> NDArray[np.void]:
    """The waves that have an extent: a missing onset becomes the peak, a wave without an offset is dropped."""
    onset = np.where(waves["onset"] >= 0, waves["onset"], waves["peak"])
    keep = (onset >= 0) & (waves["offset"] > onset)
    closed = waves[keep].copy()
    closed["onset"] = onset[keep]
    return closed


def wave_votes(waves: NDArray[np.void], n_samples: int = WINDOW_SAMPLES) -> NDArray[np.int16]:
    """How many leads mark each sample as P, QRS, T: (3, n_samples). Two waves of one lead never count twice."""
    closed = closed_waves(waves)
    votes = np.zeros((len(WAVE_KINDS), n_samples), np.int16)
    for lead in np.unique(closed["lead"]):
        marked = np.zeros((len(WAVE_KINDS), n_samples), bool)
        for wave in closed[closed["lead"] == lead]:
            marked[wave["kind"], wave["onset"] : wave["offset"] + 1] = True
        votes += marked
    return votes


def wave_mask(waves: NDArray[np.void], n_samples: int = WINDOW_SAMPLES, min_leads: int = MIN_LEADS) -> NDArray[np.int8]:
    """The shared target of one record, int8 (n_samples,): 0..3, `IGNORE` outside the scored region.

    The scored region is `SCORED_SAMPLES` cut to the record's first..last annotated sample; a record without waves is
    `IGNORE` throughout.
    """
    mask = np.full(n_samples, IGNORE, np.int8)
    closed = closed_waves(waves)
    if not len(closed):
        return mask
    first = max(SCORED_SAMPLES[0], int(closed["onset"].min()))
    stop = min(SCORED_SAMPLES[1], int(closed["offset"].max()) + 1, n_samples)
    mask[first:stop] = 0
    votes = wave_votes(waves, n_samples)
    for kind in _PAINT_ORDER:
        position = WAVE_KINDS.index(kind)
        marked = np.flatnonzero(votes[position] >= min_leads)
        mask[marked[(marked >= first) & (marked < stop)]] = position + 1
    return mask


def wave_masks(waves: Sequence[NDArray[np.void]], min_leads: int = MIN_LEADS) -> NDArray[np.int8]:
    """`wave_mask` of each record, (n, 5000)."""
    masks = [wave_mask(each, min_leads=min_leads) for each in waves]
    return np.stack(masks) if masks else np.empty((0, WINDOW_SAMPLES), np.int8)


def lead_masks(waves: Sequence[NDArray[np.void]]) -> NDArray[np.int8]:
    """One mask per lead of each record, (n, 12, 5000); a lead without marks is `IGNORE` throughout."""
    masks = [[wave_mask(each[each["lead"] == lead], min_leads=1) for lead in range(len(LEADS))] for each in waves]
    return np.array(masks, np.int8).reshape(len(waves), len(LEADS), WINDOW_SAMPLES)
