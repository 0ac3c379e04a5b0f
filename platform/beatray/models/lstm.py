"""lstm: pointwise convolutions and an LSTM at 100 Hz, the network in which CPC first paid off on 12-lead ECGs.

"4FC+2LSTM" of Mehari and Strodthoff, "Self-supervised representation learning from 12-lead ECG data" (Comput. Biol.
Med. 2022): four layers [convolution of kernel 1, norm, ReLU] of 512 channels on every time step of a 100 Hz signal,
then two LSTM layers of 512. Here 500 Hz is averaged over blocks of 5 samples. The paper pools the concatenation of
mean, maximum and last state; that is pooling "mean_max" with `pool_last`, off by default.

Contract: (B, 12, T) mV at 500 Hz -> maps [tokens, context] with `decimation` samples per cell; cell j is a block of
samples and stands for the one in its middle, so the offset is (decimation - 1) / 2. A block that T cuts short is
averaged over the samples that it has. With direction "forward", cell j has seen no sample after its own block. "both"
adds a second LSTM on reversed time; given n_samples, only the valid cells are reversed, so that it starts at the end of
the signal as if nothing followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from beatray.fields import check, setting
from beatray.models.batch_norm import Norm, build_norm
from beatray.models.encoder import Encoder, Pooling, Stage, cells_of, check_odd, pooled_width
from beatray.models.layout import Conv1d


@dataclass(frozen=True, slots=True)
class LSTMSettings:
    """Settings of `lstm`."""

    norm: Norm = "global_batch"  # "group" over the channels of each step alone, or it would see ahead
    pooling: Pooling = "mean_max"
    pool_last: bool = setting(False, "append the last state to the pooled vector, as published")
    width: int = setting(512, "channels of all layers", at_least=1)
    fc_layers: int = setting(4, "pointwise layers before the LSTM", at_least=1)
    layers: int = setting(2, "of the LSTM", at_least=1)
    decimation: int = setting(5, "samples of 500 Hz averaged to one step; odd", at_least=1)
    direction: Literal["forward", "both"] = setting("forward", "both: a second LSTM on reversed time")

    def __post_init__(self) -> None:
        check(self)
        check_odd(self, "decimation")


class LSTMEncoder(Encoder):
    """Block averages, pointwise layers, one or two LSTMs; a `TokenEncoder`."""

    Settings = LSTMSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"lstm": {}}
    side_by_side = ("recurrences",)
    drops_tokens: bool = False

    def __init__(self, settings: LSTMSettings) -> None:
        width = settings.width
        directions = ("forward",) if settings.direction == "forward" else ("forward", "backward")
        stage = Stage(width, settings.decimation, (settings.decimation - 1) / 2)
        channels = width * len(directions)
        embed_dim = pooled_width(settings.pooling, channels) + (channels if settings.pool_last else 0)
        super().__init__(settings, [stage, Stage(channels, stage.stride, stage.offset)], embed_dim)
        self.token_stage, self.directions = stage, directions
        layers: list[nn.Module] = []
        for number in range(settings.fc_layers):
            conv = Conv1d(width if number else 12, width, 1, bias=False)
            layers += [conv, build_norm(settings.norm, width, per_step=True), nn.ReLU()]
        self.pointwise = nn.Sequential(*layers)
        self.recurrences = nn.ModuleList(_Recurrence(width, settings.layers) for _ in directions)

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Pointwise layers, (B, 12, T) mV -> (B, T', width); zero beyond the signal when n_samples is given."""
        tokens = self._pointwise(x_mv).transpose(1, 2)
        if n_samples is None:
            return tokens
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return tokens.masked_fill((positions >= self._cells(tokens, n_samples)[:, None])[..., None], 0.0)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, T', width) -> (B, T', channels). ValueError with `keep`: an LSTM counts time by its steps."""
        if keep is not None:
            raise ValueError("lstm cannot leave tokens out: its state advances by evenly spaced time steps")
        return self._context(tokens, None if valid is None else valid.sum(1))

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Maps of the pointwise layers, (B, width, T'), and of the context, (B, channels, T')."""
        fine = self._pointwise(x_mv)
        tokens = fine.transpose(1, 2)
        cells = None if n_samples is None else self._cells(tokens, n_samples)
        return [fine, self._context(tokens, cells).transpose(1, 2)]

    def pool(self, fmap: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """As `Encoder.pool`; with `pool_last` also the last valid state, and of a backward LSTM the first cell."""
        pooled = super().pool(fmap, n_samples)
        if not self.settings.pool_last:
            return pooled
        if n_samples is None:
            last = fmap[..., -1]
        else:
            cells = self._cells(fmap.transpose(1, 2), n_samples)
            last = fmap.gather(2, (cells - 1)[:, None, None].expand(-1, fmap.shape[1], 1))[..., 0]
        width = self.token_stage.channels
        last = torch.cat([last[:, :width], fmap[:, width:, 0]], dim=1)
        return torch.cat([pooled, last.to(pooled.dtype)], dim=1)

    def _pointwise(self, x_mv: Tensor) -> Tensor:
        out: Tensor = self.pointwise(block_means(self.lead_scale(x_mv), self.token_stage.stride))
        return out

    def _cells(self, tokens: Tensor, n_samples: Tensor) -> Tensor:
        return cells_of(n_samples.to(tokens.device), self.token_stage, tokens.shape[1])

    def _context(self, tokens: Tensor, cells: Tensor | None) -> Tensor:
        """(B, T', width), valid cells (B,) -> (B, T', channels), both halves in the time order of the input."""
        out: Tensor = self.recurrences[0](tokens)
        if len(self.recurrences) == 2:
            behind = _reverse(self.recurrences[1](_reverse(tokens, cells)), cells)
            out = torch.cat([out, behind], dim=-1)
        return out


class _Recurrence(nn.Module):
    """LSTM layers, (B, T', D) -> states of the last (B, T', D)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[0] == 0:
            # cuDNN refuses an empty batch; the weights stay in the graph, for ranks reduce every gradient
            return tokens * torch.stack([parameter.sum() for parameter in self.lstm.parameters()]).sum()
        states: Tensor = self.lstm(tokens)[0]
        return states

    def exported_form(self, n_samples: int) -> nn.Module:
        """What export/programs.py puts in place of this layer; it takes any length."""
        return _ScannedLSTM(self.lstm)


class _ScannedLSTM(nn.Module):
    """The same as torch's scan over time, which stays one node: exporters unroll nn.LSTM into every one of its steps.

    Equations of the documentation of torch.nn.LSTM. `scan` is a prototype of torch without a public name; it becomes
    the Scan operator in ONNX (torch 2.13).
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, tokens: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        x = tokens
        for weight_ih, weight_hh, bias_ih, bias_hh in self.lstm.all_weights:

            def step(
                state: tuple[Tensor, Tensor], driven: Tensor, weight_hh: Tensor = weight_hh
            ) -> tuple[tuple[Tensor, Tensor], Tensor]:
                hidden, cell = state
                put, forget, value, show = functional.linear(hidden, weight_hh, None).add(driven).chunk(4, dim=-1)
                cell = forget.sigmoid() * cell + put.sigmoid() * value.tanh()
                hidden = show.sigmoid() * cell.tanh()
                return (hidden, cell), hidden.clone()  # scan allows no output that is also a state

            rest = x.new_zeros(x.shape[0], self.lstm.hidden_size)
            driven = functional.linear(x, weight_ih, bias_ih + bias_hh)
            x = scan(step, (rest, rest.clone()), driven.transpose(0, 1))[1].transpose(0, 1)
        return x


def block_means(x: Tensor, size: int) -> Tensor:
    """Means of blocks of `size` samples, the last over what there is of it: (B, C, T) -> (B, C, ceil(T / size))."""
    length = x.shape[-1]
    blocks = (length + size - 1) // size
    sums = functional.pad(x, (0, blocks * size - length)).unflatten(-1, (blocks, size)).sum(-1)
    held = (length - size * torch.arange(blocks, device=x.device)).clamp(max=size)
    means: Tensor = sums / held.to(x.dtype)
    return means


def _reverse(tokens: Tensor, cells: Tensor | None) -> Tensor:
    """The first `cells` (B,) tokens of each record in reverse, the others where they are; all, where None."""
    if cells is None:
        return tokens.flip(1)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    mirrored = cells[:, None] - 1 - positions
    source = torch.where(mirrored >= 0, mirrored, positions)
    return tokens.gather(1, source[..., None].expand_as(tokens))
