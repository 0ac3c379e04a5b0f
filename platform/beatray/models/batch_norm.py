"""Batch normalisation over the global batch: the same statistics on one rank or many, on CPU (gloo) and GPU (NCCL).

`torch.nn.SyncBatchNorm` runs on GPUs only, and plain batch normalisation under data parallel training normalises each
rank by its own few records, so that the result depends on the number of ranks. Here every rank shares its count, mean
and sum of squared deviations; they are combined pairwise-exactly in float64 (Chan, Golub and LeVeque, The American
Statistician 1983), and the backward pass shares the two sums of Ioffe and Szegedy (ICML 2015, the derivation after
equation 4), so gradients are those of the whole batch.

Contract: input (N, C) or (N, C, T), N may be zero on some ranks or on all. Without a process group, or with one rank,
this is `torch.nn.BatchNorm1d`. Parameter and buffer names are those of `torch.nn.BatchNorm1d`. In training every rank
must call every layer in the same order; in evaluation nothing is communicated.

The alternatives of `build_norm` are here too: they need no other record, and so no other rank.

Where the device wants maps channels last (`layout.py`) all of it is worked out on the view (N, C, 1, T) in that layout.
What the operations do with it on CUDA (aten/src/ATen/native/cuda/Normalization.cu and .cuh of torch 2.13): statistics,
normalisation and both halves of the backward pass have kernels of their own for it, chosen by
`is_contiguous(channels_last)`, which a tensor of three dimensions never is; all give results of the layout of x. Of a
gradient in the other layout they would take a slow general kernel, so it is brought into that of x first: no copy
where it has it, as it has behind a ReLU. float32 goes to cuDNN on one rank, which knows the layout too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from beatray.models.encoder import Stage, at_least_float32, cells_of
from beatray.models.layout import as_image, as_map, wants_channels_last

Norm = Literal["global_batch", "group"]


class GlobalBatchNorm1d(nn.Module):
    """Batch normalisation with statistics over all ranks; see the module text."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C) or (N, C, T); same shape and type. Raises ValueError for another number of channels."""
        if x.dim() not in (2, 3) or x.shape[1] != self.num_features:
            raise ValueError(f"expected (N, {self.num_features}) or (N, {self.num_features}, T), got {tuple(x.shape)}")
        return as_map(self._normalise(as_image(x))) if wants_channels_last(x) else self._normalise(x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def _normalise(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._normalise_locally(x, self.running_mean, self.running_var)
        self.num_batches_tracked += 1
        if _world_size() == 1 and x.numel() > self.num_features:
            # no other rank, and more than one value per channel: the fused kernel does the same
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        mean, var, count = _global_moments(x)
        self._track(mean, var, count)
        out: Tensor = _NormaliseGlobally.apply(x, self.weight, self.bias, mean, var, count, self.eps)
        return out

    def _normalise_locally(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if x.numel() == 0:
            return x * self.weight.new_ones(()).to(x.dtype)
        return functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics; a batch without a single value leaves them where they are."""
        unbiased = var * (count / (count - 1).clamp_min(1))
        share = self.momentum * (count > 0).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, T), every time step alone (Ba et al., arXiv:1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SignalGroupNorm(nn.GroupNorm):
    """GroupNorm of maps (N, C, T') that leaves padding out: cell j of them stands for sample j * stride + offset.

    With n_samples (N,), valid input samples, statistics are over the cells that stand for one of them (`cells_of`), and
    the others become zero: what a convolution finds beyond the end of a recording that comes without padding. A record
    that fills all cells gives to the bit what it gives without n_samples, and so does a batch of no others.
    """

    def __init__(self, groups: int, channels: int, stride: int, offset: float = 0.0) -> None:
        super().__init__(groups, channels)
        self.stage = Stage(channels, stride, offset)

    def forward(self, input: Tensor, n_samples: Tensor | None = None) -> Tensor:
        plain = super().forward(input)
        if n_samples is None:
            return plain
        cells = cells_of(n_samples, self.stage, input.shape[-1])
        # on other devices the answer would have to be waited for
        if cells.device.type == "cpu" and bool((cells == input.shape[-1]).all()):
            return plain
        cells = cells.to(input.device)[:, None, None]
        of_signal = self._over(input, torch.arange(input.shape[-1], device=input.device) < cells, cells)
        return torch.where(cells == input.shape[-1], plain, of_signal.to(plain.dtype))

    def _over(self, x: Tensor, valid: Tensor, cells: Tensor) -> Tensor:
        """The norm over the valid cells (N, 1, T'), counted in `cells` (N, 1, 1), and zero elsewhere."""
        grouped, there = at_least_float32(x).unflatten(1, (self.num_groups, -1)), valid[:, None]
        count = cells[:, None] * grouped.shape[2]
        mean = grouped.masked_fill(~there, 0.0).sum((2, 3), keepdim=True) / count
        centred = (grouped - mean).masked_fill(~there, 0.0)
        variance = centred.square().sum((2, 3), keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        out: Tensor = (normed * self.weight[:, None] + self.bias[:, None]).masked_fill(~valid, 0.0)
        return out


def build_norm(
    norm: str, channels: int, *, per_step: bool = False, stride: int | None = None, offset: float = 0.0
) -> nn.Module:
    """`global_batch`: this module's layer; `group`: GroupNorm (8 groups), which needs no other record or rank.

    GroupNorm takes its statistics over time too, so that every cell knows of all others. Where that is not allowed, as
    in causal networks, `per_step` makes `group` a `ChannelNorm`. With `stride`, input samples per cell of the maps, and
    the `offset` of cell 0, it is a `SignalGroupNorm`, which `through` tells of n_samples; without, padding counts.
    Raises ValueError for another name.
    """
    if norm == "global_batch":
        return GlobalBatchNorm1d(channels)
    if norm != "group":
        raise ValueError(f"norm must be global_batch or group, not {norm!r}")
    if per_step:
        return ChannelNorm(channels)
    groups = min(8, channels)
    return nn.GroupNorm(groups, channels) if stride is None else SignalGroupNorm(groups, channels, stride, offset)


def through(layers: Iterable[nn.Module], x: Tensor, n_samples: Tensor | None) -> Tensor:
    """One layer after the other; those that normalise over time learn which part of each record is signal."""
    for layer in layers:
        x = layer(x, n_samples) if isinstance(layer, SignalGroupNorm) else layer(x)
    return x


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () over all ranks, float64."""
    channels = x.shape[1]
    local = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if x.numel() > 0:
        stats_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        scratch = torch.zeros(channels, dtype=stats_dtype, device=x.device)
        mean, var = torch.batch_norm_update_stats(x, scratch, scratch.clone(), 0.0)
        count = x.numel() // channels
        local[0] = count
        local[1 : channels + 1] = mean
        local[channels + 1 :] = var * count
    ranks = _world_size()
    if ranks == 1:
        moments = local[None]
    else:
        everyone = [torch.empty_like(local) for _ in range(ranks)]
        dist.all_gather(everyone, local)
        moments = torch.stack(everyone)
    counts, means, deviations = moments[:, :1], moments[:, 1 : channels + 1], moments[:, channels + 1 :]
    total = counts.sum()
    divisor = total.clamp_min(1.0)
    mean = (counts * means).sum(0) / divisor
    var = (deviations + counts * (means - mean).square()).sum(0) / divisor
    return mean, var, total


class _NormaliseGlobally(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the gradient of mean and var through all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        mean, var = mean.to(weight.dtype), var.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return _affine(x, mean, var, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)
        inverse_sd = torch.rsqrt(var + ctx.eps)
        if x.numel() > 0:
            _, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, var, mean, inverse_sd, False, ctx.eps, [False, True, True]
            )
        else:
            weight_grad, bias_grad = torch.zeros_like(weight), torch.zeros_like(weight)
        sums = torch.cat([bias_grad, weight_grad])
        if _world_size() > 1:
            dist.all_reduce(sums)
        mean_dy, mean_dy_xhat = (sums / count.clamp_min(1.0).to(sums.dtype)).chunk(2)
        # the compiler fuses the two affine maps by itself, and does not know the kernel that does both
        one_kernel = x.is_cuda and not torch.compiler.is_compiling()
        input_gradient = _input_gradient_of_cuda if one_kernel else _input_gradient
        dx = input_gradient(dy, x, weight, mean, inverse_sd, mean_dy, mean_dy_xhat)
        return dx, weight_grad, bias_grad, None, None, None, None


def _input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_sd: Tensor, mean_dy: Tensor, mean_dy_xhat: Tensor
) -> Tensor:
    """gain * (dy - mean(dy) - xhat * mean(dy * xhat)), as two fused per-channel affine maps."""
    gain = weight * inverse_sd
    zero, one = torch.zeros_like(gain), torch.ones_like(gain)
    dx = _affine(dy, zero, one, gain, zero, 0.0)
    dx += _affine(x, mean, one, -gain * inverse_sd * mean_dy_xhat, -gain * mean_dy, 0.0)
    return dx


def _input_gradient_of_cuda(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_sd: Tensor, mean_dy: Tensor, mean_dy_xhat: Tensor
) -> Tensor:
    """The same by the kernel of `torch.nn.SyncBatchNorm`, which only CUDA has: x and dy are read once, not 7 passes.

    It takes sums of dy and of dy (x - mean) and the counts of all ranks; here they are means already, of one value. Its
    parameters are float32, or float64 where x is.
    """
    if x.numel() == 0:
        return torch.empty_like(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale, sums = (mean, inverse_sd, weight), (mean_dy, mean_dy_xhat / inverse_sd)
    per_channel = [each.to(dtype) for each in (*scale, *sums)]
    count = torch.ones(1, dtype=torch.int32, device=x.device)
    dx: Tensor = torch.ops.aten.batch_norm_backward_elemt(dy, x, *per_channel, count)
    return dx


def _affine(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x)
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
