"""VICReg against a slow oracle, its closed forms and invariances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vicreg_oracle import vicreg_loss

from beatray.errors import SettingsError
from beatray.models.registry import build_encoder
from beatray.objectives.objective import Progress
from beatray.objectives.pairs import encode_views
from beatray.objectives.vicreg import Vicreg, VicregSettings, vicreg_terms
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"projector_hidden": 12, "projector_dim": 10}
WEIGHTS = torch.tensor([25.0, 25.0, 1.0], dtype=torch.float64)


def built(**settings: Any) -> Vicreg:
    torch.manual_seed(0)
    return Vicreg(build_encoder("tiny", channels=(4, 4, 8)), VicregSettings(**{**SMALL, **settings})).double()


def two(rows: int = 9, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_1 = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return z_1, z_1 + 0.3 * torch.randn(rows, width, generator=generator, dtype=torch.float64)


def total(z_1: Tensor, z_2: Tensor) -> float:
    return float((torch.stack(list(vicreg_terms(z_1, z_2))) * WEIGHTS).sum().detach())


def white(rows: int, width: int, scale: float = 1.0) -> Tensor:
    """Rows whose unbiased covariance is `scale` squared times the unit matrix."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(z - z.mean(0)).Q
    return q * (rows - 1) ** 0.5 * scale


@pytest.mark.parametrize(("rows", "width"), [(9, 5), (4, 12), (2, 3), (1, 3)])
def test_the_terms_are_those_of_the_formula(rows: int, width: int) -> None:
    z_1, z_2 = two(rows, width)
    z_2 = 0.4 * z_2 + 1.0
    assert total(z_1, z_2) == pytest.approx(vicreg_loss(z_1.numpy(), z_2.numpy()), rel=1e-10)
    found = vicreg_terms(z_1, z_2)
    for number, value in enumerate(found):
        only = [float(number == other) for other in range(3)]
        assert float(value) == pytest.approx(vicreg_loss(z_1.numpy(), z_2.numpy(), *only), rel=1e-10)


def test_the_terms_are_those_of_public_code() -> None:
    cases = json.loads((Path(__file__).parents[1] / "data" / "public_values" / "vicreg.json").read_text())["cases"]
    for case in cases:
        z_1, z_2 = (torch.tensor(case[name], dtype=torch.float64) for name in ("z1", "z2"))
        terms = vicreg_terms(z_1, z_2, case["eps"])
        weighted = [case[name] * float(value) for name, value in terms._asdict().items()]
        assert sum(weighted) == pytest.approx(case["loss_of_the_authors"], abs=1e-9)


def test_the_loss_of_a_step_is_that_of_its_expanded_views() -> None:
    objective = built(invariance=3.0, variance=5.0, covariance=2.0)
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    result = objective(views, Progress())
    with torch.no_grad():
        z_1, z_2 = objective.projector(encode_views(objective.encoder, views)[1]).chunk(2)
    expected = vicreg_loss(z_1.numpy(), z_2.numpy(), invariance=3.0, variance=5.0, covariance=2.0)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-9)
    means = {name: float(value) for name, value in result.means.items()}
    parts = 3 * means["record/invariance"] + 5 * means["record/variance"] + 2 * means["record/covariance"]
    assert parts == pytest.approx(means["loss"], rel=1e-5)


def test_rows_that_are_all_equal_cost_what_the_variance_lacks() -> None:
    z = torch.ones(6, 4, dtype=torch.float64).requires_grad_()
    assert total(z, z) == pytest.approx(25 * 0.99, abs=1e-12)
    sum(vicreg_terms(z, z)).backward()  # type: ignore[union-attr]
    assert torch.isfinite(z.grad).all()  # type: ignore[arg-type]


def test_white_coordinates_of_variance_1_cost_nothing() -> None:
    assert total(white(12, 5), white(12, 5)) == pytest.approx(0.0, abs=1e-12)
    assert total(white(12, 5, 3.0), white(12, 5, 3.0)) == pytest.approx(0.0, abs=1e-12)  # it may spread further
    half = vicreg_terms(white(12, 5, 0.5), white(12, 5, 0.5))
    assert float(half.variance) == pytest.approx(1.0 - (0.25 + 1e-4) ** 0.5, abs=1e-12)


