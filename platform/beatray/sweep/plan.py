"""From the overrides of `beatray sweep` to the settings of every trial, all checked before anything starts.

A trial is what `beatray pretrain` would do with the same overrides and its own changes, as run=TRIAL in the folder of
the sweep. Overrides on the command line win over `sweep.fixed`, and a swept key cannot be one. `sweep.space.KEY=VALUE`
and `sweep.fixed.KEY=VALUE` change the space of a file, or make one without a file; null takes a key out.
`sweep.recipes` makes a row of every recipe there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from beatray.config import PATH_OVERRIDES, compose, config_folder
from beatray.corpus.label_settings import is_path, split_label_overrides
from beatray.errors import SettingsError
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.settings import EvaluateSettings
from beatray.schema import build, today
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.sweep.ranking import refuse_unknown_metric
from beatray.sweep.record import CONTROLS, COSTS, NAME, REPORT, metric_today
from beatray.sweep.settings import RECIPES, SweepSettings
from beatray.sweep.space import points, varied
from beatray.sweep.starts import NAME as STARTS
from beatray.track.memory import MEMORY
from beatray.train.composed import changes_today, pretrain_content, pretrain_settings
from beatray.train.run_spec import keys_marked
from beatray.train.timing import StepCost

DOTTED = re.compile(r"sweep\.(space|fixed)\.([^=]+)=(.*)", re.DOTALL)
GROUPS = ("objective", "encoder", "recipe", "train", "checkpoint")
"""Groups that choose a file of settings."""
SMALL = "_tiny"
"""How the names of small recipes end."""
RESERVED = {NAME, MEMORY, "ranking.json", "ranking.csv", CONTROLS, COSTS, REPORT, STARTS}
"""What else is in the sweep's folder: no trial may be called so."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial, ready to run."""

    name: str
    changes: Mapping[str, Any]
    settings: PretrainSettings


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A whole sweep: what it is called, where it goes, how it searches, and its trials."""

    name: str
    base: PretrainSettings  # the settings that all trials share
    overrides: tuple[str, ...]  # of the command line, those of the sweep itself left out
    sweep: SweepSettings  # with those of the fixed settings that no override has replaced
    trials: tuple[Trial, ...]
    shared: tuple[str, ...] = ()  # overrides that all trials share beside those of the command line
    evaluation: EvaluateSettings | None = None  # of every trial's encoder
    costs: Mapping[str, StepCost] = field(default_factory=dict)  # of a trial's step, where steps were timed

    @property
    def folder(self) -> Store:
        """The sweep's folder; each trial's run folder lies in it."""
        return folder_of(self.base)

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys in which the trials differ."""
        return varied(self.sweep)


def folder_of(base: PretrainSettings) -> Store:
    """Where a sweep with these settings lies."""
    out = Store(base.out)
    return (Store(str(out.folder)) if out.is_local else out).child(base.run)


def config_of(overrides: Iterable[str]) -> dict[str, Any]:
    """The composed content of `configs/sweep.yaml` under the overrides; `sweep` holds the sweep's own."""
    plain_overrides, dotted = _split(with_labels(overrides))
    kinds = {"sweep": SweepSettings, "evaluate": EvaluateSettings}
    # a sweep may fix the method and its schedule, whose settings the other overrides are about
    own = compose("sweep", [each for each in plain_overrides if _is_of(each, "sweep")], kinds=kinds)["sweep"]
    given = {_key(each) for each in plain_overrides}
    chosen = [
        _override(key, value) for key, value in (own.get("fixed") or {}).items() if key in GROUPS and key not in given
    ]
    content = pretrain_content("sweep", [*chosen, *plain_overrides], kinds=kinds)
    if (kind := content["sweep"].get("recipes")) in RECIPES:
        content["sweep"]["rows"] = {**recipe_rows(kind), **(content["sweep"].get("rows") or {})}
    for part, key, value in dotted:
        entries = content["sweep"].setdefault(part, {})
        if value is None:
            entries.pop(key, None)
        else:
            entries[key] = value
    return content


def recipe_rows(kind: str) -> dict[str, dict[str, str]]:
    """A row for each recipe there is, found by looking: the small ones (`tiny`) or those as published (`full`)."""
    found = sorted(path.stem for path in (config_folder() / "recipe").glob("*.yaml"))
    chosen = [name for name in found if name.endswith(SMALL) == (kind == "tiny")]
    return {name.removesuffix(SMALL): {"recipe": name} for name in chosen}


