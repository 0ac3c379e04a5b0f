"""Time masks: one circular block in each lead, and beats that stay visible when asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beatray.augment.draws import Draws, uniform
from beatray.augment.masks import draw_mask, mask_length, time_mask, time_out

KEYS = np.arange(300)


def slow_mask(x: np.ndarray, draws: np.ndarray, fraction: float) -> np.ndarray:
    out = x.copy()
    n = x.shape[-1]
    for b in range(x.shape[0]):
        for lead in range(x.shape[1]):
            start = int(draws[b, lead] * n)
            for step in range(round(fraction * n)):
                out[b, lead, (start + step) % n] = 0.0
    return out


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_one_circular_block_per_lead(fraction: float) -> None:
    x = torch.randn(4, 12, 101) + 10.0
    draws = uniform(KEYS[:4], 0, 0, 1, 12)
    masked = time_mask(x, draws, fraction)
    np.testing.assert_array_equal(masked.numpy(), slow_mask(x.numpy(), draws, fraction))
    assert ((masked == 0).sum(-1) == round(fraction * 101)).all()


def test_slices_and_comparisons_give_the_same() -> None:
    x = torch.randn(3, 12, 250)
    draws = uniform(KEYS[:3], 0, 0, 1, 12)
    by_comparison = time_mask(x.clone().requires_grad_(), draws, 0.4).detach()
    assert torch.equal(time_mask(x, draws, 0.4), by_comparison)
    two = uniform(KEYS[:3], 0, 0, 1, 2)
    assert torch.equal(time_out(x, two), time_out(x.clone().requires_grad_(), two).detach())


def test_in_place_overwrites_and_otherwise_not() -> None:
    x = torch.ones(2, 12, 50)
    draws = uniform(KEYS[:2], 0, 0, 1, 12)
    copy = time_mask(x, draws)
    assert x.min() == 1.0
    assert time_mask(x, draws, in_place=True) is x
    assert torch.equal(x, copy)


def test_time_out_is_one_block_of_all_leads_inside() -> None:
    x = torch.ones(200, 12, 500)
    out = time_out(x, uniform(KEYS[:200], 0, 0, 1, 2))
    assert torch.equal(out, out[:, :1].expand_as(out))
    hidden = (out[:, 0] == 0).int()
    assert hidden.sum(1).min() >= 100
    assert hidden.sum(1).max() <= 200
    assert (torch.diff(hidden, dim=1).abs().sum(1) <= 2).all()


def hidden_leads(starts: np.ndarray, peaks: np.ndarray, fraction: float, n: int) -> np.ndarray:
    masked = time_mask(torch.ones(len(starts), 12, n), starts, fraction).numpy()
    return np.stack([(masked[np.arange(len(starts)), :, p] == 0).sum(1) for p in peaks.T], axis=1)


def test_redrawn_masks_keep_beats_visible() -> None:
    n = 1000
    peaks = np.tile(np.arange(90, 1000, 180), (300, 1))
    peaks = np.concatenate([peaks, np.full((300, 1), -1)], axis=1)
    plain = draw_mask(Draws(KEYS, 0, 0), 1, fraction=0.5)
    kept = draw_mask(Draws(KEYS, 0, 0), 1, fraction=0.5, n_samples=n, peaks_smp=peaks)
    lost_before = (hidden_leads(plain, peaks[:, :-1], 0.5, n) > 9).any(1)
    lost_after = (hidden_leads(kept, peaks[:, :-1], 0.5, n) > 9).any(1)
    assert lost_before.sum() > 10
    assert lost_after.sum() == 0
    # only the draws that hid a beat were drawn again
    np.testing.assert_array_equal((kept != plain).any(1), lost_before)
    alone = draw_mask(Draws(KEYS[7:8], 0, 0), 1, fraction=0.5, n_samples=n, peaks_smp=peaks[7:8])
    np.testing.assert_array_equal(alone, kept[7:8])


def test_impossible_wish_ends() -> None:
    peaks = np.array([[100]])
    starts = draw_mask(Draws(KEYS[:1], 0, 0), 1, fraction=1.0, n_samples=500, peaks_smp=peaks)
    assert starts.shape == (1, 12)


def test_fraction_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction"):
        mask_length(1.5, 10)
    with pytest.raises(ValueError, match="shortest"):
        time_out(torch.zeros(1, 12, 10), np.zeros((1, 2)), 0.5, 0.4)
