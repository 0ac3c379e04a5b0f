"""The exact median of numbers that lie on several ranks, without gathering them.

The kernel width of a target must be the same on every rank and must not depend on how many there are; an average of the
ranks' own medians would do neither. Positive float32 numbers sort as their bits do, so the median is found digit by
digit, as in a radix sort: count the upper 16 bits over all ranks, find the bin that holds the median, count the lower
16 bits within it.

Contract: `median_over_ranks` gives an element of the numbers, the lower one of the two middle ones where they are even
in number, as `torch.median` does; every rank must call it, also with no numbers of its own. Two collectives of 512 KiB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beatray.objectives.gather import sum_over_ranks

_DIGIT = 1 << 16


def median_over_ranks(values: Tensor) -> Tensor:
    """Lower median of the values (n,), at least 0, of all ranks, rounded to float32: () float32; NaN where none is."""
    bits = values.detach().to(torch.float32).flatten().view(torch.int32)
    upper = sum_over_ranks(torch.bincount(bits >> 16, minlength=_DIGIT))
    before = upper.cumsum(0)
    wanted = (before[-1] + 1) // 2  # the place of the lower median, counted from 1
    high = torch.searchsorted(before, wanted).clamp_max(_DIGIT - 1)
    lower = sum_over_ranks(torch.bincount(bits[bits >> 16 == high] & (_DIGIT - 1), minlength=_DIGIT))
    low = torch.searchsorted(lower.cumsum(0), wanted - before[high] + upper[high]).clamp_max(_DIGIT - 1)
    found = (high << 16 | low).to(torch.int32).view(torch.float32)
    return torch.where(before[-1] > 0, found, torch.nan)
