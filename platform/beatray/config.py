"""From overrides and YAML to settings: groups composed by Hydra before anything starts (schema.py builds them).

The overrides on the command line are the dotted keys of `configs/` (`train.workers=8`) or the choice of a group
(`objective=simclr`). Contract: an unknown key or a value of the wrong type is a `SettingsError` that names the key and
the nearest right one; what comes back is immutable and complete.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from beatray.errors import SettingsError
from beatray.fields import walk
from beatray.schema import (
    flat,
    move_key,
    moved,
    nearest_to,
    older_keys,
    under_names_of_today,
    warn_renamed,
)
from beatray.settings import (
    CheckpointSettings,
    ClusterSettings,
    CorpusSettings,
    TrackingSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

GROUPS: dict[str, type[Any]] = {
    "corpus": CorpusSettings,
    "train": TrainSettings,
    "checkpoint": CheckpointSettings,
    "cluster": ClusterSettings,
    "tracking": TrackingSettings,
}
"""The dataclass of each group of settings that several commands share."""

PATH_OVERRIDES = {"corpus": "corpus.path"}
"""Short overrides for the dotted keys that hold a path."""

NO_RECIPE = "recipe=null"
"""The override that takes a recipe of the top file away."""

OLDER_CHOICES = {"sweep": {"form": "loss", "pos_mass": "positive_mass"}}
"""Files of a group that are called otherwise now."""

PATH_KEYS = {
    "corpus.path",
    "out",
    "model",
    "files",
    "run",
    "encoder_path",
    "encoder_weights",
    "tracking.uri",
    "id_key_file",
    "evaluate.robustness.noise_folder",
    "evaluate.labels.table",
    "evaluate.labels.id_key_file",
    "objective.table.table",
    "objective.table.id_key_file",
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
    set although no YAML file repeats it, and what they were called before is known too. `extra` maps further short
    overrides to dotted keys; `other_words` are known to the command alone and only help to name the nearest right one.
    Raises SettingsError for an override that fits nothing.
    """
    folder = config_folder()
    dotted = [_override(override, {**PATH_OVERRIDES, **(extra or {})}) for override in overrides]
    chosen = [override for override in dotted if _is_choice(override, folder)]
    base = _composed(top, tuple(chosen), (), str(folder))
    kinds = {**GROUPS, **(kinds or {})}
    schemas = {name: kind for name, kind in kinds.items() if name in base}
    for group, schema in (named or {}).items():
        try:
            schemas[group] = schema.kind(_name_of(group, dotted, base))
        except ValueError as error:
            raise SettingsError(str(error)) from error
    items = [found for group, kind in schemas.items() for found in walk(kind, f"{group}.")]
    offered = [key for key, _ in items]
    mappings = tuple(f"{key}." for key, item in items if str(item.type).startswith("dict"))  # any name may follow
    known = [
        *(key for key in _dotted(base) if key not in schemas),
        *offered,
        *(f"{group}.name" for group in named or {}),
    ]
    older = older_keys(schemas)
    by_key = dict(items)
    texts = {**by_key, **{old: by_key.get(new) for old, new in older.items()}}
    dotted = [override if override in chosen else _as_text(override, texts) for override in dotted]
    given = {override.partition("=")[0].lstrip("+~") for override in dotted}
    for override in dotted:
        key = override.partition("=")[0].lstrip("+~")
        if override not in chosen and not _fits(key, [*known, *older]) and not key.startswith(mappings):
            names = [*known, *others, *_short_names(top, folder, extra)]
            raise SettingsError(f"there is no setting '{key}'{nearest_to(key, names)}")
        if older.get(key) in given:
            raise SettingsError(f"{key} is called {older[key]} now, and both are set; set {older[key]} alone")
    own = _over_recipe(dotted, chosen, str(base["recipe"]), folder) if base.get("recipe") else []
    values = (*own, *(_forced(override) for override in dotted if override not in chosen))
    content = _composed(top, tuple(chosen), values, str(folder))
    for old, new in moved(schemas).items():
        move_key(content, old, new)
    for group, schema in (named or {}).items():
        inner = dict(content[group])
        name = str(inner.pop("name"))
        try:
            content[group] = {"name": name, **schema.complete(name, inner, f"{group}.")}
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return content


def _composed(top: str, chosen: tuple[str, ...], values: tuple[str, ...], folder: str) -> dict[str, Any]:
    """The file under choices and then values, as plain dicts. Raises SettingsError with Hydra's message."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        composed = _laid_over(_by_hydra(top, chosen, folder), values)
        if composed is None:
            composed = _by_hydra(top, (*chosen, *values), folder)
        content: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SettingsError(_choice_error((*chosen, *values), Path(folder), str(error))) from error
    return {str(key): value for key, value in content.items()}


@lru_cache(maxsize=64)
def _by_hydra(top: str, dotted: tuple[str, ...], folder: str) -> DictConfig:
    """One composition by Hydra, a tenth of a second: kept, since a sweep makes every trial from the same choices."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    given = ["~recipe" if override == NO_RECIPE else override for override in dotted]  # a group cannot be set to null
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(folder).absolute()), version_base=None):
        composed: DictConfig = hydra_compose(top, overrides=given)
    return composed


