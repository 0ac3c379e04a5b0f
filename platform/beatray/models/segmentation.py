"""Decoders from feature maps to one class per sample: background, P wave, QRS complex, T wave.

`ConvDecoder` reads the last feature map only: what it can draw, the encoder must know. With depth 0 it is a linear
probe of every cell. `UNetDecoder` also takes the finer maps (Ronneberger et al., U-Net, MICCAI 2015) and is the
stronger one when the encoder is fine-tuned.

Both upsample by linear interpolation such that cell j falls exactly on sample j * stride + offset, for which it stands
(`Stage`); the usual half-cell convention would move every boundary by (stride - 1) / 2 samples, 15 ms at stride 16.

Contract: maps as `Encoder.forward_stages` gives them, n_samples the length of the input -> logits (B, 4, n_samples).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from beatray.models.batch_norm import build_norm
from beatray.models.encoder import Stage
from beatray.models.layout import Conv1d, cat, interpolate

CLASSES = ("background", "P", "QRS", "T")


class ConvDecoder(nn.Module):
    """`depth` convolutions on the last map, a linear layer to the classes, linear interpolation to every sample."""

    def __init__(
        self,
        stage: Stage,
        depth: int = 2,
        hidden: int = 64,
        kernel: int = 5,
        classes: int = len(CLASSES),
        norm: str = "global_batch",
    ) -> None:
        super().__init__()
        self.stage = stage
        layers: list[nn.Module] = []
        for layer in range(depth):
            layers += _conv_relu(stage.channels if layer == 0 else hidden, hidden, kernel, norm)
        self.convs = nn.Sequential(*layers)
        self.classify = Conv1d(hidden if depth else stage.channels, classes, 1)

    def forward(self, maps: Sequence[Tensor], n_samples: int) -> Tensor:
        """Uses maps[-1] (B, C, T'); logits (B, classes, n_samples)."""
        logits = self.classify(self.convs(maps[-1]))
        return upsample(logits, self.stage.stride, n_samples, self.stage.offset)


class UNetDecoder(nn.Module):
    """From the coarsest map to the finest: upsample, join the encoder's map, convolve (kernel 9, dropout 0.2)."""

    def __init__(
        self,
        stages: Sequence[Stage],
        hidden: int = 32,
        kernel: int = 9,
        dropout: float = 0.2,
        classes: int = len(CLASSES),
        norm: str = "global_batch",
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.joins = nn.ModuleList()
        below = stages[-1].channels
        for stage in reversed(stages[:-1]):
            layers = [*_conv_relu(below + stage.channels, hidden, kernel, norm), nn.Dropout(dropout)]
            self.joins.append(nn.Sequential(*layers))
            below = hidden
        self.classify = Conv1d(below, classes, kernel, padding=kernel // 2)

    def forward(self, maps: Sequence[Tensor], n_samples: int) -> Tensor:
        """maps finest first (B, C_i, T_i'), as the stages give them; logits (B, classes, n_samples)."""
        x = maps[-1]
        for join, level in zip(self.joins, range(len(maps) - 2, -1, -1), strict=True):
            coarse, fine = self.stages[level + 1], self.stages[level]
            offset = (coarse.offset - fine.offset) / fine.stride
            x = upsample(x, coarse.stride / fine.stride, maps[level].shape[-1], offset)
            x = join(cat([x, maps[level]], dim=1))
        return upsample(self.classify(x), self.stages[0].stride, n_samples, self.stages[0].offset)


def upsample(x: Tensor, factor: float, length: int, offset: float = 0.0) -> Tensor:
    """Linear interpolation that puts cell j at position j * factor + offset: (B, C, T') -> (B, C, length).

    Positions before the first and after the last cell repeat it.
    """
    if offset or factor != int(factor):
        return _read_between(x, factor, length, offset)
    if factor > 1:
        size = (x.shape[-1] - 1) * int(factor) + 1
        x = interpolate(x, size)
    missing = length - x.shape[-1]
    if missing > 0:
        x = cat([x, x[..., -1:].expand(-1, -1, missing)], dim=-1)
    return x[..., :length]


def _read_between(x: Tensor, factor: float, length: int, offset: float) -> Tensor:
    last = x.shape[-1] - 1
    cell = ((torch.arange(length, device=x.device, dtype=torch.float32) - offset) / factor).clamp(0, last)
    left = cell.floor().clamp_max(max(last - 1, 0)).long()
    return torch.lerp(x[..., left], x[..., (left + 1).clamp_max(last)], (cell - left).to(x.dtype))


def _conv_relu(channels_in: int, channels_out: int, kernel: int, norm: str) -> list[nn.Module]:
    conv = Conv1d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return [conv, build_norm(norm, channels_out), nn.ReLU()]
