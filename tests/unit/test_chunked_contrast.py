"""Rows in chunks: the numbers are those of all rows at once, and the memory is that of the formula."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from beatray.objectives import row_chunks
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.beat_ssl_targets import soft_of
from beatray.objectives.contrast import Form, unit_rows
from beatray.objectives.objective import StepResult
from beatray.objectives.patient_contrast import patient_contrast
from beatray.objectives.physio_contrast import RatioLoss
from beatray.objectives.row_chunks import by_chunks, memory_bytes
from beatray.objectives.row_targets import TargetsOf, hard_of, same_class_of, same_ids
from beatray.objectives.soft_targets import Features
from beatray.objectives.terms import LossSettings, combine_terms, contrast_term
from beatray.objectives.ts2vec_loss import record_losses
from counts import count
from feature_tables import table_of
from watched_tensors import LiveBytes

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = get_args(Form)
KINDS = ("hard", "class", "soft_1", "soft_2", "soft_z")
TIGHT = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


@dataclass(frozen=True)
class Batch:
    """Rows (R, D) that are the first of the columns (M, D), which are pairs of views of M / 2 beats with features."""

    rows: Tensor
    columns: Tensor
    features: Tensor
    kind: Tensor
    there: Tensor | None = None

    @property
    def index(self) -> Tensor:
        return torch.arange(len(self.rows))

    @classmethod
    def of(cls, rows: int, columns: int, width: int, features: int, dtype: torch.dtype, there: bool = False) -> Batch:
        generator = torch.Generator().manual_seed(0)
        z = unit_rows(torch.randn(columns, width, generator=generator, dtype=dtype))
        known = torch.rand(columns // 2, features, generator=generator, dtype=dtype).repeat(2, 1)
        kind = torch.randint(-1, 4, (columns // 2,), generator=generator).repeat(2)
        present = (torch.rand(columns // 2, generator=generator) < 0.7).repeat(2) if there else None
        return cls(z[:rows].clone().requires_grad_(), z.clone().requires_grad_(), known, kind, present)

    def targets_of(self, kind: str, positive_mass: float | None) -> TargetsOf:
        own = same_ids(torch.arange(len(self.columns) // 2).repeat(2))
        if kind == "hard":
            return hard_of(own)
        if kind == "class":
            return same_class_of(own, self.kind, self.there)
        settings = BeatSslSettings(beat="soft_1", positive_mass=positive_mass)
        table = table_of([str(i) for i in range(self.features.shape[1])], self.features.numpy().astype(np.float64))
        known = Features(table).to(self.features.dtype)
        return soft_of(settings, kind, known, self.features, own, self.index, self.there)

    def step(self, kind: str, loss: LossSettings, positive_mass: float | None = 0.5) -> StepResult:
        targets_of = self.targets_of(kind, positive_mass)
        # as the network hands them over: not leaves
        rows, columns = self.rows * 1.0, self.columns * 1.0
        term = contrast_term("beat", 0.7, rows, columns, self.index, targets_of, loss, self.there)
        return combine_terms([term])


def gradients(tensors: list[Tensor]) -> list[Tensor]:
    found = []
    for tensor in tensors:
        assert tensor.grad is not None
        found.append(tensor.grad.clone())
        tensor.grad = None
    return found


@pytest.mark.parametrize("there", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("dtype", TIGHT, ids=str)
@pytest.mark.parametrize(
    ("kind", "form", "positive_mass"),
    [
        *((kind, form, None) for kind in ("hard", "class") for form in (*FORMS, "ratio")),
        *((kind, form, mass) for kind in KINDS[2:] for form in FORMS for mass in (None, 0.5, 0.0)),
    ],
)
def test_chunks_are_all_rows_at_once(
    kind: str,
    form: Any,
    positive_mass: float | None,
    dtype: torch.dtype,
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch.of(26, 40, 8, 5, dtype, there)
    loss = RatioLoss(0.3) if form == "ratio" else LossSettings(0.3, form, -1.0)
    found = []
    for cells in (2**24, 3 * 40, 1):  # all rows at once; three at a time; one
        monkeypatch.setattr(row_chunks, "CELLS", cells)
        result = batch.step(kind, loss, positive_mass)
        result.loss.backward()
        found.append((result, gradients([batch.rows, batch.columns])))
    (whole, of_whole), *chunked = found
    assert float(whole.loss.detach()) != 0.0
    for part, of_part in chunked:
        torch.testing.assert_close(part.loss, whole.loss, **TIGHT[dtype])
        torch.testing.assert_close(of_part, of_whole, **TIGHT[dtype])
        torch.testing.assert_close(part.means, whole.means, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(part.counts, whole.counts, rtol=0, atol=0)


def test_one_chunk_is_computed_once_and_many_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def square(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum()

    for cells, expected in ((2**24, [7]), (3 * 10, [3, 3, 1, 1, 3, 3])):
        monkeypatch.setattr(row_chunks, "CELLS", cells)
        calls.clear()
        x = torch.arange(7.0, requires_grad=True)
        torch.stack(by_chunks(square, x, columns=10)).sum().backward()
        assert calls == expected
        assert torch.equal(x.grad, 2.0 * x.detach())  # type: ignore[arg-type]
    assert len(by_chunks(square, torch.zeros(0), columns=0)) == 1


def watched(batch: Batch, kind: str, form: Form) -> tuple[int, int, int]:
    """Bytes that are kept for the backward pass, the most at once in both passes, and of the largest tensor."""
    gc.collect()
    with LiveBytes() as seen:
        result = batch.step(kind, LossSettings(0.1, form))
        kept = seen.live
        result.loss.backward()
    gradients([batch.rows, batch.columns])
    return kept, seen.peak, seen.largest


MEASURED = [
    *((kind, "soft_cross_entropy") for kind in KINDS),
    ("class", "sigmoid"),
    ("soft_1", "sigmoid"),
    ("soft_2", "softclt"),
]


@pytest.mark.parametrize(("kind", "form"), count([MEASURED[0], MEASURED[-1]], MEASURED))
def test_the_memory_is_that_of_the_formula(kind: str, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    width, features, cells = 16, 8, 2**14
    monkeypatch.setattr(row_chunks, "CELLS", cells)
    for rows, columns in ((16, 1024), (128, 1024), (256, 1024), (128, 2048), (128, 4096), (4, 3 * cells)):
        kept, peak, largest = watched(Batch.of(rows, columns, width, features, torch.float32), kind, form)
        bound = memory_bytes(rows, columns, width, features) - (0 if kind == "soft_z" else row_chunks.MEDIAN_BYTES)
        assert peak <= bound, (rows, columns)
        if rows * columns > cells:  # neither kept nor made: a matrix of all rows
            assert kept <= bound - row_chunks.CELL_BYTES * max(cells, columns), (rows, columns)
            values = columns * max(width, features) * 8  # of one tensor with a row for each column
            assert largest <= max(8 * max(cells, columns), values, row_chunks.MEDIAN_BYTES), (rows, columns)


@pytest.mark.parametrize("kind", count([KINDS[0], KINDS[-1]], list(KINDS)))
def test_what_is_kept_grows_with_rows_and_with_columns_but_not_with_their_product(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(rows: int, columns: int) -> int:
        return watched(Batch.of(rows, columns, 16, 8, torch.float32), kind, "soft_cross_entropy")[0]

    few, many = (32, 64), (512, 1024)
    for cells, grows in ((2**13, False), (2**30, True)):
        monkeypatch.setattr(row_chunks, "CELLS", cells)
        (a, b), (c, d) = [[kept(rows, columns) for columns in many] for rows in few]
        mixed = (d - c) - (b - a)  # what a sum of rows and columns leaves
        added = (few[1] - few[0]) * (many[1] - many[0])
        assert (mixed >= 4 * added) if grows else (mixed < 0.1 * added), (kind, cells, mixed)


def test_64_ranks_of_256_records_with_4_beats_fit() -> None:
    rows, everyone = 256 * 4 * 2, 64 * 256 * 4 * 2
    needed = memory_bytes(rows, everyone, 128, 32)
    assert needed < 4 * 2**30
    assert f"{needed / 2**30:.1f} GiB" in str(row_chunks.__doc__)
    assert needed < 1.01 * memory_bytes(rows, 2 * everyone, 128, 32)
    # a rank more costs its columns, and nothing else
    more = memory_bytes(rows, everyone + rows, 128, 32) - needed
    assert more == rows * (row_chunks.COLUMN_BYTES + row_chunks.VALUE_BYTES * 160)


def of_patients(z: Tensor) -> Tensor:
    keys = torch.arange(len(z)) // 3
    there = torch.arange(z.shape[0] * z.shape[1]).view(z.shape[:2]) % 5 > 0
    return patient_contrast(unit_rows(z).unbind(1), keys, 0.3, symmetric=False, present=there).loss


def of_moments(z: Tensor) -> Tensor:
    views = z.unflatten(1, (2, -1)).unflatten(3, (-1, 4)).flatten(2, 3).transpose(0, 1)
    cells = torch.arange(z.shape[0]) % views.shape[2] + 1
    weights = torch.rand(5, z.shape[0], generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    return record_losses(views, cells, slice(2, 7), 0.5, 0, weights, 1.0).loss.sum()


@pytest.mark.parametrize("loss_of", [of_patients, of_moments])
def test_other_contrasts_in_chunks(loss_of: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(11, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    found = []
    for cells in (2**24, 100, 1):
        monkeypatch.setattr(row_chunks, "CELLS", cells)
        loss = loss_of(z)
        loss.backward()
        found.append((loss.detach(), *gradients([z])))
    for chunked in found[1:]:
        torch.testing.assert_close(chunked, found[0], rtol=1e-12, atol=1e-12)
