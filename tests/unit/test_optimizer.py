"""Optimizer and schedule: closed forms, who decays and who learns how fast, LARS by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from beatray.models.registry import build_encoder
from beatray.objectives.objective import Objective, grouped
from beatray.settings import TrainSettings
from beatray.train.optimizer import Lars, build_optimizer, learning_rate, set_schedule, weight_decay

USUAL = {"learning_rate": 1e-2, "warmup_epochs": 2.0}


def rates(**more: Any) -> list[float]:
    settings = TrainSettings(**{**USUAL, **more})
    return [learning_rate(step, 100, 5, settings) for step in range(100)]


def test_warm_up_then_a_half_cosine_to_the_floor() -> None:
    plain = rates()
    assert plain[:10] == pytest.approx([1e-3 * (step + 1) for step in range(10)])
    assert plain[10] == pytest.approx(1e-2) and plain[55] == pytest.approx(5e-3) and plain[-1] < 1e-5
    floored = rates(schedule_floor=0.1)
    assert floored[:10] == plain[:10]
    assert floored[10:] == pytest.approx([1e-3 + 0.9 * rate for rate in plain[10:]])
    constant = rates(schedule="constant")
    assert constant[:10] == plain[:10] and set(constant[10:]) == {1e-2}


def test_a_warm_up_takes_at_most_half_of_the_run() -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_epochs=1000.0)
    assert [learning_rate(step, 10, 5, settings) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("epochs", [0.3, 0.5, 2.0, 2.1, 10.0])
def test_no_warm_up_overshoots_also_where_it_ends_within_a_step(epochs: float) -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_epochs=epochs)
    for total in range(1, 40):
        found = [learning_rate(step, total, 5, settings) for step in range(total)]
        assert max(found) <= 1.0 and found[: found.index(max(found))] == sorted(found[: found.index(max(found))])


def test_weight_decay_may_move_along_a_half_cosine() -> None:
    still, moving = TrainSettings(weight_decay=0.01), TrainSettings(weight_decay=0.01, weight_decay_end=0.1)
    assert {weight_decay(step, 50, still) for step in range(50)} == {0.01}
    found = [weight_decay(step, 51, moving) for step in range(51)]
    assert found[0] == pytest.approx(0.01) and found[-1] == pytest.approx(0.1) and found[25] == pytest.approx(0.055)
    assert found == sorted(found)


class Marked(Objective):
    """A method with every kind of parameter."""

    def __init__(self) -> None:
        super().__init__(build_encoder("tiny", channels=(4, 4, 8)), None)
        self.matrix = nn.Parameter(torch.ones(3, 3))
        self.vector = nn.Parameter(torch.ones(3))
        self.token = nn.Parameter(torch.ones(1, 3))
        self.token.no_decay = True  # type: ignore[attr-defined]
        self.slow = nn.Parameter(torch.ones(3, 3))
        self.slow.no_decay, self.slow.max_lr = True, 1e-3  # type: ignore[attr-defined]
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def test_marks_of_parameters_are_kept_to() -> None:
    objective = Marked()
    optimizer = build_optimizer(objective, TrainSettings(learning_rate=5e-3, weight_decay=0.1))
    set_schedule(optimizer, 5e-3, 0.1)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert id(objective.frozen) not in of
    assert (of[id(objective.matrix)]["weight_decay"], of[id(objective.matrix)]["lr"]) == (0.1, 5e-3)
    assert of[id(objective.vector)]["weight_decay"] == of[id(objective.token)]["weight_decay"] == 0.0
    assert (of[id(objective.slow)]["weight_decay"], of[id(objective.slow)]["lr"]) == (0.0, 1e-3)
    set_schedule(optimizer, 5e-4, 0.2)
    assert of[id(objective.slow)]["lr"] == 5e-4 and of[id(objective.matrix)]["weight_decay"] == 0.2
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        p.requires_grad for p in objective.parameters()
    )


def test_a_method_may_scale_the_rate_of_a_part() -> None:
    layer = nn.Linear(2, 2)

    class Scaled(Marked):
        def parameter_groups(self) -> Any:
            return [*grouped(self.encoder.parameters(), 0.1), *grouped(layer.parameters())]

    optimizer = build_optimizer(Scaled(), TrainSettings(learning_rate=1e-2))
    set_schedule(optimizer, 1e-2, 0.0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([1e-3, 1e-2])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD), ("lars", Lars)],
)
def test_every_optimizer_takes_its_settings_and_its_state_survives(name: str, kind: type[Any]) -> None:
    objective = Marked()
    settings = TrainSettings(optimizer=name, betas=(0.8, 0.95), eps=1e-6, momentum=0.7)  # type: ignore[arg-type]
    optimizer = build_optimizer(objective, settings)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group.get("betas", (0.8, 0.95)) == (0.8, 0.95) and group.get("momentum", 0.7) == 0.7
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    set_schedule(optimizer, 1e-2, 0.1)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in objective.parameters())
    again = build_optimizer(Marked(), settings)
    again.load_state_dict(optimizer.state_dict())
    assert len(again.state_dict()["state"]) == sum(p.requires_grad for p in objective.parameters())


def test_adam_couples_its_decay_and_adamw_does_not() -> None:
    """One step of either moves by the rate whatever the size of a gradient; only AdamW then shrinks the weight."""
    moved = {}
    for name in ("adam", "adamw"):
        objective = Marked()
        optimizer = build_optimizer(objective, TrainSettings(optimizer=name))  # type: ignore[arg-type]
        set_schedule(optimizer, 0.1, 0.5)
        objective.matrix.grad = torch.full((3, 3), 2.0)
        optimizer.step()
        moved[name] = float(objective.matrix.detach()[0, 0])
    assert moved["adam"] == pytest.approx(1 - 0.1, abs=1e-6)
    assert moved["adamw"] == pytest.approx(1 - 0.1 * 0.5 - 0.1, abs=1e-6)


def test_lars_scales_the_rate_by_the_size_of_the_weight_over_that_of_its_gradient() -> None:
    matrix, vector = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.ones(2))
    optimizer = Lars(
        [{"params": [matrix], "decays": True, "weight_decay": 0.1}, {"params": [vector], "decays": False}],
        lr=0.5,
        momentum=0.9,
    )
    expected, moment, size = 3.0, 0.0, 6.0
    for _ in range(2):
        matrix.grad, vector.grad = torch.full((2, 2), 4.0), torch.full((2,), 4.0)
        optimizer.step()
        scale = 1e-3 * size / (8.0 + 0.1 * size)
        moment = 0.9 * moment + scale * (4.0 + 0.1 * expected)
        expected -= 0.5 * moment
        size = 2 * expected
        assert float(matrix.detach()[0, 0]) == pytest.approx(expected, rel=1e-6)
    assert float(vector.detach()[0]) == pytest.approx(1 - 0.5 * 4.0 - 0.5 * (0.9 * 4.0 + 4.0), rel=1e-6)
    nothing = nn.Parameter(torch.zeros(2, 2))
    nothing.grad = torch.ones(2, 2)
    Lars([nothing], lr=0.1).step()
    assert float(nothing.detach()[0, 0]) == pytest.approx(-0.1) and math.isfinite(float(nothing.detach().sum()))
