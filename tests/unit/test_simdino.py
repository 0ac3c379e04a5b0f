"""SimDINO against a slow oracle, its closed forms, its crops and its hidden patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from byol_oracle import ema
from simdino_oracle import coding_rate as slow_rate
from simdino_oracle import patch_loss, simdino_loss

from beatray.augment.draws import Draws
from beatray.models.registry import build_encoder
from beatray.objectives.coding_rate import coding_rate, rate_share
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Progress
from beatray.objectives.simdino import SimDino, SimDinoSettings, cosines, stacked, to_hide
from beatray.record import LEADS
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"crop_seconds": 2.0, "projector_hidden": 12, "projector_dim": 8}
RECORDS = 5


def built(**settings: Any) -> SimDino:
    torch.manual_seed(0)
    return SimDino(build_encoder("tiny", channels=(4, 4, 8)), SimDinoSettings(**{**SMALL, **settings})).double()


def built_v2(**settings: Any) -> SimDino:
    torch.manual_seed(0)
    encoder = build_encoder("vit", width=16, depth=2, heads=2)
    return SimDino(encoder, SimDinoSettings(**{**SMALL, "patch_weight": 0.7, **settings})).double()


def views(objective: SimDino, records: int = RECORDS) -> dict[str, torch.Tensor]:
    return views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, records)), exact=True)


def drifted(objective: SimDino) -> SimDino:
    """With a teacher that is no longer its student."""
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return objective


def rows(branch: Any, made: dict[str, torch.Tensor], names: tuple[str, ...]) -> list[np.ndarray]:
    """Unit projections of crops of one length, made as one batch."""
    with torch.no_grad():
        z = unit_rows(branch.projector(branch.encoder(*stacked(made, names))))
    return [part.numpy() for part in z.chunk(len(names))]


GLOBALS = ("view_1", "view_2")


@pytest.mark.parametrize("crops", [0, 3])
def test_the_loss_is_that_of_the_formula(crops: int) -> None:
    objective = drifted(built(local_crops=crops, coefficient=1.3, expansion=0.7, eps=0.2))
    made = views(objective)
    locals_ = objective.settings.local_names
    student = rows(objective, made, GLOBALS) + (rows(objective, made, locals_) if crops else [])
    teacher = rows(objective.teacher.module, made, GLOBALS)
    gamma = 0.7 * (8 + RECORDS) / (8 * RECORDS)
    result = objective(made, Progress())
    assert float(result.loss.detach()) == pytest.approx(simdino_loss(teacher, student, 0.2, 1.3, gamma), abs=1e-9)
    assert float(result.means["loss"]) == pytest.approx(float(result.loss), rel=1e-6)


def test_coding_rate_of_equal_and_of_balanced_rows() -> None:
    equal = torch.eye(8, dtype=torch.float64)[:1].expand(20, 8)
    balanced = torch.eye(8, dtype=torch.float64).repeat(3, 1)
    low, high = (float(coding_rate(z.T @ z, float(len(z)), 0.05)) for z in (equal, balanced))
    assert low == pytest.approx(2.5407, abs=5e-5) and low == pytest.approx(math.log(1 + 8 / 0.05) / 2)
    assert high == pytest.approx(12.1781, abs=5e-5) and high == pytest.approx(4 * math.log(1 + 1 / 0.05))
    shares = [float(rate_share(torch.tensor(rate), torch.tensor(20.0), 8, 0.05)) for rate in (low, high)]
    assert shares == pytest.approx([0.0, 1.0], abs=1e-6)


def test_fewer_rows_than_directions_can_be_balanced_too() -> None:
    z = torch.eye(8, dtype=torch.float64)[:3]
    rate = coding_rate(z.T @ z, 3.0, 0.05)
    assert float(rate_share(rate, torch.tensor(3.0), 8, 0.05)) == pytest.approx(1.0)
    assert float(rate_share(rate, torch.tensor(1.0), 8, 0.05)) == 1.0  # of one row nothing can be said


def test_coding_rate_is_of_the_sum_over_ranks() -> None:
    z = unit_rows(torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    here, there = z[:2], z[2:]
    found = coding_rate(here.T @ here + there.T @ there, 9.0, 0.05)
    assert float(found) == pytest.approx(slow_rate(z.numpy(), 0.05), abs=1e-12)
    assert float(coding_rate(torch.zeros(6, 6), 0.0, 0.05)) == 0.0


def test_half_of_autocast_leaves_the_rate_in_single_precision() -> None:
    objective = built().float()
    made = {name: value.float() if value.is_floating_point() else value for name, value in views(objective).items()}
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(made, Progress())
    assert result.loss.dtype == torch.float32 and torch.isfinite(result.loss)


def test_cosine_is_1_where_all_crops_are_equal_and_no_crop_is_held_against_itself() -> None:
    z = unit_rows(torch.randn(1, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(cosines(z.expand(2, 4, 6), z.expand(5, 4, 6)), torch.ones(4, dtype=torch.float64))
    teacher = torch.zeros(2, 1, 2)
    teacher[:, :, 0] = 1.0
    student = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    # pairs (teacher 1, student 2), (1, 3), (2, 1), (2, 3): 0, 0, 1, 0
    assert cosines(teacher, student).tolist() == [0.25]


def test_the_teacher_sees_global_crops_alone_and_follows_in_a_line_to_1() -> None:
    objective = built(momentum=0.9)
    made = views(objective)
    result = objective(made, Progress(2, 10))
    result.loss.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    old = {name: value.clone() for name, value in objective.teacher.module.named_parameters()}
    torch.optim.SGD(objective.encoder.parameters(), 0.1).step()
    objective.after_step(Progress(2, 10))
    new = dict(objective.encoder.named_parameters())
    for name, value in objective.teacher.module.encoder.named_parameters():
        expected = ema(old[f"encoder.{name}"].numpy(), new[name].detach().numpy(), 0.9 + 0.1 * 2 / 10)
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-12)
    at_end = {name: value.clone() for name, value in objective.teacher.module.named_parameters()}
    objective.after_step(Progress(10, 10))
    assert all(torch.equal(at_end[name], value) for name, value in objective.teacher.module.named_parameters())


def test_crops_are_cuts_of_one_window_without_some_leads() -> None:
    objective = built(lead_drop=0.5, local_crops=2)
    batch = batch_of(objective, rows_of(7)[0])
    batch["n_samples"] = torch.tensor([5000] * 6 + [300])
    made = views_of(objective, batch)
    assert made["view_2"].shape == (7, 12, 800) and made["local_2"].shape == (7, 12, 400)
    whole = views_of(built(lead_drop=0.0, global_part=1.0, local_part=1.0, local_crops=0), batch)["view_1"]
    gone = 0
    for name in ("view_1", "view_2", "local_1", "local_2"):
        for crop, window in zip(made[name][:6], whole[:6], strict=True):
            kept = crop.any(-1)
            some = int(kept.nonzero()[0])  # a lead that stayed shows where the crop lies
            starts = (window[some].unfold(0, crop.shape[1], 1) == crop[some]).all(-1).nonzero()[:, 0]
            assert len(starts) == 1
            assert torch.equal(crop[kept], window[kept, starts[0] : starts[0] + crop.shape[1]])
            gone += int((~kept).sum())
        assert made[f"n_valid_{name}"][:6].unique().tolist() == [made[name].shape[2]]
        assert made[f"n_valid_{name}"][6] == 300 and not made[name][6, :, 300:].any()
    assert gone / (4 * 6 * len(LEADS)) == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(made["view_1"], made["view_2"])


def test_a_local_crop_is_no_longer_than_a_global_one() -> None:
    with pytest.raises(ValueError, match=r"local_part \(0\.9\) must not be above global_part"):
        SimDinoSettings(local_part=0.9)


def test_the_patch_term_is_that_of_the_formula() -> None:
    objective = drifted(built_v2(local_crops=0))
    made = views(objective)
    result = objective(made, Progress())
    _, tokens, hidden = objective._globals(made)
    assert tokens is not None and hidden is not None
    with torch.no_grad():
        drawn = objective.patch_projector(tokens)
        fmap = objective.teacher.module.encoder.forward_features(*stacked(made, GLOBALS))
        target = objective.teacher.module.patch_projector(fmap.transpose(1, 2))
    term = patch_loss(drawn.numpy(), target.numpy(), hidden.numpy())
    assert float(result.means["patch/cosine"]) == pytest.approx(-term, rel=1e-6)
    rest = -result.means["record/cosine"].double()
    large, _, _ = objective._globals(made)
    z = [part.detach().numpy() for part in unit_rows(objective.projector(large)).chunk(2)]
    gamma = (8 + RECORDS) / (8 * RECORDS)
    expected = float(rest) - gamma * np.mean([slow_rate(part, 0.05) for part in z]) + 0.7 * term
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-6)
    result.loss.backward()
    assert objective.mask_token.grad is not None and float(objective.mask_token.grad.abs().sum()) > 0.0


@pytest.mark.parametrize("name", ["vit", "s4d"])
def test_what_is_hidden_can_change_without_the_student_noticing(name: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vit": {"width": 16, "depth": 1, "heads": 2},
        "s4d": {"width": 8, "layers": 1, "stride": 8},
    }
    encoder = build_encoder(name, **sizes[name])
    objective = SimDino(encoder, SimDinoSettings(**SMALL, patch_weight=1.0, local_crops=0)).double().eval()
    made = views(objective, 2)
    stride = objective.stage.stride
    hidden = made["hidden_1"]
    cell = (torch.arange(800) + stride // 2) // stride
    changed = {
        **made,
        "view_1": made["view_1"].masked_fill(hidden[:, cell.clamp_max(hidden.shape[1] - 1)][:, None], 9.0),
    }
    with torch.no_grad():
        before, after = (objective._globals(each)[0] for each in (made, changed))
    assert torch.equal(before, after) and not torch.equal(changed["view_1"], made["view_1"])


def test_hidden_blocks_reach_every_token_and_stay_within_the_signal() -> None:
    objective = built_v2(local_crops=0, crop_seconds=1.0)
    batch = batch_of(objective, rows_of(7)[0])
    batch["n_samples"] = torch.tensor([5000] * 6 + [200])
    made = [objective.views(batch, Draws.of(batch, 0, epoch)) for epoch in range(40)]
    hidden = torch.stack([each[name] for each in made for name in ("hidden_1", "hidden_2")])
    assert hidden.shape == (80, 7, 16) and (hidden[:, :6].sum(2) == 5).all()  # 30 % of 16 patches
    assert hidden[:, :6].any(1).any(0).all()
    assert (hidden[:, 6].sum(1) == 2).all() and not hidden[:, 6, 8:].any()  # 200 samples: 8 patches
    runs = (hidden[:, :6].int().diff(dim=2, prepend=torch.zeros(80, 6, 1, dtype=torch.int32)) == 1).sum(2)
    assert runs.max() <= 2 and runs.float().mean() < 1.5
    assert to_hide(np.array([1, 2, 3]), 0.01).tolist() == [0, 1, 1] and to_hide(np.array([4]), 0.99).tolist() == [3]


def test_patches_cannot_be_hidden_from_a_network_without_tokens() -> None:
    with pytest.raises(ValueError, match="SimDINO with patch_weight above 0 needs a network that makes tokens"):
        built(patch_weight=1.0)


def test_collapse_is_told() -> None:
    objective = built()
    made = views(objective)
    same = {name: value[:1].expand_as(value) for name, value in made.items()}
    means = {name: float(value) for name, value in objective(same, Progress()).means.items()}
    assert means["record/coding_rate"] == pytest.approx(0.0, abs=1e-6)
    found = SimDino.warnings(SimDinoSettings(), {"record/coding_rate": 0.04}, Progress(50, 100))
    assert "use few directions" in found["record/coding_rate"] and "objective.expansion" in found["record/coding_rate"]
    assert SimDino.warnings(SimDinoSettings(), {"record/coding_rate": 0.04}, Progress(5, 100)) == {}
