"""GlobalBatchNorm1d in one process: torch's layer, and the shared path against it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from beatray.models.batch_norm import GlobalBatchNorm1d, _global_moments, _NormaliseGlobally, build_norm


def pair(channels: int) -> tuple[GlobalBatchNorm1d, nn.BatchNorm1d]:
    torch.manual_seed(0)
    layer, torchs = GlobalBatchNorm1d(channels), nn.BatchNorm1d(channels)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
    torchs.load_state_dict(layer.state_dict())  # the same names, or this raises
    return layer, torchs


@pytest.mark.parametrize("shape", [(16, 6), (16, 6, 31)])
def test_equals_torch_on_one_rank(shape: tuple[int, ...]) -> None:
    layer, torchs = pair(6)
    for _ in range(3):
        x = torch.randn(shape) * 3 + 1
        x_ours, x_torch = x.clone().requires_grad_(), x.clone().requires_grad_()
        y_ours, y_torch = layer(x_ours), torchs(x_torch)
        torch.testing.assert_close(y_ours, y_torch)
        y_ours.square().sum().backward()
        y_torch.square().sum().backward()
        torch.testing.assert_close(x_ours.grad, x_torch.grad)
    torch.testing.assert_close(layer.state_dict(), torchs.state_dict())
    torch.testing.assert_close(layer.weight.grad, torchs.weight.grad)
    layer.eval()
    torchs.eval()
    torch.testing.assert_close(layer(x), torchs(x))


def shared_path(layer: GlobalBatchNorm1d) -> Callable[[Tensor], Tensor]:
    """What runs with many ranks, here with one."""

    def normalise(x: Tensor) -> Tensor:
        mean, var, count = _global_moments(x)
        out: Tensor = _NormaliseGlobally.apply(x, layer.weight, layer.bias, mean, var, count, layer.eps)
        return out

    return normalise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_path_equals_the_fused_kernel(dtype: torch.dtype) -> None:
    layer, torchs = pair(5)
    x = torch.randn(8, 5, 40).to(dtype)
    upstream = torch.randn(8, 5, 40).to(dtype)
    x_ours, x_torch = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_ours, y_torch = shared_path(layer)(x_ours), torchs(x_torch)
    assert y_ours.dtype == dtype
    y_ours.backward(upstream)
    y_torch.backward(upstream)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(y_ours, y_torch, **close)
    torch.testing.assert_close(x_ours.grad, x_torch.grad, **close)
    torch.testing.assert_close(layer.weight.grad, torchs.weight.grad, **close)
    torch.testing.assert_close(layer.bias.grad, torchs.bias.grad, **close)


def test_shared_path_gradient_is_exact() -> None:
    layer = GlobalBatchNorm1d(3).double()
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(shared_path(layer), x)


def test_moments_survive_a_large_mean() -> None:
    x = torch.randn(64, 2, 100, dtype=torch.float64) * 1e-3 + 1e4
    mean, var, count = _global_moments(x)
    torch.testing.assert_close(mean, x.mean((0, 2)))
    torch.testing.assert_close(var, x.var((0, 2), correction=0), rtol=1e-6, atol=0)
    assert count == 6400


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 9)])
def test_an_empty_batch_passes_through(shape: tuple[int, ...]) -> None:
    layer = GlobalBatchNorm1d(4)
    before = {key: value.clone() for key, value in layer.state_dict().items() if "running" in key}
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() == 0
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())
    assert layer.eval()(torch.zeros(shape)).shape == shape


def test_a_single_value_is_no_error() -> None:
    layer = GlobalBatchNorm1d(3)
    assert torch.equal(layer(torch.full((1, 3), 7.0)), layer.bias.expand(1, 3))
    assert torch.isfinite(layer.running_var).all()


def test_names_and_shapes_are_checked() -> None:
    assert isinstance(build_norm("group", 32), nn.GroupNorm)
    with pytest.raises(ValueError, match="global_batch or group"):
        build_norm("layer", 32)
    with pytest.raises(ValueError, match="expected"):
        GlobalBatchNorm1d(4)(torch.zeros(2, 5))
