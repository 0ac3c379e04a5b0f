"""The loss of TS2Vec and of SoftCLT on what a network made of the moments that two views share.

Yue et al., TS2Vec (AAAI 2022, equations 1 to 3 and algorithm 1); Lee, Park and Lee, SoftCLT (ICLR 2024, equations 2 to
6). With z_1, z_2 (B, T, D), plain scalar products, no temperature and no unit length,

    instance: at each moment, each of the 2B rows against all others, cross-entropy to the same record's other row;
    temporal: in each record, each of its 2T rows against all others, cross-entropy to the same moment's other row.

Level 0 is alpha * instance + (1 - alpha) * temporal; both z are max-pooled by 2 (an odd last moment is dropped) for the
next level, down to one moment, where the temporal term is 0. Levels below `temporal_unit` have no temporal term. The
loss is the sum of the levels over their number, floor(log2 T) + 1.

Soft: the row's other columns j are positives too, -sum_j w_j log p_j, with weights between records as they are given
and 2 sigmoid(-tau 2^level |t - t'|) between moments, below `LEAST_WEIGHT` none. The own other row has weight 1; weights
are not brought to a sum of 1, so this is no cross-entropy, and scaling the weights of the others scales their part.

Contract: a record may have fewer moments than T, the first ones (`cells`): it is a series of that length, with as many
levels as that has, and others are not compared with what it lacks; with none it counts in nothing. The loss of a batch
is the mean over records. Scores are (T, 2B, 2N) for a level's instance term, N the records of all ranks, a chunk of
moments at a time (row_chunks.py), and (B, 2T, 2T) for its temporal one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.objectives.contrast import own_columns
from beatray.objectives.row_chunks import by_chunks

LEAST_WEIGHT = 1e-6
"""Of a soft temporal positive; what is below counts as 0, as in SoftCLT's code."""

_NEVER = -1e30  # a score whose exponential is exactly 0, yet finite, so that 0 * score is 0


@dataclass(frozen=True, slots=True)
class RecordLosses:
    """Of each record (B,): the loss, both terms before alpha over the number of levels, and what the weights of a row
    add up to, the mean over the levels that have the term."""

    loss: Tensor
    instance: Tensor
    temporal: Tensor
    instance_weight: Tensor
    temporal_weight: Tensor


def ts2vec_loss(
    z_1: Tensor,
    z_2: Tensor,
    alpha: float = 0.5,
    temporal_unit: int = 0,
    instance_weights: Tensor | None = None,
    temporal_tau: float | None = None,
    cells: Tensor | None = None,
) -> Tensor:
    """The loss of a whole batch in one process: z_1, z_2 (B, T, D) -> scalar.

    instance_weights (B, B) and temporal_tau are those of SoftCLT; None is hard. `cells` (B,): how many moments each
    record has; None is T.
    """
    if cells is None:
        cells = torch.full((len(z_1),), z_1.shape[1], device=z_1.device)
    both, everyone = torch.stack([z_1, z_2]), slice(0, len(z_1))
    found = record_losses(both, cells, everyone, alpha, temporal_unit, instance_weights, temporal_tau)
    return found.loss.sum() / (cells > 0).sum().clamp_min(1)


def record_losses(
    z_vntd: Tensor,
    cells_n: Tensor,
    mine: slice,
    alpha: float,
    temporal_unit: int,
    instance_weights: Tensor | None = None,
    temporal_tau: float | None = None,
) -> RecordLosses:
    """The loss of the records `mine` among those of all ranks: z (2, N, T, D), cells (N,), weights (mine, N).

    A record's is the sum over the levels that it has of alpha * instance + (1 - alpha) * temporal, over their number;
    0 for a record of no cells.
    """
    zero = z_vntd.new_zeros(len(cells_n[mine]))
    levels, temporal_levels, instance, temporal, instance_weight, temporal_weight = (zero,) * 6
    level = 0
    while True:
        there_nt = torch.arange(z_vntd.shape[2], device=cells_n.device) < cells_n[:, None]
        counts = cells_n[mine] > 0
        levels = levels + counts
        loss, weight = _instance_term(z_vntd, there_nt, mine, instance_weights)
        instance, instance_weight = instance + loss, instance_weight + weight
        if z_vntd.shape[2] == 1:
            break
        if level >= temporal_unit:
            tau = None if temporal_tau is None else temporal_tau * 2.0**level
            loss, weight = _temporal_term(z_vntd[:, mine], there_nt[mine], tau)
            temporal, temporal_weight = temporal + loss, temporal_weight + weight
            temporal_levels = temporal_levels + counts
        half = z_vntd.shape[2] // 2
        z_vntd = torch.maximum(z_vntd[:, :, 0 : 2 * half : 2], z_vntd[:, :, 1 : 2 * half : 2])
        cells_n = cells_n // 2  # a pool counts where both of its moments do
        level += 1
    instance, temporal, instance_weight = (
        total / levels.clamp_min(1) for total in (instance, temporal, instance_weight)
    )
    temporal_weight = temporal_weight / temporal_levels.clamp_min(1)
    return RecordLosses(
        alpha * instance + (1.0 - alpha) * temporal, instance, temporal, instance_weight, temporal_weight
    )


