"""One token identified among other moments by what came before it: the loss of CPC, for every method that has it.

Given tokens z_t and a causal context c_t for each direction of time, a linear map predicts from c_t the one token
`horizon_s` ahead, k steps. With q_t = W c_t and negatives n_j, other moments of the same recording,

    l_t = -log( exp(q_t z_{t+k}) / (exp(q_t z_{t+k}) + sum_j exp(q_t z_{n_j})) ),

no temperature, no normalisation, no stop of the gradient (van den Oord, Li and Vinyals, arXiv 1807.03748, equation 4).
The loss of a recording is the mean over t, that of a batch the mean over recordings; two directions are averaged.

`negatives`: circular draws `n_negatives` distances d_j once a record and takes n_j = t + k + d_j, counted around; iid
draws anew for every t, as the reference does; all takes every other moment. None is ever the positive.
`batch_negatives` adds so many moments of each other recording of the global batch.

Contract: scores are one product (B, T', T') per direction, never (B, T', negatives, D). Moments after the end of a
short recording are neither predicted nor negatives; a recording of k tokens or fewer counts in nothing. Scores against
other recordings are made for a chunk of recordings at a time (row_chunks.py). With `copies` tokens hold so many views
of each record, all of view 1 first: each is a recording of its own, except that views of one record lend each other
nothing; they share what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.fields import check, setting
from beatray.models.encoder import Stage, at_least_float32, cells_of, valid_cells
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Tensors, embedding_curves
from beatray.objectives.reduce import embedding_std, gather_counts, gather_rows, global_mean, rank, sum_over_ranks
from beatray.objectives.row_chunks import by_chunks
from beatray.record import RATE_HZ, WINDOW_SAMPLES

Chosen = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""`Objective.chosen`."""


@dataclass(frozen=True, slots=True)
class PredictionSettings:
    """What is predicted, and against which other moments."""

    horizon_s: float = setting(0.12, "how far ahead is predicted", above=0.0)
    negatives: Literal["circular", "iid", "all"] = "circular"
    n_negatives: int = setting(128, "of the same recording", at_least=1)
    batch_negatives: int = setting(0, "moments of each other recording of the global batch", at_least=0)

    def __post_init__(self) -> None:
        check(self)


class Prediction(NamedTuple):
    """A step's loss for the backward pass, its mean over the global batch, what is logged, recordings that count."""

    loss: Tensor
    mean: Tensor
    means: dict[str, Tensor]
    rows: Tensor


