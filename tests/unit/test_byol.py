"""BYOL against a slow oracle, its closed forms and invariances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from byol_oracle import byol_loss, byol_momentum, ema

from beatray.models.registry import build_encoder
from beatray.objectives.byol import Byol, ByolSettings
from beatray.objectives.objective import Progress
from beatray.objectives.pairs import encode_views
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"projector_hidden": 16, "projector_dim": 8, "predictor_hidden": 12}


def built(**settings: Any) -> Byol:
    torch.manual_seed(0)
    return Byol(build_encoder("tiny", channels=(4, 4, 8)), ByolSettings(**{**SMALL, **settings})).double()


def step(objective: Byol) -> tuple[Any, dict[str, torch.Tensor]]:
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    return objective(views, Progress(2, 10)), views


def parts(objective: Byol, views: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """p and z' of both views, made with the same batch for the batch norms."""
    with torch.no_grad():
        p = objective.predictor(objective.projector(encode_views(objective.encoder, views)[1]))
        z = objective.teacher.module.projector(encode_views(objective.teacher.module.encoder, views)[1])
    return [part.numpy() for whole in (p, z) for part in whole.chunk(2)]


def test_the_loss_is_that_of_the_formula() -> None:
    objective = built()
    result, views = step(objective)
    assert float(result.loss.detach()) == pytest.approx(byol_loss(*parts(objective, views)), abs=1e-9)
    swapped = {**views, "view_1": views["view_2"], "view_2": views["view_1"]}
    assert float(objective(swapped, Progress(2, 10)).loss) == pytest.approx(float(result.loss), abs=1e-9)
    assert 0.0 <= float(result.loss) <= 8.0


def test_scale_of_predictions_and_targets_does_not_matter() -> None:
    objective = built()
    before, views = step(objective)
    with torch.no_grad():
        for layer in (objective.predictor.out, objective.teacher.module.projector.out):
            layer.weight *= 7.0
            layer.bias *= 7.0
    assert float(objective(views, Progress(2, 10)).loss) == pytest.approx(float(before.loss), abs=1e-9)


def test_a_prediction_that_is_the_target_costs_nothing() -> None:
    objective = built()

    class Same(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z

    objective.predictor = Same()  # type: ignore[assignment]
    views = step(objective)[1]
    views["view_2"] = views["view_1"]
    assert float(objective(views, Progress()).loss) == pytest.approx(0.0, abs=1e-9)


def test_the_teacher_follows_the_weights_after_the_step() -> None:
    objective = built(momentum=0.9)
    result, _ = step(objective)
    result.loss.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    old = {name: value.clone() for name, value in objective.teacher.module.named_parameters()}
    torch.optim.SGD(objective.encoder.parameters(), 0.1).step()
    objective.after_step(Progress(3, 10))
    m = byol_momentum(3, 10, 0.9)
    new = dict(objective.encoder.named_parameters())
    for name, value in objective.teacher.module.encoder.named_parameters():
        expected = ema(old[f"encoder.{name}"].numpy(), new[name].detach().numpy(), m)
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-12)
    assert any(not torch.equal(old[f"encoder.{name}"], value) for name, value in new.items())


def test_the_student_is_the_same_with_and_without_a_teacher() -> None:
    torch.manual_seed(0)
    alone = build_encoder("tiny", channels=(4, 4, 8)).double()
    beside = built().encoder
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), beside.parameters(), strict=True))
