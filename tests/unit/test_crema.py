"""CREMA and its masked autoencoder against slow oracles, closed forms, and what may and may not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mae_oracle import crema_loss, masked_mse, normalise_patches

from beatray.models.registry import build_encoder
from beatray.objectives.crema import Crema, CremaSettings, masked_errors, patches_of
from beatray.objectives.objective import Progress
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = 25
SMALL = {"crop_seconds": 2.0, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def built(**settings: Any) -> Crema:
    torch.manual_seed(0)
    encoder = build_encoder("vit", width=16, depth=2, heads=2, patch=PATCH)
    more = {"projector_hidden": 8, "projector_dim": 4}
    return Crema(encoder, CremaSettings(**{**SMALL, **more, **settings})).double()


def views(objective: Crema, records: int = 4) -> dict[str, torch.Tensor]:
    return views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, records)), exact=True)


def pieces(
    objective: Crema, made: dict[str, torch.Tensor]
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], int]:
    """Targets, drawn patches and projections of each masking, by the module's own parts, and the patches kept."""
    encoder: Any = objective.encoder
    target = patches_of(encoder.lead_scale(made["view_1"]), PATCH).numpy()
    tokens = encoder.tokens(made["view_1"], made["n_valid"])
    kept = round(0.25 * tokens.shape[1])
    drawn, pooled = [], []
    for view in objective.settings.maskings:
        order = made[f"order_{view}"]
        encoded = encoder.encode(tokens, order[:, :kept])
        drawn.append(objective.decoder(encoded, order).detach().numpy())
        pooled.append(encoded.mean(1))
    projected: list[np.ndarray] = []
    if objective.settings.contrast_weight:
        projected = [z.detach().numpy() for z in objective.projector(torch.cat(pooled)).chunk(len(pooled))]
    return target, drawn, projected, kept


def in_signal(target: np.ndarray) -> np.ndarray:
    """The first patch begins half a patch before the signal; what lies there counts in nothing."""
    counts = np.ones((*target.shape[:2], 12, PATCH), bool)
    counts[:, 0, :, : PATCH // 2] = False
    return counts.reshape(target.shape)


def masked(order: torch.Tensor, kept: int) -> np.ndarray:
    gone = np.ones(order.shape, bool)
    np.put_along_axis(gone, order[:, :kept].numpy(), False, axis=1)
    return gone


def test_the_loss_is_that_of_the_formulas() -> None:
    objective = built(contrast_weight=0.3)
    made = views(objective)
    result = objective(made, Progress())
    target, drawn, projected, kept = pieces(objective, made)
    gone = [masked(made[f"order_{view}"], kept) for view in (1, 2)]
    expected = crema_loss(target, *drawn, *gone, *projected, lam=0.3, tau=0.1, counted=in_signal(target))
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-8)
    assert [g.sum(1).tolist() for g in gone] == [[40 - kept] * 4] * 2 and kept == 10


def test_without_a_contrast_it_is_a_masked_autoencoder() -> None:
    objective = built(contrast_weight=0.0)
    made = views(objective)
    assert "order_2" not in made and not hasattr(objective, "projector")
    target, (drawn,), _, kept = pieces(objective, made)
    expected = masked_mse(target, drawn, masked(made["order_1"], kept), in_signal(target))
    assert float(objective(made, Progress()).loss) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("counted", [True, False])
