"""Settings dataclasses from plain content: every key and value checked, older names understood.

The dataclass is the schema (fields.py has the metadata of a field). Contract: an unknown key or a value of the
wrong type is a `SettingsError` that names the key and the nearest right one; what was called otherwise before is
understood, with one line of warning a process.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import types
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from beatray.errors import SettingsError
from beatray.fields import walk

log = logging.getLogger(__name__)

T = TypeVar("T")


def build(kind: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """`content` as the frozen dataclass `kind`, every value checked; SettingsError names the key.

    Keys and values that were called otherwise before are understood, with one line of warning. A mapping for a nested
    dataclass changes what the field has by default.
    """
    hints = typing.get_type_hints(kind)
    items = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    content = under_names_of_today(kind, dict(content), where)
    for name in content:
        if name not in items:
            raise SettingsError(f"there is no setting '{where}{name}'{nearest_to(str(name), list(items))}")
    values = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints[name]):
            inner = typing.cast("type[Any]", hints[name])
            default = items[name].default_factory
            whole = dataclasses.asdict(default()) if default is not dataclasses.MISSING else {}
            value = {**whole, **under_names_of_today(inner, dict(value), f"{where}{name}.")}
        values[name] = _convert(hints[name], value, f"{where}{name}")
    try:
        return kind(**values)
    except ValueError as error:
        message = str(error)
        raise SettingsError(message if message.startswith(where) else f"{where}{message}") from error


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        for option in options:
            try:
                return _convert(option, value, key)
            except SettingsError:
                if len(options) == 1:
                    raise
        expected = " or ".join("list" if typing.get_origin(option) is tuple else option.__name__ for option in options)
        raise SettingsError(f"{key}={value!r} is not of type {expected}")
    if origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise SettingsError(f"{key}={value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast("type[Any]", hint), value, f"{key}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            return tuple(_convert(kinds[0], item, key) for item in value)
        if len(kinds) != len(value):
            raise SettingsError(f"{key}={list(value)!r} must have {len(kinds)} values, not {len(value)}")
        return tuple(_convert(kind, item, key) for kind, item in zip(kinds, value, strict=True))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a run named 7 is still a name
    if hint in (int, bool, str) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise SettingsError(f"{key}={value!r} is not of type {expected}")


def nearest_to(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1, 0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [name for name in known if name.rpartition(".")[2]], 1, 0.5
    )
    return f"; did you mean '{close[0]}'?" if close else ""


def under_names_of_today(kind: type[Any], content: dict[str, Any], where: str) -> dict[str, Any]:
    """The content under the names of today."""
    if hasattr(kind, "older"):
        content, gone = kind.older(content)
        for old, new in gone.items():
            warn_renamed(f"{where}{old}", f"{where}{new}")
    for item in dataclasses.fields(kind):
        was, values = item.metadata.get("was"), item.metadata.get("was_values") or {}
        given = item.name
        if was in content and "." not in was:
            given = was
            older, now = content.pop(was), content.get(item.name)
            content[item.name] = {**now, **older} if isinstance(older, dict) and isinstance(now, dict) else older
        value = content.get(item.name)
        if isinstance(value, (str, bool)) and value in values:
            warn_renamed(f"{where}{given}={value}", f"{where}{item.name}={values[value]}")
            content[item.name] = values[value]
        elif given != item.name:
            warn_renamed(f"{where}{given}", f"{where}{item.name}")
    return content


def moved(schemas: Mapping[str, type[Any]]) -> dict[str, str]:
    """Keys that lie in another group now: older dotted key -> the new one."""
    return {
        item.metadata["was"]: key
        for group, kind in schemas.items()
        for key, item in walk(kind, f"{group}.")
        if "." in (item.metadata.get("was") or "")
    }


def older_keys(schemas: Mapping[str, type[Any]]) -> dict[str, str]:
    """Every dotted key that was one before and is still understood: what it is called now."""
    items = [found for group, kind in schemas.items() for found in walk(kind, f"{group}.")]
    beside = {
        f"{key.rpartition('.')[0]}.{item.metadata['was']}{inner.removeprefix(key)}": inner
        for key, item in items
        if item.metadata.get("was") and "." not in item.metadata["was"]
        for inner, _ in items
        if inner == key or inner.startswith(f"{key}.")
    }
    merged = {f"{group}.{key}": "" for group, kind in schemas.items() for key in getattr(kind, "OLDER", ())}
    return {**moved(schemas), **beside, **merged}


def move_key(content: dict[str, Any], old: str, new: str) -> None:
    group, _, name = old.rpartition(".")
    inner = content.get(group)
    if isinstance(inner, dict) and name in inner:
        warn_renamed(old, new)
        target, _, key = new.rpartition(".")
        content.setdefault(target, {})[key] = inner.pop(name)
        if not inner:
            del content[group]


@lru_cache
def warn_renamed(old: str, new: str) -> None:
    """Once a process: one line."""
    log.warning("%s is called %s now; the old name will go with the next version", old, new)


def today(changes: Mapping[str, Any], schemas: Iterable[tuple[str, type[Any]]]) -> dict[str, Any]:
    """Settings by dotted key, as a sweep has them, under the names of today, without a warning; others as they are.

    `schemas` are groups and their dataclasses; a key of today in one of them is not taken for an older one of another.
    Of the older keys that are one now (`OLDER`), only one may be given.
    """
    schemas = list(schemas)
    known = {key for group, kind in schemas for key, _ in walk(kind, f"{group}.")}
    content = dict(changes)
    for group, kind in schemas:
        renamed = moved({group: kind})
        items = list(walk(kind, f"{group}."))
        was = {key: item.metadata.get("was") or "." for key, item in items}
        renamed |= {f"{key.rpartition('.')[0]}.{old}": key for key, old in was.items() if "." not in old}
        content = {_new_key(key, renamed, known): value for key, value in content.items()}
        for key, item in items:
            values = item.metadata.get("was_values") or {}
            if isinstance(content.get(key), (str, bool)):
                content[key] = values.get(content[key], content[key])
        gone = [key for key in getattr(kind, "OLDER", ()) if f"{group}.{key}" in content]
        if len(gone) == 1 and f"{group}.{gone[0]}" not in known:
            inner = {key.removeprefix(f"{group}."): content[key] for key in content if key.startswith(f"{group}.")}
            merged = {f"{group}.{key}": value for key, value in kind.older(inner)[0].items() if key not in inner}
            if merged:
                del content[f"{group}.{gone[0]}"]
                content |= merged
    return content


def _new_key(key: str, renamed: Mapping[str, str], known: Iterable[str]) -> str:
    if key in known:
        return key
    for old, new in renamed.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def as_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON-ready dicts."""
    return dataclasses.asdict(settings)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        result |= flat(value, key) if isinstance(value, dict) and value else {key: value}
    return result
