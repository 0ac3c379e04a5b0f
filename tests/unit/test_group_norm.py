"""norm=group: statistics over the cells of the signal, whole recordings to the bit, and networks that pass it on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beatray.models.batch_norm import SignalGroupNorm, build_norm, through
from beatray.models.registry import build_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-an-encoder.md"

NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("tiny", {}),
    ("xresnet1d18", {"widths": (8, 8, 8, 8)}),
    ("xresnet1d50", {"widths": (8, 8, 8, 8), "out_stride": 32}),
    ("temporal_net", {"stem": 4, "widths": (4, 8)}),
    ("temporal_net", {"stem": 4, "widths": (4, 8), "block_stride": 2, "stem_stride": 2, "streams": 2}),
]

every_network = pytest.mark.parametrize(("name", "settings"), NETWORKS)


def signal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


def layer_of(channels: int, stride: int, offset: float = 0.0) -> SignalGroupNorm:
    layer = build_norm("group", channels, stride=stride, offset=offset)
    assert isinstance(layer, SignalGroupNorm)
    nn.init.uniform_(layer.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
    nn.init.uniform_(layer.bias, -1.0, 1.0, generator=torch.Generator().manual_seed(2))
    return layer.double()


def network(name: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    encoder = build_encoder(name, norm="group", **settings).eval()
    for parameter in encoder.parameters():  # the last norm of xresnet's blocks starts at zero
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -0.5, 0.8)
    return encoder.requires_grad_(False)


@pytest.mark.parametrize(("offset", "cells"), [(0.0, (30, 8, 1)), (3.5, (30, 7, 1))])
def test_padded_cells_count_in_no_statistic_and_become_zero(offset: float, cells: tuple[int, ...]) -> None:
    layer, x = layer_of(16, 8, offset), signal(3, 16, 30) + 2.0
    found = layer(x, torch.tensor([240, 59, 0]))
    for record, count in enumerate(cells):
        alone = nn.functional.group_norm(x[record : record + 1, :, :count], 8, layer.weight, layer.bias)
        torch.testing.assert_close(found[record : record + 1, :, :count], alone, atol=1e-12, rtol=1e-12)
        assert not found[record, :, count:].any()


def test_gradients_are_those_of_the_signal_alone() -> None:
    layer, x = layer_of(16, 8), signal(2, 16, 30).requires_grad_()
    towards = signal(2, 16, 30).flip(0)
    layer(x, torch.tensor([240, 56])).backward(towards)
    found = x.grad, layer.weight.grad, layer.bias.grad
    x.grad = layer.weight.grad = layer.bias.grad = None
    layer(x[:1]).backward(towards[:1])
    layer(x[1:, :, :7]).backward(towards[1:, :, :7])
    for gradient, expected in zip(found, (x.grad, layer.weight.grad, layer.bias.grad), strict=True):
        assert gradient is not None and expected is not None
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-12)


@every_network
def test_whole_recordings_keep_their_numbers_to_the_bit(name: str, settings: dict[str, Any]) -> None:
    encoder, x = network(name, settings), signal(2, 12, 1003, dtype=torch.float32)
    expected = encoder.forward_stages(x)
    for n_samples in ([1003, 1003], [1003, 400]):
        maps = encoder.forward_stages(x, torch.tensor(n_samples))
        assert all(torch.equal(one[0], other[0]) for one, other in zip(maps, expected, strict=True))


@every_network
def test_an_embedding_does_not_know_how_long_the_padding_is(name: str, settings: dict[str, Any]) -> None:
    """Each map is also that of the recording alone, where the zeros beyond its end are out of reach."""
    encoder, x = network(name, settings).double(), signal(1, 12, 1600)
    n_samples = torch.tensor([1600])
    short, long = (nn.functional.pad(x, (0, more)) for more in (1600, 3400))
    torch.testing.assert_close(encoder(short, n_samples), encoder(long, n_samples), atol=1e-9, rtol=1e-9)
    apart = (encoder(short, n_samples) - encoder(x)).norm() / encoder(x).norm()
    of_all = (encoder(short) - encoder(x)).norm() / encoder(x).norm()
    assert apart < 0.08 and of_all > 3 * apart


def test_without_its_place_in_time_a_norm_counts_all_cells() -> None:
    layer, x = build_norm("group", 16).double(), signal(2, 16, 30)
    assert torch.equal(through([layer], x, torch.tensor([30, 7])), layer(x))


def test_the_network_of_the_docs_leaves_padding_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "small_net_of_docs.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = network("small_net_of_docs:SmallNet", {"width": 8}).double()
    sys.modules.pop("small_net_of_docs")
    x, n_samples = signal(2, 12, 2000), torch.tensor([2000, 700])
    changed = x.clone()
    changed[1, :, 900:] = 5.0
    torch.testing.assert_close(encoder(changed, n_samples), encoder(x, n_samples), atol=1e-12, rtol=1e-12)
