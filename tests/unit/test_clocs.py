"""CLOCS against a slow oracle for each of its modes; segments, patients, leads, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from clocs_oracle import clocs_loss

from beatray.augment.draws import Draws
from beatray.augment.segments import adjacent_segments
from beatray.augment.two_views import crop_window
from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.registry import build_encoder
from beatray.objectives.clocs import Clocs, ClocsSettings
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Progress
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDS = 5
PATIENTS = [4, 9, 4, 7, 9]
NETWORKS: dict[str, Any] = {
    "cmsc": lambda: build_encoder("tiny", channels=(4, 4, 8)),
    "cmlc": lambda: build_encoder("temporal_net", stem=4, widths=(4, 4), block_stride=2, dropout=0.0),
}
NETWORKS["cmsmlc"] = NETWORKS["cmlc"]
VIEWS = {"cmsc": 2, "cmlc": 8, "cmsmlc": 16}


def built(mode: str = "cmsc", **settings: Any) -> Clocs:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"mode": mode, "crop_seconds": 1.2, "embedding_dim": 6, **settings}
    return settled(Clocs(NETWORKS[mode](), ClocsSettings(**chosen)).double())


def settled(objective: Clocs) -> Clocs:
    """With the statistics of a batch in the norms, or untrained embeddings all point the same way; in eval mode."""
    for module in objective.modules():
        if isinstance(module, GlobalBatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        objective(views_of(objective, batch(objective), exact=True), Progress())
    return objective.eval()


def batch(objective: Clocs) -> dict[str, torch.Tensor]:
    made = batch_of(objective, rows_of(7)[0], slice(0, RECORDS))
    return {**{name: value.clone() for name, value in made.items()}, "patient_key": torch.tensor(PATIENTS)}


def embedded(objective: Clocs, views: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Unit embeddings of every view of a recording, by the module's own parts, in evaluation mode."""
    encoder: Any = objective.encoder
    found = []
    for number in objective.segments:
        x, valid = views[f"view_{number}"], views["n_valid"]
        if objective.settings.mode == "cmsc":
            found.append(encoder(x, valid))
        else:
            found += encoder.forward_leads(x, valid).unbind(1)
    return [unit_rows(objective.head(z)).detach().numpy() for z in found]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", list(VIEWS))
def test_the_loss_is_that_of_the_formula(mode: str, symmetric: bool) -> None:
    objective = built(mode, symmetric=symmetric)
    views = views_of(objective, batch(objective), exact=True)
    rows = embedded(objective, views)
    assert len(rows) == VIEWS[mode]
    result = objective(views, Progress())
    expected = clocs_loss(rows, PATIENTS, 0.1, symmetric, None)
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-9)
    assert float(result.means["record/partners"]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("mode", list(VIEWS))
def test_equal_recordings_cannot_be_told(mode: str) -> None:
    objective = built(mode)
    views = views_of(objective, batch(objective), exact=True)
    views = {name: value[:1].expand_as(value) for name, value in views.items()}
    # every record alike: all logits of a row are equal, in each pair of views
    loss = float(objective({**views, "patient_key": torch.tensor(PATIENTS)}, Progress()).loss)
    assert loss == pytest.approx(math.log(RECORDS), abs=1e-9)


def test_patients_matter_where_they_are_shared() -> None:
    objective = built()
    views = views_of(objective, batch(objective), exact=True)
    alone = objective({**views, "patient_key": torch.arange(RECORDS)}, Progress())
    shared = objective(views, Progress())
    assert float(alone.loss) != pytest.approx(float(shared.loss), abs=1e-3)
    assert float(alone.means["record/partners"]) == 0.0


@pytest.mark.parametrize("n_samples", [5000, 1600, 700, 701, 3])
def test_segments_follow_each_other_inside_the_signal(n_samples: int) -> None:
    objective = built()
    made = batch(objective)
    made["n_samples"] = torch.full((RECORDS,), n_samples)
    made["signal_uv"][..., n_samples:] = 0
    draws = Draws.of(made, 11, 3)
    found = adjacent_segments(made, 1.2, draws)
    half = min(600, n_samples // 2)
    assert found["n_valid"].tolist() == [half] * RECORDS
    whole = crop_window(made, None, draws)["plain"]
    for row, start in enumerate(found["crop_start"].tolist()):
        assert start in range(n_samples - 2 * half + 1)
        both = torch.cat([found[f"segment_{number}"][row, :, :half] for number in (1, 2)], -1)
        torch.testing.assert_close(both, whole[row, :, start : start + 2 * half], atol=0, rtol=0)
    for number in (1, 2):
        assert found[f"segment_{number}"].shape == (RECORDS, 12, 600)
        assert not found[f"segment_{number}"][..., half:].any()


def test_segments_lie_elsewhere_in_another_epoch_and_halves_are_the_whole() -> None:
    objective = built()
    made = batch(objective)
    starts = [adjacent_segments(made, 1.2, Draws.of(made, 11, epoch))["crop_start"].tolist() for epoch in range(2)]
    assert starts[0] != starts[1] and len(set(starts[0])) > 1
    halves = adjacent_segments(made, None, Draws.of(made, 11, 0))
    assert halves["segment_1"].shape[-1] == 2500 and halves["crop_start"].tolist() == [0] * RECORDS


@pytest.mark.parametrize("mode", list(VIEWS))
def test_a_short_recording_is_legal_and_what_follows_it_does_not_matter(mode: str) -> None:
    objective = built(mode)
    made = batch(objective)
    made["n_samples"][1] = 300
    views = views_of(objective, made, exact=True)
    before = objective(views, Progress()).loss
    made["signal_uv"][1, :, 300:] = 900
    after = objective(views_of(objective, made, exact=True), Progress()).loss
    torch.testing.assert_close(before, after, atol=1e-12, rtol=0)
    assert torch.isfinite(before)


def test_a_lead_that_a_recording_does_not_have_is_in_no_pair() -> None:
    objective = built("cmlc")
    made = batch(objective)
    made["signal_uv"][2, 6] = 0  # V1, the third of the leads that are read
    views = views_of(objective, made, exact=True)
    present = [[lead != 2 or record != 2 for record in range(RECORDS)] for lead in range(8)]
    expected = clocs_loss(embedded(objective, views), PATIENTS, 0.1, True, present)
    assert float(objective(views, Progress()).loss) == pytest.approx(expected, abs=1e-9)


def test_leads_as_views_need_a_network_that_reads_each_alone() -> None:
    with pytest.raises(ValueError, match="CLOCS CMLC needs a network that reads each lead alone"):
        Clocs(NETWORKS["cmsc"](), ClocsSettings(mode="cmlc"))
    assert Clocs.described(ClocsSettings()) == "CLOCS CMSC"
    Clocs(NETWORKS["cmlc"](), ClocsSettings())  # segments of all leads: any network
