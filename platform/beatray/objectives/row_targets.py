"""Targets of some rows of a contrast at a time: functions from the columns that rows are to what these are drawn to.

Contract: such a function has no collective in it and gives the same each time it is called, since a chunk of rows may
be computed again (row_chunks.py). What needs all ranks, such as the width of a kernel, is found before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from beatray.objectives.soft_targets import MaskOf, Similarity, hard, own_pairs, same_class


@dataclass(frozen=True, slots=True)
class RowTargets:
    """What some rows are drawn to: targets (R, M), own pairs (R, M) bool, the similarity behind soft targets."""

    targets: Tensor
    own: Tensor
    similarity: Similarity | None = None


TargetsOf = Callable[[Tensor], RowTargets]
"""From the columns (R,) that some rows are to their targets."""


def same_ids(ids: Tensor) -> MaskOf:
    """`own_pairs` by rows: columns of the same id (M,) as a row's, but not the row itself."""
    return lambda index: own_pairs(ids[index], ids, index)


def hard_of(own_of: MaskOf, alike_of: MaskOf | None = None) -> TargetsOf:
    """Hard targets by rows: 1 for own pairs, or for what is alike where that is more."""

    def of_rows(index: Tensor) -> RowTargets:
        own = own_of(index)
        return RowTargets(hard(own if alike_of is None else alike_of(index)), own)

    return of_rows


def same_class_of(own_of: MaskOf, kind: Tensor, there: Tensor | None = None) -> TargetsOf:
    """`same_class` by rows, from the classes of all columns (M,)."""

    def of_rows(index: Tensor) -> RowTargets:
        own = own_of(index)
        return RowTargets(same_class(own, kind[index], kind, index, there), own)

    return of_rows
