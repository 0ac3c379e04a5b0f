"""Objectives by name: every subclass of `Objective` in a module of this folder, found by looking, or one of the user's.

`build_objective("beat_ssl", encoder, {"rhythm": "hard", "augment": {"crop_seconds": None}}, statistics)`, or
`"my_package.module:MyObjective"`. Settings are the fields of its `Settings`; an unknown or misspelt one is refused by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from beatray import objectives
from beatray.models.encoder import Encoder
from beatray.objectives.objective import Objective
from beatray.objectives.statistics import FeatureStatistics
from beatray.plugins import class_called, classes_in
from beatray.schema import build


def objective_classes() -> dict[str, type[Objective]]:
    """Every name of a method of pretraining: the method behind it."""
    return {name: kind for name, kind in _all().items() if not kind.supervised}


def supervised_classes() -> dict[str, type[Objective]]:
    """Every name of an objective that learns from labels."""
    return {name: kind for name, kind in _all().items() if kind.supervised}


def _all() -> dict[str, type[Objective]]:
    return {kind.name: kind for kind in classes_in(objectives, Objective) if kind.name}


def objective_class(name: str) -> type[Objective]:
    """The method called `name`, or the user's `package.module:Class`. ValueError where there is none."""
    return class_called(name, _all(), Objective, "objective")


def objective_settings(name: str, content: Mapping[str, Any], where: str = "objective.") -> Any:
    """The checked settings of the objective `name`. SettingsError (a ValueError) names the key that does not fit."""
    return build(objective_class(name).Settings, dict(content), where)


def objective_defaults(name: str) -> dict[str, Any]:
    """Every setting of the objective `name` with its default, as plain data."""
    return asdict(objective_class(name).Settings())


def build_objective(
    name: str, encoder: Encoder, settings: Mapping[str, Any], statistics: FeatureStatistics | None = None
) -> Objective:
    """The objective `name` around `encoder`.

    Raises ValueError for an unknown name, an unknown setting (naming the nearest right one), a value out of range, a
    network that cannot do what the method needs, and soft targets without `statistics`.
    """
    return objective_class(name)(encoder, objective_settings(name, settings), statistics)
