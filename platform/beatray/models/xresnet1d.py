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

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from beatray.fields import check, setting
from beatray.models.batch_norm import Norm, build_norm, through
from beatray.models.encoder import Encoder, Pooling, Stage, check_odd
from beatray.models.layout import AvgPool1d, Conv1d, MaxPool1d

LAYOUTS: dict[int, tuple[tuple[int, int, int, int], int]] = {
    18: ((2, 2, 2, 2), 1),
    50: ((3, 4, 6, 3), 4),
    101: ((3, 4, 23, 3), 4),
}
"""Depth: blocks of each stage, and how many times wider a block's output is than its inside."""


@dataclass(frozen=True, slots=True)
class XResNetSettings:
    """Settings of the xresnet1d family; the name fixes the depth."""

    depth: int = setting(50, "layers", choices=tuple(LAYOUTS))
    norm: Norm = "global_batch"
    pooling: Pooling = "mean_max"
    out_stride: int = setting(16, "16: 313 positions for 10 s; 32: 157", choices=(16, 32))
    widths: tuple[int, int, int, int] = setting((64, 64, 64, 64), "of the four stages", at_least=1, absent=(64,) * 4)
    kernel: int = setting(5, "odd", at_least=1, absent=5)

    def __post_init__(self) -> None:
        check(self)
        check_odd(self, "kernel")


class XResNet(Encoder):
    """Stem, max-pool and four stages."""

    Settings = XResNetSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {f"xresnet1d{depth}": {"depth": depth} for depth in LAYOUTS}

    def __init__(self, settings: XResNetSettings) -> None:
        norm, kernel, widths = settings.norm, settings.kernel, settings.widths
        blocks, expansion = LAYOUTS[settings.depth]
        pool_stride = settings.out_stride // 16
        strides = [2, 2 * pool_stride]
        strides += [strides[-1] * step for step in (2, 4, 8)]
        channels_of = (64, *(width * expansion for width in widths))
        super().__init__(settings, [Stage(*each) for each in zip(channels_of, strides, strict=True)])
        self.stem = nn.Sequential(
            *_conv_norm(12, 32, kernel, 2, norm, 2),
            nn.ReLU(),
            *_conv_norm(32, 32, kernel, 1, norm, 2),
            nn.ReLU(),
            *_conv_norm(32, 64, kernel, 1, norm, 2),
            nn.ReLU(),
        )
        self.max_pool = MaxPool1d(3, pool_stride, padding=1)
        blocks_of_stage: list[nn.Module] = []
        channels = 64
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers = []
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                layers.append(XResBlock(channels, width, expansion, kernel, stride, norm, strides[number + 1]))
                channels = width * expansion
            blocks_of_stage.append(nn.Sequential(*layers))
        self.residual_stages = nn.ModuleList(blocks_of_stage)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps of the stem and of stages 1 to 4."""
        maps = [through(self.stem, self.lead_scale(x_mv), n_samples)]
        x = self.max_pool(maps[0])
        for stage in self.residual_stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, n_samples)
            maps.append(x)
        return maps


class XResBlock(nn.Module):
    """Two convolutions, or a bottleneck of three when `expansion` exceeds 1, and a pooled, projected shortcut.

    `samples` is how many of the encoder's input one cell of the result stands for.
    """

    def __init__(
        self, channels_in: int, width: int, expansion: int, kernel: int, stride: int, norm: str, samples: int
    ) -> None:
        super().__init__()
        channels_out = width * expansion
        if expansion == 1:
            layers = [*_conv_norm(channels_in, width, kernel, stride, norm, samples), nn.ReLU()]
            layers += _conv_norm(width, channels_out, kernel, 1, norm, samples)
        else:
            layers = [*_conv_norm(channels_in, width, 1, 1, norm, samples // stride), nn.ReLU()]
            layers += [*_conv_norm(width, width, kernel, stride, norm, samples), nn.ReLU()]
            layers += _conv_norm(width, channels_out, 1, 1, norm, samples)
        last_weight = layers[-1].weight
        assert isinstance(last_weight, torch.Tensor)
        nn.init.zeros_(last_weight)  # the block starts as its shortcut
        self.inner = nn.Sequential(*layers)
        shortcut: list[nn.Module] = []
        if stride != 1:
            shortcut.append(AvgPool1d(stride, ceil_mode=True))
        if channels_in != channels_out:
            shortcut += _conv_norm(channels_in, channels_out, 1, 1, norm, samples)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> Tensor:
        return torch.relu(through(self.inner, x, n_samples) + through(self.shortcut, x, n_samples))


def _conv_norm(
    channels_in: int, channels_out: int, kernel: int, stride: int, norm: str, samples: int
) -> list[nn.Module]:
    conv = Conv1d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return [conv, build_norm(norm, channels_out, stride=samples)]
