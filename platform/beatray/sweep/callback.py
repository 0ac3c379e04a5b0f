"""The Tune callback in the driver of a sweep: writes the record, ends the MLflow runs, notifies the user.

It also passes on a request to stop: trials that wait never start, those that run are asked for a checkpoint, and after
some patience the experiment is ended; what a trial has not saved by then is replayed from its last checkpoint. And it
frees the CPUs and GPUs that a lost trial left reserved, or the next trial would wait for them for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.util.placement_group import remove_placement_group

from beatray.ray_internals import groups_of_dead_actors
from beatray.sweep.plan import SweepPlan
from beatray.sweep.progress import Prepared
from beatray.sweep.ranking import metric_of, with_metric
from beatray.sweep.record import ENDED, RunningSweep, TrialRecord
from beatray.sweep.tracking import SweepTracking
from beatray.train.launch import request_stop
from beatray.train.run_folder import STOP

STOP_PATIENCE_S = 20.0
"""How long a sweep that was asked to stop waits for the checkpoints of its trials."""
STOP_EVERY_S = 2.0
TIDY_EVERY_S = 5.0
Notify = Callable[[str], None]


class SweepCallback(ray.tune.Callback):  # type: ignore[misc]
    """Follows the trials: writes the record, ends the MLflow runs, passes on a request to stop."""

    def __init__(self, prepared: Prepared, tracking: SweepTracking, stop: threading.Event, notify: Notify) -> None:
        self._prepared, self._tracking, self._stop, self._notify = prepared, tracking, stop, notify
        self._record: RunningSweep = prepared.record
        self._plan: SweepPlan = prepared.plan
        self._began: dict[str, float] = {}
        self._errors: dict[str, str] = {}
        self._asked_at: float | None = None
        self._stop_sent_at = 0.0
        self._tidied_at = time.monotonic()
        self._pause_at: int | None = None
        self.give_up = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down; this one never comes back from there

    @property
    def stopping(self) -> bool:
        """True once the sweep was asked to stop."""
        return self._stop.is_set()

    def until(self, step: int | None) -> SweepCallback:
        """The same callback for a round that ends at a global step: trials that reach it pause."""
        self._pause_at = step
        return self

    def fall(self, name: str) -> None:
        """The search has given the trial up: it is asked to stop, and is not started again."""
        self._record.change(name, status="stopped")
        request_stop(self._prepared.run_specs[name])

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._tidied_at > TIDY_EVERY_S:
            self._tidied_at = time.monotonic()
            free_leftovers()
        if not self._stop.is_set():
            return
        running = [trial.name for trial in self._record.trials if trial.status == "running"]
        now = time.monotonic()
        if self._asked_at is None:
            self._plan.folder.write(STOP, b"")
            self._asked_at = self._stop_sent_at = now
        if now >= self._stop_sent_at:  # again and again: a run that is just starting forgets the request to stop
            self._stop_sent_at = now + STOP_EVERY_S
            for name in running:
                request_stop(self._prepared.run_specs[name])
        self.give_up = not running or now - self._asked_at > STOP_PATIENCE_S

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self._began[name] = time.monotonic()
        self._tracking.start(name)
        self._record.change(name, status="running", attempts=self._record[name].attempts + 1)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "report" in result:
            reports = [
                {key: value for key, value in each.items() if isinstance(value, (int, float))}
                for each in (*result["report"].get("earlier", ()), result["report"])
            ]
            before = [old for old in self._record[name].reports if old["step"] < reports[0]["step"]]
            steps, seconds = int(reports[-1]["step"]) + 1, self._seconds(name)
            self._record.change(name, steps=steps, seconds=seconds, reports=(*before, *reports))
        for lost in result.get("lost", ()):
            self._notify(f"  {name}: {lost}; it continues from its newest checkpoint")
        if "error" in result:
            self._errors[name] = str(result["error"])
        if "outcome" in result:
            outcome = result["outcome"]
            given_up = self._record[name].status == "stopped"
            paused = self._pause_at is not None and outcome["steps"] >= self._pause_at
            ended_early = "stopped" if given_up else "paused" if paused else "interrupted"
            status = "finished" if outcome["finished"] else ended_early
            known = {"steps": int(outcome["steps"]), "figures": outcome["figures"]} if outcome["figures"] else {}
            self._record.change(name, status=status, error=None, **known)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self._record[name].status == "running":  # its last report was lost: the run folder has it
            self._record.change(name, status="interrupted")
        trained = self._record[name]
        self._end(name, with_metric(trained, self._plan.sweep.metric) if trained.status == "finished" else trained)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self._record.change(name, error=self._error(name, trial), seconds=self._seconds(name))
        self._notify(f"  {name} failed and is tried again: {_first_line(self._record[name].error)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self._end(name, self._record.change(name, status="failed", error=self._error(name, trial)))

    def close(self) -> None:
        """The experiment is over: trials that did not end by themselves are interrupted."""
        for trial in self._record.trials:
            if trial.status == "running":
                self._end(trial.name, self._record.change(trial.name, status="interrupted"))

    def _end(self, name: str, trial: TrialRecord) -> None:
        ended = self._record.change(name, status=trial.status, error=trial.error, seconds=self._seconds(name))
        if ended.status != "paused":
            self._tracking.end(name, ended.status)
        value = metric_of(self._record.snapshot(), ended)
        score = f", {self._plan.sweep.metric} {value:.4g}" if value is not None else ""
        why = f": {_first_line(ended.error)}" if ended.status == "failed" else ""
        done = sum(each.status in (*ENDED, "failed") for each in self._record.trials)
        self._notify(f"  {name} {ended.status}{score}, {ended.seconds:.0f} s{why} ({done} of {len(self._plan.trials)})")

    def _seconds(self, name: str) -> float:
        """Seconds of the trial so far, over all its attempts; the next call counts from here."""
        now = time.monotonic()
        began, self._began[name] = self._began[name], now
        return self._record[name].seconds + now - began

    def _error(self, name: str, trial: Any) -> str:
        """The trial's own error, or, if its process was lost, Ray's."""
        error = self._errors.pop(name, None)
        if error is not None:
            return error
        try:
            lines = Path(trial.error_file).read_text().splitlines()
        except (OSError, TypeError):
            return "the trial's process was lost"
        return next((line.strip() for line in reversed(lines) if "Error" in line or "died" in line), lines[-1])


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


class Stopper(ray.tune.Stopper):  # type: ignore[misc]
    """Ends the experiment when the callback has waited long enough for its trials to stop by themselves."""

    def __init__(self, callback: SweepCallback) -> None:
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._callback.give_up


def free_leftovers() -> int:
    """Remove this job's placement groups whose maker, an actor, is dead; returns how many there were.

    The ranks of a trial sit in a placement group that the controller of its Ray Train run has made. When the trial's
    process is killed (out of memory, its node gone) the controller dies with it, and Ray keeps the group as long as the
    job that the sweep is lives. Ray Train's own cleaner needs a dashboard, and gives up on a machine with two Rays; the
    head node knows without either whose maker is dead.
    """
    left = groups_of_dead_actors(ray.get_runtime_context().get_job_id())
    for group in left:
        remove_placement_group(group)
    return len(left)
