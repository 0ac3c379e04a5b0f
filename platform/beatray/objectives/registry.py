"""Objectives by name.

`build_objective("beat_ssl", encoder, {"rhythm": "hard", "views": {"crop_seconds": None}}, statistics)`. Settings are
the fields of the objective's dataclass; `views` holds those of its views. An unknown or misspelt one is refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from beatray.models.encoder import Encoder
from beatray.objectives.beat_ssl import BeatSsl
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.simclr import SimClr, SimClrSettings
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.three_kg import ThreeKg, ThreeKgSettings
from beatray.plugins import nearest


class Objective(Protocol):
    """What the training loop knows of a method (every objective is also an `nn.Module`)."""

    encoder: Encoder
    columns: tuple[str, ...]

    def views(self, batch: dict[str, Tensor], seed: int, epoch: int) -> dict[str, Tensor]: ...

    def __call__(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]: ...

    def after_step(self) -> None: ...


Build = Callable[[Encoder, Any, FeatureStatistics | None], nn.Module]

OBJECTIVES: dict[str, tuple[type[Any], Build]] = {
    "beat_ssl": (BeatSslSettings, BeatSsl),
    "simclr": (SimClrSettings, lambda encoder, settings, _: SimClr(encoder, settings)),
    "three_kg": (ThreeKgSettings, lambda encoder, settings, _: ThreeKg(encoder, settings)),
}
"""Name: its settings and the function that builds it."""


def build_objective(
    name: str, encoder: Encoder, settings: Mapping[str, Any], statistics: FeatureStatistics | None = None
) -> Any:
    """The objective `name` around `encoder`: an `nn.Module` that is an `Objective`.

    Raises ValueError for an unknown name, an unknown setting (naming the nearest right one), a value out of range, and
    soft targets without `statistics`.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"no objective {name!r}{nearest(name, OBJECTIVES)}")
    settings_type, build = OBJECTIVES[name]
    return build(encoder, read_settings(settings_type, settings, f"objective {name}"), statistics)


def read_settings(settings_type: type[Any], settings: Mapping[str, Any], owner: str) -> Any:
    """The settings dataclass from a mapping; a nested mapping changes the fields of a nested dataclass."""
    chosen = checked_settings(settings_type, dict(settings), owner)
    for field in fields(settings_type):
        value = chosen.get(field.name)
        if isinstance(value, Mapping) and field.default_factory is not MISSING:
            default = field.default_factory()
            if is_dataclass(default) and not isinstance(default, type):
                chosen[field.name] = replace(
                    default, **checked_settings(type(default), dict(value), f"{owner}, {field.name},")
                )
    return settings_type(**chosen)


def checked_settings(settings_type: type[Any], settings: dict[str, Any], owner: str) -> dict[str, Any]:
    """`settings` with lists as tuples; ValueError names an unknown key and the nearest field of `settings_type`."""
    names = [field.name for field in fields(settings_type)]
    for key in settings:
        if key not in names:
            raise ValueError(f"{owner} has no setting {key!r}{nearest(key, names)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
