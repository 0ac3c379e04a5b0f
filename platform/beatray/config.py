"""From overrides and YAML to settings: groups composed by Hydra, built as frozen dataclasses before anything starts.

The overrides on the command line are the dotted keys of `configs/` (`train.workers=8`) or the choice of a group
(`objective=simclr`). Contract: an unknown key or a value of the wrong type is a `SettingsError` that names the key and
the nearest right one; what comes back is immutable and complete.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import logging
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from beatray.errors import SettingsError
from beatray.fields import walk
from beatray.settings import (
    CheckpointSettings,
    ClusterSettings,
    CorpusSettings,
    TrackingSettings,
    TrainSettings,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUPS: dict[str, type[Any]] = {
    "corpus": CorpusSettings,
    "train": TrainSettings,
    "checkpoint": CheckpointSettings,
    "cluster": ClusterSettings,
    "tracking": TrackingSettings,
}
"""The dataclass of each group of settings that several commands share."""

PATH_OVERRIDES = {"corpus": "corpus.path"}
"""Short overrides for the dotted keys that hold a place."""

NO_RECIPE = "recipe=null"
"""The word that takes a recipe of the top file away."""

OLDER_CHOICES = {"sweep": {"form": "loss", "pos_mass": "positive_mass"}}
"""Files of a group that are called otherwise now."""

PATH_KEYS = {
    "corpus.path",
    "out",
    "run",
    "encoder_path",
    "tracking.uri",
    "id_key_file",
    "evaluate.robustness.noise_folder",
}


def config_folder() -> Path:
    """The YAML groups: inside an installed package, or beside the source tree."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent.parent / "configs"):
        if folder.is_dir():
            return folder
    raise SettingsError("the configs/ folder is missing from this installation of beatray")


