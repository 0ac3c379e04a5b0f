"""What a trial is ranked by: the last figures of its run, and whether they can have the metric that is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from beatray.errors import SettingsError
from beatray.sweep.record import TrialRecord
from beatray.sweep.settings import SweepSettings
from beatray.train import checkpoint as checkpoints
from beatray.train.job import Job
from beatray.train.run_folder import METRICS

VALIDATION_LOSS = "validation_loss"
REPORTED = ("loss", VALIDATION_LOSS)
"""What the ranks report while they train."""
NOT_FIGURES = ("step", "epoch", "time_ms")


def with_metric(trial: TrialRecord, metric: str) -> TrialRecord:
    """The trial, or a failed one if it trained to its end and yet has no finite value of the metric."""
    values = [source[metric] for source in (trial.figures, *trial.reports) if source.get(metric) is not None]
    if any(math.isfinite(value) for value in values):
        return trial
    has = ", ".join(sorted(trial.figures)) or "nothing"
    return replace(trial, status="failed", error=f"it reports no {metric}; sweep.metric= can be one of: {has}")


def check_metric(job: Job, sweep: SweepSettings) -> None:
    """SettingsError if the trial could not be ranked, or not be stopped early, by the sweep's metric."""
    validates = bool(job.validation.groups)
    if sweep.metric == VALIDATION_LOSS and not validates:
        raise SettingsError(
            "it has nothing to validate on: choose corpus.validation_folds that the corpus has and "
            "train.validate_every_epochs above 0, or take sweep.metric=loss"
        )
    if sweep.search not in ("asha", "pbt"):
        return
    if sweep.metric not in REPORTED:
        raise SettingsError(
            f"while they train, trials report {' and '.join(REPORTED)}: sweep.metric={sweep.metric} is known too late "
            f"for search={sweep.search}; take search=random"
        )
    if sweep.search == "pbt" and sweep.grace_epochs >= job.settings.train.epochs:
        raise SettingsError(
            f"sweep.grace_epochs={sweep.grace_epochs} leaves no round of train.epochs={job.settings.train.epochs} in "
            "which anything could be taken over: lower it"
        )
    every = job.settings.train.validate_every_epochs if validates else 1
    if every > sweep.grace_epochs or (sweep.search == "pbt" and sweep.grace_epochs % every):
        raise SettingsError(
            f"it reports every {every} epochs, which does not fit sweep.grace_epochs={sweep.grace_epochs}: set "
            f"train.validate_every_epochs={sweep.grace_epochs}, or a longer grace"
        )


def figures_of(job: Job) -> dict[str, float]:
    """The last figures of a run, from its folder; the validation loss is that of the exported weights."""
    try:
        text = job.run.read(METRICS).decode()
    except FileNotFoundError:
        return {}
    figures = last_figures([json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()])
    best = checkpoints.best(job.run) if job.settings.checkpoint.export == "best" else None
    return figures if best is None else {**figures, VALIDATION_LOSS: best[1]}


def last_figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each column of a run's metrics, averaged over the last epoch that has it: single steps are noisy."""
    sums: dict[str, tuple[int, float, int]] = {}  # epoch, sum, count
    for line in lines:
        for name, value in line.items():
            if name in NOT_FIGURES or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                continue
            epoch, total, count = sums.get(name, (line["epoch"], 0.0, 0))
            same = epoch == line["epoch"]
            sums[name] = (line["epoch"], total + value if same else value, count + 1 if same else 1)
    return {name: total / count for name, (_, total, count) in sums.items()}