def plan_from(overrides: Iterable[str]) -> SweepPlan:
    """The plan that the overrides mean; SettingsError names the trial and the key that does not fit."""
    overrides = with_labels(overrides)
    content = config_of(overrides)
    sweep = build(SweepSettings, content.pop("sweep"), "sweep.")
    if not sweep.space and not sweep.rows:
        offered = sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml") if path.stem != "default")
        raise SettingsError(f"which space? set sweep=NAME ({', '.join(offered)}) or sweep.space.KEY=[VALUE,VALUE]")
    plain_overrides = [override for override in _split(overrides)[0] if not _is_of(override, "sweep")]
    base_overrides = [override for override in plain_overrides if not _is_of(override, "evaluate")]
    _refuse_swept_overrides(base_overrides, sweep)
    given = {_key_today(override) for override in plain_overrides}
    if sweep.budget == "core_minutes" and "train.epochs" in given:
        raise SettingsError("sweep.budget=core_minutes sets train.epochs: leave it out, or set sweep.budget=epochs")
    fixed = {
        key: value
        for key, value in sweep.fixed.items()
        if _key_today(_override(key, value)) not in given and not ("evaluate" in given and _is_of(key, "evaluate"))
    }
    sweep = replace(sweep, fixed=fixed, metric=metric_today(sweep.metric))
    shared = [_override(key, value) for key, value in fixed.items() if not _is_of(key, "evaluate")]
    of_evaluation = [_override(key, value) for key, value in fixed.items() if _is_of(key, "evaluate")]
    of_evaluation += [override for override in plain_overrides if _is_of(override, "evaluate")]
    base = pretrain_settings([*base_overrides, f"run={content['run']}", *shared])
    if sweep.search == "pbt":
        _check_population(sweep, base)
    folder = folder_of(base)
    trials = []
    for point in points(sweep):
        if point.name in RESERVED:
            raise SettingsError(f"no trial may be called {point.name}; give the row another name")
        settings = _trial_settings([*base_overrides, *shared], point.name, point.changes, folder)
        trials.append(Trial(point.name, point.changes, settings))
    evaluation = None
    if sweep.evaluate:
        chosen = sorted(of_evaluation, key=lambda override: "." in _key(override))  # the group before its keys
        evaluation = build(
            EvaluateSettings, compose("evaluate", chosen, kinds={"evaluate": EvaluateSettings})["evaluate"], "evaluate."
        )
    elif of_evaluation:
        raise SettingsError(f"'{of_evaluation[0]}' needs sweep.evaluate=true: this sweep evaluates nothing")
    refuse_unknown_metric(sweep.metric, evaluation, [base, *(trial.settings for trial in trials)])
    return SweepPlan(base.run, base, tuple(base_overrides), sweep, tuple(trials), tuple(shared), evaluation)


def settings_with(plan: SweepPlan, name: str, changes: Mapping[str, Any]) -> PretrainSettings:
    """The settings of a trial whose changes are others by now than it was drawn with."""
    return _trial_settings([*plan.overrides, *plan.shared], name, changes, plan.folder)


def _trial_settings(overrides: list[str], name: str, changes: Mapping[str, Any], folder: Store) -> PretrainSettings:
    own = [_override(key, value) for key, value in changes.items()]
    try:
        settings = pretrain_settings([*overrides, *own])
        return replace(settings, out=folder.location, run=name)
    except SettingsError as error:
        raise SettingsError(f"trial {name}: {error}") from error


def _check_population(sweep: SweepSettings, base: PretrainSettings) -> None:
    """Refuse a population over settings that cannot change while a trial trains: the fields name those that can."""
    searchable = keys_marked(base, "searchable")
    fixed = [key for key in sweep.space if not set(changes_today({key: None})) <= searchable]
    if fixed:
        raise SettingsError(
            f"search=pbt changes settings while a trial trains, which {', '.join(fixed)} cannot; it can change "
            f"{', '.join(sorted(searchable))}"
        )


def described(plan: SweepPlan) -> str:
    """The trials of a plan, as comment lines for `--print-config`."""
    names = "\n".join(f"#   {trial.name}" for trial in plan.trials)
    return f"# {len(plan.trials)} trials into {plan.folder.where()}:\n{names}"


def with_labels(overrides: Iterable[str]) -> list[str]:
    """The overrides with `labels=` and `labels.KEY=` of `beatray finetune` as settings of the objective."""
    given, others = split_label_overrides(list(overrides))
    path = given.pop("table", "")
    if path and not is_path(path):
        others.append(_override("objective.labels", path))
    elif path:
        others += [_override("objective.labels", TABLE), _override("objective.table.table", path)]
    return [*others, *(_override(f"objective.table.{key}", value) for key, value in given.items())]


def _split(overrides: Iterable[str]) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """Overrides for Hydra, and (space or fixed, dotted key, value) of those that name a mapping's entry by its key."""
    from omegaconf import OmegaConf

    others, entries = [], []
    for override in overrides:
        found = DOTTED.fullmatch(override)
        if found is None:
            others.append(override)
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={found[3]}"]))["value"]  # type: ignore[index,call-overload]
        except Exception as error:
            raise SettingsError(f"'{override}': {error}") from error
        entries.append((found[1], found[2], value))
    return others, entries


def _key(override: str) -> str:
    key = override.partition("=")[0]
    return PATH_OVERRIDES.get(key, key)


def _key_today(override: str) -> str:
    """The key of an override, under its name of today where it has one."""
    _, _, value = override.partition("=")
    changes = changes_today({_key(override): None if value == "null" else value})
    return next(iter(today(changes, [("evaluate", EvaluateSettings)])))


def _is_of(override: str, group: str) -> bool:
    return _key(override) == group or _key(override).startswith(f"{group}.")


def _refuse_swept_overrides(overrides: list[str], sweep: SweepSettings) -> None:
    swept = {today: key for key in sweep.space for today in changes_today({key: None})}
    chosen = {
        name: changes_today(row) for name, row in (sweep.rows or {}).items() if sweep.only is None or name in sweep.only
    }
    for override in overrides:
        key = _key_today(override)
        if key in swept:
            raise SettingsError(
                f"'{override}': {swept[key]} is swept; leave it out, or take the key out of the space with "
                f"sweep.space.{swept[key]}=null"
            )
        rows = [name for name, row in chosen.items() if key in row]
        if rows:
            raise SettingsError(
                f"'{override}': rows set {key} ({', '.join(rows[:3])}{', ...' if len(rows) > 3 else ''}): "
                "leave it out, or choose rows without it with sweep.only=[NAME,...]"
            )


def _override(key: str, value: Any) -> str:
    return f"{key}={_value(value)}"


def _value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_value(item)}' for name, item in value.items())}}}"
    text = str(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_/-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
