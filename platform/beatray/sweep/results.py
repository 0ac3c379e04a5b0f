"""The scores of the trials of a sweep, read back from its folder: by method, with the controls beside them.

A method is what trials have in common that differ in nothing but what repeats them: the training's seed, or the split
of the corpus. Its score is one number per trial, the mean over the seeds of that trial's evaluation.

Contract: a trial that is not finished, or was not evaluated, is left out and named in `missing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from beatray.errors import SettingsError
from beatray.evaluate.names import score_name
from beatray.evaluate.older import results_today, scores_today
from beatray.evaluate.results import METRICS, VALIDATION_AUROC
from beatray.objectives.objective import Objective
from beatray.objectives.registry import objective_class
from beatray.storage.store import Store
from beatray.sweep.evaluation import SCORES, control_name, is_of_encoder
from beatray.sweep.record import CONTROLS, SweepRecord, TrialRecord
from beatray.sweep.space import REPEATS, name_of, short_keys, without_repeats
from beatray.train.composed import changes_today
from beatray.train.run_folder import EVALUATION_FOLDER, SETTINGS


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One trial's evaluation: results.json as it is, and the results of the controls that belong to it."""

    trial: str
    repeat: str  # what distinguishes it among the trials of its method: "seed-0"
    control: str  # the name of the controls: trials may share them
    results: Mapping[str, Any]
    controls: Mapping[str, Any]
    objective: str = ""  # its name
    settings: Mapping[str, Any] = field(default_factory=dict)  # settings.yaml
    figures: Mapping[str, float] = field(default_factory=dict)  # of the trial, from sweep.json


@dataclass(frozen=True, slots=True)
class Method:
    """Trials alike but for what repeats them; `changes` are the dotted settings that make the method."""

    name: str
    changes: Mapping[str, Any]
    trials: tuple[Evaluated, ...]

    def scores(self, name: str, variant: str = "pretrained") -> NDArray[np.float64]:
        """The score of each trial, in their order; NaN where it is not known. `variant` may be encoder_features."""
        return np.array([mean_scores(each.results, variant).get(name, np.nan) for each in self.trials])

    @property
    def objective(self) -> type[Objective]:
        """The class behind its trials; the bare base for one of the user's that cannot be imported here."""
        try:
            return objective_class(self.trials[0].objective)
        except ValueError:
            return Objective

    @property
    def repeats(self) -> tuple[str, ...]:
        """What repeats the method, a trial each: trials of two methods are paired by it."""
        return tuple(each.repeat for each in self.trials)

    def control_scores(self, name: str, variant: str) -> NDArray[np.float64]:
        """The same score of the control (random, features) beside each trial."""
        return np.array([mean_scores(each.controls, variant).get(name, np.nan) for each in self.trials])


@dataclass(frozen=True, slots=True)
class SweepResults:
    """All methods of a sweep in the order of its space, and the trials that have no scores."""

    methods: tuple[Method, ...]
    missing: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the evaluations."""
        return tuple(dict.fromkeys(run["task"] for m in self.methods for t in m.trials for run in t.results["runs"]))

    def score_names(self) -> tuple[str, ...]:
        """Every score that a trial has."""
        found = (name for m in self.methods for t in m.trials for name in mean_scores(t.results, "pretrained"))
        return tuple(dict.fromkeys(found))


def read_results(folder: Store, record: SweepRecord) -> SweepResults:
    """The evaluations of a sweep's trials; SettingsError if there are none."""
    groups: dict[str, tuple[str, dict[str, Any], list[Evaluated]]] = {}
    short = short_keys(list(dict.fromkeys(key for trial in record.trials for key in trial.changes)))
    missing: list[str] = []
    controls: dict[str, Mapping[str, Any]] = {}
    for trial in record.trials:
        changes = without_repeats(trial.present)
        name, repeat = split_name(trial, short)
        _, _, found = groups.setdefault(json.dumps(changes, sort_keys=True), (name, changes, []))
        evaluated = _read_trial(folder, trial, repeat, controls)
        if evaluated is None:
            missing.append(trial.name)
        else:
            found.append(evaluated)
    methods = tuple(Method(name, changes, tuple(found)) for name, changes, found in groups.values() if found)
    if not methods:
        failed = next((trial for trial in record.trials if trial.status == "failed"), None)
        if failed is not None:
            raise SettingsError(f"no trial of {folder.where()} was evaluated; {failed.name} failed: {failed.error}")
        raise SettingsError(
            f"{folder.where()} holds no evaluated trial: run the sweep with sweep.evaluate=true (the trained encoders "
            "are kept and only evaluated)"
        )
    return SweepResults(methods, tuple(missing))


