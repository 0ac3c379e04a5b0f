"""A light decoder: the map of any encoder to all leads at about 62.5 Hz, and the signal at that rate beside it.

For methods that reconstruct beside something else. Two convolutions; the finer values of a cell are channels of the
second one (Shi et al., sub-pixel convolution, CVPR 2016). What a clinical ECG holds above 30 Hz is averaged away in the
target, so that the map need not carry it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.models.encoder import Stage
from beatray.models.layout import Conv1d
from beatray.record import LEADS

DRAWN_SMP = 8
"""The decoder draws about one value in so many samples: 62.5 Hz."""


class SignalDecoder(nn.Module):
    """A map (B, C, T') to all leads at about one value in `DRAWN_SMP` samples: two convolutions, several values a cell.

    (B, C, T') -> (B, 12, T' parts); cell j gives `parts` values, evenly spaced over its stride and centred on it.
    """

    def __init__(self, stage: Stage, width: int) -> None:
        super().__init__()
        self.stage = stage
        self.parts = max(1, round(stage.stride / DRAWN_SMP))
        self.step_smp = stage.stride / self.parts
        self.hidden = Conv1d(stage.channels, width, 5, padding=2)
        self.out = Conv1d(width, len(LEADS) * self.parts, 1)

    def forward(self, fmap: Tensor) -> Tensor:
        """The drawn leads."""
        inner = functional.gelu(self.hidden(fmap))
        x: Tensor = self.out(inner).unflatten(1, (len(LEADS), self.parts)).transpose(2, 3).flatten(2)
        return x

    def sample_positions(self, cells: int, device: torch.device) -> Tensor:
        """The nearest sample of each value: (T' parts,) int64; it may lie before the first sample or after the last."""
        middle = torch.arange(cells, device=device) * self.stage.stride + self.stage.offset
        within = (torch.arange(self.parts, device=device) - (self.parts - 1) / 2) * self.step_smp
        return torch.round(middle[:, None] + within).long().flatten()


def low_rate(x: Tensor, at_smp: Tensor, step_smp: float) -> Tensor:
    """Means of x (B, L, T) over `step_smp` samples (made odd) around the samples at_smp (K,): (B, L, K).

    A plain low-pass, so that what the decoder cannot draw is not asked of it. Positions outside take the nearest
    sample.
    """
    half = int(step_smp) // 2
    padded = functional.pad(x, (half + 1, half))
    sums = padded.cumsum(-1)
    count = functional.pad(x.new_ones(1, 1, x.shape[-1]), (half + 1, half)).cumsum(-1)
    inside = at_smp.clamp(0, x.shape[-1] - 1)
    first, last = inside, inside + 2 * half + 1
    return (sums[..., last] - sums[..., first]) / (count[..., last] - count[..., first])
