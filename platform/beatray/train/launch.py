"""Starts a pretraining run on Ray Train: checks that it fits, runs the ranks, survives their deaths, reports the end.

The run folder `out/run` must be visible to every node: a shared folder, or a path in an object store. It holds
settings.yaml, metrics.jsonl, ids.jsonl (when asked for), checkpoints/ and, at the end, encoder/. Starting the same run
again continues it from its newest checkpoint; a finished run is left alone; of two starts of one run the later goes on
and the earlier ends. A dead worker or node restarts the group of ranks, which continues from the newest checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from beatray.errors import SupersededError, TrainingError
from beatray.models import encoder_folder
from beatray.settings import PretrainSettings
from beatray.storage.hashed_folder import FILES
from beatray.train import checkpoint as checkpoints
from beatray.train import watchdog
from beatray.train.account import Hooks
from beatray.train.early_stopping import EarlyStopping
from beatray.train.loop import FOR_GOOD, train
from beatray.train.ranks import Ranks
from beatray.train.resources import check_readers_fit, check_resources, missing_now, use_gpu
from beatray.train.run_folder import ALIVE, OWNER, SETTINGS, STOP, STOPPED, is_superseded, read_text
from beatray.train.run_spec import RunSpec, check_same_run, shown_settings
from beatray.train.worker_news import Deaths, note_group

log = logging.getLogger(__name__)

GROUP_START_S = 60.0
"""How long Ray Train waits for a group of workers before it counts a failed start and tries again."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run is and how far it got."""

    folder: str
    steps: int
    finished: bool
    continued_from: int
    stopped_on_request: bool = False
    as_asked: bool = False  # not finished, but at the step of train.stop_after_steps

    @property
    def exit_code(self) -> int:
        """0 when finished; 75 when stopped on request with a checkpoint (EX_TEMPFAIL of sysexits.h: try again)."""
        return 0 if self.finished else 75 if self.stopped_on_request else 1

    @property
    def mlflow_status(self) -> str:
        """A run that did all that it was asked for is FINISHED, though a later start may go on with it."""
        return "FINISHED" if self.finished or self.as_asked else "KILLED"


def check(run_spec: RunSpec) -> checkpoints.Checkpoint | None:
    """Everything that can be wrong before the first step; returns the checkpoint the run would continue from.

    Needs an open Ray session. Raises SettingsError or TrainingError; touches nothing.
    """
    check_resources(run_spec.settings, ray.cluster_resources())
    newest = checkpoints.latest(run_spec.run)
    if newest is not None:
        check_same_run(run_spec, newest.state)
        done = int(newest.state["global_step"])
        if done > run_spec.steps:
            raise TrainingError(
                f"run {run_spec.settings.run} has already done {done} steps, more than the {run_spec.steps} asked for. "
                "Choose another run=, or at least as many train.epochs."
            )
    elif ended_at(run_spec) is not None:
        made = encoder_folder.describe_encoder(run_spec.run.location)
        objective = json.loads(json.dumps(run_spec.settings.objective))  # as it was written down
        if made["manifest_hash"] != run_spec.manifest_hash or made["objective"] != objective:
            raise TrainingError(
                f"{run_spec.run.where()} holds a finished run of another objective or corpus. Choose another run=, or "
                "remove the folder."
            )
    return newest


def ended_at(run_spec: RunSpec) -> int | None:
    """The step at which the run ended: its last, or an earlier one where it stopped getting better.

    None unless encoder/ is that of the whole run: not of one with fewer epochs, or with less patience, that goes on.
    """
    if run_spec.run.child(encoder_folder.ENCODER_FOLDER).size(FILES) is None:
        return None
    described = encoder_folder.describe_encoder(run_spec.run.location)
    if described["run_steps"] != run_spec.steps:
        return None
    ended = int(described.get("ended_at", run_spec.steps))
    newest = checkpoints.latest(run_spec.run) if ended < run_spec.steps else None
    if newest is not None and not EarlyStopping.of(run_spec.settings.train.patience, newest.state.get("stopping")).over:
        return None
    return ended


