"""Lead contrast against the slow oracle; its views, its pairs, masked leads, groups and segments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from clocs_oracle import clocs_loss

from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.registry import build_encoder
from beatray.objectives.contrast import unit_rows
from beatray.objectives.lead_contrast import LeadContrast, LeadContrastSettings, LeadViewSettings
from beatray.objectives.objective import Progress
from beatray.record import INDEPENDENT_LEADS
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDS = 4
PATIENTS = [4, 9, 4, 7]


def built(streams: int = 1, segments: str = "crop", **augment: Any) -> LeadContrast:
    torch.manual_seed(0)
    encoder = build_encoder("temporal_net", stem=4, widths=(4, 4), block_stride=2, dropout=0.0, streams=streams)
    chosen: dict[str, Any] = {"segments": segments, "projector_hidden": 6, "projector_dim": 5}
    views = LeadViewSettings(**{"crop_seconds": 1.2, **augment})
    return settled(LeadContrast(encoder, LeadContrastSettings(augment=views, **chosen)).double())


def settled(objective: LeadContrast) -> LeadContrast:
    """With the statistics of a batch in the norms, or untrained embeddings all point the same way; in eval mode."""
    for module in objective.modules():
        if isinstance(module, GlobalBatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        objective(views_of(objective, batch(objective), exact=True), Progress())
    return objective.eval()


def batch(objective: LeadContrast) -> dict[str, torch.Tensor]:
    made = batch_of(objective, rows_of(7)[0], slice(0, RECORDS))
    return {**{name: value.clone() for name, value in made.items()}, "patient_key": torch.tensor(PATIENTS)}


def embedded(objective: LeadContrast, views: dict[str, torch.Tensor], numbers: tuple[int, ...]) -> tuple[Any, Any]:
    """Unit embeddings of views, one entry per view and lead or group, and which records have it, by plain loops."""
    encoder: Any = objective.encoder
    rows, present = [], []
    for number in numbers:
        x = views[f"view_{number}"]
        leads = encoder.forward_leads(x, views["n_valid"]).detach()
        there = (x[:, list(INDEPENDENT_LEADS)] != 0).any(-1)
        if len(encoder.lead_groups) == 1:
            rows += [objective.heads[0](leads[:, lead]) for lead in range(8)]
            present += [there[:, lead].tolist() for lead in range(8)]
            continue
        for head, group in zip(objective.heads, encoder.lead_groups, strict=True):
            means = torch.zeros(len(x), encoder.lead_dim, dtype=torch.float64)
            for record in range(len(x)):
                known = [leads[record, lead] for lead in group if there[record, lead]]
                if known:
                    means[record] = torch.stack(known).mean(0)
            rows.append(head(means))
            present.append(there[:, list(group)].any(1).tolist())
    return [unit_rows(z).detach().numpy() for z in rows], present


@pytest.mark.parametrize(("streams", "views", "pairs"), [(1, 16, 120), (2, 4, 6)])
def test_the_loss_is_that_of_the_formula_over_all_pairs(streams: int, views: int, pairs: int) -> None:
    objective = built(streams)
    made = views_of(objective, batch(objective), exact=True)
    rows, present = embedded(objective, made, (1, 2))
    assert len(rows) == views and views * (views - 1) // 2 == pairs
    assert not all(all(there) for there in present) or streams == 2
    result = objective(made, Progress())
    assert float(result.loss.detach()) == pytest.approx(clocs_loss(rows, PATIENTS, 0.1, True, present), abs=1e-9)
    assert float(result.means["lead/partners"]) == pytest.approx(0.5)


@pytest.mark.parametrize("streams", [1, 2])
def test_halves_are_recordings_of_the_same_patient(streams: int) -> None:
    objective = built(streams, "halves")
    made = views_of(objective, batch(objective), exact=True)
    first, of_first = embedded(objective, made, (1, 2))
    second, of_second = embedded(objective, made, (3, 4))
    rows = [np.concatenate(each) for each in zip(first, second, strict=True)]
    present = [a + b for a, b in zip(of_first, of_second, strict=True)]
    result = objective(made, Progress())
    assert float(result.loss) == pytest.approx(clocs_loss(rows, 2 * PATIENTS, 0.1, True, present), abs=1e-9)
    assert float(result.means["lead/partners"]) == pytest.approx((4 * 3 + 4 * 1) / 8)


def test_halves_follow_each_other_and_each_has_views_of_its_own() -> None:
    objective = built(1, "halves", angle_deg=0.0, scale=1.0, zero_lead=0.0)
    made = views_of(objective, batch(objective))
    torch.testing.assert_close(made["view_1"], made["view_2"])
    torch.testing.assert_close(made["view_3"], made["view_4"])
    assert not torch.allclose(made["view_1"], made["view_3"], atol=1e-3)
    objective = built(1, "halves")
    made = views_of(objective, batch(objective))
    assert all(made[f"view_{number}"].shape == (RECORDS, 12, 600) for number in (1, 2, 3, 4))
    assert not torch.equal(made["view_3"], made["view_4"])


@pytest.mark.parametrize("streams", [1, 2])
def test_equal_recordings_cannot_be_told(streams: int) -> None:
    objective = built(streams)
    made = views_of(objective, batch(objective), exact=True)
    made = {name: value[:1].expand_as(value) for name, value in made.items()}
    result = objective({**made, "patient_key": torch.tensor(PATIENTS)}, Progress())
    assert float(result.loss) == pytest.approx(math.log(RECORDS), abs=1e-9)


def test_a_masked_lead_adds_no_term() -> None:
    objective = built(zero_lead=0.0)
    made = views_of(objective, batch(objective), exact=True)
    rows, _ = embedded(objective, made, (1, 2))
    made["view_2"] = made["view_2"].clone()
    made["view_2"][:, 7] = 0.0  # V2, the fourth of the leads that are read
    without = [row for number, row in enumerate(rows) if number != 8 + 3]
    expected = clocs_loss(without, PATIENTS, 0.1, True, None)
    assert float(objective(made, Progress()).loss) == pytest.approx(expected, abs=1e-9)


def test_a_group_without_a_lead_adds_no_term() -> None:
    objective = built(2, zero_lead=0.0)
    made = views_of(objective, batch(objective), exact=True)
    rows, _ = embedded(objective, made, (1, 2))
    made["view_1"] = made["view_1"].clone()
    made["view_1"][:, 6:10] = 0.0  # V1 to V4: the second group of view 1
    expected = clocs_loss([rows[0], *rows[2:]], PATIENTS, 0.1, True, None)
    assert float(objective(made, Progress()).loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 1.0, 1.0), (0.5, 0.4, 0.6), (0.99, 0.08, 0.16)])
def test_leads_are_zeroed_by_chance_and_never_all(probability: float, least: float, most: float) -> None:
    objective = built(zero_lead=probability)
    kept = []
    for epoch in range(20):
        made = views_of(objective, batch(objective), epoch)
        kept += [(made[f"view_{number}"][:, list(INDEPENDENT_LEADS)] != 0).any(-1) for number in (1, 2)]
    together = torch.cat(kept)
    assert together.any(1).all() and least <= float(together.double().mean()) <= most
    if probability == 0.5:
        assert not torch.equal(kept[0], kept[1])  # each view draws its own


def test_a_lead_that_a_recording_does_not_have_stays_away() -> None:
    objective = built(zero_lead=0.99)
    made = batch(objective)
    made["signal_uv"][0, 1:] = 0  # lead I alone is there, and 3KG would fill in the others
    for epoch in range(4):
        views = views_of(objective, made, epoch)
        assert (views["view_1"][0] != 0).any(-1).nonzero()[:, 0].tolist() == [0]


def test_a_recording_without_a_sample_above_zero_is_in_no_pair() -> None:
    objective = built()
    made = views_of(objective, batch(objective), exact=True)
    for number in (1, 2):
        made[f"view_{number}"] = torch.zeros_like(made[f"view_{number}"])
    result = objective(made, Progress())
    result.loss.backward()
    assert float(result.loss) == 0.0 and all(p.grad is not None for p in objective.parameters())


@pytest.mark.parametrize("segments", ["crop", "halves"])
def test_a_short_recording_is_legal(segments: str) -> None:
    objective = built(1, segments)
    made = batch(objective)
    made["n_samples"][1] = 300
    before = objective(views_of(objective, made, exact=True), Progress()).loss
    made["signal_uv"][1, :, 300:] = 900
    torch.testing.assert_close(objective(views_of(objective, made, exact=True), Progress()).loss, before)
    assert torch.isfinite(before)


def test_between_the_layers_of_the_head_is_nothing() -> None:
    objective = built(2)
    for head in objective.heads:
        z = torch.randn(3, objective.heads[0][0].in_features, dtype=torch.float64)
        torch.testing.assert_close(head(z.mean(0)), head(z).mean(0))  # a mean of leads, before the head or after it
    assert len(objective.heads) == 2 and len(built().heads) == 1


def test_a_network_that_mixes_leads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"that reads each lead alone.*networks that can: temporal_net"):
        LeadContrast(build_encoder("tiny"), LeadContrastSettings())
