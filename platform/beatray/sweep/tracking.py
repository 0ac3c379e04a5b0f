"""The MLflow runs of a sweep: the sweep is the parent, each trial a child, and every one of them ends with its status.

All trackers live in the driver of the sweep and follow the trials' journals from there. So a trial that is stopped,
killed or lost with its node still ends rightly (FINISHED, KILLED, FAILED), one process alone writes to a local
database, and the nodes need no access to the server. A continued trial goes on in its own MLflow run. Training waits
for none of this; a server that is away at the end gets what is missing when the same command runs again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from beatray.evaluate.results import PREFIX
from beatray.ray_job import job_tags, note_mlflow_run
from beatray.schema import as_dict, flat
from beatray.storage.store import Store
from beatray.sweep.evaluation import kept_scores
from beatray.sweep.plan import SweepPlan
from beatray.sweep.progress import Prepared
from beatray.sweep.ranking import CORE_MINUTES, figures_of, metric_of, ranked, tables
from beatray.sweep.record import ENDED, Status, TrialRecord
from beatray.track.memory import MEMORY, Memory
from beatray.track.setup import LOCAL_KEYS, tracking_for
from beatray.track.tracker import Tracker, logged_as
from beatray.train.run_spec import RunSpec
from beatray.train.tracked import tracked

MLFLOW_STATUS: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "interrupted": "KILLED"}
"""All others are FAILED."""
FOLDER_TAG = "beatray.folder"
"""Where the sweep lies, so that its report can be asked for by the id of its MLflow run."""
TABLE_TAG = '[{"path": "ranking.json", "type": "table"}]'
PATIENCE_S = 30.0
"""How long an ended trial waits for the server to name the sweep's own run before it is left for the next start."""


def is_settled(run: Store) -> bool:
    """True if MLflow knows, by what the run folder remembers, all of a run that has ended."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = run.folder if run.is_local else Path(scratch)
        if not run.is_local and run.size(MEMORY) is not None:
            (folder / MEMORY).write_bytes(run.read(MEMORY))
        records = Memory(folder).records.values()
    return bool(records) and all(r.status_sent == r.status != "RUNNING" and not r.waiting for r in records)


class SweepTracking:
    """Parent and children; use as a context manager around the sweep. Does nothing where tracking is off."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._plan = prepared, prepared.plan
        plan, manifest_hash = prepared.plan, next(iter(prepared.run_specs.values())).manifest_hash
        self._folder = plan.folder.folder if plan.folder.is_local else Path(tempfile.mkdtemp(prefix="beatray-sweep-"))
        self._children: dict[str, _Child] = {}
        self._pull()
        base = plan.base
        tracking = tracking_for(
            base.tracking.uri,
            base.tracking.experiment,
            out=Path(base.out),
            run_name=plan.name,
            folder=self._folder,
            settings=_params(plan),
            tags={
                **job_tags(),
                "beatray.sweep": plan.name,
                FOLDER_TAG: plan.folder.location,
                "beatray.manifest": manifest_hash,
                "mlflow.loggedArtifacts": TABLE_TAG,
            },
            dataset={"name": "corpus", "digest": manifest_hash[:32], "source": base.corpus.path},
            every_s=base.tracking.flush_seconds,
            on_run=self._note,
        )
        self._parent = None if tracking is None else Tracker(tracking)

    def __enter__(self) -> SweepTracking:
        if self._parent is not None:
            self._parent.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for child in self._children.values():
            child.end("KILLED", {})
        for child in self._children.values():
            child.join()
        if self._parent is not None:
            if self._parent.run_id is not None:
                note_mlflow_run(self._parent.run_id)  # the job is the sweep's, not that of its last trial
            self._parent.__exit__(kind, error, None)
            self._push()

    def start(self, name: str) -> None:
        """Follow a trial; one that is tried again is followed on."""
        if self._parent is not None and name not in self._children:
            self._children[name] = _Child(name, self._prepared.run_specs[name], self._plan.name, self._parent)

    def end(self, name: str, status: Status) -> None:
        """The trial has ended; what is left of it is sent in the background."""
        if name in self._children:
            run_spec, evaluation = self._prepared.run_specs[name], self._plan.evaluation
            scores = kept_scores(run_spec, evaluation) if evaluation is not None and status == "finished" else None
            self._children[name].end(MLFLOW_STATUS.get(status, "FAILED"), {**self._cost(name), **(scores or {})})

    def _cost(self, name: str) -> dict[str, float]:
        """What the training of a trial took, and what a step of it was measured to take."""
        found = figures_of(self._prepared.run_specs[name])
        figures = {key: found[key] for key in (CORE_MINUTES,) if key in found}
        cost = self._plan.costs.get(name)
        if cost is not None:
            figures |= {
                "encoder_parameters": float(cost.encoder_parameters),
                "parameters": float(cost.parameters),
                "timed_step_s": cost.step_s,
                "timed_step_mib": cost.step_mib,
            }
        return figures

    def settle_ended(self) -> None:
        """Bring to an end what an earlier start, killed or without the server, left open of trials that had ended."""
        for trial in self._prepared.record.trials:
            if trial.status in ENDED and not is_settled(self._prepared.run_specs[trial.name].run):
                self.start(trial.name)
                self.end(trial.name, trial.status)

    def close(self) -> None:
        """The ranking, the best trial's figures and the status of the sweep's own run."""
        if self._parent is None:
            return
        record = self._prepared.record.snapshot()
        for name, text in tables(record).items():
            (self._folder / name).write_text(text)
            self._parent.artifact(self._folder / name)
        best = next((row.trial for row in ranked(record) if row.rank == 1), None)
        figures = {_best(key): value for key, value in best.figures.items()} if best else {}
        if best is not None and (value := metric_of(record, best)) is not None:
            figures[_best(record.metric)] = value
        for ended in ("finished", "stopped", "failed"):
            figures[f"trials_{ended}"] = float(sum(trial.status == ended for trial in record.trials))
        self._parent.metrics(figures)
        self._parent.status = overall(record.trials)

    def _note(self, run_id: str) -> None:
        """From here on another driver can go on in the same MLflow run, and the Ray job names it."""
        self._push()
        note_mlflow_run(run_id)

    def _pull(self) -> None:
        if not self._plan.folder.is_local and self._plan.folder.size(MEMORY) is not None:
            (self._folder / MEMORY).write_bytes(self._plan.folder.read(MEMORY))

    def _push(self) -> None:
        if not self._plan.folder.is_local:
            self._plan.folder.write(MEMORY, (self._folder / MEMORY).read_bytes())


