"""The contrastive losses against slow loops, closed forms and each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from beatray.objectives.beat_ssl import BeatSsl
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.contrast import contrast_rows, soft_contrastive_loss, unit_rows
from beatray.objectives.objective import Progress, collapse_warnings
from beatray.objectives.reduce import embedding_std
from beatray.objectives.row_targets import RowTargets
from beatray.objectives.terms import (
    MAX_TARGET_ENTROPY,
    LossSettings,
    columns_std,
    combine_terms,
    contrast_term,
    uniform_targets,
)


def nt_xent_loop(z: np.ndarray, temperature: float) -> float:
    """NT-Xent as in SimCLR's equation 1, one pair at a time."""
    total, n = 0.0, len(z) // 2
    for i in range(2 * n):
        partner = (i + n) % (2 * n)

        def similarity(a: int, b: int) -> float:
            return float(z[a] @ z[b] / (np.linalg.norm(z[a]) * np.linalg.norm(z[b])))

        below = sum(math.exp(similarity(i, k) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(i, partner) / temperature) / below)
    return total / (2 * n)


def soft_loop(z: np.ndarray, targets: np.ndarray, temperature: float, form: str, bias: float) -> float:
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    rows = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        mass = sum(targets[i, j] for j in others)
        if mass == 0:
            continue
        logits = {j: float(unit[i] @ unit[j]) / temperature for j in others}
        if form == "sigmoid":
            row = 0.0
            for j in others:
                p = 1 / (1 + math.exp(-(logits[j] + bias)))
                row -= targets[i, j] * math.log(p) + (1 - targets[i, j]) * math.log(1 - p)
            rows.append(row / len(others))
            continue
        below = sum(math.exp(v) for v in logits.values())
        row = -sum(targets[i, j] * math.log(math.exp(logits[j]) / below) for j in others)
        rows.append(row / mass if form == "soft_cross_entropy" else row)
    return sum(rows) / len(rows)


