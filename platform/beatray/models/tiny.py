"""A small residual network that pretrains on a laptop core in minutes: 0.12 million parameters.

It works at 250 Hz: a fixed binomial filter halves the rate, since clinical ECG holds little above 100 Hz and the first
layer is where a convolutional network on 12 x 5000 samples spends its time. Few channels early, more late; three
residual blocks (He et al., CVPR 2016).

Contract: (B, 12, T) scaled leads at 500 Hz -> maps at strides 4, 8, 16 with 32, 32, 64 channels; 5000 samples give 313
positions of 32 ms. Every kernel is odd and same-padded, so cell j of stride s is centred on sample j * s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.batch_norm import Norm, build_norm, through
from beatray.models.encoder import Encoder, Pooling, Stage, check_odd
from beatray.models.layout import Conv1d


@dataclass(frozen=True, slots=True)
class TinySettings:
    """Settings of `tiny`."""

    norm: Norm = "global_batch"
    pooling: Pooling = "mean_std"
    stem_kernel: int = setting(15, "samples at 250 Hz; odd", at_least=1)
    kernel: int = setting(7, "of the residual blocks; odd", at_least=1)
    channels: tuple[int, int, int] = setting((32, 32, 64), "of the three feature maps", at_least=1, absent=(32, 32, 64))

    def __post_init__(self) -> None:
        check(self)
        check_odd(self, "stem_kernel", "kernel")


class Tiny(Encoder):
    """Decimation by 2, a strided stem, three residual blocks."""

    Settings = TinySettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}

    def __init__(self, settings: TinySettings) -> None:
        stem, middle, out = settings.channels
        super().__init__(settings, [Stage(stem, 4), Stage(middle, 8), Stage(out, 16)])
        norm, kernel, wide = settings.norm, settings.kernel, settings.stem_kernel
        self.stem = Conv1d(12, stem, wide, stride=2, padding=wide // 2, bias=False)
        self.stem_norm = build_norm(norm, stem, stride=4)
        self.block_1 = ResidualBlock(stem, middle, kernel, 2, norm, 8)
        self.block_2 = ResidualBlock(middle, out, kernel, 2, norm, 16)
        self.block_3 = ResidualBlock(out, out, kernel, 1, norm, 16)

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps at strides 4, 8 and 16."""
        stem = torch.relu(through((self.stem, self.stem_norm), halve_rate(self.lead_scale(x_mv)), n_samples))
        eighth = self.block_1(stem, n_samples)
        return [stem, eighth, self.block_3(self.block_2(eighth, n_samples), n_samples)]


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm; added to the input, through a strided 1x1 convolution where shapes differ; ReLU.

    `samples` is how many of the encoder's input one cell of the result stands for.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, norm: str, samples: int) -> None:
        super().__init__()
        self.conv_1 = Conv1d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm_1 = build_norm(norm, channels_out, stride=samples)
        self.conv_2 = Conv1d(channels_out, channels_out, kernel, 1, kernel // 2, bias=False)
        self.norm_2 = build_norm(norm, channels_out, stride=samples)
        same = stride == 1 and channels_in == channels_out
        self.project = nn.Identity() if same else Conv1d(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> Tensor:
        inner = torch.relu(through((self.conv_1, self.norm_1), x, n_samples))
        inner = through((self.conv_2, self.norm_2), inner, n_samples)
        return torch.relu(inner + self.project(x))


def halve_rate(x: Tensor) -> Tensor:
    """Binomial low-pass (1 4 6 4 1)/16, then the even samples: (B, C, T) -> (B, C, ceil(T / 2))."""
    n = (x.shape[-1] + 1) // 2
    padded = functional.pad(x, (2, 2 + x.shape[-1] % 2))
    even, odd = padded[..., 0::2], padded[..., 1::2]
    outer = even[..., :n] + even[..., 2 : n + 2]
    inner = odd[..., :n] + odd[..., 1 : n + 1]
    return outer * 0.0625 + even[..., 1 : n + 1] * 0.375 + inner * 0.25
