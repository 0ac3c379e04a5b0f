"""temporal_net: each lead a sequence of its own, through one small network with a short and a long kernel.

The network of Dade et al., "Robust ECG-based cardiac classification" (Heart Rhythm O2 2026), for contrast between
leads: a convolution of 7 samples, norm, ReLU and max-pooling by 4; two towers of residual blocks side by side, one of
kernel 3, one of kernel 7; both outputs joined, a convolution of kernel 3, norm, dropout, ReLU; the mean over time. The
eight independent leads share all weights, so that the number of parameters does not depend on the number of leads; the
map of a recording is the mean over leads of their maps. With two `streams` there is a network for I, II, V5 and V6 and
another for V1 to V4: the mean over the leads of each, then over both.

In this implementation leads come in the encoder's scale; the pooling spans 5 samples, so that it is centred. For small
machines and coarser maps `stem_stride` 2 leaves half of the stem's work out, and `block_stride` 2 halves the rate in
the first convolution of every block.

Contract: (B, 12, T) mV -> maps finest first, the stem at stride 4 and, with block_stride 2, every block but the last at
8, 16, ..., then the output; with block_stride 1 stem and output are both at stride 4. Kernels are odd and same-padded:
cell j of stride s is centred on sample j * s. With pooling `mean` the embedding is the mean of those of the leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from beatray.fields import check, setting
from beatray.models.batch_norm import Norm, build_norm, through
from beatray.models.encoder import Encoder, Pooling, Stage, lead_rows, pool_over_time
from beatray.models.layout import Conv1d, MaxPool1d, cat
from beatray.record import INDEPENDENT_LEADS

_STEM_KERNEL, _STEM_STRIDE = 7, 4

GROUPS: dict[int, tuple[tuple[int, ...], ...]] = {1: (tuple(range(8)),), 2: ((0, 1, 6, 7), (2, 3, 4, 5))}
"""Streams: the positions in I, II, V1..V6 of the leads of each."""


@dataclass(frozen=True, slots=True)
class TemporalNetSettings:
    """Settings of `temporal_net`."""

    norm: Norm = "global_batch"
    pooling: Pooling = "mean"
    stem: int = setting(32, "channels of the first convolution", at_least=1)
    stem_stride: int = setting(1, "of the first convolution; 2: half of its work, then pooled by 2", choices=(1, 2))
    widths: tuple[int, ...] = setting((64, 128, 256, 256), "of the blocks of a tower", at_least=1, not_empty=True)
    kernels: tuple[int, int] = setting((3, 7), "of the two towers; odd", at_least=1)
    block_stride: int = setting(1, "of the first convolution of a block; 2: half the rate", choices=(1, 2))
    dropout: float = setting(0.5, "of blocks and output", at_least=0.0, below=1.0)
    streams: int = setting(1, "2: a network for I, II, V5, V6 and another for V1 to V4", choices=tuple(GROUPS))

    def __post_init__(self) -> None:
        check(self)
        if not all(kernel % 2 for kernel in self.kernels):
            raise ValueError(f"kernels must be odd, not {self.kernels}")


class TemporalNet(Encoder):
    """One network for all leads, or one for each of two groups; a `LeadEncoder`."""

    Settings = TemporalNetSettings
    names: ClassVar[dict[str, dict[str, Any]]] = {"temporal_net": {}}
    side_by_side = ("streams",)
    leads = INDEPENDENT_LEADS

    def __init__(self, settings: TemporalNetSettings) -> None:
        out = Stage(2 * settings.widths[-1], _STEM_STRIDE * settings.block_stride ** len(settings.widths))
        stages = [Stage(settings.stem, _STEM_STRIDE)]
        if settings.block_stride > 1:
            stages += [Stage(2 * w, _STEM_STRIDE << number) for number, w in enumerate(settings.widths[:-1], 1)]
        super().__init__(settings, [*stages, out])
        self.lead_dim = self.embed_dim
        self.lead_groups = GROUPS[settings.streams]
        self.streams = nn.ModuleList(LeadNet(settings) for _ in self.lead_groups)

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        """Means over leads of the maps of each lead."""
        of_streams = [[fmap.mean(1) for fmap in maps] for maps in self._lead_maps(x_mv, n_samples)]
        return [torch.stack(same_scale).mean(0) for same_scale in zip(*of_streams, strict=True)]

    def forward_leads(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """(B, 12, T) mV -> (B, 8, lead_dim), the pooled map of each of `leads`."""
        pooled = []
        for maps in self._lead_maps(x_mv, n_samples):
            records, leads = maps[-1].shape[:2]
            valid = None if n_samples is None else n_samples.repeat_interleave(leads)
            flat = pool_over_time(maps[-1].flatten(0, 1), self.pooling, self.stages[-1], valid)
            pooled.append(flat.view(records, leads, self.lead_dim))
        where = {lead: position for position, lead in enumerate(lead for group in self.lead_groups for lead in group)}
        return lead_rows(torch.cat(pooled, 1), [where[lead] for lead in sorted(where)])

    def _lead_maps(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[list[Tensor]]:
        """For each stream the maps (B, leads, C, T') of its leads, finest first."""
        x = self.lead_scale(x_mv)
        found = []
        for group, stream in zip(self.lead_groups, self.streams, strict=True):
            # all leads are one batch, so that they share the statistics of the norms as they share the weights
            rows = lead_rows(x, [self.leads[lead] for lead in group]).flatten(0, 1)[:, None]
            valid = None if n_samples is None else n_samples.repeat_interleave(len(group))
            found.append([fmap.unflatten(0, (-1, len(group))) for fmap in stream(rows, valid)])
        return found


class LeadNet(nn.Module):
    """One lead (N, 1, T) to its maps: the stem, the output of both towers at each coarser scale, the output."""

    side_by_side = ("towers",)

    def __init__(self, settings: TemporalNetSettings) -> None:
        super().__init__()
        norm, out = settings.norm, 2 * settings.widths[-1]
        strides = [_STEM_STRIDE * settings.block_stride**number for number in range(1, len(settings.widths) + 1)]
        self.every_scale = settings.block_stride > 1
        self.stem = Conv1d(1, settings.stem, _STEM_KERNEL, settings.stem_stride, _STEM_KERNEL // 2, bias=False)
        self.stem_norm = build_norm(norm, settings.stem, stride=settings.stem_stride)
        pooled = _STEM_STRIDE // settings.stem_stride
        self.pool = MaxPool1d(pooled + 1, pooled, padding=pooled // 2)
        self.towers = nn.ModuleList(
            nn.ModuleList(
                TemporalBlock(before, width, kernel, settings, samples)
                for before, width, samples in zip(
                    (settings.stem, *settings.widths[:-1]), settings.widths, strides, strict=True
                )
            )
            for kernel in settings.kernels
        )
        self.join = Conv1d(out, out, 3, padding=1, bias=False)
        self.join_norm = build_norm(norm, out, stride=strides[-1])
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        stem = through((self.stem, self.stem_norm, self.pool), x, n_samples)
        stem = torch.relu(stem)  # the same as pooling last, on a quarter
        maps, towers = [stem], [stem, stem]
        for blocks in zip(*self.towers, strict=True):  # type: ignore[call-overload]
            towers = [block(tower, n_samples) for block, tower in zip(blocks, towers, strict=True)]
            maps.append(cat(towers, 1))
        out = torch.relu(through((self.join, self.join_norm, self.dropout), maps[-1], n_samples))
        return [*(maps[:-1] if self.every_scale else maps[:1]), out]


class TemporalBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, dropout; added to the input, through a 1x1 convolution if shapes differ; ReLU.

    `samples` is how many of the encoder's input one cell of the result stands for.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, settings: TemporalNetSettings, samples: int
    ) -> None:
        super().__init__()
        norm, stride = settings.norm, settings.block_stride
        self.conv_1 = Conv1d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm_1 = build_norm(norm, channels_out, stride=samples)
        self.conv_2 = Conv1d(channels_out, channels_out, kernel, 1, kernel // 2, bias=False)
        self.norm_2 = build_norm(norm, channels_out, stride=samples)
        self.dropout = nn.Dropout(settings.dropout)
        self.project = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            shortcut = Conv1d(channels_in, channels_out, 1, stride, bias=False)
            self.project = nn.Sequential(shortcut, build_norm(norm, channels_out, stride=samples))

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> Tensor:
        inner = torch.relu(through((self.conv_1, self.norm_1), x, n_samples))
        inner = through((self.conv_2, self.norm_2, self.dropout), inner, n_samples)
        return torch.relu(inner + through(self.project, x, n_samples))