def mean_scores(results: Mapping[str, Any], variant: str) -> dict[str, float]:
    """The scores of one variant in a results.json by `score_name`, each the mean over its seeds."""
    found: dict[str, list[float]] = {}
    for run in results.get("runs", ()):
        if run["variant"] != variant:
            continue
        for metric in (*METRICS[run["task"]], VALIDATION_AUROC):
            value = run["metrics"].get(metric)
            if value is not None:
                name = score_name(run["task"], run["protocol"], run["fraction"], metric, run["condition"])
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _read_trial(
    folder: Store, trial: TrialRecord, repeat: str, controls: dict[str, Mapping[str, Any]]
) -> Evaluated | None:
    store = folder.child(trial.name).child(EVALUATION_FOLDER)
    if trial.status != "finished" or store.size(SCORES) is None:
        return None
    scores = json.loads(store.read(SCORES))
    if not is_of_encoder(folder.child(trial.name), scores):
        return None
    there = folder.child(CONTROLS).child(str(scores["controls"]))
    name = str(scores["controls"])
    if there.size(SCORES) is not None:  # an older version called the same controls otherwise
        name = control_name(scores_today(json.loads(there.read(SCORES)))["made_of"])
    if name not in controls:
        found = there.size("results.json") is not None
        controls[name] = results_today(json.loads(there.read("results.json"))) if found else {}
    results = results_today(json.loads(store.read("results.json")))
    settings = yaml.safe_load(folder.child(trial.name).read(SETTINGS))
    objective = str(settings["objective"]["name"])
    return Evaluated(trial.name, repeat, name, results, controls[name], objective, settings, trial.figures)


def split_name(trial: TrialRecord, short: Mapping[str, str], repeats: Sequence[str] = REPEATS) -> tuple[str, str]:
    """(what the method is called, what the repeat is called): the parts of a trial's name that `repeats` do not make,
    and what makes the repeat, by the trial's changes: a long name is cut, and a row has its own."""
    of_repeat = {key: value for key, value in trial.changes.items() if set(changes_today({key: None})) <= set(repeats)}
    repeat = name_of(of_repeat, short)
    parts = [part for part in trial.name.split("__") if part not in repeat.split("__")]
    return "__".join(parts) or "all", repeat or "-"


def best_method(results: SweepResults, metric: str, mode: str) -> Method:
    """The first of `by_worth`."""
    return by_worth(results, metric, mode).methods[0]


def by_worth(results: SweepResults, metric: str, mode: str) -> SweepResults:
    """The methods by their mean of the sweep's own metric, a score or another figure of the trials; best first.

    Those that have none come last. Where no trial has it, the first score decides.
    """
    names = results.score_names()
    known = metric in names or any(metric in trial.figures for method in results.methods for trial in method.trials)
    name, sign = (metric, -1.0 if mode == "min" else 1.0) if known else (names[0], 1.0)

    def score(method: Method) -> float:
        values = method.scores(name)
        if name not in names:
            values = np.array([trial.figures.get(name, np.nan) for trial in method.trials], np.float64)
        finite = values[np.isfinite(values)]
        return sign * float(finite.mean()) if finite.size else -np.inf

    return replace(results, methods=tuple(sorted(results.methods, key=score, reverse=True)))
