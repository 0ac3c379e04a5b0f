"""How alike records or beats are: the raw similarity, the map that sharpens it into targets, and quantiles of both.

Whether soft targets can teach anything shows in their distribution: raw cosines squeezed just below 1 make every target
1, and a sharpening that is too strong makes every target 0. So each step counts the raw similarities of all pairs of
different things in a histogram, which adds up over ranks, and reads quantiles off it. The bins are fine where raw
cosines lie: they are those of 1 - s, each 1/128 of a power of two wide, so that a quantile q is known to (1 - q) / 256
near 1 and to 0.004 everywhere. The sharpening never turns the order around, so quantiles of the sharpened similarities
are sharpened quantiles.

Contract: raw similarities lie in 0..1; histograms are float64 counts (BINS,), exact, the same on every number of ranks
once summed; without a pair every quantile is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.objectives.contrast import own_columns

QUANTILES = (5, 25, 50, 75, 95)
"""Per cent."""

_MANTISSA = 16  # bits of a float32 that are left out: 7 of 23 remain, 128 bins between powers of two
_LOWEST = 0x35800000 >> _MANTISSA  # 2^-20 as float32: what is nearer to 1 counts as 1
_HIGHEST = 0x3F800000 >> _MANTISSA  # 1.0
BINS = _HIGHEST - _LOWEST + 1


@dataclass(frozen=True, slots=True)
class Similarity:
    """Raw similarities (R, M) of own rows and global columns, and the monotone map from them to soft targets."""

    raw: Tensor
    sharpen: Callable[[Tensor], Tensor]

    def targets(self, own: Tensor, dtype: torch.dtype) -> Tensor:
        """Soft targets (R, M) of type `dtype`: the sharpened similarity, 1 for own pairs."""
        return self.sharpen(self.raw).to(dtype).masked_fill(own, 1.0)


def others_histogram(raw: Tensor, own: Tensor, self_index: Tensor) -> Tensor:
    """Counts of raw similarities (R, M) of pairs that are neither the row itself nor its own pair: (BINS,) float64."""
    others = ~(own | own_columns(self_index, own.shape[1]))
    apart = (1.0 - raw).to(torch.float32).clamp(0.0, 1.0)
    place = ((apart.view(torch.int32) >> _MANTISSA) - _LOWEST).clamp_min(0)
    return torch.bincount(place[others], minlength=BINS).double()


def quantiles(histogram: Tensor) -> Tensor:
    """Similarities at `QUANTILES` from summed counts (BINS,): (len(QUANTILES),) float64, ascending; NaN without pairs.

    The q-quantile is the middle of the bin that holds the pair of rank ceil(q n).
    """
    below = histogram.flip(0).cumsum(0)  # bins from similarity 0 up to 1
    level = torch.tensor(QUANTILES, dtype=torch.float64, device=histogram.device) / 100.0
    place = BINS - 1 - torch.searchsorted(below, (level * below[-1]).ceil().clamp_min(1.0)).clamp_max(BINS - 1)
    middle = (((place + _LOWEST) << _MANTISSA) + (1 << (_MANTISSA - 1))).to(torch.int32).view(torch.float32).double()
    middle = torch.where(place == 0, 0.0, middle.clamp_max(1.0))
    return torch.where(below[-1] > 0, 1.0 - middle, torch.nan)
