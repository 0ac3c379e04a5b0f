"""Records of a batch on this rank and on all others, and the step that every two-view objective shares.

Columns are ordered by rank; within a rank view 1 of its records, then view 2 of them. Which record a column shows
follows from the number of records of each rank alone, so only counts travel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beatray.models.encoder import Encoder
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import StepResult
from beatray.objectives.reduce import gather_counts, gather_rows, rank
from beatray.objectives.row_targets import hard_of, same_ids
from beatray.objectives.terms import LossSettings, Term, combine_terms, contrast_term


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two views of n records here and N everywhere.

    sizes: records of each rank; first: number of this rank's first record; record (2N,): the record of each column;
    self_index (2n,): the column of each own row.
    """

    sizes: list[int]
    first: int
    record: Tensor
    self_index: Tensor

    def own(self, index: Tensor) -> Tensor:
        """The other view of the same record, for rows that are the columns index (R,): (R, 2N) bool."""
        return same_ids(self.record)(index)

    def gather(self, rows: Tensor) -> Tensor:
        """Both views' rows (2n, ...) of all ranks: (2N, ...), differentiable."""
        return gather_rows(rows, [2 * size for size in self.sizes])


def lay_out(sizes: list[int], device: torch.device) -> Pairs:
    """The columns of a step from the number of records on each rank."""
    first = sum(sizes[: rank()])
    starts = [sum(sizes[:r]) for r in range(len(sizes))]
    record = torch.cat(
        [torch.arange(start, start + size, device=device).repeat(2) for start, size in zip(starts, sizes, strict=True)]
    )
    self_index = torch.arange(2 * first, 2 * (first + sizes[rank()]), device=device)
    return Pairs(sizes, first, record, self_index)


def encode_views(encoder: Encoder, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Feature map (2n, C, T') of view 1 then view 2, and the pooled records (2n, embed_dim).

    `n_valid` (n,), where given, keeps padding out of the pooling.
    """
    n_valid = views.get("n_valid")
    both = None if n_valid is None else n_valid.repeat(2)
    fmap = encoder.forward_features(torch.cat([views["view_1"], views["view_2"]]), both)
    return fmap, encoder.pool(fmap, both)


def nt_xent_step(encoder: Encoder, projector: nn.Module, views: dict[str, Tensor], temperature: float) -> StepResult:
    """NT-Xent of two views over the global batch, as the term `record`."""
    _, pooled = encode_views(encoder, views)
    return combine_terms([nt_xent_term("record", 1.0, projector(pooled), temperature)])


def nt_xent_term(name: str, weight: float, projected: Tensor, temperature: float) -> Term:
    """NT-Xent of projected rows (2n, D), view 1 of the records of this rank, then view 2, against those of all."""
    sizes = [counts[0] for counts in gather_counts([len(projected) // 2], projected.device)]
    pairs = lay_out(sizes, projected.device)
    z = unit_rows(projected)
    targets_of = hard_of(pairs.own)
    return contrast_term(name, weight, z, pairs.gather(z), pairs.self_index, targets_of, LossSettings(temperature))