def _instance_term(z_vntd: Tensor, there_nt: Tensor, mine: slice, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of each own record, means over its moments and both views: the loss and the sum of a row's weights, (B,) each."""
    columns = z_vntd.permute(2, 0, 1, 3)  # (T, 2, N, D)
    here = torch.arange(len(there_nt), device=there_nt.device)[mine]
    itself = torch.cat([here, here + len(there_nt)])
    there_tm = there_nt.T.repeat(1, 2)
    chunks = by_chunks(
        lambda rows, every, there: _contrast(rows, every, there, itself, weights),
        columns[:, :, mine].flatten(1, 2),
        columns.flatten(1, 2),
        there_tm,
        columns=len(itself) * there_tm.shape[1],
    )
    found = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    loss, weight = (value.unflatten(1, (2, len(here))).mean(1).T for value in found)
    return _over_moments(loss, there_nt[mine]), _over_moments(weight, there_nt[mine])


def _temporal_term(z_vbtd: Tensor, there_bt: Tensor, tau: float | None) -> tuple[Tensor, Tensor]:
    """Of each record, means over its moments and both views: the loss and the sum of a row's weights, (B,) each."""
    rows = z_vbtd.transpose(0, 1).flatten(1, 2)  # (B, 2T, D)
    moments = torch.arange(there_bt.shape[1], device=rows.device)
    weights = None
    if tau is not None:
        weights = 2.0 * torch.sigmoid(-tau * (moments[:, None] - moments).abs().to(rows.dtype))
        weights = weights.masked_fill(weights < LEAST_WEIGHT, 0.0)
    itself = torch.arange(rows.shape[1], device=rows.device)
    found = _contrast(rows, rows, there_bt.repeat(1, 2), itself, weights)
    loss, weight = (value.unflatten(1, (2, len(moments))).mean(1) for value in found)
    return _over_moments(loss, there_bt), _over_moments(weight, there_bt)


def _contrast(
    rows_krd: Tensor, columns_kmd: Tensor, there_km: Tensor, itself_r: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses of rows against columns, of which the first half are view 1 of some things and the second half view 2.

    itself (R,): the column that a row is; weights (R / 2, M / 2) between things, None for 0. Losses and the sum of the
    weights of the columns that are there: (K, R) each.
    """
    count = columns_kmd.shape[1]
    is_self = own_columns(itself_r, count)
    other = (itself_r + count // 2) % max(count, 1)
    scores = (rows_krd @ columns_kmd.mT).masked_fill(~there_km[:, None] | is_self, _NEVER)
    if weights is None:
        mass, pulled = scores.new_ones(scores.shape[:2]), columns_kmd[:, other]
    else:
        w_rm = torch.where(own_columns(other, count), 1.0, weights.repeat(2, 2)).masked_fill(is_self, 0.0)
        there = there_km.to(scores.dtype)
        # the sum of weight times score, as the score of the weighted sum: a product of fewer numbers
        mass, pulled = there @ w_rm.T, w_rm @ (columns_kmd * there[..., None])
    return mass * scores.logsumexp(2) - (rows_krd * pulled).sum(2), mass


def _over_moments(values_bt: Tensor, there_bt: Tensor) -> Tensor:
    """The mean over the moments that are there; 0 where none is: (B, T) -> (B,)."""
    return torch.where(there_bt, values_bt, 0.0).sum(1) / there_bt.sum(1).clamp_min(1)
