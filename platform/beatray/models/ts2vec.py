"""ts2vec: dilated convolutions that give every moment a vector of what lies around it.

The encoder of Yue et al., "TS2Vec: Towards Universal Representation of Time Series" (AAAI 2022, section 3.2): a linear
layer on the leads of each time step, then residual blocks of two convolutions of kernel 3 with GELU before each, the
dilation doubling from block to block, no norm layers, and dropout on the output. Ten blocks of 64 channels and a last
one to 320 see 1 + 2 * 2 * (2^11 - 1) = 8,189 time steps. A difference: TS2Vec takes z-scored series at their own rate;
here leads are divided by fixed standard deviations (`lead_scale`; an amplitude of its own is diagnostic), and a
binomial filter halves the rate until a step is `stride` samples.

Contract: (B, 12, T) mV at 500 Hz -> maps [linear layer, output]; the output has `stride` samples per cell, the first
map the same or 4 (the same linear layer, on the signal at that rate: for decoders). Cell j is centred on sample
j * stride. A cell sees both sides. With n_samples, cells beyond the signal are zero before every convolution, so that
a short recording ends as one does at the end of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Pooling, Stage, at_least_float32, check_odd, valid_cells
from beatray.models.layout import Conv1d, fill
from beatray.models.tiny import halve_rate

_FINE_STRIDE = 4
"""Of the first map where the output is coarser: 8 ms are enough to place the boundary of a wave."""


@dataclass(frozen=True, slots=True)
class TS2VecEncoderSettings:
    """Settings of `ts2vec`."""

    pooling: Pooling = setting("mean_max", "published: the maximum over time")
    width: int = setting(64, "channels of the blocks", at_least=1)
    out_width: int = setting(320, "channels of the output", at_least=1)
    blocks: int = setting(10, "residual blocks before the last, with dilations 1, 2, 4, ...", at_least=0)
    kernel: int = setting(3, "of every convolution; odd", at_least=1)
    stride: int = setting(2, "samples per time step: 2 (250 Hz), 4 (125 Hz) or 8 (62.5 Hz)", choices=(2, 4, 8))
    dropout: float = setting(0.1, "of the output", at_least=0, below=1)

    def __post_init__(self) -> None:
        check(self)
        check_odd(self, "kernel")


class TS2VecEncoder(Encoder):
    """Linear layer and dilated residual blocks; a `TokenEncoder` that sees both sides."""

    Settings = TS2VecEncoderSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"ts2vec": {}}
    directions: tuple[str, ...] = ()
    drops_tokens: bool = False

    def __init__(self, settings: TS2VecEncoderSettings) -> None:
        width, stride = settings.width, settings.stride
        super().__init__(settings, [Stage(width, min(stride, _FINE_STRIDE)), Stage(settings.out_width, stride)])
        self.token_stage = Stage(width, stride)
        self.enter = nn.Linear(12, width)
        self.blocks = nn.ModuleList(
            DilatedBlock(width, width, settings.kernel, 2**number) for number in range(settings.blocks)
        )
        self.blocks.append(DilatedBlock(width, settings.out_width, settings.kernel, 2**settings.blocks, last=True))
        self.dropout = nn.Dropout(settings.dropout)

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """The linear layer, (B, 12, T) mV -> (B, T', width); zero beyond the signal when n_samples is given."""
        found = self._enter(self._at_stride(self.lead_scale(x_mv), 1, self.stride))
        valid = self._valid(found, n_samples)
        return found if valid is None else found.masked_fill(~valid[..., None], 0.0)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, T', width) -> (B, T', out_width). ValueError with `keep`: a convolution needs evenly spaced steps."""
        if keep is not None:
            raise ValueError("ts2vec cannot leave tokens out: its convolutions are over evenly spaced time steps")
        return self._context(tokens, valid).transpose(1, 2)

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps of the linear layer, (B, width, T / 4 or finer), and of the blocks, (B, out_width, T')."""
        fine_stride = self.stages[0].stride
        fine = self._at_stride(self.lead_scale(x_mv), 1, fine_stride)
        first = self._enter(fine)
        tokens = first
        if fine_stride < self.stride:
            tokens = self._enter(self._at_stride(fine, fine_stride, self.stride))
        return [first.transpose(1, 2), self._context(tokens, self._valid(tokens, n_samples))]

    @staticmethod
    def _at_stride(x: Tensor, now: int, target: int) -> Tensor:
        while now < target:
            x, now = halve_rate(x), 2 * now
        return x

    def _enter(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.enter(x.transpose(1, 2))
        # float32 inside autocast too, and with it the sum over blocks that no norm keeps in bounds
        return at_least_float32(tokens)

    def _valid(self, tokens: Tensor, n_samples: Tensor | None) -> Tensor | None:
        if n_samples is None:
            return None
        return valid_cells(n_samples.to(tokens.device), self.token_stage, tokens.shape[1])

    def _context(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T', width), (B, T') bool -> (B, out_width, T')."""
        beyond = None if valid is None else ~valid[:, None]
        x = _cut(tokens.transpose(1, 2), beyond)
        for block in self.blocks:
            x = block(x, beyond)
        out: Tensor = self.dropout(x)
        return out


class DilatedBlock(nn.Module):
    """x + conv(GELU(conv(GELU(x)))), both of one dilation; in the last block x goes through a kernel of 1."""

    def __init__(self, width_in: int, width_out: int, kernel: int, dilation: int, *, last: bool = False) -> None:
        super().__init__()
        reach = dilation * (kernel // 2)
        self.conv_1 = Conv1d(width_in, width_out, kernel, padding=reach, dilation=dilation)
        self.conv_2 = Conv1d(width_out, width_out, kernel, padding=reach, dilation=dilation)
        self.project = Conv1d(width_in, width_out, 1) if last else nn.Identity()

    def forward(self, x: Tensor, beyond: Tensor | None) -> Tensor:
        """(B, C, T') -> (B, C', T'), zero where `beyond` (B, 1, T') is true, as x is there."""
        inner = _cut(self.conv_1(functional.gelu(x)), beyond)
        inner = self.conv_2(functional.gelu(inner))
        return _cut(self.project(x).to(x.dtype) + inner, beyond)


def _cut(x: Tensor, beyond: Tensor | None) -> Tensor:
    return x if beyond is None else fill(x, beyond, 0.0)
