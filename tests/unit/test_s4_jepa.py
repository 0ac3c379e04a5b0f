"""S4-JEPA: its loss and targets, and what the student may see. What it shares: tests/unit/test_latent.py."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from jepa_oracle import data2vec_targets, jepa_loss, layer_norm, smooth_l1

from beatray.augment.draws import Draws
from beatray.models.encoder import valid_cells
from beatray.models.registry import build_encoder
from beatray.objectives.objective import Progress
from beatray.objectives.s4_jepa import S4Jepa, S4JepaSettings
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = 125  # 2 s at 16 ms


def built(encoder: dict[str, Any] | None = None, **settings: Any) -> S4Jepa:
    torch.manual_seed(0)
    sizes = {"name": "s4d", "width": 8, "layers": 3, "stride": 8, "direction": "bidirectional", "dropout": 0.0}
    plain = {"crop_seconds": 2.0, "predictor_dropout": 0.0}
    network = build_encoder(**(sizes if encoder is None else encoder))
    return S4Jepa(network, S4JepaSettings(**{**plain, **settings})).double()


def views(objective: S4Jepa, records: int = 4, epoch: int = 0) -> dict[str, torch.Tensor]:
    return views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, records)), epoch, exact=True)


def predictions(objective: S4Jepa, made: dict[str, torch.Tensor]) -> tuple[np.ndarray, list[np.ndarray]]:
    """What is predicted (B, T', D), and the layers of the teacher, by the module's own networks."""
    student: Any = objective.encoder
    teacher: Any = objective.teacher.module
    there = valid_cells(made["n_valid"], objective.stage, made["masked"].shape[1])
    with torch.no_grad():
        tokens = student.tokens(made["view_1"], made["n_valid"])
        tokens[made["masked"]] = objective.mask_token
        predicted = objective.predictor(student.encode(tokens, valid=there), there)
        layers = teacher.encode_layers(teacher.tokens(made["view_1"], made["n_valid"]), there)
    return predicted.numpy(), [layer.numpy() for layer in layers]


@pytest.mark.parametrize("targets", ["jepa", "data2vec"])
@pytest.mark.parametrize("loss", ["l1", "smooth_l1"])
def test_the_loss_is_that_of_the_formulas(targets: str, loss: str) -> None:
    objective = built(targets=targets, loss=loss).eval()
    made = views(objective)
    predicted, layers = predictions(objective, made)
    target = layer_norm(layers[-1], 1e-5) if targets == "jepa" else data2vec_targets(layers[-2:])
    masked = made["masked"].numpy()
    slow = jepa_loss if loss == "l1" else smooth_l1
    expected = slow(predicted[masked][None], target[masked][None])
    assert float(objective(made, Progress()).loss.detach()) == pytest.approx(expected, abs=1e-9)


def test_all_layers_are_taken_where_there_are_fewer_than_asked_for() -> None:
    objective = built(targets="data2vec", top_layers=9).eval()
    made = views(objective)
    predicted, layers = predictions(objective, made)
    masked = made["masked"].numpy()
    expected = smooth_l1(predicted[masked][None], data2vec_targets(layers)[masked][None])
    assert len(layers) == 3 and float(objective(made, Progress()).loss.detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("targets", ["jepa", "data2vec"])
def test_layers_that_do_not_vary_give_targets_of_zero(targets: str) -> None:
    objective = built(targets=targets)
    with torch.no_grad():
        for block in objective.teacher.module.stacks[0].blocks:  # type: ignore[index,union-attr]
            block.norm.weight.zero_()
            block.norm.bias.fill_(0.7)
    made = views(objective)
    there = valid_cells(made["n_valid"], objective.stage, TOKENS)
    h = objective._targets(objective._compared(made["view_1"], made["n_valid"], there))
    assert torch.isfinite(h).all() and h.abs().max() < 1e-9
    result = objective(made, Progress())
    result.loss.backward()
    assert torch.isfinite(result.loss) and float(result.means["token/target_std"]) < 1e-6


def test_the_masked_part_is_exact_over_a_thousand_draws_and_reaches_every_token() -> None:
    objective = built()
    batch = batch_of(objective, rows_of(7)[0], slice(0, 5))
    masked = np.concatenate([views_of(objective, batch, epoch)["masked"].numpy() for epoch in range(200)])
    assert masked.shape == (1000, TOKENS) and masked.mean() == pytest.approx(0.5, rel=0.02)
    assert (masked.sum(1) == 62).all()
    assert masked[:200].any(0).all() and not masked[:200].all(0).any()  # the first and the last token, too
    runs = [len(list(run)) for row in masked for hidden, run in groupby(row.tolist()) if hidden]
    assert min(runs) >= 10 and objective.spans == [10, 16]  # 160 and 250 ms


def test_a_short_recording_is_masked_within_its_signal_and_what_follows_matters_nowhere() -> None:
    objective = built().eval()
    batch = batch_of(objective, rows_of(7)[0], slice(0, 4))
    batch["n_samples"] = torch.tensor([5000, 400, 16, 8])
    made = views_of(objective, batch, exact=True)
    assert made["masked"].sum(1).tolist() == [62, 25, 1, 0]
    assert not made["masked"][1, 50:].any() and not made["masked"][2, 2:].any()
    whole = objective(made, Progress())
    changed = {**made, "view_1": made["view_1"].clone()}
    changed["view_1"][1, :, 420:] = 7.0  # beyond the reach of the stem
    other = objective(changed, Progress())
    torch.testing.assert_close(whole.loss, other.loss, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(whole.means, other.means)


def test_what_is_masked_can_change_without_the_student_noticing_and_the_teacher_does() -> None:
    objective = built().eval()  # in training batch norms of the stem know a mean of everything
    made = views(objective, 2)
    near = made["masked"].double()
    near = -torch.nn.functional.max_pool1d(
        -near[:, None], 5, 1, 2
    )  # two tokens from each end of a span: the stem's reach
    samples = near.repeat_interleave(8, 2).roll(-4, 2) > 0
    changed = {**made, "view_1": torch.where(samples, made["view_1"] + 5.0, made["view_1"])}
    assert samples.sum() > 200
    before, after = (predictions(objective, each) for each in (made, changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1][-1], after[1][-1])
    remasked = {**made, "masked": views(objective, 2, epoch=1)["masked"]}
    again = predictions(objective, remasked)
    assert not np.array_equal(again[0], before[0])
    np.testing.assert_array_equal(again[1][-1], before[1][-1])  # what is masked does not matter to the target


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "s4d", "width": 8, "layers": 1, "stride": 4, "direction": "both"},
        {"name": "lstm", "width": 8, "layers": 1, "direction": "both"},
        {"name": "vit", "width": 8, "depth": 1, "heads": 2},
    ],
)
def test_any_network_that_sees_both_sides_serves(encoder: dict[str, Any]) -> None:
    objective = built(encoder)
    result = objective(views(objective), Progress())
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters() if p.requires_grad)


def test_masked_tokens_of_a_transformer_know_their_places() -> None:
    objective = built({"name": "vit", "width": 8, "depth": 1, "heads": 2})
    made = views(objective, 1)
    made["masked"][:] = True  # nothing but places is left
    seen: list[torch.Tensor] = []
    encode: Any = objective.encoder.encode  # type: ignore[operator]

    def noted(tokens: torch.Tensor, **more: Any) -> torch.Tensor:
        seen.append(tokens)
        return encode(tokens, **more)

    objective.encoder.encode = noted  # type: ignore[method-assign]
    objective(made, Progress())
    silent = objective.encoder.tokens(torch.zeros_like(made["view_1"]))  # type: ignore[operator]
    torch.testing.assert_close(seen[0] - objective.mask_token, silent)


def test_a_network_that_sees_one_side_is_refused() -> None:
    for name in ("s4d", "lstm"):
        with pytest.raises(ValueError, match="needs a network that sees both sides of a gap"):
            S4Jepa(build_encoder(name, width=8, layers=1, direction="forward"), S4JepaSettings())


def test_a_network_that_does_not_show_its_layers_is_refused_for_data2vec_alone() -> None:
    encoder = {"name": "vit", "width": 8, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match="needs a network that shows its layers"):
        built(encoder, targets="data2vec")
    built(encoder, targets="jepa")


def test_spans_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="span_min_s must not be above span_max_s"):
        S4JepaSettings(span_min_s=0.3)


def test_spans_are_drawn_for_each_recording_and_epoch() -> None:
    objective = built()
    batch = batch_of(objective, rows_of(7)[0])
    first, second = (objective.views(batch, Draws.of(batch, 11, epoch))["masked"] for epoch in (0, 1))
    assert len({tuple(row.tolist()) for row in torch.cat([first, second])}) == 14
