"""The patient-aware contrast against a slow oracle, its closed forms, and what may and may not matter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from clocs_oracle import clocs_loss
from torch import Tensor
from torch.nn import functional

from beatray.objectives.contrast import contrast_rows
from beatray.objectives.patient_contrast import PatientLoss, by_record, patient_contrast

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENTS = [7, 3, 7, 3, 7]  # five records of two patients
ALONE = [0, 1, 2, 3, 4]


def unit_views(count: int = 3, records: int = 5, width: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, records, width, dtype=torch.float64, generator=generator)
    return [rows.requires_grad_() for rows in functional.normalize(drawn, dim=-1)]


def loss_of(
    views: list[Tensor], patients: list[int], temperature: float = 0.1, symmetric: bool = True, present: object = None
) -> PatientLoss:
    there = None if present is None else torch.as_tensor(present).T
    return patient_contrast(views, torch.tensor(patients), temperature, symmetric=symmetric, present=there)


def slow(
    views: list[Tensor],
    patients: list[int],
    symmetric: bool = True,
    present: list[list[bool]] | None = None,
    temperature: float = 0.1,
) -> float:
    return clocs_loss([view.detach().numpy() for view in views], patients, temperature, symmetric, present)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("patients", [PATIENTS, ALONE, [1] * 5])
def test_the_loss_is_that_of_the_formula(symmetric: bool, patients: list[int]) -> None:
    views = unit_views()
    found = loss_of(views, patients, symmetric=symmetric)
    assert float(found.loss.detach()) == pytest.approx(slow(views, patients, symmetric), abs=1e-12)
    assert float(found.mean) == pytest.approx(float(found.loss.detach()), rel=1e-6)
    others = sum(a == b for a, b in itertools.permutations(patients, 2))
    assert float(found.partners) == pytest.approx(others / 5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_in_a_pair_of_views_only_records_with_both_take_part(symmetric: bool) -> None:
    views = unit_views(4)
    present = [[True] * 5, [True, False, True, True, True], [False, True, True, False, True], [False] * 4 + [True]]
    found = loss_of(views, PATIENTS, symmetric=symmetric, present=present)
    assert float(found.loss.detach()) == pytest.approx(slow(views, PATIENTS, symmetric, present), abs=1e-12)
    found.loss.backward()
    for view, there in zip(views, present, strict=True):
        assert view.grad is not None
        touched = (view.grad.abs().sum(1) > 1e-12).tolist()
        assert not any(touch and not known for touch, known in zip(touched, there, strict=True))


def test_a_view_that_no_record_has_is_as_if_it_were_not() -> None:
    views = unit_views(4)
    present = [[True] * 5, [True] * 5, [False] * 5, [True] * 5]
    without = loss_of([views[0], views[1], views[3]], PATIENTS)
    found = loss_of(views, PATIENTS, present=present)
    torch.testing.assert_close(found.loss, without.loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.embedding_std, without.embedding_std)
    nothing = loss_of(views, PATIENTS, present=[[False] * 5] * 4)
    nothing.loss.backward()
    assert float(nothing.loss) == 0.0 and all(view.grad is not None and not view.grad.any() for view in views)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("patients", [PATIENTS, ALONE])
def test_equal_embeddings_cost_the_logarithm_of_the_records(symmetric: bool, patients: list[int]) -> None:
    same = [functional.normalize(torch.ones(5, 4, dtype=torch.float64), dim=1)] * 3
    found = loss_of(same, patients, symmetric=symmetric)
    assert float(found.loss) == pytest.approx(math.log(5), abs=1e-12)
    assert float(found.embedding_std) == pytest.approx(0.0, abs=1e-6)


def test_without_shared_patients_it_is_symmetric_info_nce_of_each_pair() -> None:
    views = unit_views()
    own = torch.arange(5)
    by_hand, by_rows = [], []
    for a, b in itertools.combinations(views, 2):
        logits = a @ b.T / 0.1
        by_hand.append((functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2)
        nowhere = torch.full((5,), -1)  # the row is none of the columns
        both = [contrast_rows(rows, columns, nowhere, torch.eye(5), 0.1) for rows, columns in ((a, b), (b, a))]
        by_rows.append((both[0].total / both[0].kept + both[1].total / both[1].kept) / 2)
    found = loss_of(views, ALONE).loss
    torch.testing.assert_close(found, torch.stack(by_hand).mean(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found, torch.stack(by_rows).mean(), atol=1e-12, rtol=0)


def test_the_order_of_records_and_of_views_does_not_matter() -> None:
    views = unit_views()
    expected = loss_of(views, PATIENTS).loss
    order = [3, 0, 4, 2, 1]
    turned = loss_of([view[order] for view in views], [PATIENTS[i] for i in order]).loss
    torch.testing.assert_close(turned, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(loss_of([views[i] for i in (2, 0, 1)], PATIENTS).loss, expected, atol=1e-12, rtol=0)


def test_a_low_temperature_is_finite() -> None:
    views = [view.detach().float().requires_grad_() for view in unit_views()]
    found = loss_of(views, PATIENTS, temperature=0.001)
    found.loss.backward()
    assert torch.isfinite(found.loss) and found.loss.dtype == torch.float32
    assert all(view.grad is not None and torch.isfinite(view.grad).all() for view in views)


def test_every_pair_of_views_counts_the_same() -> None:
    views = unit_views(16)
    pairs = [loss_of([a, b], PATIENTS).loss for a, b in itertools.combinations(views, 2)]
    assert len(pairs) == 120
    found = loss_of(views, PATIENTS).loss
    torch.testing.assert_close(found, torch.stack(pairs).mean(), atol=1e-12, rtol=0)
    found.backward()
    assert all(view.grad is not None and float(view.grad.abs().max()) > 1e-6 for view in views)


def test_records_of_the_same_patient_stay_in_the_denominator() -> None:
    e = torch.eye(3, dtype=torch.float64)
    views = [e[[0, 1, 2]], e[[0, 1, 2]]]
    found = loss_of(views, [1, 1, 2], temperature=1.0).loss
    own, other = math.log(math.e + 2) - 1, math.log(math.e + 2)  # row sums: e of itself, 1 of each of the others
    assert float(found) == pytest.approx((2 * own + 2 * other) / 4, abs=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    present = torch.tensor([[True, True], [True, True], [False, True]])
    keys = torch.tensor([1, 1, 2])

    def of_raw(raw: Tensor) -> Tensor:
        rows = functional.normalize(raw, dim=-1).unbind(0)
        return patient_contrast(rows, keys, 0.5, present=present).loss

    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(of_raw, (raw,))


@pytest.mark.parametrize("records", [0, 1])
def test_one_record_or_none_costs_nothing(records: int) -> None:
    views = unit_views(3, records)
    found = loss_of(views, [5] * records)
    found.loss.backward()
    assert float(found.loss) == 0.0 and all(view.grad is not None for view in views)


def test_one_view_has_no_pair() -> None:
    (view,) = unit_views(1)
    found = loss_of([view], PATIENTS)
    found.loss.backward()
    assert float(found.loss) == 0.0 and view.grad is not None and not view.grad.any()


def test_rows_of_views_stand_beside_each_other() -> None:
    rows = torch.arange(12).view(6, 2)  # three records, two stretches of two leads
    assert by_record(rows, 2).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert by_record(torch.zeros(0, 2, 5), 2).shape == (0, 4, 5)
