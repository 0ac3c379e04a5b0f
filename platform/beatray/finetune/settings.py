"""From the overrides of `beatray finetune` to settings: a training run whose objective learns from labels.

`encoder=PATH` names the weights to start from, `encoder=random` none (then `encoder.name=` and `encoder.KEY=` say which
network). `labels=NAME` names labels that the corpus has, `labels=PATH` a table of the user's own, which `labels.KEY=`
says how to read. `trained=`, `fraction=` and the other settings of the objective may be given without `objective.`;
`task=` chooses between labels of recordings (classify, regress) and waves (segment).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from beatray.corpus.label_settings import is_path, label_settings, split_label_overrides
from beatray.errors import SettingsError
from beatray.evaluate.label_spaces import TABLE
from beatray.objectives.registry import objective_class, objective_settings
from beatray.plugins import nearest
from beatray.schema import build
from beatray.settings import PretrainSettings
from beatray.train.composed import pretrain_content

OBJECTIVES = {"classify": "supervised", "regress": "supervised", "segment": "segmentation"}
FILLED = ("names", "targets_sha256", "kind", "mean", "sd", "weights")
"""What no override may set: it is found in the corpus."""
OWN_KEYS = ("labels", "table")
"""Fields whose overrides are read here."""
RANDOM = "encoder=random"


def finetune_settings(overrides: Sequence[str]) -> PretrainSettings:
    """The settings that the overrides mean; SettingsError names the key that does not fit."""
    given, others = split_label_overrides(overrides)
    task = "classify"
    for override in [override for override in others if override.startswith("task=")]:
        task = override.partition("=")[2]
        others.remove(override)
    if task not in OBJECTIVES:
        raise SettingsError(f"there is no task {task!r}{nearest(task, OBJECTIVES)}")
    if not any(override.partition("=")[0] in ("encoder", "encoder_weights", "encoder.weights") for override in others):
        raise SettingsError("which encoder? set encoder=PATH (a run folder, or its encoder/ folder), or encoder=random")
    others = [override for override in others if override != RANDOM]
    for override in others:
        key = override.partition("=")[0].lstrip("+")
        if key.startswith("objective.") and key.split(".")[1] in FILLED:
            raise SettingsError(f"{key} is derived from the corpus and cannot be set")
    kind = objective_class(OBJECTIVES[task])
    short = {
        item.name: f"objective.{item.name}"
        for item in dataclasses.fields(kind.Settings)
        if item.name not in (*FILLED, *OWN_KEYS)
    }
    others = [f"objective.{override}" if override.startswith("augment.") else override for override in others]
    chosen = [f"objective={OBJECTIVES[task]}", *([] if task == "segment" else [f"objective.task={task}"])]
    extra = {"encoder": "encoder_weights", **short}
    content = pretrain_content("finetune", [*chosen, *others], extra=extra)
    content["objective"] = _with_labels(content["objective"], given)
    return build(PretrainSettings, content)


def _with_labels(objective: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The objective's settings with those of its labels: a name, or a table and how it is read."""
    if not given:
        return objective
    path = given.get("table", "")
    if path and not is_path(path):
        if len(given) > 1 or path == TABLE:
            raise SettingsError(f"labels={path} is no table, which labels.KEY= is about: set labels=PATH (./{path})")
        changed: dict[str, Any] = {"labels": path}
    elif not path:
        raise SettingsError(f"labels.{next(iter(given))}= is about a table: set labels=PATH")
    elif "table" not in objective:
        raise SettingsError(f"task=segment learns labels=waves, not labels={path}")
    else:
        changed = {"labels": TABLE, "table": dataclasses.asdict(label_settings({**objective["table"], **given}))}
    own = {key: value for key, value in {**objective, **changed}.items() if key != "name"}
    return {"name": objective["name"], **dataclasses.asdict(objective_settings(objective["name"], own))}
