"""Decoders from feature maps to one class per sample: background, P wave, QRS complex, T wave.

`ConvDecoder` reads the last feature map only: what it can draw, the encoder must know. With depth 0 it is a linear
probe of every cell. `UNetDecoder` also takes the finer maps (Ronneberger et al., U-Net, MICCAI 2015) and is the
stronger one when the encoder is fine-tuned.

Both upsample by linear interpolation such that cell j of stride s falls exactly on sample j * s, where the convolutions
centred it; the usual half-cell convention would move every boundary by (s - 1) / 2 samples, 15 ms at stride 16.

Contract: maps as `Encoder.forward_stages` gives them, n_samples the length of the input -> logits (B, 4, n_samples).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.models.batch_norm import build_norm

CLASSES = ("background", "P", "QRS", "T")


class ConvDecoder(nn.Module):
    """`depth` convolutions on the last map, a linear layer to the classes, linear interpolation to every sample."""

    def __init__(
        self,
        channels: int,
        stride: int,
        depth: int = 2,
        hidden: int = 64,
        kernel: int = 5,
        classes: int = len(CLASSES),
        norm: str = "global_batch",
    ) -> None:
        super().__init__()
        self.stride = stride
        layers: list[nn.Module] = []
        for layer in range(depth):
            layers += _conv_relu(channels if layer == 0 else hidden, hidden, kernel, norm)
        self.convs = nn.Sequential(*layers)
        self.classify = nn.Conv1d(hidden if depth else channels, classes, 1)

    def forward(self, maps: Sequence[Tensor], n_samples: int) -> Tensor:
        """Uses maps[-1] (B, C, T'); logits (B, classes, n_samples)."""
        logits = self.classify(self.convs(maps[-1]))
        return upsample(logits, self.stride, n_samples)


class UNetDecoder(nn.Module):
    """From the coarsest map to the finest: upsample, join the encoder's map, convolve (kernel 9, dropout 0.2)."""

    def __init__(
        self,
        stage_channels: Sequence[int],
        stage_strides: Sequence[int],
        hidden: int = 32,
        kernel: int = 9,
        dropout: float = 0.2,
        classes: int = len(CLASSES),
        norm: str = "global_batch",
    ) -> None:
        super().__init__()
        self.strides = tuple(stage_strides)
        self.joins = nn.ModuleList()
        below = stage_channels[-1]
        for channels in reversed(stage_channels[:-1]):
            layers = [*_conv_relu(below + channels, hidden, kernel, norm), nn.Dropout(dropout)]
            self.joins.append(nn.Sequential(*layers))
            below = hidden
        self.classify = nn.Conv1d(below, classes, kernel, padding=kernel // 2)

    def forward(self, maps: Sequence[Tensor], n_samples: int) -> Tensor:
        """maps finest first (B, C_i, ceil(T / s_i)); logits (B, classes, n_samples)."""
        x = maps[-1]
        for join, level in zip(self.joins, range(len(maps) - 2, -1, -1), strict=True):
            factor = self.strides[level + 1] // self.strides[level]
            x = join(torch.cat([upsample(x, factor, maps[level].shape[-1]), maps[level]], dim=1))
        return upsample(self.classify(x), self.strides[0], n_samples)


def upsample(x: Tensor, factor: int, length: int) -> Tensor:
    """Linear interpolation that puts cell j at position j * factor: (B, C, T') -> (B, C, length).

    Positions after the last cell repeat it.
    """
    if factor > 1:
        x = functional.interpolate(x, size=(x.shape[-1] - 1) * factor + 1, mode="linear", align_corners=True)
    missing = length - x.shape[-1]
    if missing > 0:
        x = torch.cat([x, x[..., -1:].expand(-1, -1, missing)], dim=-1)
    return x[..., :length]


def _conv_relu(channels_in: int, channels_out: int, kernel: int, norm: str) -> list[nn.Module]:
    conv = nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return [conv, build_norm(norm, channels_out), nn.ReLU()]