class TokenPrediction:
    """The prediction of tokens of one stage in one or two directions of time. Its weights belong to the method."""

    def __init__(self, settings: PredictionSettings, stage: Stage, directions: Sequence[str]) -> None:
        self.settings, self.stage, self.directions = settings, stage, tuple(directions)
        self.steps_ahead = max(1, round(settings.horizon_s * RATE_HZ / stage.stride))

    def predictors(self, context: int) -> nn.ModuleList:
        """W of each direction, for contexts of so many channels."""
        return nn.ModuleList(nn.Linear(context, self.stage.channels, bias=False) for _ in self.directions)

    def check_crop(self, seconds: float | None, crop_key: str, horizon_key: str) -> None:
        """Raise ValueError where a crop holds no token that far ahead."""
        samples = WINDOW_SAMPLES if seconds is None else min(round(seconds * RATE_HZ), WINDOW_SAMPLES)
        if self._tokens(samples) <= self.steps_ahead:
            raise ValueError(
                f"{crop_key}={seconds} gives {self._tokens(samples)} tokens, and {self.steps_ahead} ahead are to be "
                f"predicted; take longer crops or a shorter {horizon_key}"
            )

    def drawn(self, n_valid: Tensor, samples: int, draws: Draws) -> Tensors:
        """For crops of so many samples, of which n_valid (B,) are signal: distances of negatives (B, 1 or T', N) for
        each direction, and which moments are lent (B, P)."""
        s = self.settings
        tokens = self._tokens(samples)
        cells = cells_of(n_valid, self.stage, tokens).cpu().numpy()
        out: Tensors = {}

        def whole(purpose: str, n: int, below: Any, view: int) -> Tensor:
            drawn = np.floor(draws.uniform(purpose, n, view) * below[:, None]).astype(np.int64)
            return torch.from_numpy(drawn).to(n_valid.device)

        if s.negatives != "all":
            rows = tokens if s.negatives == "iid" else 1
            for number, direction in enumerate(self.directions, 1):
                distances = 1 + whole("negatives", rows * s.n_negatives, np.maximum(cells - 1, 1), number)
                out[f"distances_{direction}"] = distances.view(-1, rows, s.n_negatives)
        if s.batch_negatives:
            out["lent"] = whole("lent_moments", s.batch_negatives, cells, 0)
        return out

    def loss(
        self,
        predictors: nn.ModuleList,
        z: Tensor,
        contexts: Sequence[Tensor],
        n_valid: Tensor,
        drawn: Tensors,
        chosen: Chosen,
        *,
        copies: int = 1,
        weight: float = 1.0,
    ) -> Prediction:
        """The loss of the module text, of tokens z (B, T', D) and a context (B, T', C) for each direction.

        B and n_valid (B,) are `copies` times the records of what is `drawn`. Logged are `token/accuracy`, the part of
        moments identified, `token/embedding_std`, and the loss of each direction where there are two.
        """
        cells = cells_of(n_valid, self.stage, z.shape[1])
        there = valid_cells(n_valid, self.stage, z.shape[1])
        with torch.autocast(z.device.type, enabled=False):
            exact = at_least_float32(z)
            lent = self._lent(exact, drawn, copies)
            parts = [
                self._direction(direction, predict(c.to(exact.dtype)), exact, cells, drawn, lent, copies)
                for direction, predict, c in zip(self.directions, predictors, contexts, strict=True)
            ]
        counted = (cells > self.steps_ahead).sum()
        loss, mean = global_mean(torch.stack([part for part, _ in parts]).mean(), counted, weight)
        means = {"token/accuracy": global_mean(torch.stack([hits for _, hits in parts]).mean(), counted)[1]}
        if len(parts) > 1:
            for direction, (part, _) in zip(self.directions, parts, strict=True):
                means[f"{direction}/loss"] = global_mean(part, counted)[1]
        tokens, known = chosen(exact, there)
        means["token/embedding_std"] = embedding_std(unit_rows(tokens), known)
        return Prediction(loss, mean, means, sum_over_ranks(counted.float()))

    def _direction(
        self,
        direction: str,
        q: Tensor,
        z: Tensor,
        cells: Tensor,
        drawn: Tensors,
        lent: tuple[Tensor, Tensor, Tensor] | None,
        copies: int,
    ) -> tuple[Tensor, Tensor]:
        """Sums over recordings of the mean loss and of the mean share of right answers in one direction of time."""
        ahead = self.steps_ahead if direction == "forward" else -self.steps_ahead
        mine = torch.arange(len(z), device=z.device) if lent is None else lent[2]
        distances = []
        if self.settings.negatives != "all":
            of_record = drawn[f"distances_{direction}"] * (1 if direction == "forward" else -1)
            distances.append(_repeated(of_record, copies))

        def of_chunk(q: Tensor, z: Tensor, cells: Tensor, mine: Tensor, *distances: Tensor) -> list[Tensor]:
            others = None if lent is None else _of_others(q, lent[0], lent[1], mine)
            return _sums(q, z, cells, ahead, distances[0] if distances else None, others)

        columns = 0 if lent is None else z.shape[1] * lent[0].shape[:2].numel()  # what grows with the ranks
        chunks = by_chunks(of_chunk, q, z, cells, mine, *distances, columns=columns)
        loss, hits = (reduce(add, parts) for parts in zip(*chunks, strict=True))
        return loss, hits

    def _lent(self, z: Tensor, drawn: Tensors, copies: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """The moments that every recording of the global batch lends to the others, (N, P, D), with gradient; of which
        record each of the N is, and of which those of this rank are."""
        if "lent" not in drawn:
            return None
        lent = z.gather(1, _repeated(drawn["lent"], copies)[..., None].expand(-1, -1, z.shape[2]))
        rows = [counts[0] for counts in gather_counts([len(z)], z.device)]
        starts = [sum(rows[:r]) // copies for r in range(len(rows))]
        records = [
            torch.arange(start, start + n // copies, device=z.device).repeat(copies)
            for start, n in zip(starts, rows, strict=True)
        ]
        return gather_rows(lent, rows), torch.cat(records), records[rank()]

    def _tokens(self, samples: int) -> int:
        return -(-samples // self.stage.stride)


def prediction_curves() -> list[Curve]:
    """The accuracy of the next token, and the spread of tokens."""
    return [Curve("token/accuracy", "accuracy of the next token", True), embedding_curves("token")[1]]


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows if copies == 1 else torch.cat([rows] * copies)


def _sums(q: Tensor, z: Tensor, cells: Tensor, ahead: int, step: Tensor | None, others: Tensor | None) -> list[Tensor]:
    """Sums over recordings (B, T', D) of the mean loss and of the mean share of right answers, `ahead` tokens on.

    step (B, 1 or T', N): distances of negatives, None for all other moments; others (B, T', n): scores of moments of
    other recordings, None for none.
    """
    t = torch.arange(z.shape[1], device=z.device)
    target_at = t + ahead
    valid = (target_at >= 0) & (target_at < cells[:, None]) & (t < cells[:, None])  # (B, T')
    scores = q @ z.transpose(1, 2)  # (B, T', T')
    around = target_at.expand(len(z), -1).remainder(cells[:, None])
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


def _of_others(q: Tensor, lent: Tensor, records: Tensor, mine: Tensor) -> Tensor:
    """Scores (B, T', N P) of q, of the records mine (B,), against moments (N, P, D) of records (N,); own ones: -inf."""
    scores = torch.einsum("btd,npd->btnp", q, lent)
    own = records == mine[:, None]
    return scores.masked_fill(own[:, None, :, None], float("-inf")).flatten(2)
