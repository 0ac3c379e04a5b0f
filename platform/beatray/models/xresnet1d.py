"""xresnet1d: the residual network that leads the PTB-XL benchmark, for pretraining at full size.

Strodthoff et al., "Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL" (IEEE JBHI 2021); the network
is He et al., "Bag of Tricks for Image Classification" (CVPR 2019), in one dimension: a stem of three convolutions,
average pooling in the shortcuts, the last norm of every block initialised to zero. As in the benchmark, every stage is
64 wide (times 4 in bottlenecks) and kernels span 5 samples.

Contract: (B, 12, T) scaled leads -> maps [stem, stage 1..4]. With out_stride 32 the strides are 2, 4, 8, 16, 32 and
5000 samples give 157 positions; out_stride 16 drops the stride of the stem's max-pool and gives 313, for work on
heartbeats.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.models.batch_norm import build_norm

LAYOUTS: dict[int, tuple[tuple[int, int, int, int], int]] = {
    18: ((2, 2, 2, 2), 1),
    50: ((3, 4, 6, 3), 4),
    101: ((3, 4, 23, 3), 4),
}
"""Depth: blocks of each stage, and how many times wider a block's output is than its inside."""


class XResNetTrunk(nn.Module):
    """Stem, max-pool and four stages. Raises ValueError for another depth or out_stride."""

    def __init__(
        self,
        depth: int,
        norm: str = "global_batch",
        out_stride: int = 16,
        widths: tuple[int, int, int, int] = (64, 64, 64, 64),
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if depth not in LAYOUTS:
            raise ValueError(f"depth must be one of {', '.join(map(str, LAYOUTS))}, not {depth}")
        if out_stride not in (16, 32):
            raise ValueError(f"out_stride must be 16 or 32, not {out_stride}")
        blocks, expansion = LAYOUTS[depth]
        pool_stride = out_stride // 16
        strides = [2, 2 * pool_stride]
        strides += [strides[-1] * step for step in (2, 4, 8)]
        self.stage_strides = tuple(strides)
        self.stage_channels = (64, *(width * expansion for width in widths))
        self.stem = nn.Sequential(
            *_conv_norm(12, 32, kernel, 2, norm),
            nn.ReLU(),
            *_conv_norm(32, 32, kernel, 1, norm),
            nn.ReLU(),
            *_conv_norm(32, 64, kernel, 1, norm),
            nn.ReLU(),
        )
        self.max_pool = nn.MaxPool1d(3, pool_stride, padding=1)
        stages: list[nn.Module] = []
        channels = 64
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers = []
            for position in range(count):
                stride = 2 if stage > 0 and position == 0 else 1
                layers.append(XResBlock(channels, width, expansion, kernel, stride, norm))
                channels = width * expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        x = self.max_pool(maps[0])
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class XResBlock(nn.Module):
    """Two convolutions, or a bottleneck of three when `expansion` exceeds 1, and a pooled, projected shortcut."""

    def __init__(self, channels_in: int, width: int, expansion: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        channels_out = width * expansion
        if expansion == 1:
            layers = [*_conv_norm(channels_in, width, kernel, stride, norm), nn.ReLU()]
            layers += _conv_norm(width, channels_out, kernel, 1, norm)
        else:
            layers = [*_conv_norm(channels_in, width, 1, 1, norm), nn.ReLU()]
            layers += [*_conv_norm(width, width, kernel, stride, norm), nn.ReLU()]
            layers += _conv_norm(width, channels_out, 1, 1, norm)
        last_weight = layers[-1].weight
        assert isinstance(last_weight, torch.Tensor)
        nn.init.zeros_(last_weight)  # the block starts as its shortcut
        self.inner = nn.Sequential(*layers)
        shortcut: list[nn.Module] = []
        if stride != 1:
            shortcut.append(nn.AvgPool1d(stride, ceil_mode=True))
        if channels_in != channels_out:
            shortcut += _conv_norm(channels_in, channels_out, 1, 1, norm)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.shortcut(x))


def _conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, norm: str) -> list[nn.Module]:
    conv = nn.Conv1d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return [conv, build_norm(norm, channels_out)]
