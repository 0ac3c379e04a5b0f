"""wav2vec: where its tokens lie, its norm, positions and blocks against those of torch, padding, start values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beatray.models.encoder import cells_of
from beatray.models.registry import build_encoder
from beatray.models.wav2vec import PositionalConv, PostNormBlock, TimeNorm, Wav2Vec, Wav2VecSettings

torch.set_num_threads(1)

SMALL = {"conv_channels": 4, "width": 8, "depth": 2, "heads": 2, "hidden": 16, "position_groups": 2}


def network(**settings: Any) -> Wav2Vec:
    torch.manual_seed(1)
    encoder = build_encoder("wav2vec", **{**SMALL, "position_kernel": 6, **settings})
    assert isinstance(encoder, Wav2Vec)
    return encoder.double().eval()


def signal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(("half_rate", "reach"), [(False, (0, 15)), (True, (-2, 32))])
def test_a_token_stands_for_the_middle_of_the_samples_that_it_sees(half_rate: bool, reach: tuple[int, int]) -> None:
    encoder = network(half_rate=half_rate)
    encoder.conv_norm = nn.Identity()  # type: ignore[assignment]
    encoder.conv_norm.forward = lambda x, valid=None: x  # type: ignore[method-assign]  # it sees all of the time
    stage = encoder.token_stage
    x = signal(1, 12, 640).requires_grad_()
    seen = torch.autograd.grad(encoder.tokens(x)[0, 5].sum(), x)[0][0].abs().sum(0).nonzero()[:, 0]
    first, last = (5 * stage.stride + end for end in reach)
    assert torch.equal(seen, torch.arange(first, last + 1))
    assert (first + last) / 2 == 5 * stage.stride + stage.offset == 5 * encoder.stride + encoder.offset


def test_stages_are_the_convolutions_from_stride_4_and_the_context() -> None:
    found = [(stage.channels, stage.stride, stage.offset) for stage in network().stages]
    assert found == [(4, 4, 1.5), (4, 8, 3.5), (8, 16, 7.5)]
    found = [(stage.channels, stage.stride, stage.offset) for stage in network(half_rate=True).stages]
    assert found == [(4, 4, 1.0), (4, 8, 3.0), (4, 16, 7.0), (8, 32, 15.0)]
    assert [stage.stride for stage in network(convs=1).stages] == [2]
    encoder = network(convs=1)
    assert [fmap.shape for fmap in encoder.forward_stages(signal(1, 12, 11))] == [(1, 8, 6)]


def test_maps_are_those_of_the_convolutions_in_order() -> None:
    encoder = network()
    x = signal(2, 12, 164)
    half = nn.functional.gelu(encoder.conv_norm(encoder.convs[0](encoder.lead_scale(x))))
    quarter = nn.functional.gelu(encoder.convs[1](half))
    maps = encoder.forward_stages(x)
    torch.testing.assert_close(maps[0], quarter)
    torch.testing.assert_close(
        maps[1], nn.functional.gelu(encoder.convs[2](nn.functional.pad(quarter, (0, 1)))), atol=1e-12, rtol=0
    )
    assert [fmap.shape[-1] for fmap in maps] == [41, 21, 11]


def test_the_norm_over_time_is_a_group_norm_of_one_channel_each() -> None:
    norm, expected = TimeNorm(5).double(), nn.GroupNorm(5, 5).double()
    for layer in (norm, expected):
        nn.init.uniform_(layer.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(layer.bias, -1.0, 1.0, generator=torch.Generator().manual_seed(2))
    x = signal(3, 5, 20) + 3.0
    torch.testing.assert_close(norm(x), expected(x))
    valid = torch.arange(20) < torch.tensor([20, 7, 1])[:, None]
    found = norm(x, valid)
    torch.testing.assert_close(found[:1], expected(x[:1]))
    torch.testing.assert_close(found[1:2, :, :7], expected(x[1:2, :, :7]))
    assert not found[1, :, 7:].any() and torch.isfinite(found).all()
    torch.testing.assert_close(found[2, :, 0], expected.bias)  # one value has no spread


@pytest.mark.parametrize("kernel", [1, 5, 8, 128])
def test_positions_are_a_weight_normalised_convolution(kernel: int) -> None:
    layer = PositionalConv(8, kernel, 2, 0.1).double()
    theirs = nn.Conv1d(8, 8, kernel, padding=kernel // 2, groups=2).double()
    theirs.weight.data.copy_(layer.direction.data)
    theirs = nn.utils.parametrizations.weight_norm(theirs, dim=2)
    theirs.bias.data.zero_()  # type: ignore[union-attr]
    gain = torch.rand(1, 1, kernel, dtype=torch.float64)
    layer.gain.data.copy_(gain)
    theirs.parametrizations.weight.original0.data.copy_(gain)  # type: ignore[union-attr,index]
    x = signal(2, 17, 8)
    expected = nn.functional.gelu(theirs(x.transpose(1, 2))[..., :17]).transpose(1, 2)  # an even kernel gives one more
    torch.testing.assert_close(layer(x), expected)


def test_a_block_is_that_of_torch() -> None:
    torch.manual_seed(0)
    settings = Wav2VecSettings(**{**SMALL, "position_kernel": 4})  # type: ignore[arg-type]
    block = PostNormBlock(settings).double().eval()
    expected = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True).double().eval()
    for mine, theirs in (
        (block.attended, expected.self_attn.out_proj),
        (block.wide, expected.linear1),
        (block.narrow, expected.linear2),
        (block.norm_1, expected.norm1),
        (block.norm_2, expected.norm2),
    ):
        nn.init.normal_(mine.weight)
        nn.init.normal_(mine.bias)
        theirs.load_state_dict(mine.state_dict())
    expected.self_attn.in_proj_weight.data.copy_(block.queries_keys_values.weight.data)
    expected.self_attn.in_proj_bias.data.copy_(block.queries_keys_values.bias.data)  # type: ignore[union-attr]
    x = signal(2, 7, 8)
    torch.testing.assert_close(block(x, None), expected(x))
    there = torch.arange(7) < torch.tensor([7, 4])[:, None]
    found = block(x, there[:, None, None])
    torch.testing.assert_close(found[there], expected(x, src_key_padding_mask=~there)[there])


@pytest.mark.parametrize("half_rate", [False, True])
def test_a_padded_record_is_the_record_alone(half_rate: bool) -> None:
    encoder = network(half_rate=half_rate)
    x, n_samples = signal(2, 12, 640), torch.tensor([640, 293])
    maps = encoder.forward_stages(x, n_samples)
    alone = encoder.forward_stages(x[1:, :, :293], n_samples[1:])
    for fmap, expected in zip(maps[:-1], alone[:-1], strict=True):
        torch.testing.assert_close(fmap[1:, :, : expected.shape[-1]], expected)
    torch.testing.assert_close(encoder(x, n_samples)[1:], encoder(x[1:, :, :293], n_samples[1:]))
    torch.testing.assert_close(encoder(x, n_samples)[:1], encoder(x[:1], n_samples[:1]))
    changed = x.clone()
    changed[1, :, 293:] = 7.0
    for fmap, same in zip(maps, encoder.forward_stages(changed, n_samples), strict=True):
        assert torch.equal(fmap, same)
    assert torch.isfinite(encoder(x, torch.tensor([0, 1]))).all()


@pytest.mark.parametrize("half_rate", [False, True])
def test_a_record_of_any_length_is_itself_behind_its_padding(half_rate: bool) -> None:
    """Also where the filter that halves the rate, or a cell, reaches from the last samples into the padding."""
    encoder = network(half_rate=half_rate).requires_grad_(False)
    for n in range(100, 164):
        x, n_samples = signal(1, 12, n), torch.tensor([n])
        padded = encoder.forward_stages(nn.functional.pad(x, (0, 300 - n)), n_samples)
        for fmap, alone in zip(padded, encoder.forward_stages(x, n_samples), strict=True):
            cells = alone.shape[-1] if fmap is not padded[-1] else int(cells_of(n_samples, encoder.token_stage, 99))
            torch.testing.assert_close(fmap[..., :cells], alone[..., :cells], msg=f"{n} samples")


@pytest.mark.parametrize("half_rate", [False, True])
def test_without_n_samples_a_partly_filled_last_cell_counts(half_rate: bool) -> None:
    encoder = network(half_rate=half_rate).requires_grad_(False)
    for n in range(100, 164):
        x, n_samples = signal(1, 12, n), torch.tensor([n])
        stages = (encoder._first_stage, encoder.token_stage)
        all_count = all(int(cells_of(n_samples, stage, 99)) == -(-n // stage.stride) for stage in stages)
        assert torch.allclose(encoder(x), encoder(x, n_samples), atol=1e-9, rtol=0) == all_count, n


def test_tokens_encode_their_positions_by_their_neighbours() -> None:
    encoder = network()
    same = torch.ones(1, 30, 4, dtype=torch.float64)
    same[:, 12] = torch.tensor([1.0, 2.0, 0.0, -1.0])
    found = encoder.encode(same)[0]
    assert not torch.allclose(found[10], found[20], atol=1e-3)
    with pytest.raises(ValueError, match="cannot leave tokens out"):
        encoder.encode(same, torch.zeros(1, 3, dtype=torch.int64))


def test_dropout_is_of_training_alone_and_reaches_the_attention() -> None:
    encoder = network()
    tokens = encoder.tokens(signal(1, 12, 320))
    assert torch.equal(encoder.encode(tokens), encoder.encode(tokens))
    encoder.train()
    assert not torch.equal(encoder.encode(tokens), encoder.encode(tokens))
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(encoder.encode(tokens), encoder.encode(tokens))


def test_start_values() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("wav2vec", width=64, hidden=256, depth=3, heads=4, conv_channels=64, position_kernel=32)
    assert isinstance(encoder, Wav2Vec)
    for conv in encoder.convs:
        fan_in = conv.weight[0].numel()  # type: ignore[union-attr,index]
        assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)  # type: ignore[union-attr,operator]
    assert float(encoder.positions.direction.detach().std()) == pytest.approx(math.sqrt(3.6 / (32 * 64)), rel=0.05)
    torch.testing.assert_close(encoder.positions.gain, encoder.positions._lengths())
    assert encoder.positions.gain.no_decay
    for block in encoder.blocks:
        assert float(block.wide.weight.detach().std()) == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr,operator]


def test_the_released_size() -> None:
    with torch.device("meta"):
        encoder = build_encoder("wav2vec")
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(90.4e6, rel=0.005)
    assert encoder.embed_dim == 768 and encoder.token_stage.channels == 256


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"heads": 5}, {"position_groups": 3}):
        with pytest.raises(ValueError, match="multiple of heads and of position_groups"):
            build_encoder("wav2vec", width=8, **wrong)
