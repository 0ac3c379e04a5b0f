"""Cuts in time: the same moment of a record for both views, or a part of it stretched to full length.

Contract: x (B, 12, T); starts in samples (B,); row b depends on row b alone. A crop longer than what is left is filled
with zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def draw_starts(draws: NDArray[np.float64], n_samples: NDArray[np.int64] | int, length: int) -> NDArray[np.int64]:
    """Starts of crops of `length` samples that lie inside the valid part where that is long enough: (B,) int64."""
    room = np.maximum(np.asarray(n_samples) - length, 0)
    starts: NDArray[np.int64] = (draws * (room + 1)).astype(np.int64)
    return starts


def crop(x: Tensor, start: Tensor, length: int) -> Tensor:
    """Samples start .. start + length - 1 of each record: (B, L, T) and (B,) int64 -> (B, L, length).

    Raises ValueError for a negative start or one after the end.
    """
    n = x.shape[-1]
    if x.shape[0] == 0:
        return x.new_zeros(0, x.shape[1], length)
    starts = start.tolist()
    if min(starts) < 0 or max(starts) > n:
        raise ValueError(f"crop starts must lie in 0..{n}, not {min(starts)}..{max(starts)}")
    if length == n and not any(starts):
        return x
    missing = max(starts) + length - n
    if missing > 0:
        x = functional.pad(x, (0, missing))
    return torch.stack([record[:, first : first + length] for record, first in zip(x, starts, strict=True)])


def resized_crop(x: Tensor, draws: NDArray[np.float64], smallest: float = 0.5) -> Tensor:
    """A random part of each view, stretched back to full length by linear interpolation: (B, L, T) -> (B, L, T).

    draws (B, 2): the part's length, uniform in `smallest`..1 of T, and its position. Random resized crop of Mehari and
    Strodthoff (Comput. Biol. Med. 2022), with even stretching.
    """
    if not 0.0 < smallest <= 1.0:
        raise ValueError(f"smallest must lie in 0..1, not {smallest}")
    n = x.shape[-1]
    part = (smallest + (1.0 - smallest) * draws[:, 0]) * (n - 1)
    begin = draws[:, 1] * (n - 1 - part)
    position = begin[:, None] + part[:, None] * np.linspace(0.0, 1.0, n)[None, :]
    left = np.minimum(position.astype(np.int64), max(n - 2, 0))
    weight = torch.as_tensor((position - left).astype(np.float32)).to(x.device)[:, None, :].to(x.dtype)
    index = torch.as_tensor(left).to(x.device)[:, None, :].expand_as(x)
    right = (index + 1).clamp_max(n - 1)
    return torch.lerp(x.gather(2, index), x.gather(2, right), weight)