class Named(Protocol):
    """The schema of a group whose content is a `name` and the settings of what is called so: a method, a network."""

    def kind(self, name: str) -> type[Any]:
        """The settings dataclass. ValueError for an unknown name."""

    def complete(self, name: str, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Every setting, checked, as plain data. ValueError names the key that does not fit."""


def compose(
    top: str,
    overrides: Sequence[str],
    *,
    extra: Mapping[str, str] | None = None,
    others: tuple[str, ...] = (),
    kinds: Mapping[str, type[Any]] | None = None,
    named: Mapping[str, Named] | None = None,
) -> dict[str, Any]:
    """The content of `configs/<top>.yaml` under the overrides of the command line, as plain dicts.

    `kinds` are the dataclasses of groups and `named` those of groups that are chosen by name: what they know may be
    said although no YAML file repeats it, and what they were called before is known too. `extra` maps further short
    overrides to dotted keys; `other_words` are known to the command alone and only help to name the nearest right one.
    Raises SettingsError for a word that fits nothing.
    """
    folder = config_folder()
    dotted = [_override(override, {**PATH_OVERRIDES, **(extra or {})}) for override in overrides]
    chosen = [override for override in dotted if _is_choice(override, folder)]
    base = _composed(top, tuple(chosen), str(folder))
    kinds = {**GROUPS, **(kinds or {})}
    schemas = {name: kind for name, kind in kinds.items() if name in base}
    for group, schema in (named or {}).items():
        try:
            schemas[group] = schema.kind(_name_of(group, dotted, base))
        except ValueError as error:
            raise SettingsError(str(error)) from error
    offered = [key for group, kind in schemas.items() for key, _ in walk(kind, f"{group}.")]
    known = [
        *(key for key in _dotted(base) if key not in schemas),
        *offered,
        *(f"{group}.name" for group in named or {}),
    ]
    older = older_keys(schemas)
    said = {override.partition("=")[0].lstrip("+~") for override in dotted}
    for override in dotted:
        key = override.partition("=")[0].lstrip("+~")
        if override not in chosen and not _fits(key, [*known, *older]):
            raise SettingsError(f"there is no setting '{key}'{_nearest(key, [*known, *others])}")
        if older.get(key) in said:
            raise SettingsError(f"{key} is called {older[key]} now, and both are said; say {older[key]}")
    own = _over_recipe(dotted, chosen, str(base["recipe"]), folder) if base.get("recipe") else []
    content = _composed(top, (*chosen, *own, *(w if w in chosen else _forced(w) for w in dotted)), str(folder))
    for old, new in moved(schemas).items():
        _move(content, old, new)
    for group, schema in (named or {}).items():
        inner = dict(content[group])
        name = str(inner.pop("name"))
        try:
            content[group] = {"name": name, **schema.complete(name, inner, f"{group}.")}
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return content


def _composed(top: str, dotted: tuple[str, ...], folder: str) -> dict[str, Any]:
    """One composition by Hydra; those of choices alone are kept, since a sweep composes every trial from them."""
    plain: dict[str, Any] = copy.deepcopy(_cached(top, dotted, folder))
    return plain


@lru_cache(maxsize=64)
def _cached(top: str, dotted: tuple[str, ...], folder: str) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    said = ["~recipe" if override == NO_RECIPE else override for override in dotted]  # a group cannot be set to null
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(folder).absolute()), version_base=None):
        try:
            content: Any = OmegaConf.to_container(hydra_compose(top, overrides=said), resolve=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise SettingsError(_choice_error(dotted, Path(folder), str(error))) from error
    return {str(key): value for key, value in content.items()}


def _name_of(group: str, dotted: Sequence[str], base: Mapping[str, Any]) -> str:
    said = [
        override.partition("=")[2] for override in dotted if override.partition("=")[0].lstrip("+") == f"{group}.name"
    ]
    return said[-1].strip("'\"") if said else str(base[group]["name"])


def _forced(override: str) -> str:
    """The override so that it may name a key that no YAML file repeats."""
    return override if override.startswith(("+", "~")) else f"++{override}"


def _over_recipe(dotted: Sequence[str], chosen: Sequence[str], recipe: str, folder: Path) -> list[str]:
    """A group that the user chose takes the place of what the recipe says in it: overrides that undo the recipe there.

    The objective is what a recipe is about, so another one beside it is refused.
    """
    if any(override.partition("=")[0].lstrip("+") in ("objective", "objective.name") for override in dotted):
        raise SettingsError("recipe= chooses the objective; say recipe= or objective=, not both")
    of_recipe = yaml.safe_load((folder / "recipe" / f"{recipe}.yaml").read_text())
    found = []
    for override in chosen:
        group, _, choice = override.partition("=")
        path = folder / group / f"{choice}.yaml"
        if group == "recipe" or not path.is_file():
            continue
        own = flat(yaml.safe_load(path.read_text()) or {}, group)
        said = flat(of_recipe.get(group, {}), group)
        found += [f"++{key}={json.dumps(own[key])}" if key in own else f"~{key}" for key in said]
    return found


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


def _move(content: dict[str, Any], old: str, new: str) -> None:
    group, _, name = old.rpartition(".")
    inner = content.get(group)
    if isinstance(inner, dict) and name in inner:
        say_renamed(old, new)
        target, _, key = new.rpartition(".")
        content.setdefault(target, {})[key] = inner.pop(name)
        if not inner:
            del content[group]


@lru_cache
def say_renamed(old: str, new: str) -> None:
    """Once a process: one line."""
    log.warning("%s is called %s now; the old name will go with the next version", old, new)


def _override(override: str, short: Mapping[str, str]) -> str:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise SettingsError(f"'{override}' is not of the form key=value")
    key = short.get(key, key)
    if value in OLDER_CHOICES.get(key, {}):
        say_renamed(override, f"{key}={OLDER_CHOICES[key][value]}")
        value = OLDER_CHOICES[key][value]
    if key in PATH_KEYS and value not in ("null", "auto"):
        value = "'" + value.strip("'").replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{key}={value}"


def _is_choice(override: str, folder: Path) -> bool:
    key = override.partition("=")[0]
    return "." not in key and (folder / key).is_dir()


def _choice_error(chosen: Sequence[str], folder: Path, message: str) -> str:
    for override in chosen:
        key, _, value = override.partition("=")
        offered = sorted(path.stem for path in (folder / key).glob("*.yaml"))
        if offered and value not in offered and override != NO_RECIPE:
            return f"there is no {key} '{value}'{_nearest(value, offered)} (offered: {', '.join(offered)})"
    return message


def _dotted(content: Any, prefix: str = "") -> list[str]:
    if not isinstance(content, dict) or not content:
        return [prefix] if prefix else []
    return [key for name, value in content.items() for key in _dotted(value, f"{prefix}.{name}" if prefix else name)]


def _fits(key: str, known: list[str]) -> bool:
    return any(key == name or name.startswith(key + ".") for name in known)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1, 0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [name for name in known if name.rpartition(".")[2]], 1, 0.5
    )
    return f"; did you mean '{close[0]}'?" if close else ""


def build(kind: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """`content` as the frozen dataclass `kind`, every value checked; SettingsError names the key.

    Keys and values that were called otherwise before are understood, with one line of warning. A mapping for a nested
    dataclass changes what the field has by default.
    """
    hints = typing.get_type_hints(kind)
    items = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    content = _renamed(kind, dict(content), where)
    for name in content:
        if name not in items:
            raise SettingsError(f"there is no setting '{where}{name}'{_nearest(str(name), list(items))}")
    values = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints[name]):
            inner = typing.cast("type[Any]", hints[name])
            default = items[name].default_factory
            whole = dataclasses.asdict(default()) if default is not dataclasses.MISSING else {}
            value = {**whole, **_renamed(inner, dict(value), f"{where}{name}.")}
        values[name] = _convert(hints[name], value, f"{where}{name}")
    try:
        return kind(**values)
    except ValueError as error:
        message = str(error)
        raise SettingsError(message if message.startswith(where) else f"{where}{message}") from error


def _renamed(kind: type[Any], content: dict[str, Any], where: str) -> dict[str, Any]:
    """The content under the names of today."""
    if hasattr(kind, "older"):
        content, gone = kind.older(content)
        for old, new in gone.items():
            say_renamed(f"{where}{old}", f"{where}{new}")
    for item in dataclasses.fields(kind):
        was, values = item.metadata.get("was"), item.metadata.get("was_values") or {}
        given = item.name
        if was in content and "." not in was:
            given = was
            older, now = content.pop(was), content.get(item.name)
            content[item.name] = {**now, **older} if isinstance(older, dict) and isinstance(now, dict) else older
        value = content.get(item.name)
        if isinstance(value, str) and value in values:
            say_renamed(f"{where}{given}={value}", f"{where}{item.name}={values[value]}")
            content[item.name] = values[value]
        elif given != item.name:
            say_renamed(f"{where}{given}", f"{where}{item.name}")
    return content


def renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of pretraining that an older version wrote down, under the names of today; other keys as they are."""
    content = copy.deepcopy(dict(stored))
    for old, new in moved(GROUPS).items():
        _move(content, old, new)
    for group, kind in GROUPS.items():
        if group in content:
            content[group] = _renamed(kind, dict(content[group]), f"{group}.")
    return content


def today(changes: Mapping[str, Any], schemas: Iterable[tuple[str, type[Any]]]) -> dict[str, Any]:
    """Settings by dotted key, as a sweep has them, under the names of today, without a word; others as they are.

    `schemas` are groups and their dataclasses; a key of today in one of them is not taken for an older one of another.
    Of the older keys that are one now (`OLDER`), only one alone can be told.
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
            if isinstance(content.get(key), str):
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
        wanted = " or ".join("list" if typing.get_origin(option) is tuple else option.__name__ for option in options)
        raise SettingsError(f"{key}={value!r} is not of type {wanted}")
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
    if origin is dict and isinstance(value, dict):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a run named 7 is still a name
    if hint in (int, bool, str) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise SettingsError(f"{key}={value!r} is not of type {wanted}")


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
