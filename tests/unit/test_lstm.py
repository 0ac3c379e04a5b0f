"""The LSTM network: blocks of samples, causality, reversal of the valid part, pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from beatray.models.lstm import LSTMEncoder, block_means
from beatray.models.registry import build_encoder

torch.set_num_threads(1)


def network(**settings: Any) -> LSTMEncoder:
    torch.manual_seed(1)
    encoder = build_encoder("lstm", **{"width": 8, **settings})
    assert isinstance(encoder, LSTMEncoder)
    return encoder.double().eval()


def signal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def test_blocks_are_averaged_over_the_samples_they_have() -> None:
    x = torch.arange(12.0)[None, None]
    torch.testing.assert_close(block_means(x, 5), torch.tensor([[[2.0, 7.0, 10.5]]]))
    torch.testing.assert_close(block_means(x, 1), x)
    torch.testing.assert_close(block_means(x[..., :10], 5), torch.tensor([[[2.0, 7.0]]]))


def test_cell_j_stands_for_the_middle_of_its_block() -> None:
    encoder = network()
    assert [(stage.stride, stage.offset) for stage in encoder.stages] == [(5, 2.0), (5, 2.0)]
    # a ramp averaged over a block is its value in the middle: the first layer before its norm shows it
    ramp = torch.arange(100.0)[None, None].expand(1, 12, 100)
    torch.testing.assert_close(block_means(ramp, 5)[0, 0], torch.arange(20) * 5.0 + 2.0)
    fine = encoder.forward_stages(signal(1, 12, 103))[0]
    assert fine.shape == (1, 8, 21)


@pytest.mark.parametrize("norm", ["global_batch", "group"])
def test_a_cell_has_seen_no_later_block(norm: str) -> None:
    encoder = network(direction="both", norm=norm)
    x = signal(1, 12, 200)
    changed = x.clone()
    changed[..., 100:105] += 1.0
    same = (encoder.forward_features(x) - encoder.forward_features(changed)).abs()[0] == 0
    cells = torch.arange(40)
    assert torch.equal(same[:8].all(0), cells < 20)
    assert torch.equal(same[8:].all(0), cells > 20)


def test_reversed_time_swaps_the_halves() -> None:
    encoder = network(direction="both")
    encoder.recurrences[1].load_state_dict(encoder.recurrences[0].state_dict())
    x = signal(1, 12, 300)
    ahead, behind = encoder.forward_features(x).chunk(2, dim=1)
    swapped_ahead, swapped_behind = encoder.forward_features(x.flip(-1)).flip(-1).chunk(2, dim=1)
    torch.testing.assert_close(ahead, swapped_behind)
    torch.testing.assert_close(behind, swapped_ahead)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_padded_record_is_the_record_alone(direction: str) -> None:
    for pool_last in (False, True):
        encoder = network(direction=direction, pool_last=pool_last)
        x, n_samples = signal(2, 12, 500), torch.tensor([500, 300])
        found, alone = encoder.forward_features(x, n_samples), encoder.forward_features(x[1:, :, :300])
        torch.testing.assert_close(found[1:, :, :60], alone)
        torch.testing.assert_close(encoder.pool(found, n_samples)[1:], encoder.pool(alone))
        torch.testing.assert_close(encoder(x, n_samples)[:1], encoder(x[:1]))
        tokens = encoder.tokens(x, n_samples)
        assert not tokens[1, 60:].any() and tokens[1, 59].any()


def test_the_published_pooling_is_mean_maximum_and_last() -> None:
    encoder = network(pool_last=True)
    fmap = encoder.forward_features(signal(3, 12, 250))
    expected = torch.cat([fmap.mean(-1), fmap.amax(-1), fmap[..., -1]], dim=1)
    torch.testing.assert_close(encoder.pool(fmap), expected)
    assert encoder.embed_dim == expected.shape[1] == 24
    both = network(direction="both", pool_last=True)
    fmap = both.forward_features(signal(3, 12, 250))
    # the last state of the backward LSTM lies at the first cell
    torch.testing.assert_close(both.pool(fmap)[:, -16:], torch.cat([fmap[:, :8, -1], fmap[:, 8:, 0]], dim=1))
    assert both.embed_dim == 48


def test_tokens_and_context_make_the_map() -> None:
    encoder = network(direction="both")
    x = signal(2, 12, 333)
    tokens = encoder.tokens(x)
    assert tokens.shape == (2, 67, 8) and encoder.directions == ("forward", "backward") and not encoder.drops_tokens
    torch.testing.assert_close(encoder.encode(tokens).transpose(1, 2), encoder.forward_features(x))
    with pytest.raises(ValueError, match="cannot leave tokens out"):
        encoder.encode(tokens, torch.zeros(2, 3, dtype=torch.int64))


def test_the_form_for_exporters_is_the_same() -> None:
    recurrence: Any = network(layers=2).recurrences[0]
    tokens = signal(2, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(recurrence.exported_form(5000)(tokens), recurrence(tokens))


def test_published_size() -> None:
    fc = 12 * 512 + 3 * 512**2 + 4 * 2 * 512
    lstm = 2 * (2 * 4 * 512**2 + 2 * 4 * 512)
    assert sum(p.numel() for p in build_encoder("lstm").parameters()) == fc + lstm
    with pytest.raises(ValueError, match="decimation must be odd"):
        build_encoder("lstm", decimation=4)
