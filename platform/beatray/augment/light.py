"""Light changes of a recording that keep its labels: a crop, leads left out, noise, another gain.

They are for training with labels, where a view must still show what is labelled: no turned heart, no stretched time.
All are off unless asked for, but for the crop: random crops of 5 s, whole recordings where it counts, are what the
published benchmarks train with (Strodthoff et al., IEEE JBHI 25:1519, 2021, who crop 2.5 s).

Contract: x_mv (B, 12, L) with n_valid (B,); row b depends on row b and its draws alone; samples beyond the signal and
leads that are zero throughout stay zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.augment.lead_masks import mask_leads
from beatray.fields import check, setting


@dataclass(frozen=True, slots=True)
class LightSettings:
    """How recordings are varied while a model learns from labels; 0 turns a change off."""

    crop_seconds: float | None = setting(5.0, "a random window; null: the whole record", at_least=0.5)
    lead_dropout: float = setting(
        0.0, "each lead is left out with this probability, never all", at_least=0.0, below=1.0, searchable=True
    )
    noise_mv: float = setting(0.0, "SD of white noise, drawn up to so much for a recording", at_least=0.0)
    scale: float = setting(0.0, "another gain, up to so much below or above 1", at_least=0.0, below=1.0)

    def __post_init__(self) -> None:
        check(self)


def lightly_changed(x_mv: Tensor, n_valid: Tensor, settings: LightSettings, draws: Draws) -> Tensor:
    """A window with all but the crop: (B, 12, L) -> (B, 12, L)."""
    there = (torch.arange(x_mv.shape[-1], device=x_mv.device) < n_valid[:, None])[:, None]
    if settings.noise_mv > 0.0:
        amplitude = settings.noise_mv * torch.from_numpy(draws.uniform("noise_level", 1)).to(x_mv)
        drawn = draws.uniform("noise", x_mv.shape[1] * x_mv.shape[2]).reshape(x_mv.shape)
        normal = torch.erfinv(torch.from_numpy(2.0 * drawn - 1.0).to(x_mv).clamp(-0.999999, 0.999999)) * 2**0.5
        alive = (x_mv != 0).any(-1, keepdim=True)
        x_mv = x_mv + amplitude[..., None] * normal * (there & alive)
    if settings.scale > 0.0:
        gain = 1.0 + settings.scale * (2.0 * torch.from_numpy(draws.uniform("gain", 1)).to(x_mv) - 1.0)
        x_mv = x_mv * gain[..., None]
    if settings.lead_dropout > 0.0:
        x_mv = mask_leads(x_mv, draws, 1, settings.lead_dropout)
    return x_mv
