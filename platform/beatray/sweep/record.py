"""sweep.json: what a sweep knows of its trials, written anew at every change and never torn.

It is the sweep's only memory, in place of Tune's experiment state: it names trials by what they change, so it survives
another version of Ray and a space that has grown, it is readable, and it holds nothing that the run folders do not
show (a run's own checkpoint and exported encoder show how far it is). One writer: the driver of the sweep.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from beatray.errors import SettingsError
from beatray.evaluate.older import score_today
from beatray.storage.store import Store
from beatray.sweep.settings import SweepSettings
from beatray.track.journal import figure_today

NAME = "sweep.json"
CONTROLS, REPORT = "controls", "report"
"""Folders beside it: the evaluations that trials share, and what `beatray report` writes."""
COSTS = "costs.json"
"""Beside it: what a step of each method took before anything was trained, and the epochs that follow from a budget."""
VERSION = 1

Status = Literal["waiting", "running", "finished", "stopped", "interrupted", "paused", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped")
"""Trials that are not started again: trained to the end, or stopped early by the search."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial so far. `reports` are what its ranks reported, `figures` the means over its last epoch."""

    name: str
    changes: Mapping[str, Any]
    status: Status = "waiting"
    attempts: int = 0
    steps: int = 0
    seconds: float = 0.0  # over all attempts
    figures: Mapping[str, float] = field(default_factory=dict)
    reports: tuple[Mapping[str, float], ...] = ()
    error: str | None = None
    exploits: tuple[Mapping[str, Any], ...] = ()  # population based training: from which trial it went on, and when

    @property
    def present(self) -> dict[str, Any]:
        """The changes that it trains with now: as drawn, or as last exploited."""
        copied = [turn["changes"] for turn in self.exploits if turn["copied"]]
        return {**self.changes, **(copied[-1] if copied else {})}


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """The whole sweep, as it was last written."""

    run: str
    metric: str
    mode: str
    search: str
    trials: tuple[TrialRecord, ...]
    rounds: tuple[Mapping[str, int], ...] = ()  # population based training: number and end of each decided one


class RunningSweep:
    """The record of a sweep that runs now; every change is on the disk when the call returns."""

    def __init__(
        self,
        folder: Store,
        run: str,
        sweep: SweepSettings,
        trials: Iterable[TrialRecord],
        rounds: tuple[Mapping[str, int], ...] = (),
    ) -> None:
        self._folder, self._run, self._sweep = folder, run, sweep
        self._trials = {trial.name: trial for trial in trials}
        self._rounds = rounds
        self._write()

    def __getitem__(self, name: str) -> TrialRecord:
        return self._trials[name]

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials, in the order of the space."""
        return tuple(self._trials.values())

    def change(self, name: str, **changes: Any) -> TrialRecord:
        """Change fields of one trial."""
        self._trials[name] = replace(self._trials[name], **changes)
        self._write()
        return self._trials[name]

    @property
    def rounds(self) -> tuple[Mapping[str, int], ...]:
        """The rounds of population based training that were decided."""
        return self._rounds

    def decide(self, number: int, step: int, turns: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down which trials exploit which after a round, all of it or nothing."""
        for name, turn in turns.items():
            trial = self._trials[name]
            self._trials[name] = replace(trial, exploits=(*trial.exploits, turn))
        self._rounds = (*self._rounds, {"number": number, "step": step})
        self._write()

    def snapshot(self) -> SweepRecord:
        """What `read` would give."""
        about = (self._run, self._sweep.metric, self._sweep.mode, self._sweep.search)
        return SweepRecord(*about, self.trials, self._rounds)

    def _write(self) -> None:
        content = {"version": VERSION, **dataclasses.asdict(self.snapshot())}
        self._folder.write(NAME, json.dumps(content, indent=1).encode())


def metric_today(name: str) -> str:
    """What a figure of a trial is called that may be called as before 0.2, or as MLflow has it."""
    return score_today(figure_today(name.removeprefix("train/")))


def read(folder: Store) -> SweepRecord | None:
    """The record in `folder`; None if there is none. SettingsError if it is damaged or of another version."""
    try:
        content = json.loads(folder.read(NAME))
        if content.pop("version") != VERSION:
            raise ValueError("it was written by another version of beatray")
        trials = tuple(_trial(trial) for trial in content.pop("trials"))
        content |= {"rounds": tuple(content.get("rounds", ())), "metric": metric_today(content["metric"])}
        return SweepRecord(**content, trials=trials)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"{folder.where(NAME)} cannot be read ({error}). Without it the sweep continues from what the folders of "
            "its trials hold: move it away and run the same command again."
        ) from error


def _trial(content: Mapping[str, Any]) -> TrialRecord:
    content = dict(content)
    if "takeovers" in content:  # of before 0.2
        turns = content.pop("takeovers")
        content["exploits"] = [{("source" if k == "donor" else k): v for k, v in turn.items()} for turn in turns]
    lists = {name: tuple(content.get(name, ())) for name in ("reports", "exploits")}
    figures = {metric_today(name): value for name, value in content.get("figures", {}).items()}
    return TrialRecord(**{**content, **lists, "figures": figures})
