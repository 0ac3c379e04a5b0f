"""What every encoder is: lead scaling, a convolutional trunk, and pooling.

A trunk (one file per architecture) maps scaled leads to a list of feature maps, finest first; this module gives them
the one face that objectives, probes and users see.

Contract: input (B, 12, T) millivolts at 500 Hz; `forward_features` gives (B, channels, ceil(T / stride)) where cell j
stands for sample j * stride; `pool` gives (B, embed_dim) float32; `forward(x)` is pool(forward_features(x)). B may be
0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from beatray.models.lead_scale import LeadScale

POOLINGS = ("mean_max", "mean_std")

_VARIANCE_FLOOR = 1e-5  # keeps the gradient of the standard deviation finite for a constant channel


class Trunk(Protocol):
    """A network of convolutions: (B, 12, T) -> feature maps, one per entry of `stage_channels`, finest first."""

    stage_channels: tuple[int, ...]
    stage_strides: tuple[int, ...]

    def __call__(self, x: Tensor) -> list[Tensor]: ...


class Encoder(nn.Module):
    """A trunk with the lead scale before it and a pooling after it; `name` and `settings` are how it was built."""

    def __init__(self, name: str, trunk: Trunk, pooling: str, settings: dict[str, Any]) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.name, self.settings, self.pooling = name, settings, pooling
        self.stage_channels: Sequence[int] = trunk.stage_channels
        self.stage_strides: Sequence[int] = trunk.stage_strides
        self.stride: int = trunk.stage_strides[-1]
        self.channels: int = trunk.stage_channels[-1]
        self.embed_dim: int = 2 * self.channels
        self.lead_scale = LeadScale()
        self.trunk = trunk

    def forward_stages(self, x_mv: Tensor) -> list[Tensor]:
        """Feature maps at `stage_strides` with `stage_channels`, finest first; the last is `forward_features`."""
        return self.trunk(self.lead_scale(x_mv))

    def forward_features(self, x_mv: Tensor) -> Tensor:
        """(B, 12, T) mV -> (B, channels, ceil(T / stride))."""
        return self.forward_stages(x_mv)[-1]

    def pool(self, fmap: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Mean and maximum (or standard deviation) over time: (B, C, T') -> (B, 2 C) float32.

        With n_samples (B,), valid input samples, only cells that stand for one of them count (at least one).
        """
        return pool_over_time(fmap, self.pooling, self.stride, n_samples)

    def forward(self, x_mv: Tensor) -> Tensor:
        """(B, 12, T) mV -> (B, embed_dim)."""
        return self.pool(self.forward_features(x_mv))


def pool_over_time(fmap: Tensor, pooling: str, stride: int, n_samples: Tensor | None) -> Tensor:
    """`mean_max` or `mean_std` over the valid cells: (B, C, T') -> (B, 2 C) float32; double stays double."""
    f_bct = fmap if fmap.dtype == torch.float64 else fmap.float()
    if n_samples is None:
        mean = f_bct.mean(-1)
        if pooling == "mean_max":
            return torch.cat([mean, f_bct.amax(-1)], dim=1)
        variance = (f_bct - mean[..., None]).square().mean(-1)
        return torch.cat([mean, (variance + _VARIANCE_FLOOR).sqrt()], dim=1)
    cells = ((n_samples.to(fmap.device) + stride - 1) // stride).clamp(1, fmap.shape[-1])
    valid = (torch.arange(fmap.shape[-1], device=fmap.device) < cells[:, None])[:, None, :]
    count = cells[:, None].to(f_bct.dtype)
    mean = f_bct.masked_fill(~valid, 0.0).sum(-1) / count
    if pooling == "mean_max":
        return torch.cat([mean, f_bct.masked_fill(~valid, float("-inf")).amax(-1)], dim=1)
    variance = (f_bct - mean[..., None]).masked_fill(~valid, 0.0).square().sum(-1) / count
    return torch.cat([mean, (variance + _VARIANCE_FLOOR).sqrt()], dim=1)
