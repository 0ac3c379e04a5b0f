"""From logits to probabilities that can be taken at their word, chosen on validation recordings.

Yes-or-no targets: Platt's p = s(a z + b) for each target by itself (Platt, 1999, with his targets (N+ + 1) / (N+ + 2)
and 1 / (N- + 2), which keep few recordings from claiming certainty). One of several classes: p = softmax(z / T) with
one temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2).

Where the fit does not lower the negative log-likelihood of the validation labels themselves, or would turn the order of
the scores round, or one of the two values is missing there, logits are taken as they are: slope 1, offset 0.

Contract: logits (n, C) float64, truth (n, C) int8 or (n,) with -1 for unknown, which counts in nothing. Plain numpy.
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

    def probabilities(self, logits_nc: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, C) logits to (n, C) probabilities."""
        scaled = logits_nc * np.asarray(self.slope) + np.asarray(self.offset)
        made: NDArray[np.float64] = softmax(scaled, axis=1) if self.kind == "classes" else expit(scaled)
        return made

    def nll(self, logits_nc: NDArray[np.float64], truth: NDArray[Any]) -> float:
        """Mean negative log-likelihood of the known labels; NaN without any."""
        scaled = logits_nc * np.asarray(self.slope) + np.asarray(self.offset)
        if self.kind == "classes":
            rows = np.flatnonzero(truth >= 0)
            lost = -log_softmax(scaled[rows], axis=1)[np.arange(len(rows)), truth[rows].astype(np.int64)]
        else:
            lost = -np.where(truth > 0, log_expit(scaled), log_expit(-scaled))[truth >= 0]
        return float(lost.mean()) if lost.size else float("nan")

    def error(self, logits_nc: NDArray[np.float64], truth: NDArray[Any]) -> float:
        """Expected calibration error over ten bins of probability (Guo et al., equation 3), of all known labels.

        Of one of several classes it is that of the likeliest. NaN without any label.
        """
        chance = self.probabilities(logits_nc)
        if self.kind == "classes":
            known = truth >= 0
            likeliest = chance[known].argmax(1)
            said, right = chance[known].max(1), likeliest == truth[known]
        else:
            said, right = chance[truth >= 0], truth[truth >= 0] > 0
        if not len(said):
            return float("nan")
        place = np.minimum((said * _BINS).astype(np.int64), _BINS - 1)
        sums = [np.bincount(place, each, _BINS) for each in (said, right.astype(np.float64))]
        return float(np.abs(sums[0] - sums[1]).sum() / len(said))


def fitted(kind: str, logits_nc: NDArray[np.float64], truth: NDArray[Any]) -> Calibration:
    """The calibration that validation recordings ask for."""
    count = logits_nc.shape[1]
    plain = Calibration.none(kind, count)
    if kind == "classes":
        known = truth >= 0
        if not known.any():
            return plain
        found = minimize_scalar(
            lambda log_t: Calibration(kind, (float(np.exp(-log_t)),) * count, plain.offset).nll(logits_nc, truth),
            bounds=_LOG_TEMPERATURES,
            method="bounded",
        )
        better = Calibration(kind, (float(np.exp(-found.x)),) * count, plain.offset)
        return better if better.nll(logits_nc, truth) < plain.nll(logits_nc, truth) else plain
    slopes, offsets = [], []
    for k in range(count):
        known = truth[:, k] >= 0
        z, y = logits_nc[known, k], truth[known, k] > 0
        a, b = _platt(z, y) if y.any() and not y.all() else (1.0, 0.0)
        if not (a > 0 and _lost(z, y, a, b) < _lost(z, y, 1.0, 0.0)):
            a, b = 1.0, 0.0
        slopes.append(a)
        offsets.append(b)
    return Calibration(kind, tuple(slopes), tuple(offsets))


def _lost(z: NDArray[np.float64], y: NDArray[np.bool_], a: float, b: float) -> float:
    scaled = a * z + b
    return float(-np.where(y, log_expit(scaled), log_expit(-scaled)).sum())


def _platt(z: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset by Newton's method on the smoothed labels, each step halved until it helps."""
    positives, negatives = int(y.sum()), int((~y).sum())
    wanted = np.where(y, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def lost(at: NDArray[np.float64]) -> float:
        scaled = at[0] * z + at[1]
        return float(-(wanted * log_expit(scaled) + (1 - wanted) * log_expit(-scaled)).sum())

    at = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    for _ in range(_STEPS):
        chance = expit(at[0] * z + at[1])
        error, weight = chance - wanted, chance * (1 - chance)
        gradient = np.array([(error * z).sum(), error.sum()])
        cross = (weight * z).sum()
        curvature = np.array([[(weight * z * z).sum(), cross], [cross, weight.sum()]]) + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-10 and lost(at - size * step) > lost(at):
            size /= 2
        at = at - size * step
        if np.abs(gradient).max() < 1e-8 * len(z):
            break
    return float(at[0]), float(at[1])
