"""s4d: a diagonal state-space network (S4D), causal or seeing both sides, for CPC and latent masked prediction.

A strided convolutional stem makes local tokens; each of a few blocks filters every channel in time by a kernel that is
as long as the recording, but has only N/2 complex modes per channel, and then mixes channels. No scan, no CUDA kernel:
the kernel has a closed form and is applied by FFT.

The layer is in s4d_layer.py. Block and stem are those of the S4 encoders that Strodthoff's group pretrains by CPC on
ECGs (stem of convolutions, 4 layers, H 512, dropout 0.2 tied over time, norm after the residual), with S4D in place of
S4; here the stem works on 250 Hz and is centred on samples.

Contract: (B, 12, T) mV at 500 Hz -> maps [first convolution, context], 4 and `stride` samples per cell, cell j centred
on sample j * stride. The stem looks 8 samples (stride 4) or 12 (stride 8) to both sides; with direction "forward" no
cell sees further ahead than that. With n_samples, tokens of cells beyond the signal are zero before every layer, so
that the backward kernels and stacks start from rest at the end of the signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.batch_norm import ChannelNorm, Norm, build_norm
from beatray.models.encoder import Encoder, Pooling, Stage, cells_of
from beatray.models.layout import Conv1d
from beatray.models.s4d_layer import S4D
from beatray.models.tiny import halve_rate

_DIRECTIONS: dict[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "both": ("forward", "backward"),
    "bidirectional": (),
}


@dataclass(frozen=True, slots=True)
class S4DSettings:
    """Settings of `s4d`."""

    norm: Norm = "global_batch"  # of the stem; "group" over the channels of each token alone, or it would see ahead
    pooling: Pooling = "mean_std"
    width: int = setting(512, "channels H of stem and blocks", at_least=1)
    layers: int = setting(4, "blocks of a stack", at_least=1)
    state: int = setting(16, "N: real state size of a channel, N/2 complex modes; even", at_least=2)
    stride: int = setting(4, "samples per token: 4 (8 ms) or 8 (16 ms)", choices=(4, 8))
    direction: Literal["forward", "both", "bidirectional"] = setting(
        "forward", "forward: a causal stack; both: a second one on reversed time; bidirectional: two-sided kernels"
    )
    init: Literal["lin", "inv"] = setting("lin", "frequencies of the modes: S4D-Lin or S4D-Inv")
    dropout: float = setting(0.2, "of whole channels of a record", at_least=0, below=1)
    pre_norm: bool = setting(False, "norm before a block, and once at the end, instead of after each residual")
    dt_min: float = setting(1e-3, "shortest step at the start, in tokens", above=0)
    dt_max: float = setting(1e-1, "longest step at the start, in tokens", above=0)

    def __post_init__(self) -> None:
        check(self)
        if self.state % 2:
            raise ValueError(f"state must be even, not {self.state}")
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min must be at most dt_max, not {self.dt_min:g} and {self.dt_max:g}")


class S4DEncoder(Encoder):
    """Convolutional stem and one or two stacks of S4D blocks; a `TokenEncoder`."""

    Settings = S4DSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"s4d": {}}
    side_by_side = ("stacks",)
    drops_tokens: bool = False

    def __init__(self, settings: S4DSettings) -> None:
        width, stride, norm = settings.width, settings.stride, settings.norm
        directions = _DIRECTIONS[settings.direction]
        stacks = max(1, len(directions))
        super().__init__(settings, [Stage(width, 4), Stage(stacks * width, stride)])
        self.token_stage, self.directions = Stage(width, stride), directions
        self.first = nn.Sequential(
            Conv1d(12, width, 7, 2, 3, bias=False), build_norm(norm, width, per_step=True), nn.ReLU()
        )
        further: list[nn.Module] = []
        # stride 8: one more strided convolution; stride 4: three of kernel 1, as in the published stem
        for kernel, step in [(3, 2)] if stride == 8 else [(1, 1)] * 3:
            conv = Conv1d(width, width, kernel, step, kernel // 2, bias=False)
            further += [conv, build_norm(norm, width, per_step=True), nn.ReLU()]
        self.further = nn.Sequential(*further)
        self.stacks = nn.ModuleList(_Stack(settings) for _ in range(stacks))

    def rescale_rate(self, factor: float) -> None:
        """Fit every kernel to tokens of another rate: see `S4D.rescale_rate`. The stem knows only its own rate."""
        for module in self.modules():
            if isinstance(module, S4D):
                module.rescale_rate(factor)

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Output of the stem, (B, 12, T) mV -> (B, T', width); zero beyond the signal when n_samples is given."""
        tokens_bct = self._stem(x_mv)[1]
        return _keep_valid(tokens_bct, self._valid(tokens_bct, n_samples)).transpose(1, 2)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, T', width) -> (B, T', channels). ValueError with `keep`: time steps cannot be left out of a filter."""
        if keep is not None:
            raise ValueError("s4d cannot leave tokens out: its layers filter over evenly spaced time steps")
        there = None if valid is None else valid[:, None, :]
        return self._context(tokens.transpose(1, 2), there).transpose(1, 2)

    def encode_layers(self, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """What each layer makes of the tokens, (B, T', channels), first to last; the last is what `encode` gives.

        With pre_norm each goes through the last norm: what lies between such layers has no scale of its own.
        """
        there = None if valid is None else valid[:, None, :]
        return [_joined(*layer).transpose(1, 2) for layer in self._layers(tokens.transpose(1, 2), there)]

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps of the first convolution, (B, width, T / 4), and of the context, (B, channels, T')."""
        first, tokens_bct = self._stem(x_mv)
        return [first, self._context(tokens_bct, self._valid(tokens_bct, n_samples))]

    def _stem(self, x_mv: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(halve_rate(self.lead_scale(x_mv)))
        return first, self.further(first)

    def _valid(self, tokens_bct: Tensor, n_samples: Tensor | None) -> Tensor | None:
        """(B, 1, T') bool: the cells that stand for a sample of the signal."""
        if n_samples is None:
            return None
        positions = torch.arange(tokens_bct.shape[-1], device=tokens_bct.device)
        cells = cells_of(n_samples.to(tokens_bct.device), self.token_stage, tokens_bct.shape[-1])
        return (positions < cells[:, None])[:, None]

    def _context(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, width, T') -> (B, channels, T'), both halves in the time order of the input."""
        return _joined(*self._layers(x, valid)[-1])

    def _layers(self, x: Tensor, valid: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Of each layer the output (B, width, T') of each stack; the second reads, and gives, reversed time."""
        ahead = self.stacks[0](x, valid)
        if len(self.stacks) == 1:
            return [(output,) for output in ahead]
        behind = self.stacks[1](x.flip(-1), None if valid is None else valid.flip(-1))
        return list(zip(ahead, behind, strict=True))


def _joined(ahead: Tensor, *behind: Tensor) -> Tensor:
    return torch.cat([ahead, *(half.flip(-1) for half in behind)], dim=1) if behind else ahead


class _Stack(nn.Module):
    def __init__(self, settings: S4DSettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(S4Block(settings) for _ in range(settings.layers))
        self.final_norm = ChannelNorm(settings.width) if settings.pre_norm else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None) -> list[Tensor]:
        outputs = []
        for block in self.blocks:
            x = block(x, valid)
            outputs.append(self.final_norm(x))
        return outputs


class S4Block(nn.Module):
    """S4D, GELU, dropout, channel mixing through a GLU, dropout; added to the input; norm after it, or before S4D."""

    def __init__(self, settings: S4DSettings) -> None:
        super().__init__()
        width = settings.width
        self.pre_norm = settings.pre_norm
        self.norm = ChannelNorm(width)
        self.s4d = S4D(
            width,
            settings.state,
            two_sided=settings.direction == "bidirectional",
            init=settings.init,
            dt_min=settings.dt_min,
            dt_max=settings.dt_max,
            stride=settings.stride,
        )
        self.mix = Conv1d(width, 2 * width, 1)
        self.dropout = nn.Dropout1d(settings.dropout)  # of whole channels: the filter would fill in single steps

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, H, L) -> (B, H, L); cells outside `valid` (B, 1, L) enter as zero and hold nothing of worth."""
        inner = _keep_valid(self.norm(x) if self.pre_norm else x, valid)
        inner = self.dropout(functional.gelu(self.s4d(inner)))
        out: Tensor = x + self.dropout(functional.glu(self.mix(inner), dim=1))
        return out if self.pre_norm else self.norm(out)


def _keep_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else x.masked_fill(~valid, 0.0)
