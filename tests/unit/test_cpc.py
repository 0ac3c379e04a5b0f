"""CPC against slow oracles, its closed forms, causality, and what it does with short recordings and other networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cpc_oracle import cpc_backward, cpc_loss, cpc_loss_all, cpc_loss_batch, cpc_loss_iid
from torch import Tensor, nn

from beatray.models.encoder import Encoder, Stage
from beatray.models.registry import build_encoder
from beatray.objectives.cpc import Cpc, CpcSettings
from beatray.objectives.objective import Progress
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

STRIDE, TOKENS, WIDTH, AHEAD = 50, 20, 12, 3


@dataclass(frozen=True)
class Nothing:
    """No settings."""


class Samples(Encoder):
    """Tokens are every 50th sample of the leads; the context is a fixed mixture of each token's own channels."""

    Settings = Nothing
    token_stage = Stage(WIDTH, STRIDE)
    drops_tokens = False

    def __init__(self, directions: tuple[str, ...] = ("forward",)) -> None:
        super().__init__(Nothing(), [Stage(WIDTH * len(directions), STRIDE)])
        self.directions = directions
        self.mix = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in directions)

    def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        return x_mv[:, :, ::STRIDE].transpose(1, 2)

    def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        return torch.cat([mix(tokens) for mix in self.mix], dim=-1)

    def forward_stages(self, x_mv: Tensor, n_samples: Tensor | None = None) -> list[Tensor]:
        return [self.encode(self.tokens(x_mv)).transpose(1, 2)]


def built(directions: tuple[str, ...] = ("forward",), **settings: Any) -> Cpc:
    torch.manual_seed(1)
    usual = {"crop_seconds": TOKENS * STRIDE / 500, "horizon_s": AHEAD * STRIDE / 500, "n_negatives": 7}
    return Cpc(Samples(directions), CpcSettings(**{**usual, **settings})).double()


def stepped(objective: Cpc, records: int = 5) -> tuple[Any, dict[str, Tensor]]:
    views = views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, records)), exact=True)
    views["view_1"] = views["view_1"] * 3.0  # scores apart from 0
    return objective(views, Progress()), views


def z_and_q(objective: Cpc, views: dict[str, Tensor]) -> tuple[np.ndarray, list[np.ndarray]]:
    with torch.no_grad():
        z = objective.encoder.tokens(views["view_1"])  # type: ignore[operator]
        context = objective.encoder.encode(z).chunk(len(objective.directions), dim=-1)  # type: ignore[operator]
        return z.numpy(), [predict(c).numpy() for predict, c in zip(objective.predictors, context, strict=True)]


def test_circular_negatives_against_the_triple_loop() -> None:
    objective = built()
    assert objective.steps_ahead == AHEAD
    result, views = stepped(objective)
    z, (q,) = z_and_q(objective, views)
    offsets = views["distances_forward"][:, 0].numpy()
    assert offsets.min() >= 1 and offsets.max() <= TOKENS - 1
    assert float(result.loss.detach()) == pytest.approx(cpc_loss(z, q, AHEAD, offsets), abs=1e-9)


def test_independent_negatives_against_the_loop() -> None:
    objective = built(negatives="iid")
    result, views = stepped(objective)
    z, (q,) = z_and_q(objective, views)
    target = np.arange(TOKENS) + AHEAD
    positions = (target[None, :, None] + views["distances_forward"].numpy()) % TOKENS
    assert (positions != (target % TOKENS)[None, :, None]).all()  # never the positive
    expected = cpc_loss_iid(z, q, AHEAD, positions[:, : TOKENS - AHEAD])
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-9)


def test_every_other_moment_as_negative_against_the_loop() -> None:
    objective = built(negatives="all")
    result, views = stepped(objective)
    z, (q,) = z_and_q(objective, views)
    assert float(result.loss.detach()) == pytest.approx(cpc_loss_all(z, q, AHEAD), abs=1e-9)


def test_negatives_of_the_batch_against_the_loop() -> None:
    objective = built(batch_negatives=3)
    result, views = stepped(objective)
    z, (q,) = z_and_q(objective, views)
    lent = views["lent"].numpy()
    others = np.array([[(r, p) for r in range(5) if r != b for p in lent[r]] for b in range(5)])
    expected = cpc_loss_batch(z, q, AHEAD, views["distances_forward"][:, 0].numpy(), others)
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-9)


def test_both_directions_are_the_mean_of_two_losses_that_time_reversal_swaps() -> None:
    objective = built(("forward", "backward"))
    result, views = stepped(objective)
    z, (forward, backward) = z_and_q(objective, views)
    one = cpc_loss(z, forward, AHEAD, views["distances_forward"][:, 0].numpy())
    other = cpc_backward(z, backward, AHEAD, views["distances_backward"][:, 0].numpy())
    assert float(result.loss.detach()) == pytest.approx((one + other) / 2, abs=1e-9)
    assert float(result.means["forward/loss"]) == pytest.approx(one, rel=1e-6)
    assert float(result.means["backward/loss"]) == pytest.approx(other, rel=1e-6)
    with torch.no_grad():  # the same maps in both directions, then time turned around
        objective.encoder.mix[1].weight.copy_(objective.encoder.mix[0].weight)  # type: ignore[union-attr,index]
        objective.predictors[1].weight.copy_(objective.predictors[0].weight)  # type: ignore[arg-type]
    first = objective(views, Progress())
    sampled = views["view_1"][..., ::STRIDE].flip(-1)
    turned = torch.zeros_like(views["view_1"])
    turned[..., ::STRIDE] = sampled
    swapped = {**views, "view_1": turned}
    swapped["distances_forward"] = views["distances_backward"]
    swapped["distances_backward"] = views["distances_forward"]
    second = objective(swapped, Progress())
    torch.testing.assert_close(first.means["forward/loss"], second.means["backward/loss"])
    torch.testing.assert_close(first.means["backward/loss"], second.means["forward/loss"])


