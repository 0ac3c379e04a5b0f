"""Target matrices: the published example, symmetry, own pairs, and the fixed mass on them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from beatray.objectives import soft_targets as targets
from beatray.objectives.reduce import median_over_ranks
from beatray.objectives.soft_targets import Similarity
from beatray.objectives.statistics import FeatureStatistics, FeatureTable
from feature_tables import table_of

N = 6
INDEX = torch.arange(2 * N)
RECORD = torch.arange(N).repeat(2)
OWN = targets.own_pairs(RECORD, RECORD, INDEX)


def features(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(N, 8, generator=generator)[RECORD] + 1.0


def made(similarity: Similarity, own: torch.Tensor | None = None) -> torch.Tensor:
    """The targets; without `own`, nothing is an own pair."""
    nobody = torch.zeros_like(similarity.raw, dtype=torch.bool)
    return similarity.targets(nobody if own is None else own, torch.float32)


def soft_z(z: torch.Tensor, own: torch.Tensor, power: float) -> Similarity:
    """Of all rows and columns, with the width that these have."""
    width = targets.kernel_width(z, lambda index: own[index], torch.arange(len(z)))
    return targets.soft_z(z, z, width, power)


def test_own_pairs_are_the_other_view() -> None:
    expected = torch.zeros(2 * N, 2 * N)
    for i in range(N):
        expected[i, i + N] = expected[i + N, i] = 1.0
    assert torch.equal(targets.hard(OWN), expected)


def test_power_50_maps_the_published_similarities() -> None:
    """Beat-SSL's figure: 0.97, 0.80 and 0.70 after the 50th power."""
    for raw, sharp in ((0.99939, 0.97), (0.99555, 0.80), (0.99289, 0.70)):
        angle = math.acos(raw)
        pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        soft = made(targets.soft_1(pair, pair, 50.0))
        assert float(soft[0, 1]) == pytest.approx(sharp, abs=0.005)
        plain = made(targets.soft_1(pair, pair, 1.0))
        assert float(plain[0, 1]) == pytest.approx(raw, abs=1e-6)


@pytest.mark.parametrize("kind", ["soft_1", "soft_2", "soft_z"])
def test_soft_targets_are_symmetric_with_own_pairs_1(kind: str) -> None:
    values = features()
    if kind == "soft_1":
        soft = made(targets.soft_1(values, values, 50.0), OWN)
    elif kind == "soft_z":
        soft = made(soft_z(values, OWN, 1.0), OWN)
    else:
        soft = made(targets.soft_2(values - 1.0, values - 1.0, 0.5, 20.0), OWN)
    torch.testing.assert_close(soft, soft.T)
    assert (soft[OWN] == 1.0).all()
    others = soft[~OWN & ~torch.eye(2 * N, dtype=torch.bool)]
    assert others.min() >= 0.0
    assert others.max() < 1.0
    assert others.std() > 1e-3
    # the same for all four combinations of the views of two records
    torch.testing.assert_close(soft[0, 1], soft[0, 1 + N])
    torch.testing.assert_close(soft[0, 1], soft[N, 1 + N])


def test_soft_2_is_the_softclt_map() -> None:
    a, b = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.4, 0.5]])
    distance = math.hypot(0.3, 0.4) / math.sqrt(2)
    expected = 2 * 0.5 / (1 + math.exp(10.0 * distance))
    assert float(made(targets.soft_2(a, b, 0.5, 10.0))) == pytest.approx(expected, abs=1e-6)
    assert float(made(targets.soft_2(a, a, 0.5, 10.0))) == pytest.approx(0.5, abs=1e-7)  # alpha bounds the others


