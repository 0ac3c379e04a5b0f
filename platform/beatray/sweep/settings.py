"""What a sweep is: how it searches, what it ranks by, and the space, as read from `configs/sweep/*.yaml`.

Contract: everything that can be wrong with these settings alone is a `SettingsError` that names the key and the remedy.
Whether the dotted keys of the space exist is for `plan.py`, which composes every trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beatray.errors import SettingsError
from beatray.fields import check, setting

SEARCHES = ("grid", "random", "asha", "pbt")
BUDGETS = ("epochs", "core_minutes")
RECIPES = ("tiny", "full")
DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform")
"""Each with [low, high]; integers include both ends."""


QUARTER = 4
"""pbt: the worst 1/4 of the trials exploit the best 1/4."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """`space`: dotted key -> a list of values or {distribution: [low, high]}. `rows`: name -> dotted key -> value.

    grid: every row with every point of the space. random: `num_samples` draws. asha: the same draws, and those that
    fall behind are stopped early: from `grace_period` epochs on, only the best 1/`reduction_factor` of the trials that
    came so far go on. pbt: the same draws, and every `grace_period` epochs the worst exploit the best: they go on from
    their weights, with settings a little changed.
    """

    search: str = setting(
        "grid",
        "random; asha: random draws, those that fall behind are stopped early; pbt: random draws that train together, "
        "the worst going on from the best, with settings a little changed",
        choices=SEARCHES,
    )
    metric: str = setting(
        "validation_loss",
        "a column of metrics.jsonl, as the mean over the last epoch that has it, or a score of the evaluation "
        "(eval/segment/frozen_decoder/10pct/f1)",
    )
    mode: str = setting("min", choices=("min", "max"))
    num_samples: int = setting(8, "all but grid: how many draws; more keep the earlier ones", at_least=1, was="trials")
    max_concurrent_trials: int | None = setting(
        None, "null: as many as the resources hold", at_least=1, was="concurrent"
    )
    seed: int = setting(0, "of the draws; the training's own is seed=", at_least=0)
    evaluate: bool = setting(False, "every trained encoder on both tasks, as the evaluate group sets it")
    retries: int = setting(1, "further attempts of a trial that failed", at_least=0)
    grace_period: int = setting(
        1, "epochs; asha: no trial is stopped before; pbt: of a round", at_least=1, was="grace_epochs"
    )
    reduction_factor: float = setting(
        3.0,
        "asha: the best 1/reduction_factor go on, at epochs grace_period, grace_period x reduction_factor, ...",
        above=1.0,
        was="reduction",
    )
    fixed: dict[str, Any] = setting({}, "settings of all trials, by dotted key; those on the command line win")
    space: dict[str, Any] = setting(
        {}, "dotted key: [values] or {uniform|log_uniform|int_uniform: [low, high]}; sweep.space.KEY=[VALUE,VALUE]"
    )
    rows: dict[str, Any] | None = setting(
        None, "name: {dotted key: value, ...}; grid: every row with every point of the space"
    )
    recipes: str | None = setting(
        None,
        "a row for every recipe there is, beside rows: tiny (NAME_tiny, minutes on two cores), full (as published)",
        choices=RECIPES,
    )
    only: tuple[str, ...] | None = setting(None, "these rows alone", not_empty=True)
    budget: str = setting(
        "epochs",
        "what all trials have alike: train.epochs, or core_minutes of training, from which the epochs of each follow",
        choices=BUDGETS,
    )
    core_minutes: float = setting(10.0, "of each trial's training, with budget=core_minutes", above=0.0)
    time_steps: bool = setting(
        False, "a step of each method is timed before anything trains, as budget=core_minutes does in any case"
    )
    time_reference: str | None = setting(None, "the row whose step counts as 1 in the report, run or not")

    def __post_init__(self) -> None:
        check(self)
        self._check_space()
        self._check_rows()
        if self.search == "pbt":
            self._check_population()
        if self.budget == "core_minutes":
            self._check_budget()

    def _check_space(self) -> None:
        for key, values in self.space.items():
            where = f"sweep.space.{key}"
            if isinstance(values, list):
                if not values:
                    raise SettingsError(f"{where} is empty")
                continue
            if not isinstance(values, dict) or len(values) != 1:
                raise SettingsError(f"{where} must be a list of values or one of {_offered()}, not {values!r}")
            kind, bounds = next(iter(values.items()))
            if kind not in DISTRIBUTIONS:
                raise SettingsError(f"{where}: there is no distribution '{kind}'; offered: {_offered()}")
            if self.search == "grid":
                raise SettingsError(f"{where}: a grid needs a list of values; {kind} is for random and asha")
            _check_bounds(where, kind, bounds)
        swept = (*self.space, *(key for row in (self.rows or {}).values() for key in row))
        of_evaluation = next((key for key in swept if str(key).startswith("evaluate.")), None)
        if of_evaluation is not None:
            raise SettingsError(
                f"sweep.space: {of_evaluation} is swept, but all trials are evaluated alike; set it in sweep.fixed"
            )
        twice = sorted({*self.space} & {*self.fixed})
        if twice:
            raise SettingsError(f"sweep.space: {', '.join(twice)} also in sweep.fixed; take it out of one")

    def _check_population(self) -> None:
        if self.num_samples < QUARTER:
            raise SettingsError(f"search=pbt needs sweep.num_samples of at least {QUARTER}, not {self.num_samples}")

    def _check_budget(self) -> None:
        """The epochs follow from the budget: they cannot be searched over, nor be cut short by a search in epochs."""
        if self.search in ("asha", "pbt"):
            raise SettingsError(
                f"sweep.budget=core_minutes gives each trial its own epochs, which search={self.search} counts"
            )
        rows = {f"sweep.rows.{name}": row for name, row in (self.rows or {}).items()}
        for where, keys in {"sweep.space": self.space, **rows}.items():
            if "train.epochs" in keys:
                raise SettingsError(f"{where}: sweep.budget=core_minutes sets train.epochs; take it out, or the budget")

    def _check_rows(self) -> None:
        for name, row in (self.rows or {}).items():
            if not isinstance(row, dict):
                raise SettingsError(f"sweep.rows.{name} must be settings by dotted key, not {row!r}")
            twice = sorted({*self.space} & {*row})
            if twice:
                raise SettingsError(f"sweep.space: {', '.join(twice)} also in sweep.rows.{name}; take it out of one")
        asked = {
            "sweep.only": self.only or (),
            "sweep.time_reference": (self.time_reference,) if self.time_reference else (),
        }
        for where, names in asked.items():
            unknown = [name for name in names if name not in (self.rows or {})]
            if unknown:
                raise SettingsError(f"{where}: there is no row {unknown[0]}; rows are {', '.join(self.rows or {})}")
        if self.rows and self.search != "grid":
            raise SettingsError(f"sweep.rows are for search=grid; search={self.search} draws from sweep.space alone")


def _offered() -> str:
    return ", ".join(f"{{{name}: [low, high]}}" for name in DISTRIBUTIONS)


def _check_bounds(where: str, kind: str, bounds: Any) -> None:
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise SettingsError(f"{where}: {kind} needs [low, high], not {bounds!r}")
    allowed = (int,) if kind == "int_uniform" else (int, float)
    for bound in bounds:
        if not isinstance(bound, allowed) or isinstance(bound, bool):
            raise SettingsError(f"{where}: {kind} needs two {'integers' if kind == 'int_uniform' else 'numbers'}")
    low, high = bounds
    if not low < high:
        raise SettingsError(f"{where}: {kind} needs low below high, not {bounds!r}")
    if kind == "log_uniform" and low <= 0:
        raise SettingsError(f"{where}: log_uniform needs bounds above 0, not {bounds!r}")
