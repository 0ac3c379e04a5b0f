"""From masks back to waves: how many of the P, QRS and T waves were found, and how far off their ends are.

A wave of a mask is a run of one class without a break, at least `MIN_WAVE_SAMPLES` (20 ms) long; shorter runs are
dropped, gaps are not closed. Truth and prediction are read alike. A predicted wave and a true one of the same kind are
the same wave when both ends lie within 150 ms, the window that ANSI/AAMI EC57 gives to beats; pairs are made nearest
first and no wave is used twice. Sensitivity is hits / (hits + missed), PPV is hits / (hits + extra); the error of an
onset or offset is predicted - true in ms, over the hits.

What lies at the edge of the scored region is no fair question: a true wave that the region cuts is not asked for, a
prediction that overlaps one or that is not wholly inside the region is never extra.

Contract: masks (n, t) int8 at 500 Hz as `labels.wave_mask` makes them; counts are (n, 3) in the order P, QRS, T, sums
of errors in ms and ms^2, so that any weighting of the records is a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.labels import SCORED_SAMPLES
from beatray.evaluate.metrics import IGNORE
from beatray.record import RATE_HZ, WAVE_KINDS

MIN_WAVE_SAMPLES = 10
TOLERANCE_SAMPLES = 75
MS_PER_SAMPLE = 1000.0 / RATE_HZ


@dataclass(frozen=True, slots=True)
class WaveCounts:
    """Per record and kind (n, 3): waves found, missed and invented, sums of the errors of both ends over hits."""

    hits: NDArray[np.int64]
    missed: NDArray[np.int64]
    extra: NDArray[np.int64]
    onset_ms: NDArray[np.float64]
    onset_square: NDArray[np.float64]
    offset_ms: NDArray[np.float64]
    offset_square: NDArray[np.float64]


def runs_of(mask: NDArray[np.int8], value: int, min_samples: int = MIN_WAVE_SAMPLES) -> NDArray[np.int64]:
    """First and last sample (k, 2) of every run of `value` in `mask` (t,) that is long enough."""
    marked = np.concatenate([[False], mask == value, [False]])
    edges = np.flatnonzero(marked[1:] != marked[:-1]).reshape(-1, 2)
    runs = np.stack([edges[:, 0], edges[:, 1] - 1], axis=1).astype(np.int64)
    return runs[runs[:, 1] - runs[:, 0] + 1 >= min_samples]


def wave_counts(
    truth_nt: NDArray[np.int8], predicted_nt: NDArray[np.int8], tolerance: int = TOLERANCE_SAMPLES
) -> WaveCounts:
    """Match the waves of every record; rows without a scored sample count nothing."""
    shape = (len(truth_nt), len(WAVE_KINDS))
    hits, missed, extra = (np.zeros(shape, np.int64) for _ in range(3))
    counts = WaveCounts(hits, missed, extra, *(np.zeros(shape) for _ in range(4)))
    for row, (truth, predicted) in enumerate(zip(truth_nt, predicted_nt, strict=True)):
        scored = np.flatnonzero(truth != IGNORE)
        if not scored.size:
            continue
        region = int(scored[0]), int(scored[-1])
        for kind in range(len(WAVE_KINDS)):
            true, found = runs_of(truth, kind + 1), runs_of(predicted, kind + 1)
            cut = (true[:, 0] == SCORED_SAMPLES[0]) | (true[:, 1] == SCORED_SAMPLES[1] - 1)
            found = found[~_overlaps(found, true[cut])]
            errors = _matched(true[~cut], found, tolerance)
            inside = (found[:, 0] >= region[0]) & (found[:, 1] <= region[1])
            hit_inside = int(inside[errors[:, 0]].sum())
            counts.hits[row, kind] = len(errors)
            counts.missed[row, kind] = int((~cut).sum()) - len(errors)
            counts.extra[row, kind] = int(inside.sum()) - hit_inside
            onset, offset = errors[:, 1] * MS_PER_SAMPLE, errors[:, 2] * MS_PER_SAMPLE
            counts.onset_ms[row, kind], counts.onset_square[row, kind] = onset.sum(), (onset**2).sum()
            counts.offset_ms[row, kind], counts.offset_square[row, kind] = offset.sum(), (offset**2).sum()
    return counts


def joined(parts: Sequence[WaveCounts], order: NDArray[np.int64]) -> WaveCounts:
    """The counts of several sets of records, one after the other, put in `order`."""
    return WaveCounts(*(np.concatenate([getattr(p, f.name) for p in parts])[order] for f in fields(WaveCounts)))


def weighted_wave_scores(counts: WaveCounts, weights_bn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Sensitivity, PPV, mean and SD of errors in ms for each row of record weights: (b, 3) each, NaN if unknown."""
    hits = weights_bn @ counts.hits
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = {
            "sensitivity": hits / (hits + weights_bn @ counts.missed),
            "ppv": hits / (hits + weights_bn @ counts.extra),
        }
        for end, sums, squares in (
            ("onset", counts.onset_ms, counts.onset_square),
            ("offset", counts.offset_ms, counts.offset_square),
        ):
            mean = (weights_bn @ sums) / hits
            scores[f"{end}_ms"] = mean
            scores[f"{end}_sd_ms"] = np.sqrt(np.maximum((weights_bn @ squares) / hits - mean**2, 0.0))
    return scores


def wave_scores(counts: WaveCounts) -> dict[str, float]:
    """The same over all records as flat names: `sensitivity_p`, `onset_sd_ms_qrs`, ..."""
    scores = weighted_wave_scores(counts, np.ones((1, len(counts.hits))))
    return {
        f"{name}_{kind.lower()}": float(values[0, k])
        for name, values in scores.items()
        for k, kind in enumerate(WAVE_KINDS)
    }


def _matched(true: NDArray[np.int64], found: NDArray[np.int64], tolerance: int) -> NDArray[np.int64]:
    """Pairs as (position in `found`, error of the onset, error of the offset), nearest first, each wave once."""
    onset = found[None, :, 0] - true[:, None, 0]
    offset = found[None, :, 1] - true[:, None, 1]
    near = np.argwhere((np.abs(onset) <= tolerance) & (np.abs(offset) <= tolerance))
    distance = np.abs(onset) + np.abs(offset)
    pairs, used, taken = [], set(), set()
    for a, b in near[np.argsort(distance[near[:, 0], near[:, 1]], kind="stable")].tolist():
        if a not in used and b not in taken:
            used.add(a)
            taken.add(b)
            pairs.append((b, onset[a, b], offset[a, b]))
    return np.array(pairs, np.int64).reshape(-1, 3)


def _overlaps(runs: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `runs` share a sample with any of `others`."""
    shared = (runs[:, None, 0] <= others[None, :, 1]) & (runs[:, None, 1] >= others[None, :, 0])
    return np.asarray(shared.any(axis=1), np.bool_)