def hard_targets(n: int) -> torch.Tensor:
    return torch.eye(n).roll(n // 2, dims=1)


@pytest.mark.parametrize("n", [2, 3, 17])
@pytest.mark.parametrize("dim", [2, 32])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_hard_targets_are_nt_xent(n: int, dim: int, temperature: float) -> None:
    z = torch.randn(2 * n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 5
    for form in ("soft_cross_entropy", "softclt"):
        loss = soft_contrastive_loss(z, hard_targets(2 * n), temperature, form)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(nt_xent_loop(z.numpy(), temperature), abs=1e-6)
    single = soft_contrastive_loss(z.float(), hard_targets(2 * n), temperature)
    assert float(single) == pytest.approx(nt_xent_loop(z.numpy(), temperature), abs=1e-5)


@pytest.mark.parametrize("form", ["soft_cross_entropy", "softclt", "sigmoid"])
def test_soft_targets_equal_a_loop(form: str) -> None:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(12, 6, dtype=torch.float64, generator=generator)
    targets = torch.rand(12, 12, dtype=torch.float64, generator=generator)
    targets[3] = 0.0  # a row without targets is left out; the diagonal never counts
    targets[5], targets[5, 5] = 0.0, 1.0
    loss = soft_contrastive_loss(z, targets, 0.3, form, bias=-1.0)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(soft_loop(z.numpy(), targets.numpy(), 0.3, form, -1.0), abs=1e-9)


def test_closed_forms() -> None:
    n = 9
    same = torch.ones(2 * n, 4)
    assert float(soft_contrastive_loss(same, hard_targets(2 * n))) == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    # uniform targets on equal embeddings: cross-entropy of the uniform distribution with itself
    assert float(soft_contrastive_loss(same, torch.ones(2 * n, 2 * n))) == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    orthogonal = torch.eye(4).repeat(2, 1)
    assert float(soft_contrastive_loss(orthogonal, hard_targets(8), 0.01)) == pytest.approx(0.0, abs=1e-5)


def test_order_of_items_does_not_matter() -> None:
    z, targets = torch.randn(10, 5, dtype=torch.float64), torch.rand(10, 10, dtype=torch.float64)
    order = torch.randperm(10)
    for form in ("soft_cross_entropy", "softclt", "sigmoid"):
        torch.testing.assert_close(
            soft_contrastive_loss(z, targets, 0.2, form),  # type: ignore[arg-type]
            soft_contrastive_loss(z[order], targets[order][:, order], 0.2, form),  # type: ignore[arg-type]
        )


def test_rows_in_parts_add_up() -> None:
    z, targets = unit_rows(torch.randn(9, 4, dtype=torch.float64)), torch.rand(9, 9)
    whole = contrast_rows(z, z, torch.arange(9), targets, 0.1)
    parts = [contrast_rows(z[a:b], z, torch.arange(a, b), targets[a:b], 0.1) for a, b in ((0, 4), (4, 4), (4, 9))]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)
    assert sum(int(p.kept) for p in parts) == int(whole.kept) == 9


@pytest.mark.parametrize("form", ["soft_cross_entropy", "softclt", "sigmoid"])
def test_degenerate_batches_stay_finite(form: str) -> None:
    for n in (0, 1, 2):
        z = torch.randn(n, 3, requires_grad=True)
        for targets in (torch.zeros(n, n), torch.ones(n, n)):
            loss = soft_contrastive_loss(z, targets, 0.1, form)  # type: ignore[arg-type]
            loss.backward()
            assert torch.isfinite(loss)
            assert z.grad is not None
            assert torch.isfinite(z.grad).all()
    zeros = torch.zeros(4, 3, requires_grad=True)
    soft_contrastive_loss(zeros, hard_targets(4), 0.1, form).backward()  # type: ignore[arg-type]
    assert torch.isfinite(zeros.grad).all()


def test_loss_is_float32_under_autocast() -> None:
    z, targets = torch.randn(16, 8), hard_targets(16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = soft_contrastive_loss(z, targets)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, soft_contrastive_loss(z, targets))


def test_wrong_arguments_are_refused() -> None:
    z = torch.randn(4, 2)
    for bad in (
        lambda: soft_contrastive_loss(z, torch.zeros(3, 4)),
        lambda: soft_contrastive_loss(z, torch.zeros(4, 4), 0.0),
        lambda: soft_contrastive_loss(z, torch.zeros(4, 4), form="mse"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError):
            bad()


def test_logs_measure_targets_and_spread() -> None:
    n, dim = 40, 16
    z = unit_rows(torch.randn(2 * n, dim))
    own = hard_targets(2 * n).bool()
    index = torch.arange(2 * n)
    hard, uniform = (RowTargets(targets, own) for targets in (own.float(), torch.ones(2 * n, 2 * n)))
    sharp = contrast_term("record", 1.0, z, z, index, lambda _: hard, LossSettings(0.1))
    flat = contrast_term("beat", 0.5, z, z, index, lambda _: uniform, LossSettings(0.1))
    result = combine_terms([sharp, flat])
    loss, logs = result.loss, result.means | result.counts
    torch.testing.assert_close(loss, logs["record/loss"] + 0.5 * logs["beat/loss"])
    torch.testing.assert_close(loss, logs["loss"])
    assert logs["record/target_entropy"] == 0.0
    assert logs["record/positive_mass"] == 1.0
    assert float(logs["beat/target_entropy"]) == pytest.approx(1.0, abs=1e-6)
    assert float(logs["beat/positive_mass"]) == pytest.approx(1 / (2 * n - 1), abs=1e-6)
    assert 0.9 < logs["record/embedding_std"] < 1.05
    assert logs["record/rows"] == 2 * n
    assert logs["record/skipped"] == 0


def test_collapse_is_told() -> None:
    fine = {"record/target_entropy": 0.4, "record/embedding_std": 0.9, "record/rows": 64.0}
    late = Progress(50, 100)
    assert collapse_warnings(fine, late) == {} and uniform_targets(fine) == []
    assert uniform_targets(fine | {"record/target_entropy": 0.95}) == ["record"]
    assert "collapsed" in collapse_warnings(fine | {"record/embedding_std": 0.1}, late)["record/embedding_std"]
    assert collapse_warnings(fine | {"record/embedding_std": 0.1}, Progress(5, 100)) == {}
    assert collapse_warnings({"beat/embedding_std": 0.0, "beat/rows": 0.0}, late) == {}
    flat = {"records": 1.0, "record/embedding_std": 0.0, "record/rows": 2.0}  # two views of the last recording
    assert collapse_warnings(flat, late) == {} and collapse_warnings(flat | {"records": 2.0}, late)
    assert float(columns_std(torch.ones(5, 3))) == 0.0


def test_the_spread_of_an_embedding_is_that_of_its_rows() -> None:
    z = unit_rows(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(embedding_std(z), columns_std(z), atol=1e-6, rtol=1e-6)
    assert float(embedding_std(z[:1].expand(9, 6))) == pytest.approx(0.0, abs=1e-6)
    assert float(embedding_std(z[:0])) == 0.0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"rhythm": "soft_1", "exponent": 1.0, "positive_mass": None},
            ["objective.exponent (now 1", "positive_mass=0.5"],
        ),
        ({"rhythm": "soft_2", "tau_instance": 2.0, "positive_mass": 0.0}, ["objective.tau_instance (now 2", "(now 0"]),
        ({"beat": "soft_1", "exponent": 50.0, "positive_mass": 0.2}, ["objective.exponent (now 50"]),
        ({"beat": "hard", "beat_positives": "clusters"}, ["objective.beat_positives=same_record"]),
    ],
)
def test_a_warning_names_the_setting_to_change(settings: dict[str, Any], named: list[str]) -> None:
    level = "record" if "rhythm" in settings else "beat"
    key = f"{level}/target_entropy"
    warning = BeatSsl.warnings(BeatSslSettings(**settings), {key: 0.97}, Progress())[key]
    assert all(text in warning for text in named), warning
    assert ("positive_mass" in warning) == (not settings.get("positive_mass", 1))


@pytest.mark.parametrize(("mass", "columns"), [(0.5, 4), (0.25, 38)])
def test_mass_on_the_own_pair_keeps_the_entropy_below_the_warning(mass: float, columns: int) -> None:
    """The bound that stands beside the threshold: even where all others get the same."""

    def entropy(k: int) -> float:
        rest = (1 - mass) / (k - 1)
        return -(mass * math.log(mass) + (1 - mass) * math.log(rest)) / math.log(k)

    assert entropy(columns - 1) > MAX_TARGET_ENTROPY
    assert all(entropy(k) < MAX_TARGET_ENTROPY for k in (columns, columns + 1, 512, 100_000))
