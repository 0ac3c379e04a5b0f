"""What ranks work out together: rows of all in one tensor, sums, the mean over the global batch, the median.

The rule of every objective: each rank computes the loss of its own rows against the gathered columns, and `ddp_mean`
turns the sum over its rows into what it backpropagates. Data parallel training averages gradients over ranks, hence the
factor of their number; the divisor is the count over all of them, so that uneven ranks weigh by their rows. A rank's
embedding also appears in the losses of others, so the backward pass of `gather_rows` adds up what all ranks send back
(an all-reduce), neither drops it nor averages it. Then k ranks give the gradient of one rank on the global batch.

Contract: sizes (number of rows of each rank) are exchanged once by `gather_counts`; blocks may have no rows; every rank
must make the same calls in the same order. Without a process group everything is the identity. Only `gather_counts` of
several ranks waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_DIGIT = 1 << 16


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def host_group() -> Any:
    """The group in which ranks exchange what lies on the host; None is that of all else.

    Through NCCL it would pass over the device, and wait for all that the device has still to do. Every rank must call
    it together the first time.
    """
    if dist.get_backend() != "nccl":
        return None
    main = dist.group.WORLD
    if main not in _host_groups:
        _host_groups.clear()
        _host_groups[main] = dist.new_group(backend="gloo")
    return _host_groups[main]


_host_groups: dict[Any, Any] = {}


def gather_counts(counts: list[int], device: torch.device) -> list[list[int]]:
    """Counts of every rank: [n] on each -> [ranks][n] on all. `device` is where the rows are; no rank waits for it."""
    if world_size() == 1:
        return [counts]
    mine = torch.tensor(counts, dtype=torch.int64)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine, group=host_group())
    gathered: list[list[int]] = torch.stack(everyone).tolist()
    return gathered


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows of all ranks in rank order: (sizes[rank], ...) -> (sum(sizes), ...).

    Differentiable for floating types. Raises ValueError where the rows are not as many as in `sizes`.
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


def ddp_mean(total: Tensor, count: Tensor | float, weight: float = 1.0) -> Tensor:
    """What this rank backpropagates for `weight` times a mean over the global batch.

    `total` is the sum over this rank's items, with its gradient; `count` the items of all ranks (at least 1 is taken).
    """
    everywhere = _on_device(count, total)
    return total * (weight * world_size() / everywhere.clamp_min(1.0)).to(total.dtype)


def global_mean(total: Tensor, count: Tensor | float, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """(what this rank backpropagates, the mean itself over the global batch) of a sum over `count` items of this rank.

    The mean is without gradient and without the weight. One collective; any rank may have no item.
    """
    return counted_mean(total, count, weight)[:2]


def counted_mean(total: Tensor, count: Tensor | float, weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """`global_mean`, and the items of all ranks."""
    here = _on_device(count, total).double()
    summed, everywhere = sum_over_ranks(torch.stack([total.detach().double(), here])).unbind()
    return ddp_mean(total, everywhere, weight), (summed / everywhere.clamp_min(1.0)).float(), everywhere


def embedding_std(z: Tensor, there: Tensor | None = None) -> Tensor:
    """Mean SD over the global batch of the coordinates of unit rows (n, D), times sqrt(D): 1 all over the sphere.

    0 when all rows are equal, or fewer than two: the mark of a collapse. there (n,) bool: which rows count, None: all.
    One collective; any rank may have no row.
    """
    rows = z.detach().double()
    count = rows.new_full((1,), len(rows))
    if there is not None:
        rows, count = rows.masked_fill(~there[:, None], 0.0), there.sum()[None].double()
    sums = torch.cat([rows.sum(0), rows.square().sum(0), count])
    summed = sum_over_ranks(sums)
    count = summed[-1].clamp_min(1.0)
    mean, square = (summed[:-1] / count).chunk(2)
    return ((square - mean.square()).clamp_min(0.0).sqrt().mean() * math.sqrt(z.shape[1])).float()


def median_over_ranks(parts: Callable[[], Iterable[tuple[Tensor, Tensor]]], device: torch.device) -> Tensor:
    """Lower median over all ranks of values at least 0, rounded to float32: () float32; NaN where there is none.

    `parts` gives this rank's values, in as many parts as it likes and the same each time it is called: any shape, and
    of that shape bool which of them count. The kernel width of a target must not depend on how many ranks there are; an
    average of the ranks' own medians would. Positive float32 numbers sort as their bits do, so the median is found
    digit by digit, as in a radix sort: count the upper 16 bits over all ranks, find the bin that holds the median,
    count the lower 16 bits within it. Two collectives of 512 KiB; every rank must call it, also with no values.
    """

    def counts(of_bits: Callable[[Tensor], Tensor], among: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        total = torch.zeros(_DIGIT, dtype=torch.int64, device=device)
        for values, counted in parts():
            bits = values.detach().to(torch.float32).view(torch.int32)
            total += bin_counts(of_bits(bits), counted if among is None else counted & among(bits), _DIGIT)
        return sum_over_ranks(total)

    upper = counts(lambda bits: bits >> 16)
    before = upper.cumsum(0)
    rank = (before[-1:] + 1) // 2  # the rank of the lower median, counted from 1
    high = torch.searchsorted(before, rank).clamp_max(_DIGIT - 1)
    lower = counts(lambda bits: bits & (_DIGIT - 1), lambda bits: bits >> 16 == high)
    within = rank - before.gather(0, high) + upper.gather(0, high)
    low = torch.searchsorted(lower.cumsum(0), within).clamp_max(_DIGIT - 1)
    found = (high << 16 | low).to(torch.int32).view(torch.float32)
    return torch.where(before[-1:] > 0, found, torch.nan)[0]


def bin_counts(index: Tensor, counted: Tensor, bins: int) -> Tensor:
    """How many of the int32 indices 0 .. bins - 1 that count, bool of the same shape, are in each bin: (bins,) int64.

    `torch.bincount` asks the device how many bins there are.
    """
    counts = torch.zeros(bins, dtype=torch.int32, device=index.device)
    return counts.index_add_(0, index.flatten(), counted.flatten().int()).long()


def _on_device(count: Tensor | float, like: Tensor) -> Tensor:
    """A number as a tensor; one of the host's is not copied but filled in, which does not wait for the device."""
    return count if isinstance(count, Tensor) else torch.full((), count, device=like.device)


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
    # collectives need equal shapes: pad to the longest, cut the padding away afterwards
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded)
    return torch.cat([block[:size] for block, size in zip(everyone, sizes, strict=True)])
