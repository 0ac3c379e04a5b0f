"""wav2vec: short convolutions make tokens, a transformer reads them; the network of wav2vec 2.0 as ECG-FM uses it.

Baevski et al., "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations" (NeurIPS 2020,
sections 2 and 4.2), with the sizes of ECG-FM (McKeen et al., arXiv:2408.05178): four convolutions of 256 channels,
kernel 2, stride 2, GELU, the first with a norm of every channel over time; layer norm and a linear map to 768;
positions from a convolution over 128 tokens in 16 groups with weight normalisation (Salimans and Kingma, NIPS 2016);
twelve blocks of 12 heads and 3,072 hidden units, norm after each residual. `tokens` gives the features before the layer
norm, `encode` does the rest, so that a method may mask between the two.

Contract: (B, 12, T) mV at 500 Hz -> maps finest first: the convolutions at strides 4 and above, the last one left out,
and the context. A convolution of kernel and stride 2 has no middle sample: after n of them cell j holds 2^n steps and
stands for j 2^n + (2^n - 1) / 2. With `half_rate` the steps are those of 250 Hz (tiny.halve_rate). An odd length is
filled up with one zero before each convolution. With n_samples, samples beyond it are zero, the norm over time counts
the cells of the signal alone, and tokens beyond it are zero for the positions and no key of the attention: a padded
recording gives what it gives alone with its n_samples. Without n_samples every cell counts: a last one that is partly
filled too, which n_samples leave out where its middle lies beyond the signal (of 10 s with half_rate, token 157).

Differences: layers are never dropped (the released settings drop none either); a norm over time counts no padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Pooling, Stage, at_least_float32, cells_of, valid_cells
from beatray.models.layout import Conv1d, pad
from beatray.models.tiny import halve_rate

_INIT_STD = 0.02
_FINEST = 4  # samples per cell: finer maps are large and hold little


@dataclass(frozen=True, slots=True)
class Wav2VecSettings:
    """Settings of `wav2vec`; the defaults are those of ECG-FM."""

    pooling: Pooling = "mean"
    convs: int = setting(4, "convolutions of kernel and stride 2", at_least=1)
    conv_channels: int = setting(256, "of each convolution", at_least=1)
    half_rate: bool = setting(False, "work on 250 Hz: half as many tokens")
    width: int = setting(768, "of a token in the transformer; a multiple of heads and position_groups", at_least=1)
    depth: int = setting(12, "blocks", at_least=1)
    heads: int = setting(12, "of the attention", at_least=1)
    hidden: int = setting(3072, "of the MLP in a block", at_least=1)
    position_kernel: int = setting(128, "tokens that the convolution for positions sees", at_least=1)
    position_groups: int = setting(16, "of that convolution", at_least=1)
    dropout: float = setting(0.1, "of the input and of attention and MLP", at_least=0, below=1)

    def __post_init__(self) -> None:
        check(self)
        if self.width % self.heads or self.width % self.position_groups:
            raise ValueError(
                f"width must be a multiple of heads and of position_groups, not {self.width} with {self.heads} and "
                f"{self.position_groups}"
            )


class Wav2Vec(Encoder):
    """Convolutions, positions, blocks; a `TokenEncoder` that sees both sides."""

    Settings = Wav2VecSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"wav2vec": {}}
    acts_after: ClassVar[dict[str, str]] = {"conv_norm": "convs.0"}
    directions: tuple[str, ...] = ()
    drops_tokens: bool = False

    def __init__(self, settings: Wav2VecSettings) -> None:
        s, step = settings, 2 if settings.half_rate else 1
        after = [Stage(s.conv_channels, step * 2**n, step * (2**n - 1) / 2) for n in range(1, s.convs + 1)]
        kept = [stage for stage in after[:-1] if stage.stride >= _FINEST]
        super().__init__(s, [*kept, Stage(s.width, after[-1].stride, after[-1].offset)])
        self.token_stage, self._first_stage, self._kept = after[-1], after[0], len(kept)
        self.half_rate = s.half_rate
        inputs = [12] + [s.conv_channels] * (s.convs - 1)
        self.convs = nn.ModuleList(Conv1d(width, s.conv_channels, 2, 2, bias=False) for width in inputs)
        self.conv_norm = TimeNorm(s.conv_channels)
        self.token_norm = nn.LayerNorm(s.conv_channels)
        self.enter = nn.Linear(s.conv_channels, s.width)
        self.positions = PositionalConv(s.width, s.position_kernel, s.position_groups, s.dropout)
        self.norm = nn.LayerNorm(s.width)
        self.blocks = nn.ModuleList(PostNormBlock(s) for _ in range(s.depth))
        self.dropout = nn.Dropout(s.dropout)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Features of the last convolution, (B, 12, T) mV -> (B, T', conv_channels)."""
        return at_least_float32(self._convolve(x_mv, n_samples)[-1]).transpose(1, 2)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, T', conv_channels) -> (B, T', width). ValueError with `keep`: positions are found among neighbours."""
        if keep is not None:
            raise ValueError("wav2vec cannot leave tokens out: a convolution over all of them encodes their positions")
        x = self.dropout(self.enter(self.token_norm(tokens)))
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        x = self.dropout(self.norm(x + self.positions(x)))
        context: Tensor = x
        mask = None if valid is None else valid[:, None, None]
        for block in self.blocks:
            context = block(context, mask)
        return context

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps of the convolutions that `stages` names, and of the context."""
        maps = self._convolve(x_mv, n_samples)
        tokens = at_least_float32(maps[-1]).transpose(1, 2)
        context = self.encode(tokens, valid=None if n_samples is None else self._valid(tokens, n_samples))
        return [*maps[len(maps) - 1 - self._kept : -1], context.transpose(1, 2)]

    def _convolve(self, x_mv: Tensor, n_samples: Tensor | None) -> list[Tensor]:
        """The map of every convolution; zero where no sample of the signal is."""
        if n_samples is not None:
            n_samples = n_samples.to(x_mv.device)
            x_mv = _silent_after(x_mv, n_samples)
        x = self.lead_scale(x_mv)
        if self.half_rate:
            x = halve_rate(x)
            if n_samples is not None:  # the filter carries the last samples one step on
                x = _silent_after(x, (n_samples + 1) // 2)
        maps: list[Tensor] = []
        for conv in self.convs:
            x = conv(pad(x, 0, 1))  # of an even length the convolution leaves the zero out again
            if not maps:
                there = None if n_samples is None else valid_cells(n_samples, self._first_stage, x.shape[-1])
                x = self.conv_norm(x, there)
            x = functional.gelu(x)
            maps.append(x)
        return maps

    def _valid(self, tokens: Tensor, n_samples: Tensor) -> Tensor | None:
        """(B, T') bool: the tokens that hold signal; None where all are known to, for attention is faster without.

        Only n_samples on the CPU are looked at: elsewhere the answer would have to be waited for.
        """
        cells = cells_of(n_samples, self.token_stage, tokens.shape[1])
        if cells.device.type == "cpu" and bool((cells == tokens.shape[1]).all()):
            return None
        return torch.arange(tokens.shape[1], device=tokens.device) < cells.to(tokens.device)[:, None]


def _silent_after(x: Tensor, steps: Tensor) -> Tensor:
    """x (B, C, T) with zeros after the first `steps` (B,) of each record."""
    return x.masked_fill((torch.arange(x.shape[-1], device=x.device) >= steps[:, None])[:, None], 0.0)


class TimeNorm(nn.Module):
    """(x - mean) / SD of every channel of a record over time, then a gain and a bias: a group norm of one channel each.

    (B, C, T) -> the same in float32 or float64. With valid (B, T) bool the others count in nothing and become zero.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = at_least_float32(x)
        gain, bias = self.weight[:, None], self.bias[:, None]
        if valid is None:
            centred = x - x.mean(-1, keepdim=True)
            return centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt() * gain + bias
        there = valid[:, None].to(x.dtype)
        share = there / there.sum(-1, keepdim=True)
        centred = (x - (x * share).sum(-1, keepdim=True)) * there
        return (centred * ((centred.square() * share).sum(-1, keepdim=True) + self.eps).rsqrt() * gain + bias) * there


class PositionalConv(nn.Module):
    """The position of a token from its neighbours: a grouped convolution over time and GELU, (B, T', D) -> the same.

    With kernel K token t sees tokens t - K // 2 to t + (K - 1) // 2. Weight w = gain_k v_k / |v_k| for each tap k.
    In float32 (float64 stays), outside autocast: oneDNN (torch 2.13, on a CPU with AMX) gives wrong sums for some
    grouped convolutions of bfloat16, of 8 channels to a group and 16 taps for one.
    """

    def __init__(self, width: int, kernel: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.groups, self.around = groups, (kernel // 2, (kernel - 1) // 2)
        self.direction = nn.Parameter(torch.empty(width, width // groups, kernel))
        nn.init.normal_(self.direction, std=math.sqrt(4.0 * (1.0 - dropout) / (kernel * width)))
        self.gain = nn.Parameter(self._lengths().detach().clone())
        self.gain.no_decay = True  # type: ignore[attr-defined]
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.direction * (self.gain / self._lengths())
            padded = functional.pad(at_least_float32(x).transpose(1, 2), self.around)
            return functional.gelu(functional.conv1d(padded, weight, self.bias, groups=self.groups)).transpose(1, 2)

    def _lengths(self) -> Tensor:
        return self.direction.square().sum((0, 1), keepdim=True).sqrt()


class PostNormBlock(nn.Module):
    """x = norm(x + attention(x)), then x = norm(x + MLP(x)), with GELU; dropout of the attention and what is added."""

    def __init__(self, settings: Wav2VecSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_1 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, settings.hidden)
        self.narrow = nn.Linear(settings.hidden, width)
        self.norm_2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        for layer in (self.queries_keys_values, self.attended, self.wide, self.narrow):
            nn.init.normal_(layer.weight, std=_INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T', D) -> (B, T', D); mask (B, 1, 1, T') bool is true for keys that may be looked at."""
        parts = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        dropped = self.dropout.p if self.training else 0.0
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropped)
        x = self.norm_1(x + self.dropout(self.attended(found.transpose(1, 2).flatten(2))))
        out: Tensor = self.norm_2(x + self.dropout(self.narrow(functional.gelu(self.wide(x)))))
        return out
