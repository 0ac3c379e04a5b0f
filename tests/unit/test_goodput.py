"""The simulated cost of failures against the formulas that are known, and the cost of messages by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from goodput import (
    Costs,
    Link,
    Message,
    best_interval_s,
    fit_link,
    goodput_exactly,
    goodput_roughly,
    parallel_efficiency,
    seconds_on,
    simulate,
)


def mean_of_runs(costs: Costs, useful_s: float, runs: int = 60) -> tuple[float, float]:
    """Useful time over mean wall time, and the standard error relative to it."""
    walls = [useful_s / simulate(costs, useful_s, np.random.default_rng(seed)) for seed in range(runs)]
    return useful_s / float(np.mean(walls)), float(np.std(walls, ddof=1) / np.mean(walls) / runs**0.5)


@pytest.mark.parametrize(
    "costs",
    [
        Costs(interval_s=600, snapshot_s=5, write_s=0, restart_s=60, mtbf_s=7200),
        Costs(interval_s=60, snapshot_s=5, write_s=0, restart_s=30, mtbf_s=300),
        Costs(interval_s=300, snapshot_s=1, write_s=0, restart_s=200, mtbf_s=250),  # restarts fail too
    ],
)
def test_simulation_meets_dalys_formula(costs: Costs) -> None:
    measured, error = mean_of_runs(costs, 200 * costs.interval_s)
    assert error < 0.03
    assert measured == pytest.approx(goodput_exactly(costs), rel=4 * error)


def test_simulation_with_background_writes_meets_the_first_order() -> None:
    costs = Costs(interval_s=300, snapshot_s=0.5, write_s=60, restart_s=45, mtbf_s=86400)
    measured, error = mean_of_runs(costs, 4000 * costs.interval_s)
    assert error < 5e-4
    assert measured == pytest.approx(goodput_roughly(costs), abs=4 * error + 1e-4)
    without_latency = goodput_roughly(Costs(300, 0.5, 0, 45, 86400))
    assert abs(measured - without_latency) > 4 * error + 1e-4, "the time until a write is safe must show"


def test_a_write_longer_than_the_interval_holds_training_up() -> None:
    never = 1e15
    costs = Costs(interval_s=10, snapshot_s=1, write_s=30, restart_s=0, mtbf_s=never)
    # every round but the first waits for the write before: 30 s of write + 1 s of copy for 10 s of work
    assert simulate(costs, 1000.0, np.random.default_rng(0)) == pytest.approx(1000 / (11 + 99 * 31 + 30))


def test_without_failures_only_copies_cost() -> None:
    costs = Costs(interval_s=100, snapshot_s=2, write_s=20, restart_s=50, mtbf_s=1e15)
    assert simulate(costs, 1000.0, np.random.default_rng(0)) == pytest.approx(1000 / (10 * 102 + 20))


def test_youngs_interval_is_the_best_of_the_exact_formula() -> None:
    snapshot, mtbf = 2.0, 20_000.0
    best = best_interval_s(snapshot, 0.0, mtbf)
    assert best == pytest.approx((2 * snapshot * mtbf) ** 0.5)
    intervals = best * np.geomspace(0.2, 5, 81)
    of = [goodput_exactly(Costs(float(t), snapshot, 0.0, 30.0, mtbf)) for t in intervals]
    assert intervals[int(np.argmax(of))] == pytest.approx(best, rel=0.05)
    assert best_interval_s(snapshot, 900.0, mtbf) == 900.0


def test_a_run_that_cannot_end_is_given_up_and_seeds_decide() -> None:
    hopeless = Costs(interval_s=3600, snapshot_s=1, write_s=1, restart_s=25, mtbf_s=30)
    assert simulate(hopeless, 36_000.0, np.random.default_rng(0)) == 0.0
    assert goodput_exactly(hopeless) < 1e-6
    costs = Costs(60, 1, 10, 30, 600)
    twice = [simulate(costs, 6000.0, np.random.default_rng(7)) for _ in range(2)]
    assert twice[0] == twice[1] != simulate(costs, 6000.0, np.random.default_rng(8))


def test_messages_on_a_ring() -> None:
    link = Link(latency_s=1e-3, s_per_byte=1e-9)
    gradient = Message("all_reduce", 4_000_000, grows=False)
    assert seconds_on(1, gradient, link) == 0
    assert seconds_on(2, gradient, link) == pytest.approx(2e-3 + 4e-3)
    assert seconds_on(4, gradient, link) == pytest.approx(6 * (1e-3 + 1e-3))
    rows = Message("all_gather", 1_000_000, grows=True)
    assert seconds_on(4, rows, link) == pytest.approx(3 * (1e-3 + 1e-3))
    back = Message("all_reduce", 1_000_000, grows=True)
    assert seconds_on(4, back, link) == pytest.approx(6 * (1e-3 + 1e-3))
    assert parallel_efficiency(4, 0.012, [gradient], link) == pytest.approx(0.5)
    sizes = [1_000, 100_000, 10_000_000]
    fitted = fit_link(sizes, [seconds_on(2, Message("all_reduce", size, False), link) for size in sizes])
    assert (fitted.latency_s, fitted.s_per_byte) == pytest.approx((1e-3, 1e-9))
