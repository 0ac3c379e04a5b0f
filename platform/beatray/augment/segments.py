"""Two stretches of a recording, one right after the other: natural pairs of views, without augmentation.

Contract: as in two_views.py; both segments lie inside the signal that is there. Of a recording that is shorter than two
segments each is half of it, filled up with zeros; the first sample of the second always follows the last of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.augment.two_views import crop_window


def adjacent_segments(batch: dict[str, Tensor], crop_seconds: float | None, draws: Draws) -> dict[str, Tensor]:
    """Segments of `crop_seconds`, or halves of the whole record: segment_1, segment_2 (B, 12, L) mV, crop_start (B,) of
    the first, n_valid (B,) samples of either that are signal."""
    window = crop_window(batch, None if crop_seconds is None else 2.0 * crop_seconds, draws)
    x_mv, valid = window["plain"], window["n_valid"] // 2
    length = x_mv.shape[-1] // 2
    position = torch.arange(length, device=x_mv.device)
    beyond = (position >= valid[:, None])[:, None]
    following = (position + valid[:, None])[:, None].expand(-1, x_mv.shape[1], -1)  # ends within the window
    return {
        "segment_1": x_mv[..., :length].masked_fill(beyond, 0.0),
        "segment_2": x_mv.gather(2, following).masked_fill(beyond, 0.0),
        "crop_start": window["crop_start"],
        "n_valid": valid,
    }
