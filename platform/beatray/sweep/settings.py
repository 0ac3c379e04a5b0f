"""What a sweep is: how it searches, what it ranks by, and the space, as read from `configs/sweep/*.yaml`.

Contract: everything that can be wrong with these words alone is a `SettingsError` that names the key and the remedy.
Whether the dotted keys of the space exist is for `plan.py`, which composes every trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from beatray.errors import SettingsError

SEARCHES = ("grid", "random", "asha", "pbt")
DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform")
"""Each with [low, high]; integers include both ends."""


QUARTER = 4
"""pbt: the worst 1/4 of the trials take over from the best 1/4."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """`space`: dotted key -> a list of values or {distribution: [low, high]}. `rows`: name -> dotted key -> value.

    grid: every row with every point of the space. random: `trials` draws. asha: the same draws, and those that fall
    behind are stopped early: from `grace_epochs` on, only the best 1/`reduction` of the trials that came so far go on.
    pbt: the same draws, and every `grace_epochs` the worst take over from the best, with settings a little changed.
    """

    search: str = "grid"
    metric: str = "validation_loss"  # a column of metrics.jsonl
    mode: str = "min"
    trials: int = 8
    concurrent: int | None = None  # None: as many as the resources hold
    seed: int = 0  # of the draws
    evaluate: bool = False  # every trained encoder on both tasks, as the `evaluate` group says
    retries: int = 1  # further attempts of a trial that failed
    grace_epochs: int = 1
    reduction: float = 3.0
    fixed: dict[str, Any] = field(default_factory=dict)  # settings of all trials; words on the command line win
    space: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] | None = None
    only: tuple[str, ...] | None = None  # of the rows

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise SettingsError(f"sweep.search={self.search} is not one of {', '.join(SEARCHES)}")
        if self.mode not in ("min", "max"):
            raise SettingsError(f"sweep.mode={self.mode} is not one of min, max")
        for name in ("trials", "concurrent", "grace_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"sweep.{name} must be at least 1, not {value}")
        if self.retries < 0:
            raise SettingsError("sweep.retries must not be negative")
        if not self.reduction > 1:
            raise SettingsError(f"sweep.reduction must be above 1, not {self.reduction:g}")
        self._check_space()
        self._check_rows()
        if self.search == "pbt":
            self._check_population()

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
                f"{of_evaluation} is swept, but all trials of a sweep are evaluated alike; set it in sweep.fixed"
            )
        twice = sorted({*self.space} & {*self.fixed})
        if twice:
            raise SettingsError(f"{', '.join(twice)}: in sweep.space and in sweep.fixed; take it out of one")

    def _check_population(self) -> None:
        if self.trials < QUARTER:
            raise SettingsError(f"search=pbt needs sweep.trials of at least {QUARTER}, not {self.trials}")

    def _check_rows(self) -> None:
        for name, row in (self.rows or {}).items():
            if not isinstance(row, dict):
                raise SettingsError(f"sweep.rows.{name} must be settings by dotted key, not {row!r}")
            twice = sorted({*self.space} & {*row})
            if twice:
                raise SettingsError(f"{', '.join(twice)}: in sweep.space and in sweep.rows.{name}; take it out of one")
        unknown = [name for name in self.only or () if name not in (self.rows or {})]
        if unknown:
            raise SettingsError(f"sweep.only: there is no row {unknown[0]}; rows are {', '.join(self.rows or {})}")
        if self.rows and self.search != "grid":
            raise SettingsError(f"sweep.rows are for search=grid; search={self.search} draws from sweep.space alone")


def _offered() -> str:
    return ", ".join(f"{{{name}: [low, high]}}" for name in DISTRIBUTIONS)


def _check_bounds(where: str, kind: str, bounds: Any) -> None:
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise SettingsError(f"{where}: {kind} needs [low, high], not {bounds!r}")
    wanted = (int,) if kind == "int_uniform" else (int, float)
    for bound in bounds:
        if not isinstance(bound, wanted) or isinstance(bound, bool):
            raise SettingsError(f"{where}: {kind} needs two {'integers' if kind == 'int_uniform' else 'numbers'}")
    low, high = bounds
    if not low < high:
        raise SettingsError(f"{where}: {kind} needs low below high, not {bounds!r}")
    if kind == "log_uniform" and low <= 0:
        raise SettingsError(f"{where}: log_uniform needs bounds above 0, not {bounds!r}")
