"""Several crops of every record: two that are as long as views usually are, and some shorter ones.

Multi-crop of Caron et al. (SwAV, NeurIPS 2020, section 3.2) in time: each crop is a window of the recording at its own
moment, masked as in `make_masked_views` (two_views.py).

Contract: as of `two_views`: batch holds signal_uv (B, 12, T), n_samples (B,), record_key (B,) int64; result view_1,
view_2 (B, 12, L) and local_1, local_2 .. (B, 12, L') float32 mV; unless warped n_valid and local_n_valid (B,), samples
of the crops that are signal. A crop longer than the stored signal is as long as that; local crops may be longer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from beatray.augment.crops import crop, draw_starts
from beatray.augment.draws import Draws
from beatray.augment.two_views import VIEWS, MaskedViewSettings, crop_window, masked_view
from beatray.record import RATE_HZ


def make_multi_crops(
    batch: dict[str, Tensor], settings: MaskedViewSettings, local_crops: int, local_seconds: float, draws: Draws
) -> dict[str, Tensor]:
    """The crops of the module text: two of `settings.crop_seconds` and `local_crops` of `local_seconds`."""
    whole = crop_window(batch, None, draws)
    x_mv, n_samples = whole["plain"], whole["n_valid"]
    stored = x_mv.shape[-1]
    n_local = min(round(local_seconds * RATE_HZ), stored)
    n_global = stored if settings.crop_seconds is None else min(round(settings.crop_seconds * RATE_HZ), stored)
    out: dict[str, Tensor] = {}
    if not settings.warp:  # a part that was stretched back ends elsewhere
        out["n_valid"] = n_samples.clamp_max(n_global)
        if local_crops:
            out["local_n_valid"] = n_samples.clamp_max(n_local)
    named = [(f"view_{view}", view, n_global) for view in VIEWS]
    named += [(f"local_{number}", len(VIEWS) + number, n_local) for number in range(1, local_crops + 1)]
    lengths = n_samples.cpu().numpy().astype(np.int64)
    for name, view, length in named:
        starts = torch.as_tensor(draw_starts(draws.uniform("crop", 1, view)[:, 0], lengths, length))
        out[name] = masked_view(crop(x_mv, starts, length), settings, draws, view)
    return out
