"""Equal training time: a step of each method timed before anything trains, and the epochs that fit its budget.

What was measured is written to `costs.json` in the sweep's folder as soon as it is known and never measured again for
the same settings on the same corpus. So a sweep that continues after a kill, on whatever machine, has the same epochs
and the same schedule.

Contract: epochs = floor(60 core_minutes / (seconds of a step x steps of an epoch)), at least 1; the warm-up keeps its
part of the run. What repeats a method (its seed, its split of the corpus) has the epochs of its first trial. The
budget is of training steps: validation and reading come on top, and what a trial really used is in its figures as
`core_minutes`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from beatray.errors import SettingsError, TrainingError
from beatray.finetune.prepare import prepare_run
from beatray.settings import PretrainSettings, lasting
from beatray.storage.store import Store
from beatray.sweep.plan import SweepPlan, Trial, settings_with
from beatray.sweep.record import COSTS
from beatray.sweep.space import without_repeats
from beatray.train.order import steps_per_epoch
from beatray.train.run_spec import RunSpec
from beatray.train.timing import StepCost, processor, time_step

Notify = Callable[[str], None]
TRAINED_WITH = (
    *("batch_size", "optimizer", "precision", "compile", "gradient_accumulation_steps"),
    *("threads_per_worker", "device", "keep_patients_together"),
)
"""Settings of the training that the time of a step depends on."""


class Costs:
    """costs.json: what was measured, by a digest of what it depends on; the name and the machine beside it."""

    def __init__(self, folder: Store) -> None:
        self._folder = folder
        self._content: dict[str, Any] = {"steps": {}, "trials": {}, "reference": None}
        try:
            self._content |= json.loads(folder.read(COSTS))
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise SettingsError(
                f"{folder.where(COSTS)} is damaged ({error}); remove it to time all steps anew"
            ) from error

    def get(self, digest: str) -> StepCost | None:
        """What was measured before."""
        found = self._content["steps"].get(digest)
        return None if found is None else StepCost(**found["cost"])

    def put(self, digest: str, name: str, cost: StepCost) -> None:
        """Write a measurement down at once."""
        self._content["steps"][digest] = {"of": name, "processor": processor(), "cost": asdict(cost)}
        self._write()

    def settle(self, trials: Mapping[str, Mapping[str, Any]], reference: Mapping[str, str] | None) -> None:
        """Which step each trial has and the epochs that follow, and the row whose step counts as 1."""
        if (self._content["trials"], self._content["reference"]) != (dict(trials), reference):
            self._content |= {"trials": dict(trials), "reference": reference}
            self._write()

    def _write(self) -> None:
        self._folder.write(COSTS, json.dumps(self._content, indent=1).encode())


def budgeted(plan: SweepPlan, notify: Notify, timed: Callable[[RunSpec], StepCost] = time_step) -> SweepPlan:
    """The plan with its steps timed, and the epochs that its budget allows where it has one; else as it was."""
    sweep = plan.sweep
    if sweep.budget == "epochs" and not sweep.time_steps:
        return plan
    costs = Costs(plan.folder)
    groups: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault(json.dumps(without_repeats(trial.changes), sort_keys=True), []).append(trial)
    trials: dict[str, Trial] = {}
    of_trial: dict[str, StepCost] = {}
    budgets: dict[str, dict[str, Any]] = {}
    for group in groups.values():
        name = group[0].name
        digest, cost, run_spec = _measured(group[0].name, group[0].settings, costs, notify, timed)
        epochs = None
        if sweep.budget == "core_minutes":
            epochs = epochs_within(cost, sweep.core_minutes, run_spec.rows, group[0].settings.train.batch_size)
            notify(f"  {name}: {epochs} epochs in {sweep.core_minutes:g} core-minutes")
        for trial in group:
            trials[trial.name] = trial if epochs is None else replace(trial, settings=lasting(trial.settings, epochs))
            of_trial[trial.name] = cost
            budgets[trial.name] = {
                "step": digest,
                "epochs": trials[trial.name].settings.train.epochs,
                "core_minutes": sweep.core_minutes if epochs is not None else None,
            }
    reference = None
    if sweep.time_reference is not None:
        row = (sweep.rows or {})[sweep.time_reference]
        settings = settings_with(plan, sweep.time_reference, row)
        digest, _, _ = _measured(sweep.time_reference, settings, costs, notify, timed)
        reference = {"row": sweep.time_reference, "step": digest}
    costs.settle(budgets, reference)
    return replace(plan, trials=tuple(trials[trial.name] for trial in plan.trials), costs=of_trial)


def epochs_within(cost: StepCost, core_minutes: float, rows: int, batch_size: int) -> int:
    """How many epochs of so many recordings fit; at least one."""
    return max(1, math.floor(60.0 * core_minutes / (cost.step_s * steps_per_epoch(rows, batch_size))))


def _measured(
    name: str, settings: PretrainSettings, costs: Costs, notify: Notify, timed: Callable[[RunSpec], StepCost]
) -> tuple[str, StepCost, RunSpec]:
    try:
        run_spec = prepare_run(settings)
        digest = _digest(run_spec)
        found = costs.get(digest)
        cost = found or timed(run_spec)
    except (SettingsError, TrainingError) as error:
        raise SettingsError(f"trial {name}: {error}") from error
    if found is None:
        costs.put(digest, name, cost)
        notify(
            f"  {name}: a step of {cost.batch_size} recordings takes {cost.step_s:.3g} s ({cost.clock}, one core) and "
            f"{cost.step_mib:.0f} MiB"
        )
    return digest, cost, run_spec


def _digest(run_spec: RunSpec) -> str:
    """Of what the time of a step depends on; the number of recordings where they are fewer than a batch."""
    settings = asdict(run_spec.settings)
    about = {
        "objective": settings["objective"],
        "encoder": settings["encoder"],
        "train": {key: settings["train"][key] for key in TRAINED_WITH},
        "corpus": run_spec.manifest_hash,
        **({"rows": run_spec.rows} if run_spec.rows < run_spec.settings.train.batch_size else {}),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_costs(folder: Store) -> dict[str, Any]:
    """costs.json as it is; empty where no step was timed."""
    try:
        return dict(json.loads(folder.read(COSTS)))
    except FileNotFoundError:
        return {}