def pretrain(
    run_spec: RunSpec, callbacks: Sequence[ray.train.UserCallback] = (), stop: threading.Event | None = None
) -> RunResult:
    """Train to the end, or continue a run that was interrupted. Needs an open Ray session.

    `callbacks` receive the reports of the ranks, as those of a sweep do. Once `stop` is set, the ranks write a
    checkpoint and end; the result records it.

    Raises SettingsError for a run that cannot work, SupersededError when another start has taken over, TrainingError
    when it stopped for a reason that a retry does not fix.
    """
    settings, run = run_spec.settings, run_spec.run
    newest = check(run_spec)
    began = int(newest.state["global_step"]) if newest else 0
    ended = ended_at(run_spec)
    if ended is not None and (newest is None or began == ended):
        return RunResult(run.where(), ended, True, ended)
    if stop is not None and stop.is_set():
        return RunResult(run.where(), began, False, began, stopped_on_request=True)
    start = uuid.uuid4().hex
    run.write(OWNER, start.encode())
    run.write(SETTINGS, yaml.safe_dump(shown_settings(settings), sort_keys=True).encode())
    for left in (STOP, STOPPED, ALIVE):
        run.delete(left)
    waits_for = missing_now(settings, ray.available_resources(), ray.cluster_resources())
    if waits_for:
        log.warning("waiting up to %g minutes for room: %s", settings.train.start_minutes, waits_for)
    failure = _fit(run_spec, start, _trainer(run_spec, start, callbacks), stop)
    if is_superseded(run, start):
        raise SupersededError(f"another start of run {settings.run} has taken over; this one has ended")
    why = read_text(run, STOPPED) or _stalled(run_spec, start)
    if why is None and failure is not None:
        why = _last_line(failure)
    if why is not None:
        raise TrainingError(_advice(settings, why)) from failure
    steps = checkpoints.newest_step(run)
    ended = ended_at(run_spec)
    finished = ended is not None and steps in (0, ended)
    stopped = run.size(STOP) is not None
    asked = settings.train.stop_after_steps
    return RunResult(
        folder=run.where(),
        steps=ended if finished and ended is not None else steps,
        finished=finished,
        continued_from=began,
        stopped_on_request=stopped,
        as_asked=not finished and asked is not None and steps >= asked,
    )


def request_stop(run_spec: RunSpec) -> None:
    """Ask the ranks of a run for a checkpoint and an end; they get it within a second or two."""
    run_spec.run.write(STOP, b"stop with a checkpoint\n")


def _fit(
    run_spec: RunSpec, start: str, trainer: TorchTrainer, stop: threading.Event | None
) -> ray.train.TrainingFailedError | None:
    """Run the trainer in a thread, so that this one can pass on a request to stop and notice that no worker is alive.

    In the main thread Ray Train would take over Ctrl-C; and it waits for ever for workers that never come.
    """
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit, name="beatray-fit", daemon=True)
    thread.start()
    asked, patience = False, 60 * run_spec.settings.train.start_minutes + GROUP_START_S
    alive, alive_at = None, time.monotonic()
    while thread.is_alive():
        thread.join(0.5)
        if stop is not None and stop.is_set() and not asked:
            asked = True
            request_stop(run_spec)
        if time.monotonic() - alive_at > min(10.0, patience / 4):
            sign = read_text(run_spec.run, ALIVE)
            if sign != alive:
                alive, alive_at = sign, time.monotonic()
            elif time.monotonic() - alive_at > patience:
                run_spec.run.write(STOPPED, b"no workers")  # should they come after all, they end at once
                raise TrainingError(
                    f"run {run_spec.settings.run}: there have been no workers for {patience / 60:.0f} minutes. Ray has "
                    f"{_resources_text(ray.cluster_resources())}, of which "
                    f"{_resources_text(ray.available_resources())} are free; see `ray status`, and raise "
                    "train.start_minutes if nodes take longer to come."
                )
    if not failures:
        return None
    if isinstance(failures[0], ray.train.TrainingFailedError):
        return failures[0]
    raise failures[0]