def test_masked_errors_against_the_loop(counted: bool) -> None:
    generator = np.random.default_rng(0)
    target, drawn = generator.normal(size=(2, 3, 6, 5))
    gone = generator.random((3, 6)) < 0.6
    gone[:, 0] = True
    counts = generator.random((3, 6, 5)) < 0.7 if counted else np.ones((3, 6, 5), bool)
    counts[1, 2] = False  # a patch that holds no signal counts as nothing
    counts[2] = False
    tensors = [torch.from_numpy(each) for each in (drawn, target, counts.astype(float), gone)]
    errors, known = masked_errors(*tensors)
    assert known.tolist() == [1.0, 1.0, 0.0] and float(errors[2]) == 0.0
    assert float(errors.sum() / known.sum()) == pytest.approx(masked_mse(target, drawn, gone, counts), abs=1e-12)
    assert float(masked_errors(tensors[1], *tensors[1:])[0].sum()) == 0.0
    nothing = masked_errors(torch.zeros(1, 6, 5), tensors[1][:1], torch.ones(1, 6, 5), tensors[3][:1])[0]
    assert float(nothing) == pytest.approx(np.square(target[0][gone[0]]).mean(), rel=1e-6)


def test_patches_are_around_their_samples_and_zero_beyond_the_ends() -> None:
    x = torch.arange(1.0, 61.0).expand(1, 2, 60)
    found = patches_of(x, 5).view(1, 12, 2, 5)
    assert found[0, 3, 1].tolist() == [14, 15, 16, 17, 18]  # sample 15, counted from 0, in the middle
    assert found[0, 0, 0].tolist() == [0, 0, 1, 2, 3] and found[0, 11, 0].tolist() == [54, 55, 56, 57, 58]
    assert patches_of(torch.ones(1, 1, 61), 5).shape == (1, 13, 5)


def test_visible_patches_draw_no_gradient_and_the_encoder_sees_no_masked_sample() -> None:
    objective = built(contrast_weight=0.0)
    made = views(objective, 1)
    kept = 10
    order = made["order_1"]
    encoder: Any = objective.encoder
    x = made["view_1"].clone().requires_grad_()
    encoder.encode(encoder.tokens(x), order[:, :kept]).square().sum().backward()
    assert x.grad is not None
    touched = patches_of(x.grad, PATCH).abs().sum(-1)[0] > 0
    assert sorted(touched.nonzero()[:, 0].tolist()) == sorted(order[0, :kept].tolist())
    tokens = encoder.tokens(made["view_1"])
    drawn = objective.decoder(encoder.encode(tokens, order[:, :kept]), order)
    drawn.retain_grad()
    target, counts = objective._targets(made["view_1"], made["n_valid"])
    errors, _ = masked_errors(drawn, target, counts, torch.from_numpy(masked(order, kept)))
    errors.sum().backward()
    scored = drawn.grad.abs().sum(-1)[0] > 0
    assert sorted(scored.nonzero()[:, 0].tolist()) == sorted(order[0, kept:].tolist())


