"""Convolution and pooling over time in the memory layout that the hardware wants: channels innermost on CUDA.

cuDNN has its tensor-core convolutions, and torch its fast kernels for batch norm and pooling, for images (N, C, H, W)
whose channels lie innermost ("channels last", torch's memory format); of (N, C, T) cuDNN makes copies in that layout
and back, and torch's batch norm and pooling take slow kernels. So on the devices of `_DEVICES` the layers here see a
map as an image of height 1, (N, C, 1, T), in that layout. Elsewhere they are torch's own layers, to the bit.

Contract: between layers a map is a tensor (N, C, T), as everywhere; only its strides are (T C, 1, C) instead of
(C T, T, 1). Elementwise functions, dropout and layer norm over channels keep them, so that no layer knows of another.
A map that has these strides already is not copied. Parameters, buffers, their names and shapes are those of the layers
of torch: a checkpoint fits either way. Values are equal but for the order in which sums are taken.

What makes its result (N, C, T) contiguous, whatever it is given: `masked_fill`, `cat`, `pad` and linear `interpolate`
of three dimensions (the functions here keep the layout instead), nn.Conv1d, nn.GroupNorm. Group norm has no
channels-last kernel on CUDA: behind a network's `norm: group` the next convolution copies once. cuDNN has no
channels-last kernel for float64 either, which is for checks: there every layer copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

_DEVICES = {"cuda"}
"""Types of devices on which maps are kept channels last. On a CPU torch's layers over (N, C, T) stay what runs."""


@contextmanager
def channels_last_on(device_type: str) -> Iterator[None]:
    """Keep maps channels last on this type of device too, for as long as the context lasts: to test it on a CPU."""
    added = device_type not in _DEVICES
    _DEVICES.add(device_type)
    try:
        yield
    finally:
        if added:
            _DEVICES.discard(device_type)


@contextmanager
def channels_first() -> Iterator[None]:
    """Keep every map (N, C, T) contiguous, on CUDA too, for as long as the context lasts: to measure against it."""
    before = set(_DEVICES)
    _DEVICES.clear()
    try:
        yield
    finally:
        _DEVICES.update(before)


def wants_channels_last(x: Tensor) -> bool:
    """Whether x is a map (N, C, T) on a device that wants it channels last."""
    return x.dim() == 3 and x.device.type in _DEVICES


def as_image(x: Tensor) -> Tensor:
    """(N, C, T) -> (N, C, 1, T) channels last; a view where x has the strides already."""
    if x.shape[1] == 1:
        # one channel is contiguous in either layout, and torch takes it for the other: write its strides as (T, 1, 1)
        x = x[:, 0, :, None].transpose(1, 2)
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def as_map(image: Tensor) -> Tensor:
    """(N, C, 1, T) -> (N, C, T), a view."""
    return image.squeeze(2)


def as_filter(weight: Tensor) -> Tensor:
    """Weight (C', C, K) -> (C', C, 1, K), a view.

    cuDNN gives its gradient channels last too; autograd copies that into the strides of the weight, but for the stride
    of an axis of one entry, and DistributedDataParallel warns of one that is another. A view by way of two dimensions
    settles it on the way back.
    """
    if weight.shape[2] == 1:
        return weight.flatten(1)[:, :, None, None]
    if weight.shape[1] == 1:
        return weight.flatten(1)[:, None, None]
    return weight.unsqueeze(2)


class Conv1d(nn.Conv1d):
    """`nn.Conv1d`, in the layout of the device. Only padding with zeros, by a number."""

    def forward(self, input: Tensor) -> Tensor:
        if not wants_channels_last(input) or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(input)
        stride, padding, dilation = (1, self.stride[0]), (0, self.padding[0]), (1, self.dilation[0])
        return as_map(
            functional.conv2d(
                as_image(input), as_filter(self.weight), self.bias, stride, padding, dilation, groups=self.groups
            )
        )


class MaxPool1d(nn.MaxPool1d):
    """`nn.MaxPool1d`, in the layout of the device; it gives no indices."""

    def forward(self, input: Tensor) -> Tensor:
        if not wants_channels_last(input):
            return super().forward(input)  # type: ignore[no-any-return]
        sizes = (1, _one(self.kernel_size)), (1, _one(self.stride)), (0, _one(self.padding)), (1, _one(self.dilation))
        return as_map(functional.max_pool2d(as_image(input), *sizes, ceil_mode=self.ceil_mode))


class AvgPool1d(nn.AvgPool1d):
    """`nn.AvgPool1d`, in the layout of the device."""

    def forward(self, input: Tensor) -> Tensor:
        if not wants_channels_last(input):
            return super().forward(input)
        sizes = (1, _one(self.kernel_size)), (1, _one(self.stride)), (0, _one(self.padding))
        return as_map(functional.avg_pool2d(as_image(input), *sizes, self.ceil_mode, self.count_include_pad))


def cat(maps: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` of maps (N, C, T) over the channels, dim 1, or over time, dim -1."""
    if not wants_channels_last(maps[0]):
        return torch.cat(list(maps), dim)
    return as_map(torch.cat([as_image(each) for each in maps], dim))


def pad(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros before and after the time of a map (N, C, T)."""
    if not wants_channels_last(x):
        return functional.pad(x, (before, after))
    return as_map(functional.pad(as_image(x), (before, after)))


def fill(x: Tensor, where: Tensor, value: float) -> Tensor:
    """`masked_fill` of a map (N, C, T)."""
    if not wants_channels_last(x):
        return x.masked_fill(where, value)
    return torch.where(where, value, as_map(as_image(x)))


def interpolate(x: Tensor, size: int) -> Tensor:
    """Linear interpolation of a map (N, C, T) to `size` steps, the first and the last where they were."""
    if not wants_channels_last(x):
        return functional.interpolate(x, size=size, mode="linear", align_corners=True)
    return as_map(functional.interpolate(as_image(x), size=(1, size), mode="bilinear", align_corners=True))


def _one(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