def _resources_text(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


def _trainer(run_spec: RunSpec, start: str, callbacks: Sequence[ray.train.UserCallback]) -> TorchTrainer:
    settings = run_spec.settings.train
    gpu = use_gpu(run_spec.settings, ray.cluster_resources())
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{GROUP_START_S:g}")
    group_start_s = float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])
    workers: Any = settings.workers
    return TorchTrainer(
        _rank_main,
        train_loop_config={"run_spec": run_spec, "start": start},
        # a collective that waits longer than the watchdog allows must not outlive it by half an hour
        torch_config=TorchConfig(timeout_s=int(60 * settings.stall_minutes) + 60),
        scaling_config=ScalingConfig(
            num_workers=tuple(workers) if isinstance(workers, tuple) else workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if gpu else {})},
            elastic_resize_monitor_interval_s=settings.resize_seconds,
        ),
        run_config=RunConfig(
            name=f"ray-{uuid.uuid4().hex}",  # never the same twice: Ray would resume its own record of an older start
            storage_path=run_spec.run.child("ray").location,
            failure_config=FailureConfig(
                max_failures=settings.max_failures,
                controller_failure_limit=max(1, round(60 * settings.start_minutes / group_start_s)),
            ),
            callbacks=[Deaths(run_spec.run), *callbacks],
        ),
    )


def _advice(settings: PretrainSettings, why: str) -> str:
    return f"run {settings.run} stopped: {why}\nThe newest checkpoint is kept; the same command continues the run."


def _stalled(run_spec: RunSpec, start: str) -> str | None:
    dumps = watchdog.stalls(run_spec.run, start)
    if not dumps:
        return None
    return (
        f"no step ended for {run_spec.settings.train.stall_minutes:g} minutes; what each worker was doing is in "
        f"{run_spec.run.where(watchdog.STALLS)} ({', '.join(dumps)}). Raise train.stall_minutes if a step may "
        "take that long"
    )


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if "Error" in line), str(error).strip())


def _is_over(run_spec: RunSpec, start: str) -> bool:
    """True if there is nothing more to do for this start: it failed for good, stalled, or another has taken over."""
    over = read_text(run_spec.run, STOPPED) is not None or bool(watchdog.stalls(run_spec.run, start))
    return over or is_superseded(run_spec.run, start)


def _rank_main(config: dict[str, Any]) -> None:
    """One Ray Train worker: become a rank and train.

    Ray restarts the group whenever a worker raises. For an error that a retry does not fix, the rank leaves a note,
    so that the restarted group ends at once and the driver can inform the user.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    run_spec: RunSpec = config["run_spec"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    if ranks.from_first(ranks.is_first and _is_over(run_spec, config["start"])):
        return

    def begin(step: int) -> None:
        workers = ranks.gather((platform.node(), os.getpid()))
        if ranks.is_first:
            note_group(run_spec.run, step, workers)

    hooks = Hooks(
        start=config["start"],
        report=lambda metrics: ray.train.report(metrics),
        preempted=lambda: ray.train.get_preemption_info() is not None,
        begin=begin,
    )
    try:
        if not ranks.all_true(run_spec.run.size(SETTINGS) is not None):
            raise TrainingError(
                f"{run_spec.run.where()} is not the same folder on every node; out= must be a shared one"
            )
        check_readers_fit(run_spec.settings, ranks.world, ray.cluster_resources())
        train(run_spec, ranks, hooks)
    except FOR_GOOD as error:
        if not isinstance(error, SupersededError) and not is_superseded(run_spec.run, config["start"]):
            run_spec.run.write(STOPPED, str(error).encode())
        raise
