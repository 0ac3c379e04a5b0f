"""From logits to calibrated probabilities, fitted on validation recordings.

Yes-or-no targets: Platt's p = s(a z + b) for each target by itself (Platt, 1999, with his targets (N+ + 1) / (N+ + 2)
and 1 / (N- + 2), which keep few recordings from claiming certainty). One of several classes: p = softmax(z / T) with
one temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2).

A recording of several windows has the mean of their probabilities, and the fit is that of recordings: the likelihood is
of those means. Of one window each, it is the usual one.

Where the fit does not lower the negative log-likelihood of the validation labels themselves, or would turn the order of
the scores round, or one of the two values is missing there, logits are taken as they are: slope 1, offset 0.

Contract: logits (n, C) float64 of windows; `starts` (B,) is where each recording's windows begin among them, None
that each window is a recording; truth (B, C) int8 or (B,) with -1 for unknown, which counts in nothing. Plain numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

_STEPS = 100
_RIDGE = 1e-9
_BINS = 10
_LOG_TEMPERATURES = (-3.0, 3.0)

Starts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Slope and offset of the logits of each target (multilabel), or one slope for all classes (classes)."""

    kind: str
    slope: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def none(cls, kind: str, count: int) -> Calibration:
        """Logits as they are."""
        return cls(kind, (1.0,) * count, (0.0,) * count)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """As `to_dict` wrote it."""
        return cls(str(content["kind"]), tuple(content["slope"]), tuple(content["offset"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": self.kind, "slope": list(self.slope), "offset": list(self.offset)}

    def probabilities(self, logits_nc: NDArray[np.float64], starts: Starts | None = None) -> NDArray[np.float64]:
        """(n, C) logits to (B, C) probabilities."""
        scaled = logits_nc * np.asarray(self.slope) + np.asarray(self.offset)
        made: NDArray[np.float64] = softmax(scaled, axis=1) if self.kind == "classes" else expit(scaled)
        return made if starts is None else window_means(made, starts)

    def nll(self, logits_nc: NDArray[np.float64], truth: NDArray[Any], starts: Starts | None = None) -> float:
        """Mean negative log-likelihood of the known labels; NaN without any."""
        scaled = logits_nc * np.asarray(self.slope) + np.asarray(self.offset)
        if self.kind == "classes":
            rows = np.flatnonzero(truth >= 0)
            lost = -_log_means(log_softmax(scaled, axis=1), starts)[rows, truth[rows].astype(np.int64)]
        else:
            yes, no = (_log_means(log_expit(each), starts) for each in (scaled, -scaled))
            lost = -np.where(truth > 0, yes, no)[truth >= 0]
        return float(lost.mean()) if lost.size else float("nan")

    def error(self, logits_nc: NDArray[np.float64], truth: NDArray[Any], starts: Starts | None = None) -> float:
        """Expected calibration error over ten bins of probability (Guo et al., equation 3), of all known labels.

        Of one of several classes it is that of the likeliest. NaN without any label.
        """
        chance = self.probabilities(logits_nc, starts)
        if self.kind == "classes":
            known = truth >= 0
            likeliest = chance[known].argmax(1)
            stated, right = chance[known].max(1), likeliest == truth[known]
        else:
            stated, right = chance[truth >= 0], truth[truth >= 0] > 0
        if not len(stated):
            return float("nan")
        bins = np.minimum((stated * _BINS).astype(np.int64), _BINS - 1)
        sums = [np.bincount(bins, each, _BINS) for each in (stated, right.astype(np.float64))]
        return float(np.abs(sums[0] - sums[1]).sum() / len(stated))


def window_means(values: NDArray[np.float64], starts: Starts) -> NDArray[np.float64]:
    """Values of windows (..., n, C) to those of recordings (..., B, C), whose first windows lie at `starts`."""
    if not len(starts):
        return values
    means: NDArray[np.float64] = np.add.reduceat(values, starts, axis=-2) / _counts(starts, values.shape[-2])[:, None]
    return means


def fitted(kind: str, logits_nc: NDArray[np.float64], truth: NDArray[Any], starts: Starts | None = None) -> Calibration:
    """The calibration that validation recordings ask for."""
    count = logits_nc.shape[1]
    plain = Calibration.none(kind, count)
    if kind == "classes":
        known = truth >= 0
        if not known.any():
            return plain
        found = minimize_scalar(
            lambda log_t: _of_temperature(log_t, count).nll(logits_nc, truth, starts),
            bounds=_LOG_TEMPERATURES,
            method="bounded",
        )
        better = _of_temperature(found.x, count)
        return better if better.nll(logits_nc, truth, starts) < plain.nll(logits_nc, truth, starts) else plain
    counts = np.ones(len(truth), np.int64) if starts is None else _counts(starts, len(logits_nc))
    slopes, offsets = [], []
    for k in range(count):
        known = truth[:, k] >= 0
        z, y = logits_nc[np.repeat(known, counts), k], truth[known, k] > 0
        begin = np.cumsum(counts[known]) - counts[known]
        a, b = _platt(z, y, begin) if y.any() and not y.all() else (1.0, 0.0)
        if not (a > 0 and _lost(z, y, begin, a, b) < _lost(z, y, begin, 1.0, 0.0)):
            a, b = 1.0, 0.0
        slopes.append(a)
        offsets.append(b)
    return Calibration(kind, tuple(slopes), tuple(offsets))


def _of_temperature(log_t: float, count: int) -> Calibration:
    return Calibration("classes", (float(np.exp(-log_t)),) * count, (0.0,) * count)


def _counts(starts: Starts, n: int) -> NDArray[np.int64]:
    """Windows of each recording."""
    return np.diff(np.append(starts, n))


def _log_means(logs: NDArray[np.float64], starts: Starts | None) -> NDArray[np.float64]:
    """Logarithms (n, C) of probabilities of windows to those of their means (B, C)."""
    if starts is None or len(starts) == len(logs):
        return logs
    means: NDArray[np.float64] = np.logaddexp.reduceat(logs, starts, axis=0)
    return means - np.log(_counts(starts, len(logs)))[:, None]


def _log_chances(
    z: NDArray[np.float64], starts: Starts, a: float, b: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the probabilities of yes and of no, (B,) each, of one target."""
    scaled = (a * z + b)[:, None]
    return _log_means(log_expit(scaled), starts)[:, 0], _log_means(log_expit(-scaled), starts)[:, 0]


def _lost(z: NDArray[np.float64], y: NDArray[np.bool_], starts: Starts, a: float, b: float) -> float:
    return float(-np.where(y, *_log_chances(z, starts, a, b)).sum())


def _platt(z: NDArray[np.float64], y: NDArray[np.bool_], starts: Starts) -> tuple[float, float]:
    """Slope and offset by Fisher scoring (Newton's method, of one window each) on the smoothed labels of recordings.

    Each step is halved until it helps.
    """
    positives, negatives = int(y.sum()), int((~y).sum())
    target = np.where(y, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    counts = _counts(starts, len(z))
    lines = np.stack([z, np.ones(len(z))])  # what a and b are multiplied by

    def lost(at: NDArray[np.float64]) -> float:
        yes, no = _log_chances(z, starts, at[0], at[1])
        return float(-(target * yes + (1 - target) * no).sum())

    at = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    for _ in range(_STEPS):
        scaled = at[0] * z + at[1]
        rise = log_expit(scaled) + log_expit(-scaled) - np.log(np.repeat(counts, counts))  # of the mean, by each window
        of_yes, of_no = (  # derivatives of log p and of -log(1 - p) of recordings, (2, B)
            np.add.reduceat(np.exp(rise - np.repeat(log, counts)) * lines, starts, axis=1)
            for log in _log_chances(z, starts, at[0], at[1])
        )
        gradient = ((1 - target) * of_no - target * of_yes).sum(1)
        step = np.linalg.solve(of_yes @ of_no.T + _RIDGE * np.eye(2), gradient)
        size = 1.0
        while size > 1e-10 and lost(at - size * step) > lost(at):
            size /= 2
        at = at - size * step
        if np.abs(gradient).max() < 1e-8 * len(y):
            break
    return float(at[0]), float(at[1])
