"""Rows of all ranks in one tensor, with the exact gradient, whatever number of rows each rank has.

The rule of every objective: each rank computes the loss of its own rows against the gathered columns, scaled by the
number of ranks, because data parallel training averages gradients. A rank's embedding also appears in the losses of
others, so the backward pass of the gather must add up what all ranks send back (an all-reduce), neither drop it nor
average it. Then k ranks give the gradient of one rank on the global batch.

Contract: sizes (number of rows of each rank) are exchanged once by `gather_counts`; blocks may have no rows; every rank
must make the same calls in the same order. Without a process group everything is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_counts(counts: list[int], device: torch.device) -> list[list[int]]:
    """Counts of every rank: [n] on each -> [ranks][n] on all. Waits for the device."""
    if world_size() == 1:
        return [counts]
    mine = torch.tensor(counts, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    gathered: list[list[int]] = torch.stack(everyone).tolist()
    return gathered


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows of all ranks in rank order: (sizes[rank], ...) -> (sum(sizes), ...).

    Differentiable for floating types. Raises ValueError where the rows are not as many as `sizes` says.
    """
    if len(sizes) != world_size() or len(rows) != sizes[rank()]:
        raise ValueError(f"{len(rows)} rows on rank {rank()} do not fit the sizes {sizes}")
    if world_size() == 1:
        return rows
    if not rows.dtype.is_floating_point:
        return _gather(rows, sizes)
    gathered: Tensor = _GatherRows.apply(rows, sizes)
    return gathered


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a detached tensor over all ranks, as a new tensor."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        first = sum(ctx.sizes[: rank()])
        return total[first : first + ctx.sizes[rank()]], None


@torch.no_grad()
def _gather(rows: Tensor, sizes: list[int]) -> Tensor:
    longest = max(sizes)
    if longest == 0:
        return rows.clone()
    # collectives want equal shapes: pad to the longest, cut the padding away afterwards
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded)
    return torch.cat([block[:size] for block, size in zip(everyone, sizes, strict=True)])
