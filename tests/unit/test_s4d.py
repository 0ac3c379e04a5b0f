"""S4D: the layer against slow loops, its stability and causality, and the network around it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import s4d_oracle
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.models.encoder import LayerEncoder
from beatray.models.registry import build_encoder
from beatray.models.s4d import S4DEncoder
from beatray.models.s4d_layer import S4D

torch.set_num_threads(1)

H, N, L = 3, 8, 45

both_inits = pytest.mark.parametrize("init", ["lin", "inv"])


def layer(init: str = "lin", *, two_sided: bool = False, width: int = H, double: bool = True) -> S4D:
    torch.manual_seed(5)
    made = S4D(width, N, two_sided=two_sided, init=init)
    return made.double() if double else made


def signal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def of_channel(made: S4D, h: int, side: int = 0) -> tuple[float, Any, Any, Any]:
    """What the oracle wants of one channel."""
    return (
        float(made.log_dt[h].detach()),
        made.log_a[h].detach().numpy(),
        made.b[h].detach().numpy(),
        made.C[side, h].detach().numpy(),
    )


def assert_close(found: Tensor, expected: Tensor | NDArray[Any], atol: float = 1e-12) -> None:
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(expected), rtol=0.0, atol=atol)


def network(double: bool = True, **settings: Any) -> S4DEncoder:
    torch.manual_seed(1)
    small: dict[str, Any] = {"width": 8, "layers": 2, "state": 4, **settings}
    encoder = build_encoder("s4d", **small)
    assert isinstance(encoder, S4DEncoder)
    return encoder.double().eval() if double else encoder


# ---------------------------------------------------------------- the layer: METHODS2 3.2


@both_inits
def test_fft_is_the_recurrence_and_the_convolution(init: str) -> None:
    made, u = layer(init), signal(2, H, L)
    y, conv = made(u), made.to_conv(L)(u)
    kernels = made.kernels(L)
    assert kernels.shape == (1, H, L)
    for h in range(H):
        assert_close(kernels[0, h], s4d_oracle.kernel(*of_channel(made, h), L))
        for record in range(2):
            expected = s4d_oracle.recurrence(u[record, h].numpy(), *of_channel(made, h), float(made.D[h].detach()))
            assert_close(y[record, h], expected)
    assert_close(conv, y.detach())


@both_inits
def test_two_sided_is_a_dense_matrix(init: str) -> None:
    made, u = layer(init, two_sided=True), signal(1, H, L)
    kernels = made.kernels(L).detach()
    assert kernels.shape == (2, H, L)
    y, conv = made(u), made.to_conv(L)(u)
    for h in range(H):
        assert_close(kernels[1, h], s4d_oracle.kernel(*of_channel(made, h, 1), L))
        expected = s4d_oracle.toeplitz(
            kernels[0, h].numpy(), kernels[1, h].numpy(), u[0, h].numpy(), float(made.D[h].detach())
        )
        assert_close(y[0, h], expected)
    assert_close(conv, y.detach())


def test_the_layer_is_causal() -> None:
    made, u = layer(), signal(1, H, L)
    later = u.clone()
    later[..., 20:] += 10.0
    assert_close(made(later)[..., :20], made(u)[..., :20].detach())
    assert not torch.allclose(made(later)[..., 20], made(u)[..., 20])


def test_swapped_kernels_and_flipped_time_differ_by_lag_zero() -> None:
    made, u = layer(two_sided=True), signal(1, H, L)
    y, kernels = made(u), made.kernels(1)[..., 0]
    with torch.no_grad():
        made.C.copy_(made.C.flip(0).clone())
    assert_close(y - made(u.flip(-1)).flip(-1), ((kernels[0] - kernels[1])[:, None] * u).detach())


def test_an_impulse_gives_the_kernel() -> None:
    made, u = layer(), torch.zeros(1, H, L, dtype=torch.float64)
    u[..., 17] = 1.0
    expected = torch.zeros(H, L, dtype=torch.float64)
    expected[:, 17:] = made.kernels(L)[0, :, : L - 17]
    expected[:, 17] += made.D
    assert_close(made(u)[0], expected.detach())


@both_inits
def test_half_the_rate_is_twice_the_step(init: str) -> None:
    """A sample held for 2 dt is two equal samples of dt, so the coarse layer gives every second value of the fine."""
    made, u = layer(init), signal(1, H, L)
    fine, held = made.kernels(2 * L).detach()[0], made(u.repeat_interleave(2, dim=-1)).detach()
    made.rescale_rate(2.0)
    assert_close(made.kernels(L)[0], fine[:, 0::2] + fine[:, 1::2])
    assert_close(
        made(u) - made.D[:, None] * u, (held - made.D[:, None] * u.repeat_interleave(2, dim=-1))[..., 1::2].detach()
    )
    made.rescale_rate(0.5)
    assert_close(made.kernels(2 * L)[0], fine)
    with pytest.raises(ValueError, match="positive"):
        made.rescale_rate(0.0)


def test_poles_stay_inside_the_unit_circle() -> None:
    made = layer(double=False)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    u = signal(4, H, 32).float()
    target = u.roll(3, dims=-1)
    for _ in range(1000):
        optimiser.zero_grad()
        (made(u) - target).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        size = (-made.log_dt.exp()[:, None] * made.log_a.exp()).exp()
    assert (size < 1).all() and torch.isfinite(made.kernels(1000)).all()


@pytest.mark.parametrize("two_sided", [False, True])
def test_no_records(two_sided: bool) -> None:
    made = layer(two_sided=two_sided)
    y = made(torch.zeros(0, H, L, dtype=torch.float64))
    assert y.shape == (0, H, L)
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("two_sided", [False, True])
def test_records_do_not_meet_and_length_does_not_matter(two_sided: bool) -> None:
    made, u = layer(two_sided=two_sided), signal(4, H, L)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(made(u[order]), made(u)[order].detach())
    assert_close(made(torch.nn.functional.pad(u, (0, 31)))[..., :L], made(u).detach())
    assert_close(made.to_conv(L + 20)(u), made(u).detach())
    with pytest.raises(RuntimeError, match="size of tensor"):
        made.to_conv(L - 1)(u)


# ---------------------------------------------------------------- the layer: precision


@both_inits
def test_float32_at_full_length(init: str) -> None:
    """Measured over seeds: up to 1.1e-6 of the largest value, of kernel and of output."""
    double = layer(init, width=32)
    single = layer(init, width=32, double=False)
    u = signal(2, 32, 1250)
    for found, expected in ((single.kernels(1250), double.kernels(1250)), (single(u.float()), double(u))):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 3e-6 * expected.abs().max()


def test_small_steps_keep_their_digits() -> None:
    """exp(z) - 1 with |z| = 5e-4 and far below: a plain float32 difference would be off by 6e-5, and then by all."""
    for log_dt in (math.log(1e-3), math.log(1e-6), -30.0):
        single, double = layer(double=False), layer()
        for made in (single, double):
            torch.nn.init.constant_(made.log_dt, log_dt)
        found, expected = single.kernels(4), double.kernels(4)
        assert ((found - expected).abs() < 2e-6 * expected.abs().max()).all()
        found.square().sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in single.parameters())


def test_gradients_are_those_of_finite_differences() -> None:
    made = S4D(2, 4, two_sided=True).double()
    names = [name for name, _ in made.named_parameters()]

    def of(u: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(made, dict(zip(names, values, strict=True)), (u,))
        return out

    inputs = [signal(2, 2, 7).requires_grad_(), *(p.detach().requires_grad_() for p in made.parameters())]
    assert torch.autograd.gradcheck(of, inputs)


def test_autocast_leaves_float32() -> None:
    made, u = layer(double=False), signal(2, H, L).float()
    with torch.autocast("cpu", torch.bfloat16):
        kernels, y = made.kernels(L), made(u.bfloat16())
    assert kernels.dtype == y.dtype == torch.float32
    torch.testing.assert_close(kernels, made.kernels(L), atol=0, rtol=0)
    torch.testing.assert_close(y, made(u.bfloat16().float()), atol=0, rtol=0)


def test_start_values() -> None:
    torch.manual_seed(0)
    made = S4D(4096, 16, init="inv")
    np.testing.assert_allclose(made.b[7].detach(), s4d_oracle.s4d_inv(8, 16), rtol=1e-6)
    np.testing.assert_allclose(S4D(2, 16).b[1].detach(), s4d_oracle.s4d_lin(8), rtol=1e-6)
    torch.testing.assert_close(made.log_a.exp(), torch.full((4096, 8), 0.5))
    assert made.log_dt.exp().min() >= 1e-3 and made.log_dt.exp().max() <= 1e-1
    assert float(made.log_dt.detach().mean()) == pytest.approx(math.log(1e-2), abs=0.1)
    assert float(made.C.detach().square().sum(-1).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(made.D.detach().std()) == pytest.approx(1.0, abs=0.05)


def test_parameters_carry_marks_for_the_optimizer() -> None:
    made = layer()
    assert {name for name, p in made.named_parameters() if getattr(p, "no_decay", False)} == {
        "log_a", "b", "log_dt", "C", "D"
    }  # fmt: skip
    assert {name: p.max_lr for name, p in made.named_parameters() if hasattr(p, "max_lr")} == {
        "log_a": 1e-3, "b": 1e-3, "log_dt": 1e-3
    }  # fmt: skip


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(("stride", "reach"), [(4, 8), (8, 12)])
@pytest.mark.parametrize(("pre_norm", "norm"), [(False, "global_batch"), (True, "global_batch"), (False, "group")])
def test_the_network_is_causal_but_for_its_stem(stride: int, reach: int, pre_norm: bool, norm: str) -> None:
    encoder = network(stride=stride, pre_norm=pre_norm, norm=norm, direction="both")
    x = signal(1, 12, 803)
    changed = x.clone()
    changed[..., 401:] += 1.0
    before, after = encoder.forward_features(x), encoder.forward_features(changed)
    centres = torch.arange(before.shape[-1]) * stride
    same = (before - after).abs()[0] < 1e-12
    assert torch.equal(same[:8].all(0), centres + reach < 401)
    assert not same[8:, centres + reach >= 401].all(0).any()  # time reversed: everything up to the change has seen it
    assert not same[8:, 0].all()
    # and cells behind the change have not seen what lies before it
    changed = x.clone()
    changed[..., :401] += 1.0
    same = (before - encoder.forward_features(changed)).abs()[0] < 1e-12
    assert torch.equal(same[8:].all(0), centres - reach > 400)


@pytest.mark.parametrize("stride", [4, 8])
def test_reversed_time_swaps_the_halves(stride: int) -> None:
    encoder = network(stride=stride, direction="both")
    encoder.stacks[1].load_state_dict(encoder.stacks[0].state_dict())
    with torch.no_grad():
        for conv in (*encoder.first, *encoder.further):
            if isinstance(conv, torch.nn.Conv1d):
                conv.weight.copy_((conv.weight + conv.weight.flip(-1)) / 2)
    x = signal(1, 12, 64 * stride + 1)
    ahead, behind = encoder.forward_features(x).chunk(2, dim=1)
    swapped_ahead, swapped_behind = encoder.forward_features(x.flip(-1)).flip(-1).chunk(2, dim=1)
    assert_close(ahead, swapped_behind.detach())
    assert_close(behind, swapped_ahead.detach())


@pytest.mark.parametrize(
    ("direction", "pre_norm"), [("both", False), ("bidirectional", False), ("bidirectional", True)]
)
def test_tokens_after_the_signal_are_as_if_there_were_none(direction: str, pre_norm: bool) -> None:
    encoder = network(direction=direction, pre_norm=pre_norm, layers=3)
    tokens = signal(2, 8, 60)
    valid = torch.arange(60) < torch.tensor([60, 37])[:, None, None]
    found = encoder._context(tokens, valid)
    assert_close(found[:1], encoder._context(tokens[:1], None).detach())
    assert_close(found[1:, :, :37], encoder._context(tokens[1:, :, :37], None).detach())


def test_what_follows_the_signal_reaches_the_stem_only() -> None:
    for direction in ("forward", "both", "bidirectional"):
        encoder = network(direction=direction)
        x, n_samples = signal(2, 12, 800), torch.tensor([800, 400])
        changed = x.clone()
        changed[1, :, 420:] = 7.0
        before, after = (encoder.forward_features(each, n_samples) for each in (x, changed))
        assert_close(before[0], after[0].detach())
        assert_close(before[1, :, :100], after[1, :, :100].detach())
        tokens = encoder.tokens(changed, n_samples)
        assert not tokens[1, 100:].any() and tokens[1, 99].any()


@pytest.mark.parametrize("direction", ["forward", "both", "bidirectional"])
def test_tokens_and_context_make_the_map(direction: str) -> None:
    encoder = network(direction=direction)
    x = signal(2, 12, 999)
    tokens = encoder.tokens(x)
    assert tokens.shape == (2, 250, encoder.token_stage.channels)
    assert_close(encoder.encode(tokens).transpose(1, 2), encoder.forward_features(x).detach())
    expected = {"forward": ("forward",), "both": ("forward", "backward"), "bidirectional": ()}[direction]
    assert encoder.directions == expected and not encoder.drops_tokens
    assert encoder.channels == 8 * max(1, len(expected))
    with pytest.raises(ValueError, match="cannot leave tokens out"):
        encoder.encode(tokens, torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("direction", ["forward", "both", "bidirectional"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_end_in_the_context_and_are_those_of_a_network_of_fewer(direction: str, pre_norm: bool) -> None:
    encoder = network(direction=direction, layers=3, pre_norm=pre_norm)
    assert isinstance(encoder, LayerEncoder)
    valid = torch.arange(50) < torch.tensor([50, 31])[:, None]
    tokens = signal(2, 50, encoder.token_stage.channels)
    layers = encoder.encode_layers(tokens, valid)
    assert len(layers) == 3
    assert_close(layers[-1], encoder.encode(tokens, valid=valid).detach())
    for stack in encoder.stacks:
        del stack.blocks[1:]  # type: ignore[union-attr,operator]
    assert_close(layers[0], encoder.encode(tokens, valid=valid).detach())


def test_dropout_is_tied_over_time() -> None:
    encoder = network(double=False, dropout=0.5, layers=1, pre_norm=True).train()
    block: Any = encoder.stacks[0].blocks[0]  # type: ignore[union-attr]
    torch.nn.init.zeros_(block.mix.weight)
    torch.nn.init.ones_(block.mix.bias)
    added = block(torch.zeros(6, 8, 20))
    assert (added == added[..., :1]).all()
    assert 0 < int((added[..., 0] == 0).sum()) < 48


def test_rescaling_the_network_rescales_every_layer() -> None:
    encoder = network(direction="both")
    before = [m.log_dt.detach().clone() for m in encoder.modules() if isinstance(m, S4D)]
    encoder.rescale_rate(500 / 250)
    after = [m.log_dt.detach() for m in encoder.modules() if isinstance(m, S4D)]
    assert len(before) == 4
    for old, new in zip(before, after, strict=True):
        assert_close(new, old + math.log(2.0))


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"state": 7}, "state must be even"),
        ({"stride": 2}, "one of 4, 8"),
        ({"dt_min": 0.5}, "dt_min must be at most dt_max"),
        ({"dt_min": 0.0}, "above 0"),
        ({"direction": "backward"}, "forward, both, bidirectional"),
    ):
        with pytest.raises(ValueError, match=message):
            build_encoder("s4d", **settings)
