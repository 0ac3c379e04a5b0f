"""Population based training: who exploits whom, and with what."""

from __future__ import annotations

import math
from typing import Any

import pytest

from beatray.errors import SettingsError
from beatray.sweep.plan import plan_from
from beatray.sweep.population import exploits
from beatray.sweep.record import TrialRecord
from beatray.sweep.settings import SweepSettings

RATE, TEMPERATURE = "train.learning_rate", "objective.temperature"
SPACE = {RATE: {"log_uniform": [1e-4, 1e-2]}, TEMPERATURE: [0.05, 0.1, 0.2, 0.4]}
NAMES = tuple("abcdefgh")


def sweep(**changes: Any) -> SweepSettings:
    return SweepSettings(**{"search": "pbt", "num_samples": 8, "space": SPACE, "mode": "min", **changes})


def changes_of(rate: float = 1e-3, temperature: float = 0.1) -> dict[str, dict[str, Any]]:
    return {name: {RATE: rate, TEMPERATURE: temperature} for name in NAMES}


def test_the_worst_quarter_exploits_the_best() -> None:
    scores = {name: float(rank) for rank, name in enumerate(NAMES)}
    found = exploits(0, 12, scores, changes_of(), sweep())
    assert set(found) == {"g", "h"} and {each.source for each in found.values()} <= {"a", "b"}
    upside_down = exploits(0, 12, scores, changes_of(), sweep(mode="max"))
    assert set(upside_down) == {"a", "b"} and {each.source for each in upside_down.values()} <= {"g", "h"}


def test_a_score_that_is_not_a_number_is_the_worst() -> None:
    scores = {name: float(rank) for rank, name in enumerate(NAMES)} | {"a": math.nan}
    assert set(exploits(0, 12, scores, changes_of(), sweep())) == {"a", "h"}
    assert set(exploits(0, 12, scores, changes_of(), sweep(mode="max"))) == {"a", "b"}


def test_decisions_are_a_function_of_seed_round_and_scores() -> None:
    scores = {name: float(rank) for rank, name in enumerate(NAMES)}
    first = exploits(3, 12, scores, changes_of(), sweep())
    assert exploits(3, 12, dict(reversed(scores.items())), changes_of(), sweep()) == first
    assert exploits(4, 12, scores, changes_of(), sweep()) != first
    assert exploits(3, 12, scores, changes_of(), sweep(seed=1)) != first


@pytest.mark.parametrize(("rate", "temperature"), [(1e-3, 0.1), (1e-4, 0.05), (1e-2, 0.4)])
def test_settings_move_by_a_step_or_are_drawn_anew_and_stay_in_the_space(rate: float, temperature: float) -> None:
    scores = {name: float(rank) for rank, name in enumerate(NAMES)}
    moved = [
        each.changes
        for number in range(100)
        for each in exploits(number, 12, scores, changes_of(rate, temperature), sweep()).values()
    ]
    assert all(1e-4 <= each[RATE] <= 1e-2 and each[TEMPERATURE] in SPACE[TEMPERATURE] for each in moved)
    steps = {max(1e-4, min(1e-2, float(f"{rate * factor:.4g}"))) for factor in (0.8, 1.25)}
    near = sum(each[RATE] in steps for each in moved) / len(moved)
    assert 0.6 < near < 0.9  # a quarter of the moves are new draws
    assert len({each[RATE] for each in moved}) > 20


def test_few_trials_leave_nobody_to_replace() -> None:
    assert exploits(0, 12, {"a": 1.0, "b": 2.0, "c": 3.0}, changes_of(), sweep()) == {}


def test_a_trial_trains_with_what_it_took_over_last_and_has_copied() -> None:
    trial = TrialRecord("a", {RATE: 1e-3, TEMPERATURE: 0.1})
    assert trial.present == trial.changes
    first, second = ({"changes": {RATE: rate}, "copied": True} for rate in (2e-3, 3e-3))
    assert TrialRecord("a", trial.changes, exploits=(first, second)).present == {RATE: 3e-3, TEMPERATURE: 0.1}
    unfinished = TrialRecord("a", trial.changes, exploits=(first, {**second, "copied": False}))
    assert unfinished.present == {RATE: 2e-3, TEMPERATURE: 0.1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.space.train.batch_size=[32,64]"], "train.batch_size cannot"),
        (["sweep.space.encoder.norm=[group]"], "encoder.norm cannot"),
        (["sweep.space.objective.rhythm=[hard,soft_1]"], "objective.rhythm cannot"),
        (["sweep.num_samples=3"], "at least 4"),
    ],
)
def test_what_cannot_change_while_a_trial_trains_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_from(["sweep=pbt", "corpus=/c", *overrides])


def test_what_can_change_is_what_the_fields_of_the_method_say() -> None:
    overrides = ["sweep=pbt", "corpus=/c", "sweep.space.train.clip_norm={uniform:[0.5,2.0]}"]  # an older name, too
    space = "sweep.space.objective.temperature={uniform:[0.1,0.2]}"
    trials = plan_from([*overrides, space]).trials
    assert len({trial.settings.objective["temperature"] for trial in trials}) == 8
    assert len({trial.settings.train.max_grad_norm for trial in trials}) == 8