def settle(prepared: Prepared) -> None:
    """For a sweep with nothing left to do: send what MLflow does not have yet."""
    runs = [prepared.plan.folder, *(run_spec.run for run_spec in prepared.run_specs.values())]
    if prepared.plan.base.tracking.uri is None or all(map(is_settled, runs)):
        return
    with SweepTracking(prepared) as tracking:
        tracking.settle_ended()
        tracking.close()


def _best(name: str) -> str:
    """How a figure of the best trial is called beside those of the sweep itself."""
    return f"best/{name if name.startswith(PREFIX) else logged_as(name)}"


def overall(trials: Sequence[TrialRecord]) -> str:
    """The sweep's own status, in MLflow's terms."""
    if any(trial.status == "failed" for trial in trials):
        return "FAILED"
    return "FINISHED" if all(trial.status in ENDED for trial in trials) else "KILLED"


def _params(plan: SweepPlan) -> dict[str, object]:
    """What describes the sweep itself, few and readable: how it searches, over what, and the overrides it was given."""
    about = as_dict(plan.sweep)
    space, fixed, rows = about.pop("space"), about.pop("fixed"), about.pop("rows") or {}
    if plan.sweep.search not in ("asha", "pbt"):
        about = {key: value for key, value in about.items() if key not in ("grace_period", "reduction_factor")}
    if plan.sweep.search == "grid":
        about = {key: value for key, value in about.items() if key not in ("num_samples", "seed")}
    return {
        **{f"sweep.{key}": value for key, value in flat(about).items() if value is not None},
        **{f"space.{key}": values for key, values in space.items()},
        **{f"fixed.{key}": value for key, value in fixed.items()},
        **{f"rows.{name}": row for name, row in rows.items()},
        "words": " ".join(override for override in plan.overrides if not override.startswith(("corpus=", *LOCAL_KEYS))),
    }


class _Child:
    """One trial's MLflow run, followed by a thread of its own."""

    def __init__(self, name: str, run_spec: RunSpec, sweep: str, parent: Tracker) -> None:
        self._run_spec, self._parent = run_spec, parent
        self._tags = {"beatray.trial": name, "beatray.sweep": sweep}
        self._ended = threading.Event()
        self._status = "KILLED"
        self._scores: Mapping[str, float] = {}
        self._thread = threading.Thread(target=self._follow, name=f"beatray-track-{name}", daemon=True)
        self._thread.start()

    def end(self, status: str, scores: Mapping[str, float]) -> None:
        """`scores`, of the evaluation and of the cost, join the metrics of the training."""
        if not self._ended.is_set():
            self._status, self._scores = status, scores
            self._ended.set()

    def join(self) -> None:
        self._thread.join()

    def _follow(self) -> None:
        """Without the sweep's own run there is none of the trial's: it would stand alone for ever."""
        while (parent := self._parent.wait_for_run(1.0)) is None and not self._ended.wait(1.0):
            pass
        parent = parent or self._parent.wait_for_run(PATIENCE_S)
        if parent is None:
            return
        with tracked(self._run_spec, parent, self._tags) as tracker:
            self._ended.wait()
            if tracker is None:
                return
            tracker.status = self._status
            if self._scores:
                tracker.metrics(self._scores)
