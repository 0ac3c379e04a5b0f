"""One-dimensional RoIAlign: the part of a feature map under a box, read at evenly spaced points.

He et al., "Mask R-CNN" (ICCV 2017, section 3): no rounding anywhere; each bin is read at its centre by linear
interpolation between the two neighbouring cells. In one dimension, for heartbeats.

Coordinates: cell j of a map stands for input sample j * stride + offset (`Stage`). Same-padded convolutions with odd
kernels centre it there with offset 0; there is no half-cell shift. So on the ramp f[j] = j * stride every bin returns
the sample position of its centre, and a box moved by one stride reads exactly one cell later. Positions before the
first or after the last cell read that cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beatray.models.encoder import Stage


def bin_centres(boxes: Tensor, bins: int) -> Tensor:
    """Sample positions of the bin centres of boxes (K, 2) [start, end): (K, bins)."""
    steps = (torch.arange(bins, device=boxes.device, dtype=boxes.dtype) + 0.5) / bins
    return boxes[:, :1] + (boxes[:, 1:] - boxes[:, :1]) * steps


def roi_align_1d(fmap: Tensor, boxes: Tensor, owner: Tensor, stage: Stage, bins: int = 8) -> Tensor:
    """Read `bins` points under each box: (K, C, bins), in the type of `fmap`.

    fmap (B, C, T') as `stage` describes it; boxes (K, 2) start and end in input samples, fractions allowed; owner (K,)
    int64 row of `fmap`; K may be 0. Raises ValueError for shapes that do not fit.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 2 or owner.shape != boxes.shape[:1]:
        raise ValueError(f"boxes must be (K, 2) with owner (K,), not {tuple(boxes.shape)} and {tuple(owner.shape)}")
    if len(boxes) == 0:
        return fmap.reshape(-1)[:0].reshape(0, fmap.shape[1], bins)
    last = fmap.shape[-1] - 1
    # positions in float32 at least: bfloat16 holds only 8 bits, too few for a position among thousands of samples
    centres = bin_centres(boxes.to(torch.promote_types(boxes.dtype, torch.float32)), bins)
    cell = ((centres - stage.offset) / stage.stride).clamp(0, last)
    left = cell.floor().clamp_max(max(last - 1, 0)).long()
    weight = (cell - left).to(fmap.dtype)[:, None, :]
    by_time = fmap.transpose(1, 2)
    at_left = by_time[owner[:, None], left].transpose(1, 2)
    at_right = by_time[owner[:, None], (left + 1).clamp_max(last)].transpose(1, 2)
    return torch.lerp(at_left, at_right, weight)
