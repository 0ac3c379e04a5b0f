"""The scores of the models of a sweep over labels, read back from its folder: by method and share of the labels.

A method is what trials have in common that differ in nothing but what repeats them (seed, split) and in
`objective.fraction`, the share of the labelled patients they learned from. Its scores are those of `model.json` on the
test recordings.

Contract: a trial that is not finished, or left no model, is left out and named in `missing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.models.model_folder import MODEL_FOLDER, describe_model, is_model
from beatray.storage.store import Store
from beatray.sweep.record import SweepRecord, TrialRecord
from beatray.sweep.results import split_name
from beatray.sweep.space import REPEATS, short_keys, without_repeats

FRACTION, SCRATCH = "objective.fraction", "objective.from_scratch"
NAMES = {
    "auroc": "AUROC",
    "f1": "F1",
    "mae": "mean absolute error",
    "accuracy": "accuracy",
    "average_precision": "average precision",
    "r2": "R²",
}
"""Scores that a report shows, the main one of a model first. Less is better of errors, more of all others."""
ERRORS = ("mae",)


@dataclass(frozen=True, slots=True)
class ModelTrial:
    """The model of one trial."""

    trial: str
    repeat: str
    fraction: float
    description: Mapping[str, Any]  # model.json

    def score(self, name: str) -> float:
        """A score on the test recordings; NaN where it is not defined."""
        found = self.description["scores"]["test"].get(name)
        value = found.get("value") if isinstance(found, Mapping) else None
        return float("nan") if value is None else float(value)


@dataclass(frozen=True, slots=True)
class ModelMethod:
    """Trials alike but for share, seed and split; `changes` are the dotted settings that make the method."""

    name: str
    changes: Mapping[str, Any]
    trials: tuple[ModelTrial, ...]

    def scores(self, name: str, fraction: float) -> dict[str, float]:
        """The score of each repeat that learned from this share."""
        return {each.repeat: each.score(name) for each in self.trials if each.fraction == fraction}

    def trained(self, fraction: float) -> NDArray[np.int64]:
        """Recordings that the models of a share learned from."""
        return np.array([t.description["records"]["train"] for t in self.trials if t.fraction == fraction], np.int64)

    @property
    def from_scratch(self) -> bool:
        """Whether its network began with random weights."""
        return bool(self.changes.get(SCRATCH))


@dataclass(frozen=True, slots=True)
class ModelResults:
    """All methods in the order of the space, and the trials without a model."""

    methods: tuple[ModelMethod, ...]
    missing: tuple[str, ...]

    @property
    def fractions(self) -> tuple[float, ...]:
        """The shares of the labels, rising."""
        return tuple(sorted({trial.fraction for method in self.methods for trial in method.trials}))

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that all models have, the main one first."""
        trials = [trial for method in self.methods for trial in method.trials]
        return tuple(name for name in NAMES if all(name in t.description["scores"]["test"] for t in trials))

    def partner(self, method: ModelMethod) -> ModelMethod | None:
        """The method that differs from this one in nothing but its random weights; None for one from scratch."""
        changes = {key: value for key, value in method.changes.items() if key != SCRATCH}
        for other in self.methods:
            same = {key: value for key, value in other.changes.items() if key != SCRATCH} == changes
            if same and other.from_scratch and not method.from_scratch:
                return other
        return None


def read_models(folder: Store, record: SweepRecord) -> ModelResults:
    """The models of a sweep's trials; no method where no trial left one."""
    groups: dict[str, tuple[str, dict[str, Any], list[ModelTrial]]] = {}
    short = short_keys(list(dict.fromkeys(key for trial in record.trials for key in trial.changes)))
    missing = []
    for trial in record.trials:
        changes = {key: value for key, value in without_repeats(trial.present).items() if key != FRACTION}
        name, _ = split_name(trial, short, (*REPEATS, FRACTION))
        _, _, found = groups.setdefault(json.dumps(changes, sort_keys=True), (name, changes, []))
        model = _model_of(folder, trial, split_name(trial, short)[1])
        if model is None:
            missing.append(trial.name)
        else:
            found.append(model)
    methods = tuple(ModelMethod(name, changes, tuple(found)) for name, changes, found in groups.values() if found)
    return ModelResults(methods, tuple(missing))


def _model_of(folder: Store, trial: TrialRecord, repeat: str) -> ModelTrial | None:
    run = folder.child(trial.name)
    if trial.status != "finished" or not is_model(run.child(MODEL_FOLDER).location):
        return None
    description = describe_model(run.location)
    return ModelTrial(trial.name, repeat, float(description["objective"]["fraction"]), description)
