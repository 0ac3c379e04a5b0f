"""Patient-aware contrast over all pairs of views: what CLOCS and its kin share.

Kiyasseh, Zhu and Clifton, "CLOCS: Contrastive Learning of Cardiac Signals Across Space, Time, and Patients" (ICML 2021,
section 4). For views a and b with unit rows z, S_ij = exp(z^a_i z^b_j / temperature), and P the ordered pairs of two
records of one patient, the loss of a pair of views is the mean of its terms

    - mean_i log S_ii / sum_k S_ik,      - mean_P log S_ij / sum_k S_ik,
    - mean_i log S_ii / sum_k S_ki,      - mean_P log S_ij / sum_k S_kj,

those with P only where it has a pair; the loss of a batch is the mean over all pairs of views. Without `symmetric` the
third takes i < j alone and the fourth i > j alone, as published; the authors themselves miss the other halves. Records
of the same patient stay in every denominator.

`present` marks the views of a record that there are: in a pair of views only records that have both take part, above
and below the line, and a pair of views that no record has is left out of the mean.

Contract: a number of records of its own on each rank, zero included; all means are over the global batch, records
ordered by rank. The column of a view is the row of its turned pair, so each rank needs its own rows against the columns
of all, one product (n, V N) for each view, a chunk of rows at a time (row_chunks.py) and computed again in the backward
pass rather than kept. Float32 (float64 stays), outside autocast. Four collectives forward, one backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from beatray.objectives.reduce import ddp_mean, gather_counts, gather_rows, rank, sum_over_ranks
from beatray.objectives.row_chunks import by_chunks

_NEVER = -1e30  # a logit whose exponential is exactly 0, yet finite, so that 0 * logit is 0


@dataclass(frozen=True, slots=True)
class PatientLoss:
    """What this rank backpropagates, and over the global batch, without gradient: the loss itself; the spread of the
    embeddings (reduce.embedding_std); other records of the same patient for each record, in the mean."""

    loss: Tensor
    mean: Tensor
    embedding_std: Tensor
    partners: Tensor

    def means(self, term: str) -> dict[str, Tensor]:
        """The means of the contrast that a step logs, under the name of a term."""
        found = {"loss": self.mean, "embedding_std": self.embedding_std, "partners": self.partners}
        return {f"{term}/{name}": value for name, value in found.items()}


def patient_contrast(
    views: Sequence[Tensor],
    patient_key: Tensor,
    temperature: float,
    *,
    symmetric: bool = True,
    present: Tensor | None = None,
) -> PatientLoss:
    """The loss of the module text: V views of unit rows (n, E), patient_key (n,) int64 and present (n, V) bool.

    All are of this rank's records. With fewer than two views there is no pair, and the loss is 0.
    """
    with torch.autocast(views[0].device.type, enabled=False):
        z = torch.stack(list(views), 1)  # (n, V, E)
        sizes = [counts[0] for counts in gather_counts([len(z)], z.device)]
        there = present if present is not None else z.new_ones(z.shape[:2], dtype=torch.bool)
        columns = gather_rows(z, sizes).transpose(0, 1)  # (V, N, E)
        facts = gather_rows(torch.cat([patient_key[:, None], there.to(patient_key.dtype)], 1), sizes)
        keys, everyone = facts[:, 0], facts[:, 1:].bool()  # (N,) and (N, V)
        mine = torch.arange(len(z), device=z.device) + sum(sizes[: rank()])
        sums = []
        for view in range(z.shape[1]):

            def of_chunk(z: Tensor, mine: Tensor, there: Tensor, view: int = view) -> Tensor:
                partner = _partners(keys, mine, symmetric)
                own, others = there & there[:, view, None], everyone & everyone[:, view, None]
                return _rows_of_view(z[:, view], z, columns, partner, own, others, temperature)

            chunks = by_chunks(of_chunk, z, mine, there, columns=columns.shape[:2].numel(), recompute=True)
            sums.append(reduce(add, chunks))
        of_self, of_partners, partners = torch.stack(sums, 1)  # each (V, V): row view, column view
        everywhere = sum_over_ranks(torch.stack([of_self, of_partners, partners]).double())
        # divisors, the same on all ranks: records with both views, pairs of a patient, pairs of views that count
        records = torch.einsum("na,nb->ab", everyone.double(), everyone.double()).fill_diagonal_(0.0)
        pairs = everywhere[2].clone().fill_diagonal_(0.0)
        counted = (records > 0).double()
        share = counted / (2.0 + 2.0 * (pairs > 0)) / (counted.sum() / 2.0).clamp_min(1.0)
        for_self, for_partners = share / records.clamp_min(1.0), share / pairs.clamp_min(1.0)
        mean = (everywhere[0] * for_self + everywhere[1] * for_partners).sum()
        own = (of_self * for_self.to(z.dtype) + of_partners * for_partners.to(z.dtype)).sum()
        ordered = keys.sort().values  # so that nothing is (N, N)
        upto, below = (torch.searchsorted(ordered, ordered, right=right) for right in (True, False))
        others = (upto - below).sum() - len(keys)
        return PatientLoss(
            ddp_mean(own, 1.0), mean.float(), _spread(columns.detach(), everyone), (others / max(len(keys), 1)).float()
        )


def by_record(rows: Tensor, views: int) -> Tensor:
    """Rows of all records' first view, then of their second, ..., beside each other: (V n, K, ...) -> (n, V K, ...)."""
    beside: Tensor = rows.unflatten(0, (views, -1)).transpose(0, 1).flatten(1, 2)
    return beside


def _partners(keys: Tensor, mine: Tensor, symmetric: bool) -> Tensor:
    """Other records of the same patient, of all keys (N,), for those at the positions mine (n,): (n, N) bool."""
    every = torch.arange(len(keys), device=keys.device)
    other = every != mine[:, None] if symmetric else every > mine[:, None]
    return (keys[mine, None] == keys) & other


def _rows_of_view(
    rows: Tensor, z: Tensor, columns: Tensor, partner: Tensor, own: Tensor, others: Tensor, temperature: float
) -> Tensor:
    """One view of this rank's records, rows (n, E), against all views of all records, columns (V, N, E): sums of
    -log(S_ii / row sum) and of -log(S_ij / row sum) over partners, and the number of the latter: (3, V).

    own (n, V) and others (N, V) mark which records have the row's view and the column's.
    """
    logits = torch.einsum("ne,vme->nvm", rows, columns) / temperature
    logits = logits.masked_fill(~others.T, _NEVER)
    total = logits.logsumexp(2) if logits.shape[2] else logits.new_zeros(logits.shape[:2])
    of_self = total - torch.einsum("ne,nve->nv", rows, z) / temperature
    both = (partner[:, None] & others.T & own[..., None]).to(logits.dtype)  # (n, V, N)
    count = both.sum(2)
    of_partners = count * total - (both * logits).sum(2)
    kept = torch.where(own, of_self, 0.0)
    return torch.stack([kept.sum(0), of_partners.sum(0), count.sum(0)])


def _spread(columns: Tensor, everyone: Tensor) -> Tensor:
    """`reduce.embedding_std` of unit rows (V, N, E) of all ranks, where they are there (N, V)."""
    weights = everyone.T[..., None].to(columns.dtype)
    count = weights.sum().clamp_min(1.0)
    mean = (weights * columns).sum((0, 1)) / count
    variance = (weights * (columns - mean).square()).sum((0, 1)) / count
    return (variance.sqrt().mean() * math.sqrt(columns.shape[2])).float()
