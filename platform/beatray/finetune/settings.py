"""From the words of `beatray finetune` to settings: a training run whose objective learns from labels.

`encoder=PATH` names the weights to start from, `encoder=random` none (then `encoder.name=` and `encoder.KEY=` say which
network); `labels=`, `trained=`, `fraction=` and the other settings of the objective may be said without `objective.`;
`task=` chooses between labels of recordings (classify, regress) and waves (segment).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from beatray.errors import SettingsError
from beatray.objectives.registry import objective_class
from beatray.plugins import nearest
from beatray.schema import build
from beatray.settings import PretrainSettings
from beatray.train.composed import pretrain_content

OBJECTIVES = {"classify": "supervised", "regress": "supervised", "segment": "segmentation"}
FILLED = ("names", "targets_sha256", "kind", "mean", "sd", "weights")
"""What no word may say: it is found in the corpus."""
RANDOM = "encoder=random"


def finetune_settings(overrides: Sequence[str]) -> PretrainSettings:
    """The settings that the words mean; SettingsError names the key that does not fit."""
    words, task = list(overrides), "classify"
    for word in [word for word in words if word.startswith("task=")]:
        task = word.partition("=")[2]
        words.remove(word)
    if task not in OBJECTIVES:
        raise SettingsError(f"there is no task {task!r}{nearest(task, OBJECTIVES)}")
    if not any(word.partition("=")[0] in ("encoder", "encoder_weights", "encoder.weights") for word in words):
        raise SettingsError("which encoder? say encoder=PATH (a run folder, or its encoder/ folder), or encoder=random")
    words = [word for word in words if word != RANDOM]
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key.startswith("objective.") and key.split(".")[1] in FILLED:
            raise SettingsError(f"{key} is found in the corpus and cannot be said")
    kind = objective_class(OBJECTIVES[task])
    short = {
        item.name: f"objective.{item.name}" for item in dataclasses.fields(kind.Settings) if item.name not in FILLED
    }
    words = [f"objective.{word}" if word.startswith("augment.") else word for word in words]
    chosen = [f"objective={OBJECTIVES[task]}", *([] if task == "segment" else [f"objective.task={task}"])]
    extra = {"encoder": "encoder_weights", **short}
    return build(PretrainSettings, pretrain_content("finetune", [*chosen, *words], extra=extra))