def test_what_is_masked_can_change_without_the_encoder_noticing() -> None:
    objective = built().eval()
    made = views(objective, 2)
    encoder: Any = objective.encoder
    order = made["order_1"]
    hidden = torch.zeros(2, 40, dtype=torch.bool).scatter(1, order[:, 10:], True)
    samples = hidden.repeat_interleave(PATCH, 1).roll(-(PATCH // 2), 1)[:, None, :]
    samples[..., -(PATCH // 2) :] = False  # rolled around the end
    changed = torch.where(samples, made["view_1"] + 5.0, made["view_1"])
    with torch.no_grad():
        before, after = (encoder.encode(encoder.tokens(x), order[:, :10]) for x in (made["view_1"], changed))
    assert torch.equal(before, after) and not torch.equal(changed, made["view_1"])


def test_equal_recordings_cannot_be_told() -> None:
    objective = built()
    made = views(objective, 1)
    same = {name: value.expand(5, *value.shape[1:]) for name, value in made.items()}
    same["order_2"] = same["order_1"]
    assert float(objective(same, Progress()).means["record/loss"]) == pytest.approx(math.log(9), abs=1e-6)


def test_padding_and_absent_leads_count_in_nothing() -> None:
    objective = built(contrast_weight=0.0)
    made = views(objective, 2)
    made["n_valid"] = torch.tensor([1000, 600])
    made["view_1"][1, :, 600:] = 0.0
    made["view_1"][0, 5] = 0.0
    _, counts = objective._targets(made["view_1"], made["n_valid"])
    of_lead = counts.view(2, 40, 12, PATCH)
    assert of_lead[0, :, 5].sum() == 0 and of_lead[0, :, 4].sum() == 988  # the last patch ends 12 samples earlier
    assert of_lead[1].sum() == 12 * 600


def test_normalised_targets_are_those_of_the_oracle_and_finite_where_nothing_moves() -> None:
    objective = built(contrast_weight=0.0, normalise_patches=True)
    made = views(objective, 2)
    made["view_1"][0, :, 100:200] = 0.0
    target, counts = objective._targets(made["view_1"], made["n_valid"])
    plain = patches_of(objective.encoder.lead_scale(made["view_1"]), PATCH).numpy()
    whole = counts.all(-1).numpy()  # the others lie at the end, partly behind it
    assert whole.sum(1).tolist() == [39, 39]
    np.testing.assert_allclose(target.numpy()[whole], normalise_patches(plain)[whole], atol=1e-9)
    assert torch.isfinite(target).all()


def test_normalised_targets_have_mean_0_and_variance_1_over_what_counts() -> None:
    objective = built(contrast_weight=0.0, normalise_patches=True)
    made = views(objective, 2)
    made["n_valid"] = torch.tensor([1000, 610])
    made["view_1"][1, :, 610:] = 0.0
    made["view_1"][0, 3:] = 0.0  # three leads are there
    target, counts = objective._targets(made["view_1"], made["n_valid"])
    n = counts.sum(-1)
    there = n > 0
    assert (n[1][there[1]] < counts.shape[-1]).sum() > 0  # a patch that the signal ends in
    mean, square = ((target.pow(power) * counts).sum(-1)[there] / n[there] for power in (1, 2))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-6, rtol=0)
    torch.testing.assert_close(square, torch.ones_like(square), atol=1e-3, rtol=0)
    assert not (target * (1 - counts)).any()


def test_a_network_that_cannot_leave_tokens_out_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves tokens out, which s4d cannot"):
        Crema(build_encoder("s4d", width=8, layers=1), CremaSettings())


def test_a_short_recording_is_masked_within_its_signal_and_what_follows_matters_nowhere() -> None:
    objective = built(contrast_weight=0.5)
    batch = batch_of(objective, rows_of(7)[0], slice(0, 3))
    batch["n_samples"] = torch.tensor([5000, 500, 60])
    made = views_of(objective, batch, exact=True)
    for view in (1, 2):
        order = made[f"order_{view}"]
        assert sorted(order[1, :20].tolist()) == list(range(20))  # 500 samples: 20 patches, before all that is empty
        assert sorted(order[2, :3].tolist()) == [0, 1, 2]
    assert objective.kept(torch.tensor([40, 20, 3, 2, 1])).tolist() == [10, 5, 1, 1, 1]
    whole = objective(made, Progress())
    changed = {**made, "view_1": made["view_1"].clone()}
    changed["view_1"][1, :, 520:] = 7.0  # beyond the reach of the last patch that holds signal
    changed["view_1"][2, :, 80:] = -7.0
    other = objective(changed, Progress())
    torch.testing.assert_close(whole.loss, other.loss, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(whole.means["record/loss"], other.means["record/loss"])


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.99])
def test_the_host_knows_how_many_patches_of_a_whole_recording_are_kept(ratio: float) -> None:
    objective = built(mask_ratio=ratio)
    cells = torch.arange(1, 400)
    assert [objective.most_kept(int(number)) for number in cells] == objective.kept(cells).tolist()


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_something_is_always_kept_and_something_masked(ratio: float) -> None:
    objective = built(mask_ratio=ratio)
    result = objective(views(objective), Progress())
    assert float(result.means["patch/loss"]) > 0.0
