"""SwAV against a slow oracle: its assignments, queues, prototypes and crops, closed forms and invariances."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import swav_oracle
import torch
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.augment.multi_crop import make_multi_crops
from beatray.augment.two_views import MaskedViewSettings, crop_window
from beatray.errors import SettingsError
from beatray.models.registry import build_encoder
from beatray.objectives.objective import Progress
from beatray.objectives.swav import Swav, SwavSettings, sinkhorn, swapped_prediction
from beatray.settings import TrainSettings
from beatray.train.optimizer import build_optimizer
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "prototypes": 6,
    "queue_rows": 0,
    "queue_start": 0.0,
    "freeze": 0.0,
    "local_crops": 2,
    "local_seconds": 0.8,
    "projector_hidden": 12,
    "projector_dim": 5,
    "augment": MaskedViewSettings(crop_seconds=1.6),
}
LATE = Progress(8, 10)
PLAIN = MaskedViewSettings(crop_seconds=1.6, mask_fraction=0.0, time_out_min=0.0, time_out_max=0.0)


def built(**settings: Any) -> Swav:
    torch.manual_seed(0)
    return Swav(build_encoder("tiny", channels=(4, 4, 8)), SwavSettings(**{**SMALL, **settings})).double()


def made(objective: Swav, rows: int = 7, epoch: int = 0) -> dict[str, Tensor]:
    return views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, rows)), epoch, exact=True)


def embedded(objective: Swav, views: dict[str, Tensor]) -> Tensor:
    """Unit embeddings (V, n, D) of all crops, with the batches of the module text for the batch norms."""
    names = [["view_1", "view_2"], [f"local_{n + 1}" for n in range(objective.settings.local_crops)]]
    with torch.no_grad():
        pooled = [
            objective.encoder(torch.cat([views[name] for name in group]), views[key].repeat(len(group)))
            for group, key in zip(names, ("n_valid", "local_n_valid"), strict=True)
            if group
        ]
        z = objective.projector(torch.cat(pooled))
        return (z / z.norm(dim=1, keepdim=True)).view(sum(map(len, names)), -1, z.shape[1])


def random_scores(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1.0


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_assignments_are_those_of_the_loop(iterations: int) -> None:
    scores = random_scores(9, 4)
    expected = swav_oracle.sinkhorn(scores.numpy(), 0.05, iterations)
    found = sinkhorn(scores, 0.05, iterations)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-14)


def test_assignments_and_loss_are_those_of_public_code() -> None:
    public = json.loads((Path(__file__).parents[1] / "data" / "public_values" / "swav.json").read_text())
    scores = torch.tensor(public["sinkhorn"]["scores"], dtype=torch.float64)
    for case in public["sinkhorn"]["cases"]:
        found = sinkhorn(scores, case["eps"], case["iterations"])
        np.testing.assert_allclose(found.numpy(), np.array(case["codes"]), rtol=0, atol=1e-9)
    for case in public["cases"]:
        crops = torch.tensor(case["scores"], dtype=torch.float64)
        queued = torch.tensor(case["queue_scores"], dtype=torch.float64).view(2, -1, crops.shape[-1])
        both = torch.cat([queued, crops[:2]], 1)
        q = torch.stack([sinkhorn(rows, case["eps"], case["iterations"])[queued.shape[1] :] for rows in both])
        loss = swapped_prediction(crops, q, case["temperature"]).mean()
        assert float(loss) == pytest.approx(case["loss"], abs=1e-9)


def test_prototypes_are_used_alike_in_the_limit_only() -> None:
    scores = random_scores(64, 10)
    wrong = [float((sinkhorn(scores, 0.05, n).sum(0) - 6.4).abs().max()) for n in (3, 50, 2000)]
    assert wrong[0] > 0.1 > 1e-2 > wrong[1] and wrong[2] < 1e-9


def test_assignments_cannot_overflow_and_none_of_no_row_is_none() -> None:
    found = sinkhorn(random_scores(9, 4).float(), 1e-3, 3)
    assert torch.isfinite(found).all() and float((found.sum(1) - 1).abs().max()) < 1e-4
    assert sinkhorn(torch.zeros(0, 4), 0.05, 3).shape == (0, 4)


def test_rows_that_are_not_there_change_nothing() -> None:
    scores = random_scores(16, 5)
    there = torch.tensor([True, False, True, True] * 4)
    found = sinkhorn(scores, 0.05, 3, there)
    torch.testing.assert_close(found[there], sinkhorn(scores[there], 0.05, 3), rtol=1e-12, atol=0)
    assert (found[~there] == 0).all()
    assert (sinkhorn(scores, 0.05, 3, ~there | there) == sinkhorn(scores, 0.05, 3)).all()
    assert (sinkhorn(scores, 0.05, 3, there & ~there) == 0).all()


def test_a_constant_per_prototype_changes_nothing_and_one_per_row_nothing_in_the_limit() -> None:
    scores = random_scores(16, 5)
    per_prototype, per_row = random_scores(1, 5, 1), random_scores(16, 1, 2)
    for iterations in (1, 3):
        torch.testing.assert_close(
            sinkhorn(scores + per_prototype, 0.05, iterations), sinkhorn(scores, 0.05, iterations), rtol=0, atol=1e-12
        )
    early = (sinkhorn(scores + per_row, 0.05, 3) - sinkhorn(scores, 0.05, 3)).abs().max()
    late = (sinkhorn(scores + per_row, 0.05, 3000) - sinkhorn(scores, 0.05, 3000)).abs().max()
    assert float(early) > 0.1 and float(late) < 1e-9


def test_rows_and_prototypes_may_be_moved() -> None:
    scores = random_scores(8, 5)
    rows, columns = [3, 1, 7, 0, 2, 6, 5, 4], [4, 2, 0, 1, 3]
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns], 0.05, 3), sinkhorn(scores, 0.05, 3)[rows][:, columns])


def test_equal_scores_say_nothing() -> None:
    scores = torch.full((4, 7, 6), 0.3, dtype=torch.float64)
    q = torch.stack([sinkhorn(scores[0], 0.05, 3)] * 2)
    torch.testing.assert_close(q, torch.full_like(q, 1 / 6))
    losses = swapped_prediction(scores, q, 0.1)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(6)))


@pytest.mark.parametrize("local_crops", [0, 2])
def test_the_loss_is_that_of_the_formula(local_crops: int) -> None:
    objective = built(local_crops=local_crops)
    views = made(objective)
    result = objective(views, LATE)
    scores = [(z @ objective.prototypes.detach().T).numpy() for z in embedded(objective, views)]
    nothing = np.zeros((0, 6))
    assert len(scores) == 2 + local_crops
    expected = swav_oracle.swav_loss(scores, [nothing, nothing], 0.1, 0.05, 3)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-9)


def test_the_queue_stands_before_the_batch() -> None:
    objective = built(queue_rows=10)
    for epoch in range(2):
        objective(made(objective, epoch=epoch), LATE)
        objective.after_step(LATE)
    queued = [(queue.rows @ objective.prototypes.detach().T).numpy() for queue in objective.queues]
    views = made(objective, epoch=2)
    scores = [(z @ objective.prototypes.detach().T).numpy() for z in embedded(objective, views)]
    with_queue = swav_oracle.swav_loss(scores, queued, 0.1, 0.05, 3)
    without = swav_oracle.swav_loss(scores, [np.zeros((0, 6))] * 2, 0.1, 0.05, 3)
    assert float(objective(views, LATE).loss.detach()) == pytest.approx(with_queue, rel=1e-9)
    assert abs(with_queue - without) > 1e-4


def test_a_queue_holds_the_newest_embeddings_of_its_crop_and_serves_once_full_and_due() -> None:
    objective = built(queue_rows=10, queue_start=0.5)
    came = []
    for number, rows in enumerate((4, 3, 7)):
        views = made(objective, rows, number)
        came.append(embedded(objective, views)[:2])
        objective(views, Progress(number, 10))
        assert [int(queue.filled) for queue in objective.queues] == [min(10, 4 * (number > 0) + 3 * (number > 1))] * 2
        objective.after_step(Progress(number, 10))
    for view, queue in enumerate(objective.queues):
        torch.testing.assert_close(queue.rows, torch.cat([z[view] for z in came])[-10:])
        assert not queue.rows.requires_grad
    views = made(objective, epoch=3)
    emptied = built(queue_rows=0)
    emptied.load_state_dict(objective.state_dict(), strict=False)
    before, due = objective(views, Progress(4, 10)).loss, objective(views, Progress(5, 10)).loss
    assert float(before) == float(emptied(views, Progress(4, 10)).loss)
    assert abs(float(due) - float(before)) > 1e-6
    objective.static_shapes = True
    for at, expected in ((Progress(4, 10), before), (Progress(5, 10), due)):
        torch.testing.assert_close(objective(views, at).loss, expected, rtol=1e-12, atol=0)


def test_targets_and_queue_carry_no_gradient() -> None:
    objective = built(queue_rows=7)
    objective(made(objective), LATE)
    objective.after_step(LATE)
    views = made(objective, epoch=1)
    kept: list[Tensor] = []

    def fixed(target: Tensor) -> Tensor:
        kept.append(target.detach())
        return kept[0]

    objective.stop_gradient = fixed  # type: ignore[method-assign]
    objective(views, LATE).loss.backward()
    assert not kept[0].requires_grad and kept[0].shape == (2, 7, 6)
    gradient = objective.prototypes.grad
    assert gradient is not None
    direction = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = []
    with torch.no_grad():
        for h in (1e-5, -2e-5):
            objective.prototypes += h * direction
            losses.append(float(objective(views, LATE).loss))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)
    assert not torch.equal(kept[0], kept[1])  # they did depend on the weights


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lars"])
def test_frozen_prototypes_stay_what_they_are_and_then_move_with_unit_rows(optimizer: Any) -> None:
    objective = built(freeze=0.3)
    trained = build_optimizer(objective, TrainSettings(optimizer=optimizer, weight_decay=0.5))
    start = objective.prototypes.detach().clone()
    other = {name: value.detach().clone() for name, value in objective.encoder.named_parameters()}
    for number in range(4):
        at = Progress(number, 10)
        trained.zero_grad()
        objective(made(objective, epoch=number), at).loss.backward()
        assert objective.prototypes.grad is not None
        assert bool((objective.prototypes.grad == 0).all()) == (number < 3)
        trained.step()
        objective.after_step(at)
        assert torch.equal(objective.prototypes, start) == (number < 3)
    assert any(not torch.equal(value, other[name]) for name, value in objective.encoder.named_parameters())
    lengths = objective.prototypes.detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-12)


def test_prototypes_begin_as_unit_rows_and_never_decay() -> None:
    objective = built()
    lengths = objective.prototypes.detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)
    groups = objective.parameter_groups()
    assert [group.decays for group in groups if any(p is objective.prototypes for p in group.parameters)] == [False]


def test_validation_leaves_prototypes_and_queue_alone() -> None:
    objective = built(queue_rows=7)
    objective(made(objective), LATE)
    objective.after_step(LATE)
    objective.eval()
    with torch.no_grad():
        objective.prototypes *= 2.0  # not of unit length: nothing may repair it
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        objective(made(objective, epoch=1), LATE)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert all(not queue._staged for queue in objective.queues)


def test_crops_are_windows_of_the_recording_at_their_own_moments() -> None:
    batch = batch_of(built(), rows_of(7)[0])
    whole = crop_window(batch, None, Draws.of(batch, 3, 0))["plain"]
    crops = make_multi_crops(batch, PLAIN, 3, 0.6, Draws.of(batch, 3, 0))
    lengths = {"view_1": 800, "view_2": 800, "local_1": 300, "local_2": 300, "local_3": 300}
    starts = []
    for name, length in lengths.items():
        beginnings = whole[:, 1].unfold(-1, 40, 1)  # (B, places, 40) of lead II
        offsets = (beginnings == crops[name][:, 1, None, :40]).all(-1).float().argmax(1).tolist()
        for record, found, offset in zip(whole, crops[name], offsets, strict=True):
            assert torch.equal(found, record[:, offset : offset + length]), name
        starts.append(tuple(offsets))
    assert len(set(starts)) == len(starts)
    assert crops["n_valid"].tolist() == [800] * 7 and crops["local_n_valid"].tolist() == [300] * 7
    masked = make_multi_crops(batch, MaskedViewSettings(crop_seconds=1.6), 3, 0.6, Draws.of(batch, 3, 0))
    for name, value in masked.items():
        assert value.dim() == 1 or 0.5 < float((value == 0).float().mean()) < 0.8, name


@pytest.mark.parametrize(("crop_seconds", "local_seconds"), [(1.0, 2.0), (None, 30.0), (1.0, 1.0)])
def test_local_crops_may_be_long_and_recordings_short(crop_seconds: float | None, local_seconds: float) -> None:
    objective = built(local_seconds=local_seconds, augment=MaskedViewSettings(crop_seconds=crop_seconds))
    batch = batch_of(objective, rows_of(7)[0], slice(0, 4))
    batch["n_samples"] = torch.tensor([5000, 700, 60, 1])
    batch["signal_uv"] = batch["signal_uv"] * (torch.arange(5000) < batch["n_samples"][:, None])[:, None]
    views = views_of(objective, batch, exact=True)
    longest = 5000 if crop_seconds is None else round(500 * crop_seconds)
    assert views["view_2"].shape == (4, 12, longest)
    assert views["n_valid"].tolist() == [longest, min(700, longest), 60, 1]
    assert views["local_n_valid"].tolist()[1:] == [min(700, round(500 * local_seconds)), 60, 1]
    result = objective(views, LATE)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.requires_grad)


def test_warped_crops_have_no_valid_length() -> None:
    objective = built(augment=MaskedViewSettings(crop_seconds=1.6, warp=True))
    views = made(objective)
    assert "n_valid" not in views and "local_n_valid" not in views
    assert torch.isfinite(objective(views, LATE).loss)


def test_it_describes_itself_and_reports_collapse() -> None:
    objective = built()
    settings = objective.settings
    assert Swav.described(settings) == "SwAV, 6 prototypes, 2 + 2 crops, no queue"
    means = {name: float(value) for name, value in objective(made(objective), LATE).means.items()}
    assert {curve.key for curve in Swav.curves(settings)} <= means.keys()
    assert 0.0 < means["record/prototype_usage"] <= 1.0 + 1e-6
    assert 0.0 < means["record/target_entropy"] <= 1.0 + 1e-6
    bad = {"record/embedding_std": 0.1, "record/prototype_usage": 0.2}
    found = Swav.warnings(settings, bad, LATE)
    assert "objective.epsilon" in found["record/embedding_std"]
    assert "20% of 6 prototypes" in found["record/prototype_usage"]
    (sentence,) = Swav.warnings(settings, {"record/target_entropy": 0.99}, LATE).values()
    assert "nearly uniform" in sentence
    bad["record/target_entropy"] = 1.0
    assert Swav.warnings(settings, bad, Progress(0, 100)) == {}  # too early to tell
    assert Swav.warnings(settings, {**bad, "record/rows": 1.0}, LATE) == {}  # one recording is always equal to itself


def test_embeddings_that_are_all_equal_have_uniform_targets() -> None:
    objective = built(local_crops=0)
    with torch.no_grad():
        objective.projector.out.weight.zero_()
    result = objective(made(objective), LATE)
    means = {name: float(value) for name, value in result.means.items()}
    assert means["record/target_entropy"] == pytest.approx(1.0, abs=1e-6)
    assert means["record/prototype_usage"] == pytest.approx(1.0, abs=1e-6)
    assert means["record/embedding_std"] == pytest.approx(0.0, abs=1e-6)


def test_settings_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="prototypes must be at least 2"):
        SwavSettings(prototypes=1)
    with pytest.raises(SettingsError, match="freeze must be at most 1"):
        SwavSettings(freeze=1.5)
