"""What is left of a sweep to do, from the run folders and the record of an earlier start; needs no Ray session.

A trial is finished when its run folder holds the encoder of its last step, trained with the same settings, and, where
the sweep evaluates, the scores of that encoder: the folder is the proof, the record only remembers. A trial that the
search stopped early stays stopped. Everything else is still to do, and continues from the run's own newest checkpoint.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import yaml

from beatray.errors import CheckpointError, SettingsError, TrainingError
from beatray.finetune.finish import is_made
from beatray.finetune.prepare import prepare_run
from beatray.models import encoder_folder
from beatray.settings import PretrainSettings
from beatray.sweep.evaluation import kept_scores
from beatray.sweep.plan import SweepPlan, settings_with
from beatray.sweep.population import copy_checkpoint, targets
from beatray.sweep.ranking import check_metric, figures_of, with_metric
from beatray.sweep.record import ENDED, RunningSweep, TrialRecord, read
from beatray.sweep.settings import SweepSettings
from beatray.track.setup import default_uri
from beatray.train import checkpoint as checkpoints
from beatray.train.composed import changes_today
from beatray.train.launch import ended_at
from beatray.train.run_folder import SETTINGS
from beatray.train.run_spec import RunSpec, check_same_run

LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sweep whose every trial is known to be valid: the run specs by name, the record, and what is to do."""

    plan: SweepPlan
    run_specs: Mapping[str, RunSpec]
    record: RunningSweep
    todo: tuple[str, ...]


@contextmanager
def alone(plan: SweepPlan) -> Iterator[None]:
    """Keep a second start of the same sweep out (where `out` is a folder); SettingsError if one is at work."""
    if not plan.folder.is_local:
        yield
        return
    plan.folder.folder.mkdir(parents=True, exist_ok=True)
    with (plan.folder.folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"the sweep in {plan.folder.where()} is running already; see beatray sweep show"
            ) from error
        yield


def prepare(plan: SweepPlan) -> Prepared:
    """Check every trial's settings against the corpus and find out what is still to do.

    SettingsError names the trial that cannot work, or how the folder's sweep differs from this one.
    """
    earlier = read(plan.folder)
    known = {trial.name: trial for trial in earlier.trials} if earlier else {}
    _refuse_others(plan, known)
    known = {name: with_copies(plan, trial) for name, trial in known.items()}
    run_specs: dict[str, RunSpec] = {}
    trials, todo = [], []
    for trial in plan.trials:
        before = known.get(trial.name) or TrialRecord(trial.name, trial.changes)
        try:
            run_spec = run_spec_of(plan, before)
            check_metric(run_spec, plan.sweep)
            finished = is_finished(run_spec)
            scores = kept_scores(run_spec, plan.evaluation) if finished and plan.evaluation is not None else {}
            finished = finished and scores is not None
        except (SettingsError, TrainingError) as error:
            raise SettingsError(f"trial {trial.name}: {error}") from error
        run_specs[trial.name] = run_spec
        if finished:
            now = with_metric(_finished(before, run_spec, scores or {}), plan.sweep.metric)
        else:
            now = _unfinished(before, plan.sweep)
        trials.append(now)
        if not finished and now.status not in ENDED:
            todo.append(trial.name)
    rounds = earlier.rounds if earlier else ()
    _refuse_other_rounds(plan, rounds, next(iter(run_specs.values())))
    return Prepared(plan, run_specs, RunningSweep(plan.folder, plan.name, plan.sweep, trials, rounds), tuple(todo))


def with_copies(plan: SweepPlan, trial: TrialRecord) -> TrialRecord:
    """The trial after every exploit that was written down is there: what was copied already is copied again."""
    if not trial.exploits or trial.exploits[-1]["copied"]:
        return trial
    done = replace(trial, exploits=(*trial.exploits[:-1], {**trial.exploits[-1], "copied": True}))
    copy_checkpoint(
        plan.folder.child(trial.exploits[-1]["source"]), run_spec_of(plan, done), trial.exploits[-1]["step"]
    )
    return done


def _refuse_other_rounds(plan: SweepPlan, rounds: tuple[Mapping[str, int], ...], run_spec: RunSpec) -> None:
    ends = targets(run_spec, plan.sweep.grace_period) if rounds else []
    if any(each["number"] >= len(ends) or ends[each["number"]] != each["step"] for each in rounds):
        raise SettingsError(
            f"the sweep in {plan.folder.where()} was begun with another sweep.grace_period; set that one, or choose "
            "another run="
        )


def run_spec_of(plan: SweepPlan, trial: TrialRecord) -> RunSpec:
    """The run spec of a trial with the settings it has by now."""
    drawn = next(each.settings for each in plan.trials if each.name == trial.name)
    settings = settings_with(plan, trial.name, trial.present) if trial.exploits else drawn
    return prepare_run(_with_shared_tracking(plan, settings))


def _with_shared_tracking(plan: SweepPlan, settings: PretrainSettings) -> PretrainSettings:
    """The settings with the database beside the sweep spelt out where none is set: a trial's own `out` is deeper."""
    tracking = settings.tracking
    if tracking.uri != "auto" or os.environ.get("MLFLOW_TRACKING_URI") or not plan.folder.is_local:
        return settings
    uri, _ = default_uri(plan.folder.folder.parent)
    return replace(settings, tracking=replace(tracking, uri=uri))


def _refuse_others(plan: SweepPlan, known: Mapping[str, TrialRecord]) -> None:
    planned = {trial.name: changes_today(trial.changes) for trial in plan.trials}
    begun = [trial for trial in known.values() if trial.attempts]
    others = [trial.name for trial in begun if planned.get(trial.name) != changes_today(trial.changes)]
    if others:
        raise SettingsError(
            f"{plan.folder.where()} holds a sweep with trials that are not in this space ({', '.join(others[:5])}"
            f"{', ...' if len(others) > 5 else ''}). Choose another run=, or a space that has them, too."
        )


def _finished(before: TrialRecord, run_spec: RunSpec, scores: Mapping[str, float]) -> TrialRecord:
    figures = {**before.figures, **figures_of(run_spec), **scores}
    steps = ended_at(run_spec) or run_spec.steps
    return replace(before, status="finished", steps=steps, figures=figures, error=None)


def _unfinished(before: TrialRecord, sweep: SweepSettings) -> TrialRecord:
    if before.status == "stopped" and sweep.search == "asha":
        return before
    return replace(before, status="interrupted" if before.attempts else "waiting")


def is_finished(run_spec: RunSpec) -> bool:
    """True if the run folder holds the encoder of its end; TrainingError if it was made with other settings."""
    try:
        made = encoder_folder.describe_encoder(run_spec.run.location)
        settings = yaml.safe_load(run_spec.run.read(SETTINGS))
    except (CheckpointError, FileNotFoundError):
        return False
    check_same_run(run_spec, {"manifest_hash": made["manifest_hash"], "settings": settings})
    names, ended = checkpoints.names(run_spec.run), ended_at(run_spec)
    whole = ended is not None and (not names or names[-1] == checkpoints.name_of(ended))
    return bool(whole and is_made(run_spec) and settings["train"]["epochs"] == run_spec.settings.train.epochs)
