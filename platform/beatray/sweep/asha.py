"""Early stopping: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), in epochs, and across restarts.

Ray's `ASHAScheduler` decides. Here it learns to count epochs whatever the batch size, to leave a trial alone that has
reached its end (its encoder is still being written), and to know, when a killed sweep continues, what the trials
reported before: the rungs are filled from the sweep's own record. Which trials are stopped depends on who comes first,
so two runs of the same sweep may stop different ones.

A trial that falls behind is not ended by Tune, which would kill its process and leave the reservation of its ranks
behind; it is asked to stop, writes a checkpoint and ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

EPOCHS = "epochs_done"


@dataclass(frozen=True, slots=True)
class Pace:
    """How a trial's steps count: steps of one epoch, and epochs to its end."""

    steps_per_epoch: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Ghost:
    """A trial of an earlier start, as the scheduler sees it."""

    trial_id: str


class EpochAsha(ASHAScheduler):  # type: ignore[misc]
    """ASHA over epochs, which continues where an earlier start of the sweep ended."""

    def __init__(
        self,
        metric: str,
        mode: str,
        grace_period: int,
        reduction_factor: float,
        paces: Mapping[str, Pace],
        earlier: Mapping[str, Sequence[Mapping[str, float]]],
        ended: Sequence[str],
        fall: Callable[[str], None],
    ) -> None:
        """`fall` gets the name of a trial that is to stop."""
        longest = max(pace.epochs for pace in paces.values())
        super().__init__(
            EPOCHS,
            metric,
            mode,
            max_t=max(longest, grace_period),
            grace_period=grace_period,
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._paces, self._earlier, self._fall = paces, earlier, fall
        self._fallen: set[str] = set()
        for name in ended:
            ghost = Ghost(name)
            super().on_trial_add(None, ghost)
            self._replay(ghost, name)

    def _replay(self, trial: Any, name: str) -> None:
        for report in self._earlier.get(name, ()):
            self._on_report(trial, name, report)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, trial.config["trial"])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """`result` is flat, as Tune hands it over: `report/step`, `report/loss`, ... and, in `report/earlier`, those of
        the epochs before: each fills its own rung."""
        report = {name.removeprefix("report/"): value for name, value in result.items() if name.startswith("report/")}
        name = trial.config["trial"]
        for each in (*report.pop("earlier", ()), report):
            if name not in self._fallen and self._on_report(trial, name, each) == TrialScheduler.STOP:
                self._fallen.add(name)
                self._fall(name)
        return str(TrialScheduler.CONTINUE)

    def _on_report(self, trial: Any, name: str, report: Mapping[str, Any]) -> str:
        pace = self._paces[name]
        if report.get(self._metric) is None or report.get("step") is None:
            return str(TrialScheduler.CONTINUE)
        epochs = (report["step"] + 1) / pace.steps_per_epoch
        if epochs >= pace.epochs:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(None, trial, {EPOCHS: epochs, self._metric: report[self._metric]}))
