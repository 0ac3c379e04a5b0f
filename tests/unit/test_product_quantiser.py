"""The product quantiser: one-hot choices with a soft gradient, noise by record, perplexity and diversity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ecg_fm_oracle import diversity as slow_diversity

from beatray.objectives.objective import Progress
from beatray.objectives.product_quantiser import (
    ProductQuantiser,
    _mixed,
    code_temperature,
    diversity,
    gumbel_noise,
    perplexity,
    straight_through,
)

torch.set_num_threads(1)


def logits_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("temperature", [2.0, 0.5, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_choice_is_exactly_one_hot_and_its_gradient_that_of_the_softmax(
    temperature: float, dtype: torch.dtype
) -> None:
    logits, noise = logits_of(3, 5, 2, 7).to(dtype).requires_grad_(), logits_of(4, 3, 5, 2, 7)[1].to(dtype)
    chosen = straight_through(logits, temperature, noise)
    assert torch.equal(chosen.detach(), torch.nn.functional.one_hot((logits + noise).argmax(-1), 7).to(dtype))
    weights = logits_of(9, 7)[2].to(dtype)
    (found,) = torch.autograd.grad((chosen * weights).sum(), logits)
    (expected,) = torch.autograd.grad((((logits + noise) / temperature).softmax(-1) * weights).sum(), logits)
    assert torch.equal(found, expected)


def test_without_noise_it_is_the_largest_logit_whatever_the_temperature() -> None:
    logits = logits_of(6, 2, 5)
    found = straight_through(logits, 2.0)
    assert torch.equal(found, straight_through(logits, 0.1))
    assert torch.equal(found.argmax(-1), logits.argmax(-1))


def test_a_quantised_token_is_the_chosen_rows_one_after_the_other() -> None:
    quantiser = ProductQuantiser(6, 3, 4, 9)
    assert quantiser.codebook.no_decay and quantiser.codebook.min() >= 0 and quantiser.codebook.max() < 1
    assert quantiser.logits(torch.randn(2, 5, 6)).shape == (2, 5, 3, 4)
    chosen = torch.zeros(1, 3, 4)
    chosen[0, 0, 2] = chosen[0, 1, 0] = chosen[0, 2, 3] = 1.0
    rows = torch.cat([quantiser.codebook[0, 2], quantiser.codebook[1, 0], quantiser.codebook[2, 3]])
    assert torch.equal(quantiser.look_up(chosen)[0], rows)
    assert quantiser.look_up(chosen[:0]).shape == (0, 9)
    with pytest.raises(ValueError, match=r"objective\.code_dim must be a multiple"):
        ProductQuantiser(6, 2, 4, 9)


def test_noise_depends_on_the_seed_of_its_record_and_the_position_alone() -> None:
    seeds = torch.tensor([5, 2**32 - 1, 0, 77])
    noise = gumbel_noise(seeds, (6, 2, 8), torch.float64)
    assert torch.equal(gumbel_noise(seeds[2:3], (6, 2, 8), torch.float64), noise[2:3])
    assert torch.equal(gumbel_noise(seeds, (3, 2, 8), torch.float64), noise[:, :3])
    assert len(noise.unique()) > 0.99 * noise.numel()
    assert gumbel_noise(seeds[:0], (6, 2, 8), torch.float32).shape == (0, 6, 2, 8)


def test_noise_is_finite_and_of_the_gumbel_law() -> None:
    seeds = torch.arange(0, 2**32, 2**22)
    noise = gumbel_noise(seeds, (1, 2, 128), torch.float32).double().flatten()
    assert torch.isfinite(noise).all() and len(noise) == 2**18
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    x = torch.linspace(-1.5, 5.0, 20, dtype=torch.float64)
    below = (noise[:, None] <= x).double().mean(0)
    torch.testing.assert_close(below, (-(-x).exp()).exp(), atol=0.004, rtol=0)
    extremes = torch.tensor([0, 2**32 - 1])
    assert torch.isfinite(-(-((extremes >> 9).float() + 0.5).mul(2.0**-23).log()).log()).all()


def test_codes_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    noise = gumbel_noise(torch.arange(0, 2**32, 2**17), (4,), torch.float32)
    drawn = straight_through(logits.expand(len(noise), 4), 2.0, noise).mean(0)
    torch.testing.assert_close(drawn, logits.softmax(0), atol=0.01, rtol=0)


def test_numbers_are_mixed_one_to_one_within_32_bits() -> None:
    numbers = torch.cat([torch.arange(100_000), 2**32 - 1 - torch.arange(100_000)])
    mixed = _mixed(numbers)
    assert len(mixed.unique()) == len(numbers) and int(mixed.min()) >= 0 and int(mixed.max()) < 2**32
    by_hand = 123_456_789
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        by_hand = (by_hand ^ by_hand >> shift) * factor % 2**32
    assert int(_mixed(torch.tensor([123_456_789]))[0]) == by_hand


def test_diversity_of_even_and_of_single_codes() -> None:
    even = torch.full((2, 320), 1 / 320, dtype=torch.float64)
    assert float(diversity(even)) == pytest.approx(3.2e-5, abs=1e-7)  # the 1e-7 in the logarithm; 0 without it
    one = torch.zeros(2, 320, dtype=torch.float64)
    one[:, 17] = 1.0
    assert float(diversity(one)) == pytest.approx(0.996875, abs=1e-6)  # (640 - 2) / 640
    torch.testing.assert_close(perplexity(one), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(perplexity(even), torch.full((2,), 320.0, dtype=torch.float64), atol=0.02, rtol=0)


def test_diversity_against_the_loop() -> None:
    shares = logits_of(11, 3, 6).softmax(-1)
    assert float(diversity(shares.mean(0))) == pytest.approx(slow_diversity(shares.numpy()), abs=1e-12)


def test_the_temperature_is_a_function_of_the_step_alone() -> None:
    found = [code_temperature(Progress(step, 400), 2.0, 0.5) for step in (0, 100, 200, 400)]
    assert found == pytest.approx([2.0, 2.0 * 0.25**0.25, 1.0, 0.5])
    assert code_temperature(Progress(100, 400, 3, 7), 2.0, 0.5) == found[1]
    assert np.all(np.diff([code_temperature(Progress(step, 50), 2.0, 0.5) for step in range(50)]) < 0)
    assert code_temperature(Progress(3, 4), 1.0, 1.0) == 1.0
