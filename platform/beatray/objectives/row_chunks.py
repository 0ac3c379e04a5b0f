"""Rows against columns, a chunk of rows at a time: the memory of a contrast grows with its rows, not rows x columns.

A contrast of R rows of this rank with M columns of all ranks makes matrices (R, M): logits, targets, similarities. With
M = R x ranks they soon fill a device. So rows are taken in chunks of at most `CELLS` cells (one row at least), and what
is (rows, M) dies with its chunk: in the backward pass each chunk is computed again (Chen et al., arXiv 1604.06174),
which costs a second forward pass of the loss. Where all rows fit in one chunk nothing is computed twice.

The memory of one contrast, beside the parameters of the network and what leads to the embeddings, is at most

    CELL_BYTES x min(R M, max(CELLS, M)) + ROW_BYTES x R + COLUMN_BYTES x M + VALUE_BYTES x (R + M) (D + F)
    + MEDIAN_BYTES

bytes for D coordinates and F features, all in float32: the matrices of one chunk; sums of rows; ids of columns;
embeddings and features with their copies and gradients; counts for a median (`memory_bytes`). 64 ranks of 256 records
with 4 beats in 2 views are R = 2,048 rows against M = 131,072 columns; with D = 128 and F = 32 that is 1.7 GiB, where
one chunk would take 16.7 GiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

CELLS = 2**24
"""Cells (rows x columns) of a chunk."""

CELL_BYTES = 64
"""Counted: 26 with hard targets, 43 with soft ones; the rest is for what kernels need to themselves."""

ROW_BYTES = 256
COLUMN_BYTES = 256
VALUE_BYTES = 32
MEDIAN_BYTES = 4 * 2**20

T = TypeVar("T")


def rows_of_a_chunk(columns: int) -> int:
    """Rows that are taken at a time."""
    return max(1, CELLS // max(columns, 1))


def memory_bytes(rows: int, columns: int, width: int, features: int = 0) -> int:
    """The bound of the module text, in bytes."""
    cells = min(rows * columns, max(CELLS, columns))
    values = (rows + columns) * (width + features)
    return CELL_BYTES * cells + ROW_BYTES * rows + COLUMN_BYTES * columns + VALUE_BYTES * values + MEDIAN_BYTES


def by_chunks(function: Callable[..., T], *rows: Tensor, columns: int, recompute: bool = False) -> list[T]:
    """`function` of each chunk of some tensors with R rows each, R may be 0: at least one result.

    `function` must give the same again when it is called again, without a collective; what it returns stays, so that
    should be sums. `recompute`: one chunk, too, is computed again in the backward pass.
    """
    chunks = list(zip(*(each.split(rows_of_a_chunk(columns)) for each in rows), strict=True))
    if len(chunks) == 1 and not recompute:
        return [function(*rows)]
    return [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
