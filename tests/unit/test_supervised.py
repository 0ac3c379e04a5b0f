"""Learning from labels: losses against plain numpy, what is frozen, what a step and a checkpoint promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.draws import VALIDATION_EPOCH, Draws
from beatray.augment.light import LightSettings, lightly_changed
from beatray.models.depth import layers_of
from beatray.models.registry import build_encoder, encoder_classes
from beatray.objectives.objective import Objective, Progress, StepResult
from beatray.objectives.registry import build_objective, objective_classes, supervised_classes
from beatray.objectives.supervised import scores_of
from beatray.objectives.trained_part import freeze
from beatray.preprocess import prepare
from beatray.record import RATE_HZ
from beatray.train import checkpoint as checkpoints
from beatray.train.order import MicroBatch
from beatray.train.ranks import Ranks
from beatray.train.step import Learner
from every_method import batch_of, model_of, views_of
from labelled import KINDS, labelled_rows, run_spec_for, settings_for
from watched_tensors import no_waits

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 8


def softmax(z: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    odds = np.exp(z - z.max(axis, keepdims=True))
    return np.asarray(odds / odds.sum(axis, keepdims=True))


def built(kind: str, *overrides: str, exact: bool = True) -> tuple[Objective, dict[str, Tensor]]:
    arrays, statistics = labelled_rows(kind, ROWS)
    objective = model_of(settings_for(kind, *overrides), statistics, exact=exact)
    return objective, views_of(objective, batch_of(objective, arrays), exact=exact)


def logits_of(objective: Any, views: dict[str, Tensor]) -> NDArray[np.float64]:
    with torch.no_grad():
        return np.asarray(objective.head(objective.encoder(views["view_1"], views["n_valid"])).numpy())


def test_objectives_that_learn_from_labels_are_no_methods_of_pretraining() -> None:
    assert set(supervised_classes()) == {"supervised", "segmentation"}
    assert not set(supervised_classes()) & set(objective_classes())
    with pytest.raises(ValueError, match="beatray finetune"):
        build_objective("supervised", build_encoder("tiny"), {})


def test_multilabel_loss_is_the_mean_over_known_targets() -> None:
    weights = [0.5, 2.0, 0.7, 1.4, 0.6, 3.0, 0.9, 1.1, 0.8, 1.2]
    objective, views = built("multilabel", f"objective.weights={weights}")
    result = objective(views, Progress())
    z, y = logits_of(objective, views), views["target"].numpy()
    no, yes = np.array(weights).reshape(5, 2).T
    chance = 1 / (1 + np.exp(-z))
    errors = -np.where(y == 1, yes * np.log(chance), no * np.log(1 - chance))
    assert 0 < (y < 0).sum() < y.size
    assert float(result.loss.detach()) == pytest.approx(errors[y >= 0].mean(), rel=1e-6)  # weights are float32
    assert float(result.counts["known_targets"]) == (y >= 0).sum()


def test_loss_of_classes_is_the_weighted_cross_entropy_of_known_ones() -> None:
    objective, views = built("classes", "objective.weights=[0.5,2.0,1.25]")
    result = objective(views, Progress())
    z, y = logits_of(objective, views), views["target"].numpy()
    known = y >= 0
    assert 0 < known.sum() < ROWS
    errors = -np.log(softmax(z, 1)[known, y[known]]) * np.array([0.5, 2.0, 1.25])[y[known]]
    assert float(result.loss.detach()) == pytest.approx(errors.mean(), rel=1e-6)


def test_loss_of_numbers_is_the_square_error_of_standardised_ones() -> None:
    objective, views = built("numbers")
    result = objective(views, Progress())
    z, y = logits_of(objective, views), views["target"].numpy()
    errors = (z - (y - np.array([60.0, 1.0])) / np.array([15.0, 2.0])) ** 2
    assert np.isnan(y).any()
    assert float(result.loss.detach()) == pytest.approx(np.nanmean(errors), rel=1e-6)  # targets are float32
    output = objective.eval()(views, Progress()).outputs["output"]
    with torch.no_grad():
        again = objective.head(objective.encoder(views["view_1"], views["n_valid"])).numpy()
    np.testing.assert_allclose(output.numpy(), again * [15.0, 2.0] + [60.0, 1.0])


@pytest.mark.parametrize(
    "overrides", [(), ("objective.leads=per_lead",), ("objective.decoder=unet", "objective.dice_weight=0.5")]
)
def test_segmentation_loss_counts_scored_samples_alone(overrides: tuple[str, ...]) -> None:
    arrays, statistics = labelled_rows("waves", ROWS)
    if "objective.leads=per_lead" in overrides:
        shift = np.arange(12)[None, :, None]
        arrays["target"] = np.where(np.arange(5000) % 13 > shift, arrays["target"][:, None], -1).astype(np.int8)
    objective: Any = model_of(settings_for("waves", *overrides), statistics, exact=True)
    views = views_of(objective, batch_of(objective, arrays), exact=True)
    result = objective(views, Progress())
    with torch.no_grad():
        z = objective.head(objective.encoder.forward_stages(views["view_1"], views["n_valid"]), 800).numpy()
    target = views["target"].numpy()
    masks = target.shape[1]
    p = softmax(z.reshape(ROWS, masks, 4, 800), 2)
    scored = target >= 0
    assert 0 < scored.sum() < target.size
    one_hot = np.eye(4)[np.maximum(target, 0)].transpose(0, 1, 3, 2)
    entropy = -np.log((p * one_hot).sum(2))[scored].mean()
    p, one_hot = p * scored[:, :, None], one_hot * scored[:, :, None]
    both, total = (p * one_hot).sum((0, 1, 3))[1:], (p + one_hot).sum((0, 1, 3))[1:]
    dice = 1 - ((2 * both + 1) / (total + 1)).mean()
    weight = 0.5 if "objective.dice_weight=0.5" in overrides else 1.0
    assert float(result.loss.detach()) == pytest.approx(entropy + weight * dice, rel=1e-9)
    counts = objective.eval()(views, Progress()).outputs
    assert int(counts["truth"].sum()) == ((target > 0) & scored).sum()


def test_dice_of_leads_that_have_masks_is_that_of_each_lead() -> None:
    objective, _ = built("waves", "objective.leads=per_lead")
    two_leads = {"both": [[[1000, 0, 0], [0, 0, 0]]], "truth": [[[1000, 0, 0], [10, 0, 0]]]}
    outputs = {name: np.array(values, np.float32) for name, values in two_leads.items()}
    assert objective.validated({**outputs, "predicted": outputs["truth"]})["dice"] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_known_is_no_error_and_teaches_nothing(kind: str) -> None:
    objective, views = built(kind)
    views["target"] = torch.full_like(views["target"], torch.nan if kind == "numbers" else -1)
    result = objective(views, Progress())
    result.loss.backward()
    gradients = [p.grad for p in objective.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients), "a weight without a gradient stops DDP"
    assert all(bool((gradient == 0).all()) for gradient in gradients if gradient is not None)
    empty = {name: value[:0] for name, value in views.items()}
    assert torch.isfinite(objective(empty, Progress()).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_of_the_record_alone_and_whole_when_validated(kind: str) -> None:
    arrays, statistics = labelled_rows(kind, ROWS)
    overrides = ("objective.augment={crop_seconds:1.6,lead_dropout:0.3,noise_mv:0.02,scale:0.2}",)
    objective = model_of(settings_for(kind, *overrides), statistics)
    together = views_of(objective, batch_of(objective, arrays))
    apart = views_of(objective, batch_of(objective, arrays, [5, 1]))
    for name, value in apart.items():
        torch.testing.assert_close(value, together[name][[5, 1]], rtol=0, atol=0, equal_nan=True)
    assert together["view_1"].shape[-1] == 800
    whole = views_of(objective, batch_of(objective, arrays), VALIDATION_EPOCH)
    plain = prepare(torch.from_numpy(arrays["signal_uv"]), RATE_HZ, torch.from_numpy(arrays["n_samples"]))
    torch.testing.assert_close(whole["view_1"], plain, rtol=0, atol=0)
    objective.eval()  # as a validation leaves it for a while, when views of the next steps are made beside it
    for epoch, before in ((0, together), (VALIDATION_EPOCH, whole)):
        meanwhile = views_of(objective, batch_of(objective, arrays), epoch)
        for name, value in meanwhile.items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    if kind == "waves":
        np.testing.assert_array_equal(whole["target"][:, 0].numpy(), arrays["target"])


def test_the_mask_is_cropped_with_its_recording() -> None:
    arrays, statistics = labelled_rows("waves", ROWS)
    arrays["target"] = (np.arange(5000) // 100 % 4).astype(np.int8)[None].repeat(ROWS, 0)
    objective = model_of(settings_for("waves"), statistics)
    batch = batch_of(objective, arrays)
    views = objective.views(batch, Draws.of(batch, 11, 0))
    whole = objective.views(batch, Draws.of(batch, 11, VALIDATION_EPOCH))
    for row in range(ROWS):
        positions = (
            (whole["view_1"][row].unfold(-1, 800, 1)[:, :, :3] - views["view_1"][row, :, None, :3]).abs().sum((0, 2))
        )
        start = int(positions.argmin())
        np.testing.assert_array_equal(views["target"][row, 0].numpy(), arrays["target"][row, start : start + 800])


def test_light_changes_leave_padding_and_absent_leads_zero() -> None:
    x_mv = torch.randn(3, 12, 400)
    x_mv[0, 4] = 0
    x_mv[1, :, 300:] = 0
    valid = torch.tensor([400, 300, 400])
    draws = Draws(np.array([1, 2, 3]), 0, 0)
    changed = lightly_changed(x_mv, valid, LightSettings(noise_mv=0.1, scale=0.2), draws)
    assert not changed[0, 4].any() and not changed[1, :, 300:].any()
    assert 0 < float((changed - x_mv)[2].std()) < 0.5
    dropped = lightly_changed(x_mv, valid, LightSettings(lead_dropout=0.5), draws)
    assert 0 < int((dropped[2].abs().sum(-1) == 0).sum()) < 12
    assert torch.equal(lightly_changed(x_mv, valid, LightSettings(), draws), x_mv)


def state_of(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.objective.state_dict().items()}


def step(learner: Learner, arrays: dict[str, Any], number: int) -> dict[str, float] | None:
    mine = {name: values for name, values in arrays.items() if name in learner.objective.reads}
    return learner.step(number, mine, number, (MicroBatch(ROWS, ROWS),))[0]


@pytest.mark.parametrize(
    ("kind", "trained"),
    [("multilabel", "head"), ("numbers", "last"), ("classes", "all"), ("waves", "head"), ("waves", "last")],
)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(kind: str, trained: str) -> None:
    arrays, statistics = labelled_rows(kind, ROWS)
    settings = settings_for(kind, f"objective.trained={trained}", "train.learning_rate=0.01", "train.warmup_epochs=0")
    learner = Learner(run_spec_for(settings, statistics, ROWS), Ranks())
    before = state_of(learner)
    first = step(learner, arrays, 0)
    losses = [step(learner, arrays, number) for number in range(1, 6)]
    assert first is not None and losses[-1] is not None and losses[-1]["loss"] < first["loss"]
    after = state_of(learner)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {"head": ("head.",), "last": ("head.", "encoder.block_3."), "all": ("head.", "encoder.")}[trained]
    assert all(name.startswith(parts) for name in changed), changed
    statistics_of_norms = {name for name in changed if "running" in name and name.startswith("encoder.")}
    assert bool(statistics_of_norms) == (trained != "head")
    assert any(name.startswith(parts[-1]) for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_have_the_mean_and_the_gradient_of_the_whole_batch(kind: str) -> None:
    """Also where their shares of known targets are not their shares of the rows."""
    arrays, statistics = labelled_rows(kind, ROWS)
    if kind != "waves":
        arrays["target"][:2] = np.nan if kind == "numbers" else -1
    alike = {"waves": ("objective.decoder_depth=0", "objective.dice_weight=0.0")}  # dice is no mean over samples
    words = ("objective.trained=head", *alike.get(kind, ("objective.standardise=false",)), "train.precision=fp64")
    found = []
    for cuts in ((8,), (2, 6), (3, 4, 1)):
        learner = Learner(run_spec_for(settings_for(kind, *words), statistics, ROWS), Ranks())
        mine = {name: values for name, values in arrays.items() if name in learner.objective.reads}
        logs, norm = learner.step(0, mine, 0, tuple(MicroBatch(rows, rows) for rows in cuts))
        assert logs is not None and norm > 0
        found.append({**logs, "norm": norm, "waves/dice_loss": 0.0})
    assert found[1] == pytest.approx(found[0], rel=1e-6) and found[2] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_to_the_bit_and_a_refused_step_leaves_no_trace(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, statistics = labelled_rows(kind, ROWS)
    spec = run_spec_for(settings_for(kind), statistics, ROWS)
    whole = Learner(spec, Ranks())
    for number in range(2):
        step(whole, arrays, number)
    kept = checkpoints.snapshot("step-00000002", {}, whole.objective, whole.optimizer)
    forward, before = whole.objective.forward, state_of(whole)

    def poisoned(views: dict[str, Tensor], at: Progress) -> StepResult:
        result = forward(views, at)
        return StepResult(result.loss * torch.nan, result.means)

    monkeypatch.setattr(whole.objective, "forward", poisoned)
    assert step(whole, arrays, 2) is None
    monkeypatch.undo()
    assert all(torch.equal(value, before[name]) for name, value in state_of(whole).items())
    continued = Learner(spec, Ranks())
    checkpoints.restore(kept, continued.objective, continued.optimizer)
    for learner in (whole, continued):
        for number in range(2, 4):
            step(learner, arrays, number)
    end, other = state_of(whole), state_of(continued)
    assert all(torch.equal(end[name], other[name]) for name in end)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_rows_does_not_matter(kind: str) -> None:
    arrays, statistics = labelled_rows(kind, ROWS)
    found = []
    for order in (list(range(ROWS)), [3, 0, 7, 5, 1, 4, 2, 6]):
        objective = model_of(settings_for(kind), statistics, exact=True)
        result = objective(views_of(objective, batch_of(objective, arrays, order), exact=True), Progress())
        result.loss.backward()
        found.append((result.loss.detach(), [p.grad for p in objective.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", sorted(encoder_classes()))
def test_every_parameter_of_a_network_is_in_one_layer(name: str) -> None:
    encoder = build_encoder(name)
    layers = layers_of(encoder)
    listed = [id(p) for _, parameters in layers for p in parameters]
    assert sorted(listed) == sorted(id(p) for p in encoder.parameters())
    assert len(layers) >= 2 and all(parameters for _, parameters in layers)
    freeze(encoder, "last", 1)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in layers[-1][1]}


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, statistics = labelled_rows(kind, ROWS)
    objective = model_of(settings_for(kind), statistics)
    views = {name: value.to("meta") for name, value in views_of(objective, batch_of(objective, arrays)).items()}
    objective.to("meta").static_shapes = True
    with no_waits(monkeypatch):
        objective(views, Progress(1, 10)).loss.backward()


@pytest.mark.parametrize("kind", ["multilabel", "waves"])
def test_a_step_that_is_read_late_is_the_same_step(kind: str) -> None:
    arrays, statistics = labelled_rows(kind, ROWS)
    found = []
    for overlap in ("never", "always"):
        overrides = ("objective.trained=last", f"train.overlap={overlap}")
        learner = Learner(run_spec_for(settings_for(kind, *overrides), statistics, ROWS), Ranks())
        found.append([step(learner, arrays, number) for number in range(3)])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_rates_fall_layer_by_layer_from_the_head_down() -> None:
    objective, _ = built("multilabel", "objective.encoder_lr=0.1", "objective.layer_decay=0.5")
    scale = {id(p): group.lr_scale for group in objective.parameter_groups() for p in group.parameters}
    named = {name: scale[id(p)] for name, p in objective.named_parameters()}
    assert named["head.head.out.weight"] == named["head.norm.weight"] == 1.0
    assert named["encoder.block_3.conv_1.weight"] == pytest.approx(0.1)
    assert named["encoder.block_2.conv_1.weight"] == pytest.approx(0.05)
    assert named["encoder.block_1.norm_1.weight"] == pytest.approx(0.025)
    assert named["encoder.stem.weight"] == named["encoder.stem_norm.weight"] == pytest.approx(0.0125)


def test_scores_leave_unknown_targets_out() -> None:
    output = np.array([[2.0, 0.0], [1.0, -1.0], [-1.0, 3.0], [-3.0, 9.0]])
    scores = scores_of("multilabel", output, np.array([[1, -1], [0, 1], [1, 0], [0, -1]]))
    assert scores == {"auroc": pytest.approx((0.75 + 0.0) / 2), "f1": pytest.approx((0.5 + 0.0) / 2)}
    scores = scores_of("numbers", output, np.array([[1.0, np.nan], [1.0, 1.0], [np.nan, 3.0], [-1.0, np.nan]]))
    assert scores["mae"] == pytest.approx((1.0 + 1.0) / 2)
    numbers, known = np.array([[60.0, 4.0], [40.0, 5.0]]), np.array([[62.0, 5.0], [42.0, 6.0]])
    in_percent = scores_of("numbers", numbers, known, np.array([10.0, 0.5]))
    as_share = scores_of("numbers", numbers / [100, 1], known / [100, 1], np.array([0.1, 0.5]))
    assert in_percent["mae"] == pytest.approx((0.2 + 2.0) / 2) and as_share == pytest.approx(in_percent)
    scores = scores_of("classes", output, np.array([0, 0, 1, -1]))
    assert scores == {"auroc": 1.0, "f1": 1.0, "accuracy": 1.0}


def test_the_best_has_most_of_its_score_or_least_of_the_error() -> None:
    objective, _ = built("multilabel")
    assert objective.selection({"validation_loss": 2.0, "validation_auroc": 0.8}) == -0.8
    assert objective.selection({"validation_loss": 2.0, "validation_auroc": float("nan")}) == 2.0
    numbers, _ = built("numbers")
    assert numbers.selection({"validation_loss": 2.0, "validation_mae": 7.0}) == 7.0
    with pytest.raises(ValueError, match="select=f1 is no score of numbers"):
        settings_for("numbers", "objective.select=f1")
