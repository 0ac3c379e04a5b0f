"""What methods of latent prediction share: the loss in closed form, the teacher, its export, the watch for collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from byol_oracle import ema
from jepa_oracle import jepa_loss, linear_momentum, smooth_l1
from jepa_oracle import layer_norm as slow_layer_norm

from beatray.models.registry import build_encoder
from beatray.objectives.jepa import Jepa, JepaSettings
from beatray.objectives.latent import LatentPrediction, LatentSettings, layer_norm, target_stds, token_errors
from beatray.objectives.objective import Progress
from beatray.objectives.s4_jepa import S4Jepa, S4JepaSettings
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["jepa", "s4_jepa"]


def built(method: str, **settings: Any) -> LatentPrediction:
    torch.manual_seed(0)
    if method == "jepa":
        encoder = build_encoder("vit", width=16, depth=2, heads=2, registers=1, bias=False, dropout=0.1)
        return Jepa(encoder, JepaSettings(crop_seconds=2.0, **settings)).double()
    encoder = build_encoder("s4d", width=8, layers=2, stride=8, direction="bidirectional")
    return S4Jepa(encoder, S4JepaSettings(crop_seconds=2.0, **settings)).double()


def views(objective: LatentPrediction, records: int = 3) -> dict[str, torch.Tensor]:
    return views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, records)), exact=True)


@pytest.mark.parametrize("loss", ["l1", "smooth_l1"])
def test_the_loss_of_tokens_against_the_loop(loss: str) -> None:
    generator = np.random.default_rng(0)
    predicted, target = 1.5 * generator.normal(size=(2, 3, 5, 4))
    found = token_errors(torch.from_numpy(predicted), torch.from_numpy(target), loss)
    expected = jepa_loss(predicted, target) if loss == "l1" else smooth_l1(predicted, target)
    assert found.shape == (3, 5) and float(found.mean()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.3, -0.3, 1.0, 2.5, -2.5])
def test_a_constant_offset_costs_what_the_formula_says(offset: float) -> None:
    target = torch.randn(2, 5, 4, dtype=torch.float64)
    size = abs(offset)
    assert token_errors(target + offset, target, "l1").numpy() == pytest.approx(size, abs=1e-12)
    smooth = size**2 / 2 if size < 1 else size - 0.5
    assert token_errors(target + offset, target, "smooth_l1").numpy() == pytest.approx(smooth, abs=1e-12)


def test_targets_are_normalised_over_their_coordinates_and_a_constant_becomes_zero() -> None:
    h = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 5, 8))
    np.testing.assert_allclose(layer_norm(torch.from_numpy(h)), slow_layer_norm(h, 1e-5), atol=1e-12)
    for dtype in (torch.float32, torch.float64):
        constant = layer_norm(torch.full((2, 5, 8), 0.7, dtype=dtype))
        assert torch.isfinite(constant).all() and constant.abs().max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_recording_counts_by_its_masked_tokens(method: str) -> None:
    objective = built(method)
    target = torch.zeros(2, 4, 3, dtype=torch.float64)
    counted = torch.tensor([[True] * 4, [True, False, False, False]])
    predicted = torch.tensor([2.0, 7.0], dtype=torch.float64)[:, None, None].expand(2, 4, 3)
    result = objective._result(predicted, target, counted, target, counted)
    of = {"l1": (2.0, 7.0), "smooth_l1": (1.5, 6.5)}[objective.settings.loss]
    assert float(result.loss) == pytest.approx((4 * of[0] + of[1]) / 5)
    assert float(result.counts["token/masked"]) == 5 and float(result.counts["record/rows"]) == 2
    nothing = objective._result(predicted, target, counted & False, target[:0], counted[:0])
    assert float(nothing.loss) == 0.0 and float(nothing.means["token/target_std"]) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_that_is_the_target_costs_nothing_and_one_beside_it_its_distance(method: str) -> None:
    objective = built(method, loss="l1")
    made = views(objective)
    found = {}
    original = objective._result

    def keep(predicted: Any, target: Any, *others: Any) -> Any:
        found.update(same=original(target, target, *others), beside=original(target - 0.25, target, *others))
        return original(predicted, target, *others)

    objective._result = keep  # type: ignore[method-assign]
    assert float(objective(made, Progress()).loss.detach()) > 0.1
    assert float(found["same"].loss) == 0.0 and float(found["beside"].loss) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_follows_the_weights_after_the_step_along_a_line(method: str) -> None:
    objective = built(method, momentum=0.9, momentum_end=0.95)
    objective(views(objective), Progress(3, 10)).loss.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    old = {name: value.clone() for name, value in objective.teacher.module.named_parameters()}
    torch.optim.SGD(objective.encoder.parameters(), 0.1).step()
    objective.after_step(Progress(3, 10))
    m = linear_momentum(3, 10, 0.9, 0.95)
    new = dict(objective.encoder.named_parameters())
    for name, value in objective.teacher.module.named_parameters():
        expected = ema(old[name].numpy(), new[name].detach().numpy(), m)
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-12)
    assert any(not torch.equal(old[name], value) for name, value in new.items())


@pytest.mark.parametrize("method", METHODS)
def test_momentum_1_holds_the_teacher_and_momentum_0_copies_the_student(method: str) -> None:
    for momentum in (1.0, 0.0):
        objective = built(method, momentum=momentum, momentum_end=momentum)
        start = {name: value.clone() for name, value in objective.teacher.module.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], 0.1)
        for number in range(3):
            optimizer.zero_grad()
            objective(views(objective), Progress(number, 3)).loss.backward()
            optimizer.step()
            objective.after_step(Progress(number, 3))
        student, teacher = objective.encoder.state_dict(), objective.teacher.module.state_dict()
        same = student if momentum == 0.0 else start
        assert all(torch.equal(value, same[name]) for name, value in teacher.items() if value.is_floating_point())
        assert any(not torch.equal(student[name], value) for name, value in start.items())


def test_the_published_momentum_begins_and_ends_as_it_says() -> None:
    settings = LatentSettings()
    ends = [linear_momentum(step, 100, settings.momentum, settings.momentum_end) for step in (0, 100)]
    assert ends == pytest.approx([0.998, 0.9995], abs=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_never_in_training_mode(method: str) -> None:
    objective = built(method).train()
    assert objective.encoder.training and not any(part.training for part in objective.teacher.module.modules())
    made = views(objective)
    stds = [float(objective(made, Progress()).means["token/target_std"]) for _ in range(2)]
    assert stds[0] == stds[1]  # no dropout in the targets


@pytest.mark.parametrize("method", METHODS)
def test_student_or_teacher_is_exported(method: str) -> None:
    student, teacher = (built(method, exported=which) for which in ("student", "teacher"))
    assert student.exported() is student.encoder and teacher.exported() is teacher.teacher.module
    assert student.exported().state_dict().keys() == teacher.exported().state_dict().keys()
    assert teacher.exported().name == student.exported().name


@pytest.mark.parametrize("method", METHODS)
def test_the_student_is_the_same_with_and_without_a_teacher(method: str) -> None:
    objective = built(method)
    settings, name = objective.encoder.described_settings(), objective.encoder.name
    torch.manual_seed(0)
    alone = build_encoder(name, **settings).double()
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), objective.encoder.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_collapsed_targets_are_reported_as_collapsed(method: str) -> None:
    objective = built(method)
    made = views(objective)
    means = {name: float(value) for name, value in objective(made, Progress()).means.items()}
    assert means["token/target_std"] > 0.3 and means["record/target_std"] > 0.1
    assert objective.warnings(objective.settings, means, Progress(50, 100)) == {}
    with torch.no_grad():
        for parameter in objective.teacher.module.parameters():
            parameter.zero_()
    result = objective(made, Progress())
    means = {name: float(value) for name, value in {**result.means, **result.counts}.items()}
    assert means["token/target_std"] == means["record/target_std"] == 0.0
    found = objective.warnings(objective.settings, means, Progress(50, 100))
    assert found.keys() == {"token/target_std", "record/target_std"}
    assert all("collapsed" in sentence and objective.remedy in sentence for sentence in found.values())
    assert objective.warnings(objective.settings, means, Progress(2, 100)) == {}
    alone = {**means, "record/rows": 1.0}
    assert objective.warnings(objective.settings, alone, Progress(50, 100)) == {}  # one recording spreads nothing


def test_targets_that_encode_their_position_alone_have_collapsed_too() -> None:
    objective = built("jepa")
    made = views(objective)
    with torch.no_grad():
        objective.teacher.module.embed.weight.zero_()  # type: ignore[union-attr,operator]
    means = {name: float(value) for name, value in objective(made, Progress()).means.items()}
    assert means["token/target_std"] > 0.3
    assert list(objective.warnings(objective.settings, means, Progress(50, 100))) == ["record/target_std"]


def test_the_spread_of_targets_is_that_of_each_coordinate_over_tokens_and_over_recordings() -> None:
    generator = np.random.default_rng(0)
    h = generator.normal(size=(6, 5, 3)) * [1.0, 2.0, 0.0] + generator.normal(size=(5, 3))
    there = np.arange(5) < np.array([5, 5, 4, 4, 2, 1])[:, None]
    there[:5, 4] = [True, False, False, False, False]  # a place that one recording reaches counts in nothing
    over_tokens, over_records = target_stds(torch.from_numpy(h), torch.from_numpy(there))
    assert float(over_tokens) == pytest.approx(h[there].std(0).mean(), rel=1e-6)
    at_places = [h[there[:, position], position].std(0).mean() for position in range(4)]
    assert float(over_records) == pytest.approx(np.mean(at_places), rel=1e-6)