@pytest.mark.parametrize(("negatives", "expected"), [("circular", 8.0), ("iid", 8.0), ("all", float(TOKENS))])
def test_a_signal_that_never_changes_is_guessed(negatives: str, expected: float) -> None:
    objective = built(negatives=negatives)
    views = stepped(objective)[1]
    views["view_1"] = torch.ones_like(views["view_1"])
    assert float(objective(views, Progress()).loss) == pytest.approx(math.log(expected), abs=1e-9)


def test_one_hot_tokens_identified_with_certainty_a() -> None:
    """q_t = a z_{t+k}, tokens orthonormal, negatives never the positive: ln(1 + N e^-a)."""
    objective = built(crop_seconds=WIDTH * STRIDE / 500, n_negatives=5)
    objective.encoder.encode = lambda tokens, keep=None, valid=None: 2.5 * tokens.roll(-AHEAD, 1)  # type: ignore[assignment]
    with torch.no_grad():
        objective.predictors[0].weight.copy_(torch.eye(WIDTH))  # type: ignore[arg-type]
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    views["view_1"] = torch.zeros_like(views["view_1"])
    views["view_1"][:, :, ::STRIDE] = torch.eye(WIDTH, dtype=torch.float64)
    found = objective(views, Progress())
    assert float(found.loss) == pytest.approx(math.log(1 + 5 * math.exp(-2.5)), abs=1e-9)
    assert float(found.means["token/accuracy"]) == 1.0


def test_the_gradient_reaches_tokens_as_positives_and_as_negatives() -> None:
    objective = built()
    views = stepped(objective)[1]
    x = views["view_1"].clone().requires_grad_()
    objective({**views, "view_1": x}, Progress()).loss.backward()
    assert x.grad is not None
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        up, down = (objective({**views, "view_1": x + h * direction}, Progress()).loss for h in (1e-6, -1e-6))
    assert float((x.grad * direction).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-5)


def test_what_lies_beyond_a_short_recording_is_neither_predicted_nor_a_negative() -> None:
    objective = built()
    views = stepped(objective, 3)[1]
    views["n_valid"] = torch.tensor([TOKENS * STRIDE, 9 * STRIDE, AHEAD * STRIDE])
    views["distances_forward"] = 1 + views["distances_forward"] % 8
    whole = objective(views, Progress())
    changed = {**views, "view_1": views["view_1"].clone()}
    changed["view_1"][1, :, 9 * STRIDE :] = 100.0
    changed["view_1"][2] = -50.0  # too short to have a token ahead: counts in nothing
    assert float(objective(changed, Progress()).loss) == pytest.approx(float(whole.loss), abs=1e-12)
    assert float(whole.counts["records"]) == 2.0
    z, (q,) = z_and_q(objective, views)
    distances = views["distances_forward"][:, 0].numpy()
    one = cpc_loss(z[:1], q[:1], AHEAD, distances[:1])
    other = cpc_loss(z[1:2, :9], q[1:2, :9], AHEAD, distances[1:2])
    assert float(whole.loss.detach()) == pytest.approx((one + other) / 2, abs=1e-9)


def test_the_horizon_is_a_time_whatever_the_network() -> None:
    for settings, expected in (({"stride": 4}, 15), ({"stride": 8}, 8)):
        network = build_encoder("s4d", width=8, layers=1, **settings)
        assert Cpc(network, CpcSettings(crop_seconds=2.0)).steps_ahead == expected
    assert Cpc(build_encoder("lstm", width=8), CpcSettings(crop_seconds=2.0)).steps_ahead == 12


def test_the_context_has_not_seen_what_is_predicted() -> None:
    """Changing the signal from some sample on leaves all contexts before it, less the reach of the stem."""
    network = build_encoder("s4d", width=8, layers=2, stride=8, dropout=0.0, direction="forward").eval().double()
    x = torch.randn(1, 12, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    later = x.clone()
    later[..., 600:] += 1.0
    with torch.no_grad():
        before, after = network.forward_features(x), network.forward_features(later)
    same = ((before - after).abs() < 1e-9).all(1)[0]
    first = int((~same).nonzero()[0])
    assert 600 - 40 < first * 8 <= 600 + 8  # the stem looks a few samples ahead, far less than 120 ms
    assert not same[first:].all()


def test_networks_that_cannot_serve_are_refused_when_built() -> None:
    with pytest.raises(ValueError, match=r"needs a network that makes tokens.*networks that can: .*s4d"):
        Cpc(build_encoder("tiny"), CpcSettings())
    with pytest.raises(ValueError, match=r"encoder\.direction=forward or both"):
        Cpc(build_encoder("s4d", width=8, layers=1, direction="bidirectional"), CpcSettings())
    with pytest.raises(ValueError, match=r"encoder\.direction=forward or both"):
        Cpc(build_encoder("vit", width=8, depth=1, heads=1), CpcSettings())
    with pytest.raises(ValueError, match="take longer crops or a shorter"):
        Cpc(build_encoder("s4d", width=8, layers=1), CpcSettings(crop_seconds=0.5, horizon_s=0.6))
