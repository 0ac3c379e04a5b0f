"""Whole leads set to zero (random lead masking), and leads brought to one scale by recording.

Oh, Chung and Choi (CHIL 2022): every lead of a view is zeroed with the same probability, so that a network learns to do
with those that are left. Contract: x (B, L, T); row b depends on row b alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.record import LEADS

_TRIES = 8


def mask_leads(x: Tensor, draws: Draws, view: int, probability: float, purpose: str = "leads") -> Tensor:
    """A copy with each lead zeroed with this probability, never all that are there: (B, 12, T) -> (B, 12, T)."""
    drawn = draws.uniform(purpose, _TRIES * len(LEADS), view).reshape(-1, _TRIES, len(LEADS))
    kept = torch.from_numpy(kept_leads(drawn, probability)).to(x.device)
    there = (x != 0).any(-1)
    # where only leads stay that were not recorded, so does the recorded one that came nearest to it in the last try
    nearest = torch.from_numpy(drawn[:, -1]).to(x.device).masked_fill(~there, -1.0)
    none_left = ~(kept & there).any(1, keepdim=True)
    kept = kept | (none_left & (nearest == nearest.amax(1, keepdim=True)))
    return x.masked_fill(~kept[..., None], 0)


def without_leads(batch: dict[str, Tensor], draws: Draws, probability: float) -> dict[str, Tensor]:
    """A batch of the corpus whose recordings have lost some leads, as if these had not been recorded.

    Its signal_uv (B, 12, T) is a copy with each lead of a recording zeroed with this probability, never all; all views
    of a recording are made of what is left; `recorded_uv` is what it was. Batches that validate lose nothing.
    """
    if probability <= 0.0 or draws.validates:
        return batch
    recorded = batch["signal_uv"]
    left = mask_leads(recorded, draws, 0, probability, "lead_dropout")
    return {**batch, "signal_uv": left, "recorded_uv": recorded}


def kept_leads(drawn: NDArray[np.float64], probability: float) -> NDArray[np.bool_]:
    """Which leads are not zeroed: (B, tries, L) in [0, 1) -> (B, L), of the first try that keeps any.

    Where every try would zero all leads, the lead that came nearest to staying in the last one stays.
    """
    tries = drawn >= probability
    nearest = drawn[:, -1] == drawn[:, -1].max(1, keepdims=True)
    tries[:, -1] |= nearest & (drawn.max((1, 2), keepdims=True)[:, 0] < probability)
    kept: NDArray[np.bool_] = tries[np.arange(len(tries)), tries.any(2).argmax(1)]
    return kept


def standardise_leads(
    first: Tensor, second: Tensor, n_valid: Tensor, scale_mv: Tensor, flat_mv: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Two segments (B, L, T) with mean 0 and SD `scale_mv` (L,) over both in every lead; flat leads become zero."""
    x_mv, length = torch.cat([first, second], 2), first.shape[2]
    there = (torch.arange(length, device=x_mv.device) < n_valid[:, None]).repeat(1, 2)[:, None]
    count = there.sum(2, keepdim=True).clamp_min(1)
    centred = (x_mv - (x_mv * there).sum(2, keepdim=True) / count) * there
    sd_mv = (centred.square().sum(2, keepdim=True) / count).sqrt()
    scaled = torch.where(sd_mv > flat_mv, centred / sd_mv.clamp_min(flat_mv), 0.0) * scale_mv.to(x_mv)[:, None]
    return scaled[..., :length], scaled[..., length:]