def z_loop(values: np.ndarray, table: FeatureTable, power: float) -> np.ndarray:
    """soft_z of records (N, F) with NaN where missing, one pair at a time."""
    z = np.zeros_like(values)
    for i, row in enumerate(values):
        for f, value in enumerate(row):
            if np.isfinite(value) and table.sd[f] > 0:
                z[i, f] = (value - table.mean[f]) / table.sd[f]
    squared = [
        [sum((a - b) ** 2 for a, b in zip(z[i], z[j], strict=True)) for j in range(len(z))] for i in range(len(z))
    ]
    between = sorted(squared[i][j] for i in range(len(z)) for j in range(i))
    middle = between[(len(between) - 1) // 2]
    return np.array([[math.exp(-power * d / (2 * middle)) for d in row] for row in squared])


@pytest.mark.parametrize("power", [1.0, 8.0])
@pytest.mark.parametrize("records", [2, 3, 7, 10])
def test_soft_z_is_the_gaussian_kernel_of_z_scores(records: int, power: float) -> None:
    values = np.random.default_rng(records).lognormal(size=(records, 5)) * [1, 1e3, 1e-3, 60, 0]
    values[0, 1] = np.nan
    table = table_of("abcde", values)
    record = torch.arange(records).repeat(2)
    index = torch.arange(2 * records)
    own = targets.own_pairs(record, record, index)
    known = targets.Features(table).double()
    z = known.standardise(known.impute(torch.tensor(values)))[record]
    found = made(soft_z(z, own, power), own)
    expected = np.tile(z_loop(values, table, power), (2, 2))
    expected[own.numpy()] = 1.0
    np.testing.assert_allclose(found, expected, atol=2e-6)
    # half of all pairs of different records lie above exp(-power / 2), whatever the units
    others = ~(own | torch.eye(2 * records, dtype=torch.bool))
    share = float((found[others] >= math.exp(-power / 2) - 1e-5).float().mean())
    pairs = records * (records - 1) // 2
    assert share == pytest.approx(((pairs - 1) // 2 + 1) / pairs)


def test_soft_z_of_equal_things_and_of_none() -> None:
    same = torch.zeros(2 * N, 3)
    assert torch.equal(made(soft_z(same, OWN, 1.0), OWN), torch.ones(2 * N, 2 * N))
    odd = same.clone()
    odd[[0, N]] = 1.0  # one record is different, most pairs are equal: the width is 0
    soft = made(soft_z(odd, OWN, 1.0), OWN)
    assert soft[0, [1, N + 1]].tolist() == [0.0, 0.0] and soft[1, [2, N]].tolist() == [1.0, 0.0]
    one, own = torch.ones(2, 3), torch.tensor([[False, True], [True, False]])
    assert torch.equal(made(soft_z(one, own, 1.0), own), torch.ones(2, 2))
    none = torch.zeros(0, 3)
    assert made(soft_z(none, torch.zeros(0, 0, dtype=torch.bool), 1.0)).shape == (0, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 4097])
def test_the_median_is_an_element_and_the_lower_one(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for values in (
        torch.rand(n, generator=generator),
        torch.rand(n, generator=generator).pow(20) * 1e30,
        torch.randint(0, 3, (n,), generator=generator).float(),
    ):
        assert torch.equal(median_of([values]), values.median())
        assert torch.equal(median_of([*values.split(3)]), values.median())
    assert median_of([torch.zeros(0)]).isnan()


def median_of(parts: list[torch.Tensor]) -> torch.Tensor:
    """The median of some parts, beside numbers that do not count."""
    beside = [(torch.full((5,), value), torch.zeros(5, dtype=torch.bool)) for value in (0.0, 1e9)]
    counted = [(part, torch.ones_like(part, dtype=torch.bool)) for part in parts]
    return median_over_ranks(lambda: counted + beside, torch.device("cpu"))


def test_opposite_features_are_not_alike() -> None:
    pair = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    soft = made(targets.soft_1(pair, pair, 50.0))
    assert soft[0, 1] == 0.0  # an even power must not turn -1 into 1


@pytest.mark.parametrize("positive_mass", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
def test_own_pairs_hold_the_asked_mass(positive_mass: float) -> None:
    soft = made(targets.soft_1(features(), features(), 50.0), OWN)
    fixed = targets.fix_positive_mass(soft, OWN, INDEX, positive_mass)
    share = fixed / fixed.sum(1, keepdim=True)
    torch.testing.assert_close((share * OWN).sum(1), torch.full((2 * N,), positive_mass))
    # relations among the others stay
    torch.testing.assert_close(fixed[0, 1] / fixed[0, 2], soft[0, 1] / soft[0, 2])
    assert targets.fix_positive_mass(soft, OWN, INDEX, None) is soft


def test_own_mass_leaves_what_cannot_be_fixed() -> None:
    hard = targets.hard(OWN)
    torch.testing.assert_close(targets.fix_positive_mass(hard, OWN, INDEX, 0.5), hard)
    nothing = torch.zeros(2 * N, 2 * N)
    torch.testing.assert_close(targets.fix_positive_mass(nothing, OWN, INDEX, 0.5), nothing)
    for bad in (1.0, -0.1):
        with pytest.raises(ValueError, match="positive_mass"):
            targets.fix_positive_mass(hard, OWN, INDEX, bad)


def test_no_mass_on_own_pairs_leaves_the_others_alone() -> None:
    soft = made(targets.soft_1(features(), features(), 50.0), OWN)
    none = targets.fix_positive_mass(soft, OWN, INDEX, 0.0)
    assert none[OWN].abs().max() == 0.0
    others = ~OWN & ~torch.eye(2 * N, dtype=torch.bool)
    assert torch.equal(none[others], soft[others])
    assert torch.equal(
        targets.fix_positive_mass(targets.hard(OWN), OWN, INDEX, 0.0), targets.hard(OWN)
    )  # no others to draw


def test_same_class() -> None:
    kind = torch.tensor([0, 1, 0, -1, -1, 1]).repeat(2)
    alike = targets.same_class(OWN, kind, kind, INDEX)
    assert alike.diagonal().sum() == 0
    assert alike[0, [2, N, N + 2]].tolist() == [1, 1, 1]
    assert alike[0, [1, 3, N + 1]].tolist() == [0, 0, 0]
    assert alike[3].nonzero()[:, 0].tolist() == [3 + N]  # unknown: its own pair only
    torch.testing.assert_close(alike, alike.T)


def test_one_class_for_all_falls_back_to_own_pairs() -> None:
    kind = torch.zeros(2 * N, dtype=torch.int64)
    assert torch.equal(targets.same_class(OWN, kind, kind, INDEX), targets.hard(OWN))
    empty = torch.zeros(0, dtype=torch.int64)
    assert targets.same_class(torch.zeros(0, 0, dtype=torch.bool), empty, empty, empty).shape == (0, 0)


def test_rows_of_a_part_are_rows_of_the_whole() -> None:
    values = features()
    whole = made(targets.soft_1(values, values, 50.0), OWN)
    torch.testing.assert_close(made(targets.soft_1(values[3:5], values, 50.0), OWN[3:5]), whole[3:5])
    assert torch.equal(targets.own_pairs(RECORD[3:5], RECORD, INDEX[3:5]), OWN[3:5])


def test_missing_values_become_means_and_ranges_scale() -> None:
    values = np.array([[1.0, 10.0, np.nan], [3.0, np.nan, np.nan], [2.0, 30.0, np.nan]])
    table = table_of(("a_mv", "b_ms", "c"), values)
    np.testing.assert_allclose(table.mean, [2.0, 20.0, 0.0])
    np.testing.assert_allclose(table.sd, [np.sqrt(2 / 3), 10.0, 0.0])
    np.testing.assert_allclose([table.min, table.max], [[1, 10, 0], [3, 30, 0]])
    made = targets.Features(table)
    imputed = made.impute(torch.tensor(values))
    assert imputed.tolist() == [[1, 10, 0], [3, 20, 0], [2, 30, 0]]
    assert made.scale(imputed).tolist() == [[0, 0, 0], [1, 0.5, 0], [0.5, 1, 0]]
    assert made.scale(torch.tensor([[9.0, -9.0, 5.0]])).tolist() == [[1, 0, 1]]
    assert not made.state_dict()


def test_statistics_survive_json() -> None:
    table = table_of(("a", "b"), np.random.default_rng(0).normal(size=(9, 2)) / 3)
    empty = table_of(("x",), np.zeros((0, 1)))
    statistics = FeatureStatistics(table, empty)
    again = FeatureStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again.record.names == table.names
    np.testing.assert_array_equal(again.record.mean, table.mean)
    np.testing.assert_array_equal(again.beat.max, [0.0])
    with pytest.raises(ValueError, match="one finite number"):
        FeatureTable(("a",), *[np.array([np.nan])] * 4)
