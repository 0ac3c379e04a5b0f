"""CPC: tell what comes next in the signal from what other moments hold.

Van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding" (arXiv 1807.03748), as set up
for ECGs by Mehari and Strodthoff (Comput. Biol. Med. 2022) and, on state-space networks, by ECG-CPC (arXiv 2509.25095).
A network makes local tokens z_t and a causal context c_t; a linear map predicts from c_t the one token `horizon_s`
ahead, k steps. With q_t = W c_t and negatives n_j, other moments of the same recording,

    l_t = -log( exp(q_t z_{t+k}) / (exp(q_t z_{t+k}) + sum_j exp(q_t z_{n_j})) ),

no temperature, no normalisation, no stop of the gradient. The loss of a recording is the mean over t (the reference
takes the sum), that of a batch the mean over recordings.

`negatives`: circular draws `n_negatives` distances d_j once a record and takes n_j = t + k + d_j, counted around; iid
draws anew for every t, as the reference does; all takes every other moment. None is ever the positive.
`batch_negatives` adds so many moments of each other recording of the global batch. A network of two causal directions
(`encoder.direction=both`) predicts back in time too, and the two losses are averaged: then each moment knows its past
and its future, which segmentation wants.

Contract: scores are one product (B, T', T') per direction, never (B, T', negatives, D). Moments after the end of a
short recording are neither predicted nor negatives; a recording of k tokens or fewer counts in nothing. Scores against
other recordings are made for a chunk of recordings at a time (row_chunks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.two_views import crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, Stage, at_least_float32, cells_of, valid_cells
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_tokens
from beatray.objectives.reduce import embedding_std, gather_counts, gather_rows, global_mean, rank, sum_over_ranks
from beatray.objectives.row_chunks import by_chunks
from beatray.objectives.statistics import FeatureStatistics
from beatray.record import RATE_HZ, WINDOW_SAMPLES


@dataclass(frozen=True, slots=True)
class CpcSettings:
    """Settings of CPC."""

    crop_seconds: float | None = setting(10.0, "null: the whole record", at_least=0.5)
    horizon_s: float = setting(0.12, "how far ahead is predicted", above=0.0)
    negatives: Literal["circular", "iid", "all"] = "circular"
    n_negatives: int = setting(128, "of the same recording", at_least=1)
    batch_negatives: int = setting(0, "moments of each other recording of the global batch", at_least=0)

    def __post_init__(self) -> None:
        check(self)


class Cpc(Objective):
    """The method: see the module text. ValueError for a network without a causal context, or too short a crop."""

    name = "cpc"
    title = "CPC"
    remedy = "lower the learning rate, or take more negatives"
    Settings = CpcSettings

    def __init__(self, encoder: Encoder, settings: CpcSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        network = needs_tokens(encoder, self.title, causal=True)
        self.stage: Stage = network.token_stage
        self.directions = network.directions
        self.steps_ahead = max(1, round(settings.horizon_s * RATE_HZ / self.stage.stride))
        if self._tokens(self._crop_samples()) <= self.steps_ahead:
            raise ValueError(
                f"objective.crop_seconds={settings.crop_seconds} gives {self._tokens(self._crop_samples())} tokens, "
                f"and {self.steps_ahead} ahead are to be predicted; take longer crops or a shorter objective.horizon_s"
            )
        context = encoder.channels // len(self.directions)
        self.predictors = nn.ModuleList(nn.Linear(context, self.stage.channels, bias=False) for _ in self.directions)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """One window `view_1` (B, 12, L); distances of negatives (B, 1 or T', N) for each direction; lent moments."""
        s = self.settings
        out = crop_window(batch, s.crop_seconds, draws)
        out["view_1"] = out.pop("plain")
        tokens = self._tokens(out["view_1"].shape[-1])
        cells = cells_of(out["n_valid"], self.stage, tokens).cpu().numpy()

        def whole(purpose: str, n: int, below: Any, view: int) -> Tensor:
            drawn = np.floor(draws.uniform(purpose, n, view) * below[:, None]).astype(np.int64)
            return torch.from_numpy(drawn).to(out["view_1"].device)

        if s.negatives != "all":
            rows = tokens if s.negatives == "iid" else 1
            for number, direction in enumerate(self.directions, 1):
                distances = 1 + whole("negatives", rows * s.n_negatives, np.maximum(cells - 1, 1), number)
                out[f"distances_{direction}"] = distances.view(-1, rows, s.n_negatives)
        if s.batch_negatives:
            out["lent"] = whole("lent_moments", s.batch_negatives, cells, 0)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        network = needs_tokens(self.encoder, self.title, causal=True)
        z = network.tokens(views["view_1"], views["n_valid"])
        cells = cells_of(views["n_valid"], self.stage, z.shape[1])
        there = valid_cells(views["n_valid"], self.stage, z.shape[1])
        context = network.encode(z, valid=there).chunk(len(self.directions), dim=-1)
        with torch.autocast(z.device.type, enabled=False):
            exact = at_least_float32(z)
            lent = self._lent(exact, views)
            parts = [
                self._direction(direction, c.to(exact.dtype), exact, cells, views, lent)
                for direction, c in zip(self.directions, context, strict=True)
            ]
        counted = (cells > self.steps_ahead).sum()
        total = torch.stack([loss for loss, _ in parts]).mean()
        loss, mean = global_mean(total, counted)
        hits = torch.stack([hit for _, hit in parts]).mean()
        _, accuracy = global_mean(hits, counted)
        means = {"loss": mean, "token/accuracy": accuracy}
        if len(parts) > 1:
            for direction, (part, _) in zip(self.directions, parts, strict=True):
                means[f"{direction}/loss"] = global_mean(part, counted)[1]
        tokens, known = self.chosen(exact, there)
        means["token/embedding_std"] = embedding_std(unit_rows(tokens), known)
        return StepResult(loss, means, {"records": sum_over_ranks(counted.float())})

    @classmethod
    def curves(cls, settings: CpcSettings) -> Sequence[Curve]:
        """How often the next token is told from the others, and the spread of tokens."""
        return [Curve("token/accuracy", "accuracy of the next token", True), embedding_curves("token")[1]]

    def _direction(
        self, direction: str, context: Tensor, z: Tensor, cells: Tensor, views: Tensors, lent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sums over records of the mean loss and of the mean share of right answers in one direction of time."""
        q = self.predictors[self.directions.index(direction)](context)
        ahead = self.steps_ahead if direction == "forward" else -self.steps_ahead
        mine = torch.arange(len(z), device=z.device)
        distances = []
        if self.settings.negatives != "all":
            distances.append(views[f"distances_{direction}"] * (1 if direction == "forward" else -1))
        if lent is not None:
            mine = mine + sum(self._sizes(z)[: rank()])

        def of_chunk(q: Tensor, z: Tensor, cells: Tensor, mine: Tensor, *distances: Tensor) -> list[Tensor]:
            others = None if lent is None else _of_others(q, lent, mine)
            return _sums(q, z, cells, ahead, distances[0] if distances else None, others)

        columns = 0 if lent is None else z.shape[1] * lent.shape[:2].numel()  # what grows with the ranks
        chunks = by_chunks(of_chunk, q, z, cells, mine, *distances, columns=columns)
        loss, hits = (reduce(add, parts) for parts in zip(*chunks, strict=True))
        return loss, hits

    def _lent(self, z: Tensor, views: Tensors) -> Tensor | None:
        """The moments that every recording of the global batch lends to the others: (N, P, D), with gradient."""
        if "lent" not in views:
            return None
        mine = z.gather(1, views["lent"][..., None].expand(-1, -1, z.shape[2]))
        return gather_rows(mine, self._sizes(z))

    def _sizes(self, rows: Tensor) -> list[int]:
        return [counts[0] for counts in gather_counts([len(rows)], rows.device)]

    def _tokens(self, samples: int) -> int:
        return -(-samples // self.stage.stride)

    def _crop_samples(self) -> int:
        seconds = self.settings.crop_seconds
        return WINDOW_SAMPLES if seconds is None else min(round(seconds * RATE_HZ), WINDOW_SAMPLES)


def _sums(q: Tensor, z: Tensor, cells: Tensor, ahead: int, step: Tensor | None, others: Tensor | None) -> list[Tensor]:
    """Sums over recordings (B, T', D) of the mean loss and of the mean share of right answers, `ahead` tokens on.

    step (B, 1 or T', N): distances of negatives, None for all other moments; others (B, T', n): scores of moments of
    other recordings, None for none.
    """
    t = torch.arange(z.shape[1], device=z.device)
    wanted = t + ahead
    valid = (wanted >= 0) & (wanted < cells[:, None]) & (t < cells[:, None])  # (B, T')
    scores = q @ z.transpose(1, 2)  # (B, T', T')
    around = wanted.expand(len(z), -1).remainder(cells[:, None])
    positive = scores.gather(2, around[..., None])[..., 0]
    if step is None:
        hidden = (t >= cells[:, None])[:, None, :] | (t == around[..., None])
        negative = scores.masked_fill(hidden, float("-inf"))
    else:
        negative = scores.gather(2, (around[..., None] + step).remainder(cells[:, None, None]))
    if others is not None:
        negative = torch.cat([negative, others], dim=2)
    best = negative.amax(2)
    loss = torch.logaddexp(positive, negative.logsumexp(2)) - positive
    share = 1.0 / valid.sum(1).clamp_min(1).to(loss.dtype)
    return [((loss * valid).sum(1) * share).sum(), (((positive > best) & valid).sum(1) * share).sum()]


def _of_others(q: Tensor, lent: Tensor, mine: Tensor) -> Tensor:
    """Scores (B, T', N P) of q against moments (N, P, D) of all recordings, -inf for its own: those at mine (B,)."""
    scores = torch.einsum("btd,npd->btnp", q, lent)
    own = torch.arange(len(lent), device=q.device) == mine[:, None]
    return scores.masked_fill(own[:, None, :, None], float("-inf")).flatten(2)
