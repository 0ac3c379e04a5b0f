"""The metadata of a field of a settings dataclass beside its default: help, bounds, older names, what may change.

The dataclass is the schema. `config.build` converts and names keys; the bounds stand at the field and hold wherever the
dataclass is made, because its `__post_init__` calls `check`. Whether a run that is continued may set another value
(`resumable`), what a run did that was begun before the field existed (`absent`), how the field was called before
(`was`), and whether a population may change it while trials train (`searchable`) stand at the field too, so that no
list elsewhere has to be kept.

Contract: no torch, ray or numpy here. `check` raises SettingsError with the name of the field, the bound and the value.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from beatray.errors import SettingsError

NOTHING = object()
LARGEST = {int: 2**31 - 1, float: 1e12}
"""Of a number whose field sets no upper bound: beyond it is a slip of the keyboard, which would end in a traceback deep
inside a library."""


def setting(
    default: Any,
    help: str = "",
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[Any, ...] | None = None,
    not_empty: bool = False,
    was: str | None = None,
    was_values: Mapping[Any, Any] | None = None,
    resumable: bool = False,
    absent: Any = NOTHING,
    searchable: bool = False,
) -> Any:
    """A dataclass field with what this module knows about; a dataclass type as `default` means one of its own.

    `was` is the older dotted key, from the top of the settings where it has a dot, else beside this field; `was_values`
    are older names of values. `searchable` settings change neither the shape of a weight nor the order of the
    recordings.
    """
    about = {
        "help": help,
        "above": above,
        "at_least": at_least,
        "below": below,
        "at_most": at_most,
        "choices": choices,
        "not_empty": not_empty,
        "was": was,
        "was_values": was_values,
        "resumable": resumable,
        "absent": absent,
        "searchable": searchable,
    }
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=about)
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=about)
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def check(settings: Any) -> None:
    """Raise SettingsError for the first field whose value is out of its bounds, or a float that is not finite."""
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if value == () and item.metadata.get("not_empty"):
            raise SettingsError(f"{item.name} is empty: it needs at least one value")
        for one in value if isinstance(value, tuple) else (value,):
            wrong = _wrong(item.metadata, one)
            if wrong:
                raise SettingsError(f"{item.name} must be {wrong}, not {one!r}")


def _wrong(about: Mapping[str, Any], value: Any) -> str:
    """What a value must be and is not; empty if it is right, or None."""
    choices = about.get("choices")
    if value is None:
        return ""
    if choices is not None and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return ""
    if not math.isfinite(value):
        return "a finite number"
    largest = LARGEST[float if isinstance(value, float) else int]
    if about.get("at_most") is None and about.get("below") is None and abs(value) > largest:
        return f"between {-largest:g} and {largest:g}"
    for bound, relation, holds in (
        (about.get("above"), "above", lambda limit: value > limit),
        (about.get("at_least"), "at least", lambda limit: value >= limit),
        (about.get("below"), "below", lambda limit: value < limit),
        (about.get("at_most"), "at most", lambda limit: value <= limit),
    ):
        if bound is not None and not holds(bound):
            return f"{relation} {bound:g}"
    return ""


def walk(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every field of a settings dataclass and of those inside it, by dotted key; a nested one comes before its own."""
    hints = _hints(kind)  # type: ignore[arg-type]
    for item in dataclasses.fields(kind):
        key = f"{prefix}{item.name}"
        yield key, item
        inner = hints[item.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from walk(inner, f"{key}.")


_hints = lru_cache(typing.get_type_hints)  # reading them anew would take most of the time of a walk


def keys_with(kind: type[Any], mark: str, prefix: str = "") -> set[str]:
    """Dotted keys of the fields at which a mark was set: "resumable" or "searchable"."""
    return {key for key, item in walk(kind, prefix) if item.metadata.get(mark)}


def absent_values(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key, what a run did that was begun before the field existed."""
    absent = {key: item.metadata.get("absent", NOTHING) for key, item in walk(kind, prefix)}
    return {key: value for key, value in absent.items() if value is not NOTHING}