def _laid_over(base: DictConfig, overrides: tuple[str, ...]) -> DictConfig | None:
    """A composition under overrides `++key=value`, read by Hydra's grammar and laid over it as Hydra does.

    None where one is another kind of override or does not fit: Hydra then composes the whole, or reports the error.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not overrides:
        return base
    if not all(override.startswith("++") for override in overrides):
        return None
    laid = copy.deepcopy(base)
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.package is not None or override.is_sweep_override() or "/" in override.key_or_group:
                return None
            OmegaConf.update(laid, override.key_or_group, override.value(), merge=True, force_add=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None
    return laid


def _name_of(group: str, dotted: Sequence[str], base: Mapping[str, Any]) -> str:
    chosen_names = [
        override.partition("=")[2] for override in dotted if override.partition("=")[0].lstrip("+") == f"{group}.name"
    ]
    return chosen_names[-1].strip("'\"") if chosen_names else str(base[group]["name"])


def _forced(override: str) -> str:
    """The override so that it may name a key that no YAML file repeats."""
    return override if override.startswith(("+", "~")) else f"++{override}"


def _over_recipe(dotted: Sequence[str], chosen: Sequence[str], recipe: str, folder: Path) -> list[str]:
    """A group that the user chose replaces what the recipe sets in it: overrides that undo the recipe there.

    The objective is what a recipe is about, so another one beside it is refused.
    """
    if any(override.partition("=")[0].lstrip("+") in ("objective", "objective.name") for override in dotted):
        raise SettingsError("recipe= chooses the objective; set recipe= or objective=, not both")
    of_recipe = yaml.safe_load((folder / "recipe" / f"{recipe}.yaml").read_text())
    found = []
    for override in chosen:
        group, _, choice = override.partition("=")
        path = folder / group / f"{choice}.yaml"
        if group == "recipe" or not path.is_file():
            continue
        own = flat(yaml.safe_load(path.read_text()) or {}, group)
        keys = flat(of_recipe.get(group, {}), group)
        found += [f"++{key}={json.dumps(own[key])}" if key in own else f"~{key}" for key in keys]
    return found


def _override(override: str, short: Mapping[str, str]) -> str:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise SettingsError(f"'{override}' is not of the form key=value")
    key = short.get(key, key)
    if value in OLDER_CHOICES.get(key, {}):
        warn_renamed(override, f"{key}={OLDER_CHOICES[key][value]}")
        value = OLDER_CHOICES[key][value]
    if key in PATH_KEYS and value not in ("null", "auto"):
        value = quoted(_from_home(_bare(value)))
    return f"{key}={value}"


def _from_home(path: str) -> str:
    """`~` and `~user` at the beginning of a path are a home folder, as shells expand it at the start of an argument."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # no user of that name
        return path


def _bare(value: str) -> str:
    """The value without the quotes that a user put around it."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def quoted(value: str) -> str:
    """Text that Hydra's grammar takes as it is: quoted, and no `${...}` in it is looked up.

    A backslash means itself but before a quote, and so at the end.
    """
    held = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"'{held.replace('${', chr(92) + '${')}'"


def _as_text(override: str, items: Mapping[str, dataclasses.Field[Any] | None]) -> str:
    """The override with its value quoted where the setting is a text: `v2 (new)` and `1e3` are names like any other."""
    key, sign, value = override.partition("=")
    item = items.get(key.lstrip("+"))
    if key in PATH_KEYS or item is None or str(item.type) not in ("str", "str | None") or value in ("null", ""):
        return override
    return f"{key}{sign}{quoted(_bare(value))}"


def _short_names(top: str, folder: Path, extra: Mapping[str, str] | None) -> list[str]:
    """Keys without a dot that a command takes: groups that its file composes, and its own short ones."""
    groups = yaml.safe_load((folder / f"{top}.yaml").read_text()).get("defaults", [])
    names = [str(name).removeprefix("optional ") for group in groups if isinstance(group, dict) for name in group]
    return [*names, *PATH_OVERRIDES, *(extra or {})]


def _is_choice(override: str, folder: Path) -> bool:
    key = override.partition("=")[0]
    return "." not in key and (folder / key).is_dir()


def _choice_error(chosen: Sequence[str], folder: Path, message: str) -> str:
    for override in chosen:
        key, _, value = override.partition("=")
        offered = sorted(path.stem for path in (folder / key).glob("*.yaml"))
        if offered and value not in offered and override != NO_RECIPE:
            return f"there is no {key} '{value}'{nearest_to(value, offered)} (offered: {', '.join(offered)})"
    return message


def _dotted(content: Any, prefix: str = "") -> list[str]:
    if not isinstance(content, dict) or not content:
        return [prefix] if prefix else []
    return [key for name, value in content.items() for key in _dotted(value, f"{prefix}.{name}" if prefix else name)]


def _fits(key: str, known: list[str]) -> bool:
    return any(key == name or name.startswith(key + ".") for name in known)


def renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of pretraining that an older version wrote down, under the names of today; other keys as they are."""
    content = copy.deepcopy(dict(stored))
    for old, new in moved(GROUPS).items():
        move_key(content, old, new)
    for group, kind in GROUPS.items():
        if group in content:
            content[group] = under_names_of_today(kind, dict(content[group]), f"{group}.")
    return content
