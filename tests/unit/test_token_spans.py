"""Masked spans of tokens and their negatives, and leads that are zeroed: exact numbers, even draws, bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beatray.augment.draws import Draws
from beatray.augment.lead_masks import kept_leads, mask_leads, standardise_leads
from beatray.augment.token_spans import masked_tokens, negative_positions


def draws(records: int, epoch: int = 0) -> Draws:
    return Draws(np.arange(records, dtype=np.int64) * 7919 + 3, 5, epoch)


def hidden(order: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(B, T') bool of the first `count` tokens of each row."""
    gone = np.zeros(order.shape, bool)
    for row, (tokens, number) in enumerate(zip(order, count, strict=True)):
        gone[row, tokens[:number]] = True
    return gone


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.95, 1.0])
def test_exactly_so_many_tokens_are_masked_in_the_order_of_time(ratio: float) -> None:
    cells = np.array([156, 156, 80, 11, 10, 9, 2, 1])
    count = np.maximum(np.floor(ratio * cells + 0.5).astype(int), 1)
    order = masked_tokens(draws(len(cells)), 1, 157, cells, count, 10)
    assert order.shape == (8, 157) and (np.sort(order, axis=1) == np.arange(157)).all()
    for row, (of_row, number) in enumerate(zip(cells, count, strict=True)):
        assert (np.diff(order[row, :number]) > 0).all() and order[row, :number].max() < of_row


def test_spans_hold_together() -> None:
    cells, count = np.full(200, 156), np.full(200, 78)
    gone = hidden(masked_tokens(draws(200), 1, 156, cells, count, 10), count)
    assert (gone.sum(1) == 78).all()
    borders = (np.diff(gone.astype(int), axis=1) == 1).sum(1) + gone[:, 0]
    # about 11 spans, some joined, and up to 9 tokens given back from within them
    assert 5 < borders.mean() < 16
    scattered = np.full(200, 78)
    alone = hidden(masked_tokens(draws(200), 1, 156, cells, scattered, 1), scattered)
    assert (np.diff(alone.astype(int), axis=1) == 1).sum(1).mean() > 30


def test_without_tokens_to_give_back_masks_are_whole_spans() -> None:
    count = np.full(50, 10)
    gone = hidden(masked_tokens(draws(50), 2, 60, np.full(50, 60), count, 10), count)
    assert all("1" * 10 in "".join(map(str, row.astype(int))) for row in gone)


def test_every_token_is_masked_in_some_epoch() -> None:
    cells, count = np.full(4, 40), np.full(4, 20)
    often = sum(hidden(masked_tokens(draws(4, epoch), 1, 40, cells, count, 10), count) for epoch in range(200))
    assert often.min() > 0
    assert abs(often[:, 10:30].mean() - 120) < 25  # the middle about as often as spans reach it


def test_a_mask_depends_on_its_record_alone() -> None:
    cells, count = np.array([156, 50, 100]), np.array([78, 25, 50])
    together = masked_tokens(draws(3), 1, 156, cells, count, 10)
    others = negative_positions(draws(3), 1, 78, count, 20)
    one = Draws(draws(3).keys[1:2], 5, 0)
    assert (masked_tokens(one, 1, 156, cells[1:2], count[1:2], 10) == together[1:2]).all()
    assert (negative_positions(one, 1, 78, count[1:2], 20) == others[1:2]).all()
    assert (masked_tokens(draws(3), 2, 156, cells, count, 10) != together).any()
    assert masked_tokens(draws(0), 1, 156, cells[:0], count[:0], 10).shape == (0, 156)
    assert negative_positions(draws(0), 1, 78, count[:0], 20).shape == (0, 78, 20)


def test_negatives_are_others_of_the_masked_each_as_often() -> None:
    count = np.array([20, 5, 2, 1])
    found = negative_positions(draws(4), 1, 20, count, 400)
    for row, number in enumerate(count[:3]):
        for position in range(number):
            values, often = np.unique(found[row, position], return_counts=True)
            assert values.tolist() == [other for other in range(number) if other != position]
            assert (np.abs(often - 400 / (number - 1)) < 6 * np.sqrt(400 / (number - 1))).all()
    assert (found[3] == 0).all()  # there is no other
    assert (found < np.maximum(count, 1)[:, None, None]).all()


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.97, 0.9999])
def test_leads_are_zeroed_with_their_probability_but_never_all(probability: float) -> None:
    x = torch.ones(3000, 12, 2)
    masked = mask_leads(x, draws(3000), 1, probability)
    kept = masked[..., 0] != 0
    assert torch.equal(masked, kept[..., None].expand_as(x).float()) and x.min() == 1
    assert int(kept.sum(1).min()) >= 1
    if probability <= 0.5:
        assert float(kept.double().mean()) == pytest.approx(1 - probability, abs=0.01)
    other = mask_leads(x, draws(3000), 2, probability)
    assert probability == 0.0 or not torch.equal(other, masked)


def test_a_draw_of_no_lead_is_drawn_again_and_at_last_the_nearest_stays() -> None:
    drawn = np.zeros((2, 3, 4))
    drawn[0, 1, 2] = 0.6
    drawn[0, 2] = 0.9
    drawn[1, 2, 1] = 0.4
    assert kept_leads(drawn, 0.5).tolist() == [[False, False, True, False], [False, True, False, False]]


def test_standardised_leads_have_mean_0_and_the_scale_over_both_segments() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(2, 12, 50, generator=generator).double() * 3 + 1 for _ in range(2))
    n_valid = torch.tensor([50, 20])
    first[0, 4], second[0, 4] = 2.5, 2.5  # flat
    first[1, :, 20:] = second[1, :, 20:] = 0.0
    scale = torch.linspace(0.1, 0.4, 12)
    a, b = standardise_leads(first, second, n_valid, scale)
    for row, length in enumerate(n_valid.tolist()):
        both = torch.cat([a[row, :, :length], b[row, :, :length]], 1)
        torch.testing.assert_close(both.mean(1), torch.zeros(12).double(), atol=1e-12, rtol=0)
        expected = torch.where((torch.arange(12) == 4) & (row == 0), 0.0, scale).double()
        torch.testing.assert_close(both.std(1, correction=0), expected)
    assert not a[1, :, 20:].any() and not b[1, :, 20:].any()
