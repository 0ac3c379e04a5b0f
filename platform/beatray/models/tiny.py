"""A small residual network that pretrains on a laptop core in minutes: 0.12 million parameters.

It works at 250 Hz: a fixed binomial filter halves the rate, since clinical ECG holds little above 100 Hz and the first
layer is where a convolutional network on 12 x 5000 samples spends its time. Few channels early, more late; three
residual blocks (He et al., CVPR 2016).

Contract: (B, 12, T) scaled leads at 500 Hz -> maps at strides 4, 8, 16 with 32, 32, 64 channels; 5000 samples give 313
positions of 32 ms. Every kernel is odd and same-padded, so cell j of stride s is centred on sample j * s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.models.batch_norm import build_norm


class TinyTrunk(nn.Module):
    """Decimation by 2, a strided stem, three residual blocks."""

    stage_strides: tuple[int, ...] = (4, 8, 16)

    def __init__(
        self,
        norm: str = "global_batch",
        channels: tuple[int, int, int] = (32, 32, 64),
        stem_kernel: int = 15,
        kernel: int = 7,
    ) -> None:
        super().__init__()
        self.stage_channels: tuple[int, ...] = tuple(channels)
        stem, middle, out = channels
        self.stem = nn.Conv1d(12, stem, stem_kernel, stride=2, padding=stem_kernel // 2, bias=False)
        self.stem_norm = build_norm(norm, stem)
        self.block_1 = ResidualBlock(stem, middle, kernel, 2, norm)
        self.block_2 = ResidualBlock(middle, out, kernel, 2, norm)
        self.block_3 = ResidualBlock(out, out, kernel, 1, norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = torch.relu(self.stem_norm(self.stem(halve_rate(x))))
        eighth = self.block_1(stem)
        return [stem, eighth, self.block_3(self.block_2(eighth))]


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm; added to the input, through a strided 1x1 convolution where shapes differ; ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm_1 = build_norm(norm, channels_out)
        self.conv_2 = nn.Conv1d(channels_out, channels_out, kernel, 1, kernel // 2, bias=False)
        self.norm_2 = build_norm(norm, channels_out)
        same = stride == 1 and channels_in == channels_out
        self.project = nn.Identity() if same else nn.Conv1d(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm_2(self.conv_2(torch.relu(self.norm_1(self.conv_1(x)))))
        return torch.relu(inner + self.project(x))


def halve_rate(x: Tensor) -> Tensor:
    """Binomial low-pass (1 4 6 4 1)/16, then the even samples: (B, C, T) -> (B, C, ceil(T / 2))."""
    n = (x.shape[-1] + 1) // 2
    padded = functional.pad(x, (2, 2 + x.shape[-1] % 2))
    even, odd = padded[..., 0::2], padded[..., 1::2]
    outer = even[..., :n] + even[..., 2 : n + 2]
    inner = odd[..., :n] + odd[..., 1 : n + 1]
    return outer * 0.0625 + even[..., 1 : n + 1] * 0.375 + inner * 0.25