def test_a_coordinate_that_is_there_twice_is_what_covariance_counts() -> None:
    z = white(12, 3)
    twice = torch.cat([z, z[:, :1]], 1)
    assert float(vicreg_terms(twice, twice).covariance) == pytest.approx(2 * 2 / 4, abs=1e-12)


def test_views_may_be_swapped_records_moved_and_both_views_shifted_alike() -> None:
    z_1, z_2 = two()
    before = total(z_1, z_2)
    assert total(z_2, z_1) == pytest.approx(before, abs=1e-11)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    assert total(z_1[order], z_2[order]) == pytest.approx(before, abs=1e-11)
    assert total(z_1 + 4.0, z_2 + 4.0) == pytest.approx(before, abs=1e-10)
    assert total(z_1[:, [3, 1, 4, 0, 2]], z_2[:, [3, 1, 4, 0, 2]]) == pytest.approx(before, abs=1e-11)
    shifted = vicreg_terms(z_1, z_2 + 4.0)
    assert float(shifted.variance) == pytest.approx(float(vicreg_terms(z_1, z_2).variance), abs=1e-12)
    assert float(shifted.invariance) > float(vicreg_terms(z_1, z_2).invariance) + 1.0


def test_the_gradient_of_the_terms_is_that_of_finite_differences() -> None:
    z_1, z_2 = ((0.5 * z).requires_grad_() for z in two(5, 3))
    assert torch.autograd.gradcheck(lambda a, b: tuple(vicreg_terms(a, b)), (z_1, z_2))


@pytest.mark.parametrize("rows", [0, 1])
def test_one_record_or_none_does_not_spread(rows: int) -> None:
    z_1, z_2 = (z.requires_grad_() for z in two(rows, 3))
    found = vicreg_terms(z_1, z_2)
    assert float(found.variance.detach()) == pytest.approx(0.99) and float(found.covariance.detach()) == 0.0
    assert float(found.invariance.detach()) == pytest.approx(float((z_1 - z_2).square().sum().detach()) / 3)
    sum(found).backward()  # type: ignore[union-attr]
    assert torch.isfinite(z_1.grad).all()  # type: ignore[arg-type]


def test_a_term_of_weight_0_trains_nothing_and_a_weight_below_is_refused() -> None:
    objective = built(invariance=0.0, variance=0.0, covariance=0.0)
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    result = objective(views, Progress())
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0 and float(result.means["record/covariance"]) > 0.0
    assert all(float(p.grad.abs().max()) == 0.0 for p in objective.parameters() if p.requires_grad)
    with pytest.raises(SettingsError, match="variance must be at least 0"):
        VicregSettings(variance=-1.0)


def test_it_describes_itself_and_reports_collapse() -> None:
    assert Vicreg.described(VicregSettings(covariance=0.5)) == "VICReg, weights 25, 25, 0.5"
    objective = built()
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    keys = objective(views, Progress()).means.keys()
    assert {curve.key for curve in Vicreg.curves(objective.settings)} <= keys
    (sentence,) = Vicreg.warnings(objective.settings, {"record/embedding_std": 0.1}, Progress(50, 100)).values()
    assert "raise objective.variance" in sentence


def test_a_recording_that_is_there_three_times_does_not_spread() -> None:
    objective = built()
    batch = batch_of(objective, rows_of(7)[0], [0, 0, 0])
    views = {name: value[:1].expand(3, *value.shape[1:]) for name, value in views_of(objective, batch).items()}
    views = {name: value.double() if value.is_floating_point() else value for name, value in views.items()}
    means = objective({**views, "view_2": views["view_1"]}, Progress()).means
    assert float(means["loss"]) == pytest.approx(25 * 0.99, abs=1e-4)
    assert float(means["record/embedding_std"]) == pytest.approx(0.0, abs=1e-6)
