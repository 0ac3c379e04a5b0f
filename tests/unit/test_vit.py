"""The transformer: where its patches lie, tokens that are left out, padding, sizes and start values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from beatray.models.registry import build_encoder
from beatray.models.vit import ViT, positions

torch.set_num_threads(1)


def network(**settings: Any) -> ViT:
    torch.manual_seed(1)
    encoder = build_encoder("vit", **{"width": 16, "depth": 2, "heads": 2, **settings})
    assert isinstance(encoder, ViT)
    return encoder.double().eval()


def signal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("patch", [1, 5, 25])
def test_token_j_holds_the_samples_around_j_times_patch(patch: int) -> None:
    encoder = network(patch=patch)
    for n in (4 * patch, 4 * patch + 1, 5 * patch - 1, 3):
        x = signal(1, 12, n)
        tokens = encoder.tokens(x)
        assert tokens.shape == (1, -(-n // patch), 16)
        scaled = torch.nn.functional.pad(encoder.lead_scale(x), (patch, 2 * patch))
        for j in range(tokens.shape[1]):
            middle = patch + j * patch
            around = scaled[0, :, middle - patch // 2 : middle + patch // 2 + 1]
            expected = torch.einsum("dct,ct->d", encoder.embed.weight, around)
            found = tokens[0, j] - positions(j + 1, 16, tokens)[j]
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_token_sees_its_own_patch_only() -> None:
    encoder = network()
    x = signal(1, 12, 500).requires_grad_()
    seen = torch.autograd.grad(encoder.tokens(x)[0, 7].sum(), x)[0][0].abs().sum(0)
    assert torch.equal(seen.nonzero()[:, 0], torch.arange(7 * 25 - 12, 7 * 25 + 13))


def test_positions_are_sines_and_cosines_of_the_index() -> None:
    like = torch.zeros(1, dtype=torch.float32)
    table = positions(200, 8, like)
    for j in (0, 1, 199):
        for i in range(4):
            angle = j / 10000 ** (2 * i / 8)
            assert float(table[j, i]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(table[j, 4 + i]) == pytest.approx(math.cos(angle), abs=1e-5)
    torch.testing.assert_close(positions(50, 8, like), table[:50])
    encoder = network()
    x = torch.zeros(1, 12, 100, dtype=torch.float64)
    torch.testing.assert_close(encoder.tokens(x)[0], positions(4, 16, x))


@pytest.mark.parametrize("registers", [0, 1])
def test_tokens_left_out_leave_no_trace(registers: int) -> None:
    encoder = network(registers=registers)
    x = signal(2, 12, 500)
    keep = torch.tensor([[0, 3, 4, 11, 19], [7, 2, 18, 9, 10]])
    tokens = encoder.tokens(x)
    found = encoder.encode(tokens, keep)
    assert found.shape == (2, 5, 16)
    for record in range(2):
        torch.testing.assert_close(
            found[record : record + 1], encoder.encode(tokens[record : record + 1, keep[record]])
        )
    dropped = torch.ones(2, 20, dtype=torch.bool).scatter_(1, keep, False)
    owner = ((torch.arange(500) + 12) // 25).clamp(max=19)  # the token that a sample belongs to
    changed = torch.where(dropped[:, owner][:, None], 3.0, x)
    assert torch.equal(encoder.encode(encoder.tokens(changed), keep), found)
    assert not torch.equal(encoder.encode(encoder.tokens(changed)), encoder.encode(tokens))
    everything = torch.arange(20).expand(2, 20)
    torch.testing.assert_close(encoder.encode(tokens, everything), encoder.forward_features(x).transpose(1, 2))


def test_order_of_tokens_is_in_their_positions_alone() -> None:
    encoder = network(registers=1)
    tokens = encoder.tokens(signal(1, 12, 500))
    order = torch.randperm(20)
    torch.testing.assert_close(encoder.encode(tokens[:, order]), encoder.encode(tokens)[:, order])


def test_a_register_changes_others_and_is_not_shown() -> None:
    encoder = network(registers=1)
    assert encoder.register_token is not None and encoder.register_token.no_decay
    x = signal(2, 12, 500)
    before = encoder.forward_features(x)
    assert before.shape == (2, 16, 20) and network().register_token is None
    with torch.no_grad():
        encoder.register_token.add_(torch.arange(16.0))
    assert not torch.allclose(encoder.forward_features(x), before)


@pytest.mark.parametrize("registers", [0, 1])
def test_a_padded_record_is_the_record_alone(registers: int) -> None:
    encoder = network(registers=registers)
    x, n_samples = signal(2, 12, 500), torch.tensor([500, 290])
    found = encoder.forward_features(x, n_samples)
    torch.testing.assert_close(found[:1], encoder.forward_features(x[:1]))
    torch.testing.assert_close(found[1:, :, :12], encoder.forward_features(x[1:, :, :290]))
    torch.testing.assert_close(encoder(x, n_samples)[1:], encoder(x[1:, :, :290]))
    changed = x.clone()
    changed[1, :, 290:] = 7.0
    assert torch.equal(encoder.forward_features(changed, n_samples), found)
    assert torch.equal(encoder.tokens(changed, n_samples), encoder.tokens(x, n_samples))
    assert torch.isfinite(encoder(x, torch.tensor([0, 1]))).all()


def test_whole_records_need_no_mask() -> None:
    encoder = network()
    tokens = encoder.tokens(signal(2, 12, 500))
    assert encoder._valid(tokens, torch.tensor([500, 500])) is None
    assert encoder._valid(tokens, torch.tensor([500, 475])) is not None


@pytest.mark.parametrize(
    ("settings", "millions"),
    [({}, 3.6), ({"width": 384, "heads": 6}, 14.3), ({"width": 768, "depth": 12, "heads": 12}, 85.0)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_sizes(settings: dict[str, int], millions: float, bias: bool) -> None:
    with torch.device("meta"):
        encoder = build_encoder("vit", bias=bias, **settings)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(millions * 1e6, rel=0.03)
    assert any(name.endswith("bias") for name, _ in encoder.named_parameters()) == bias


def test_start_values() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit", depth=8, registers=1)
    for name, parameter in encoder.named_parameters():
        if parameter.dim() < 2:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and "weight" in name)))
        else:
            projection = name.endswith(("attended.weight", "narrow.weight"))
            expected = 0.02 / math.sqrt(16) if projection else 0.02
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.15), name


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"patch": 24}, "patch must be odd"),
        ({"width": 190}, "multiple of heads"),
        ({"registers": 2}, "one of 0, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            build_encoder("vit", **settings)


def test_positions_alone_are_what_silence_gives() -> None:
    encoder = network()
    silent = encoder.tokens(torch.zeros(1, 12, 100, dtype=torch.float64))
    torch.testing.assert_close(encoder.token_positions(silent), silent[0])
