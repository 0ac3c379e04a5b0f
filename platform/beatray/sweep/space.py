"""From a space to its points: which settings each trial changes, and what the trial is called.

Contract: the points are a function of the sweep's settings alone. Draw number n depends on (seed, n, key) and nothing
else, so asking for more trials keeps the earlier ones, and so do their names. A name shows what differs
(`exponent-50__beat-hard`), is a folder name, and is unique in the sweep; drawn numbers are rounded to four digits, so
that the name shows the exact value.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beatray.errors import SettingsError
from beatray.sweep.settings import SweepSettings
from beatray.train.composed import changes_today

REPEATS = ("seed", "corpus.fold_rotation")
"""Settings that repeat a method rather than make another one."""
LONGEST_NAME = 120
TRIES_PER_DRAW = 50
"""How often a draw that came before is drawn again: a small space may hold few different points."""


@dataclass(frozen=True, slots=True)
class Point:
    """One trial of a sweep: its name and the dotted keys it sets."""

    name: str
    changes: Mapping[str, Any]


def points(settings: SweepSettings) -> tuple[Point, ...]:
    """All trials, in order; SettingsError if the space holds fewer than the draws asked for."""
    drawn = _grid(settings) if settings.search == "grid" else _draws(settings)
    return _named(list(drawn), short_keys(list(settings.space)))


def without_repeats(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that make a method, under the names of today: trials that share them repeat it."""
    return {key: value for key, value in changes_today(changes).items() if key not in REPEATS}


def varied(settings: SweepSettings) -> tuple[str, ...]:
    """The dotted keys in which the trials differ, in the order of the file."""
    in_rows = [key for row in (settings.rows or {}).values() for key in row]
    return tuple(dict.fromkeys([*in_rows, *settings.space]))


def _grid(settings: SweepSettings) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    rows = settings.rows or {"": {}}
    for row, changes in rows.items():
        if settings.only is not None and row not in settings.only:
            continue
        for values in itertools.product(*settings.space.values()):
            yield str(row), dict(changes), dict(zip(settings.space, values, strict=True))


def _draws(settings: SweepSettings) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    seen: set[str] = set()
    for number in itertools.count():
        if len(seen) == settings.num_samples:
            return
        if number >= settings.num_samples * TRIES_PER_DRAW:
            raise SettingsError(
                f"the space holds only about {len(seen)} different points, fewer than "
                f"sweep.num_samples={settings.num_samples}; lower sweep.num_samples, or take sweep.search=grid"
            )
        drawn = {
            key: drawn_value(values, random.Random(f"{settings.seed}/{number}/{key}"))
            for key, values in settings.space.items()
        }
        identity = json.dumps(drawn, sort_keys=True)
        if identity not in seen:
            seen.add(identity)
            yield "", {}, drawn


def drawn_value(values: Any, generator: random.Random) -> Any:
    """A draw from a list of values or from {distribution: [low, high]}; numbers are rounded to four digits."""
    if isinstance(values, list):
        return values[generator.randrange(len(values))]
    kind, (low, high) = next(iter(values.items()))
    if kind == "int_uniform":
        return generator.randint(low, high)
    if kind == "uniform":
        drawn = generator.uniform(low, high)
    else:
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
    return min(max(float(f"{drawn:.4g}"), float(low)), float(high))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by its last part, or by as many parts as make it unique."""
    short = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            tail = ".".join(parts[-count:])
            if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1:
                break
        short[key] = tail
    return short


def _named(drawn: list[tuple[str, dict[str, Any], dict[str, Any]]], short: Mapping[str, str]) -> tuple[Point, ...]:
    points = []
    for row, of_row, of_space in drawn:
        parts = [plain(row)] if row else []
        parts += [name_of(of_space, short)] if of_space else []
        points.append(Point("__".join(parts), {**of_row, **of_space}))
    counts = Counter(point.name for point in points)
    named = tuple(
        Point(_cut(point), point.changes) if len(point.name) > LONGEST_NAME or counts[point.name] > 1 else point
        for point in points
    )
    for point, count in Counter(point.name for point in named).items():
        if count > 1:
            raise SettingsError(
                f"two trials are the same: {point.rpartition('.')[0]}; take one of them out of the space"
            )
    return named


def name_of(changes: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """What a trial with these changes is called, if it is no row."""
    return "__".join(f"{short[key]}-{plain(shown(value))}" for key, value in changes.items())


def _cut(point: Point) -> str:
    """A name too long, or that two points share once written plainly, ends in a hash of what the point changes."""
    digest = hashlib.sha256(json.dumps(dict(point.changes), sort_keys=True).encode()).hexdigest()[:8]
    return f"{point.name[: LONGEST_NAME - 9]}.{digest}"


def shown(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")
    return json.dumps(value)


def plain(text: str) -> str:
    """The text in characters that any folder name bears; never hidden, never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "none"
