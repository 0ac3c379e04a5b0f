"""TS2Vec: tell recordings apart at each moment, and moments apart in each recording, at all scales of time.

Yue et al., "TS2Vec: Towards Universal Representation of Time Series" (AAAI 2022). Two parts of a window overlap; after
the network's tokens each part loses a random half of its time steps (`mask_ratio`, section 3.3), and what the network
makes of the moments that both hold is contrasted, at their own scale and at all that max-pooling by 2 leads to (section
3.4). The loss is in ts2vec_loss.py:

    L = mean over levels of alpha * instance + (1 - alpha) * temporal.

`soft` is SoftCLT (Lee, Park and Lee, ICLR 2024): near recordings and near moments are positives too, with weights
2 soft_alpha sigmoid(-tau_instance d_ij), d from 0 to 1, and 2 sigmoid(-tau_temporal 2^level |t - t'|). A tau of 0 is
the hard term, as in the reference code. d_ij is the distance of the recordings' measured features
(soft_targets.soft_2), where the paper takes dynamic time warping. `instance/row_weight` and `temporal/row_weight` are
the sums of the weights of a row; the positive pair's is 1.

`average`: the network that others get is the equal average of the weights at the start and after every step, as in the
reference code (stochastic weight averaging); running statistics of batch norms are averaged with them.

Here the overlap's length and its position in the parts are drawn once an epoch (the reference: once a batch, on each
rank alone), the position of the parts in the window for each recording and epoch. In evaluation nothing is masked. The
parts of a short recording are put where the overlap holds signal, as far as the drawn positions leave room; of the
overlap only moments that are signal count, and a recording that has none of them counts in nothing in that epoch.

Contract: any network of tokens; moments are its cells. The outputs of all ranks are gathered with their gradient,
(B, T, D). The temporal term holds B (2T / 2^temporal_unit)^2 scores: raise `temporal_unit`, or take a coarser network
or a shorter window, where memory is short (see `MAX_MOMENTS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.crops import crop
from beatray.augment.draws import Draws
from beatray.augment.two_views import VIEWS, crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Stage, at_least_float32, cells_of, valid_cells
from beatray.objectives.contrast import unit_rows
from beatray.objectives.ema import Teacher
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_tokens
from beatray.objectives.reduce import embedding_std, gather_counts, gather_rows, global_mean, rank, sum_over_ranks
from beatray.objectives.soft_targets import Features, soft_2
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.ts2vec_loss import record_losses
from beatray.record import RATE_HZ, WINDOW_SAMPLES

MAX_MOMENTS = 3000
"""The longest series in the paper. At the finest level that contrasts moments, 2T x 2T scores of it take 144 MB a
record, and as much again for their gradient."""


@dataclass(frozen=True, slots=True)
class TS2VecSettings:
    """Settings of TS2Vec, and with `soft` of SoftCLT."""

    crop_seconds: float | None = setting(5.0, "of which two parts are taken; null: the whole record", at_least=0.5)
    alpha: float = setting(
        0.5, "part of the instance term; the rest is the temporal one", at_least=0.0, at_most=1.0, searchable=True
    )
    temporal_unit: int = setting(0, "moments are contrasted from pools of 2^temporal_unit cells on", at_least=0)
    mask_ratio: float = setting(0.5, "of the time steps, by chance", at_least=0.0, below=1.0, searchable=True)
    average: bool = setting(True, "export the average of the weights of all steps, not the last")
    soft: bool = setting(False, "SoftCLT: near recordings and near moments are positives too, by their weight")
    soft_alpha: float = setting(0.5, "soft: weight of the nearest other recording", above=0.0, searchable=True)
    tau_instance: float = setting(
        20.0, "soft: fall-off with the distance of recordings; 0: hard", at_least=0.0, searchable=True
    )
    tau_temporal: float = setting(0.5, "soft: fall-off with the cells between; 0: hard", at_least=0.0, searchable=True)

    def __post_init__(self) -> None:
        check(self)

    @property
    def compares_features(self) -> bool:
        """Whether recordings are near by their measured features."""
        return self.soft and self.tau_instance > 0


class TS2Vec(Objective):
    """The method: see the module text. ValueError for a network without tokens, too short or too fine a window."""

    name = "ts2vec"
    title = "TS2Vec"
    paper = (
        "Yue et al., TS2Vec: Towards Universal Representation of Time Series, AAAI 2022, arXiv 2106.10466; "
        "soft targets Lee, Park and Lee, Soft Contrastive Learning for Time Series, ICLR 2024, arXiv "
        "2312.16424"
    )
    remedy = "lower the learning rate"
    views_text = (
        "View 2 begins later than view 1, which is the recording itself; the moments that both hold are compared."
    )
    mean_over = "records"
    Settings = TS2VecSettings
    averaged: Tensor

    def __init__(self, encoder: Encoder, settings: TS2VecSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        self.stage: Stage = needs_tokens(encoder, self.title).token_stage
        self.least = 2 ** (settings.temporal_unit + 1)
        self._check_moments(settings)
        if settings.average:
            self.average = Teacher(encoder)
            self.register_buffer("averaged", torch.ones((), dtype=torch.int64))  # the weights of the start are one
        if settings.compares_features:
            if statistics is None:
                raise ValueError("soft weights between recordings need the feature statistics of the corpus")
            self.record_features = Features(statistics.record)
            self.reads = (*Objective.reads, "record_features")

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two parts of a window, view_1 and view_2 (B, 12, L_v), whose last and first T cells are the same moments.

        keep_v (B, T_v) bool: time steps that are not masked; n_valid_v (B,): samples that are signal; counted (B, T)
        bool: moments of the overlap that are signal, the first ones of a row.
        """
        s, stride = self.settings, self.stage.stride
        window = crop_window(batch, s.crop_seconds, draws)
        x_mv, n_valid = window["plain"], window["n_valid"]
        cells = x_mv.shape[-1] // stride
        begin, first, stop, end = draw_parts(draws.shared("overlap", 4), cells, self.least)
        # the overlap of a short recording lies within its signal where the drawn positions leave it room
        held = cells_of(n_valid, self.stage, cells).cpu().numpy()
        most = np.clip(held - stop, -begin, cells - end)
        offset = np.floor(draws.uniform("overlap_place", 1)[:, 0] * (most + begin + 1)).astype(np.int64) - begin
        counted = (offset + first)[:, None] + np.arange(stop - first) < held[:, None]
        out = {"counted": torch.from_numpy(counted).to(x_mv.device)}
        for view, part in zip(VIEWS, ((begin, stop), (first, end)), strict=True):
            start, length = torch.from_numpy((offset + part[0]) * stride), part[1] - part[0]
            kept = draws.uniform("timestamp_mask", length, view) >= s.mask_ratio
            out[f"view_{view}"] = crop(x_mv, start, length * stride)
            out[f"n_valid_{view}"] = (n_valid - start.to(n_valid.device)).clamp(0, length * stride)
            out[f"keep_{view}"] = torch.from_numpy(kept).to(x_mv.device)
        out["crop_start"] = window["crop_start"] + torch.from_numpy((offset + begin) * stride).to(n_valid.device)
        if s.compares_features:
            out["record_features"] = batch["record_features"]
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        s, counted = self.settings, views["counted"]
        moments = counted.shape[1]
        z = torch.stack([self._outputs(views, 1)[:, -moments:], self._outputs(views, 2)[:, :moments]], dim=1)
        with torch.autocast(z.device.type, enabled=False):
            z = at_least_float32(z)
            sizes = [counts[0] for counts in gather_counts([len(z)], z.device)]
            first = sum(sizes[: rank()])
            mine = slice(first, first + len(z))
            cells = gather_rows(counted.sum(1), sizes)
            weights = None
            if s.compares_features:
                known = self.record_features
                every = known.scale(gather_rows(known.impute(views["record_features"]), sizes))
                near = soft_2(every[mine], every, s.soft_alpha, s.tau_instance)
                weights = near.sharpen(near.raw).to(z.dtype)
            tau = s.tau_temporal if s.soft and s.tau_temporal > 0 else None
            everyone = gather_rows(z, sizes).transpose(0, 1)
            found = record_losses(everyone, cells, mine, s.alpha, s.temporal_unit, weights, tau)
        counts = (cells[mine] > 0).sum()
        loss, mean = global_mean(found.loss.sum(), counts)
        means = {"loss": mean, "instance/loss": global_mean(found.instance.sum(), counts)[1]}
        means["temporal/loss"] = global_mean(found.temporal.sum(), counts)[1]
        if weights is not None:
            means["instance/row_weight"] = global_mean(found.instance_weight.sum(), counts)[1]
        if tau is not None:
            means["temporal/row_weight"] = global_mean(found.temporal_weight.sum(), counts)[1]
        rows, there = self.chosen(z[:, 0], counted)
        means["moment/embedding_std"] = embedding_std(unit_rows(rows), there)
        return StepResult(loss, means, {"records": sum_over_ranks(counts.float())})

    def after_step(self, at: Progress) -> None:
        """Take the new weights into the average: a + (w - a) / (n + 1) after n of them."""
        if self.settings.average:
            n = int(self.averaged)
            self.average.update(self.encoder, n / (n + 1))
            self.averaged += 1

    def exported(self) -> Encoder:
        """The average network, or the newest one."""
        return self.average.module if self.settings.average else self.encoder

    @classmethod
    def described(cls, settings: TS2VecSettings) -> str:
        """Hard or soft, and what is exported."""
        kind = "hard"
        if settings.soft:
            kind = f"soft (tau {settings.tau_instance:g} and {settings.tau_temporal:g})"
        return f"{cls.title}, {kind}, {'average' if settings.average else 'last'} weights"

    @classmethod
    def curves(cls, settings: TS2VecSettings) -> Sequence[Curve]:
        """Both terms, and the spread of moments."""
        terms = [Curve("instance/loss", "instance loss"), Curve("temporal/loss", "temporal loss")]
        return [*terms, embedding_curves("moment")[1]]

    def _outputs(self, views: Tensors, view: int) -> Tensor:
        """The network's map of one view, of masked tokens in training: (B, T_v, D)."""
        network = needs_tokens(self.encoder, self.title)
        n_valid = views[f"n_valid_{view}"]
        tokens = network.tokens(views[f"view_{view}"], n_valid)
        there = valid_cells(n_valid, self.stage, tokens.shape[1])
        if self.training:
            tokens = tokens.masked_fill(~views[f"keep_{view}"][..., None], 0.0)
        return network.encode(tokens, valid=there)

    def _check_moments(self, settings: TS2VecSettings) -> None:
        seconds = settings.crop_seconds
        samples = WINDOW_SAMPLES if seconds is None else min(round(seconds * RATE_HZ), WINDOW_SAMPLES)
        cells = samples // self.stage.stride
        problem = f"objective.crop_seconds={seconds} gives {cells} cells"
        if cells < self.least:
            raise ValueError(
                f"{problem}, and objective.temporal_unit={settings.temporal_unit} needs an overlap of {self.least}; "
                "take longer crops or a smaller unit"
            )
        if cells >> settings.temporal_unit > MAX_MOMENTS:
            raise ValueError(
                f"{problem}, of which {cells >> settings.temporal_unit} at a time are contrasted with each other, and "
                f"{MAX_MOMENTS} are the most that memory is planned for; raise objective.temporal_unit or take "
                "shorter crops"
            )


def draw_parts(drawn: NDArray[np.float64], cells: int, least: int) -> tuple[int, int, int, int]:
    """From 4 numbers in [0, 1) the cells b, f, s, e: part 1 is b..s - 1 of a window of `cells`, part 2 f..e - 1.

    They overlap in f..s - 1. As in the reference code: the overlap has `least` to all cells, all lengths and then all
    positions equally likely, and each part reaches from it to anywhere on its side.
    """
    length_at, first_at, begin_at, end_at = drawn.tolist()
    least = min(least, cells)
    length = least + int(length_at * (cells - least + 1))
    first = int(first_at * (cells - length + 1))
    stop = first + length
    return int(begin_at * (first + 1)), first, stop, stop + int(end_at * (cells - stop + 1))
