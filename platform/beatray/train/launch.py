"""Starts a pretraining run on Ray Train: checks that it fits, runs the ranks, survives their deaths, tells the end.

The run folder `out/run` must be visible to every node: a shared folder, or a place in an object store. It holds
settings.yaml, metrics.jsonl, ids.jsonl (when asked for), checkpoints/ and, at the end, encoder/. Starting the same run
again continues it from its newest checkpoint; a finished run is left alone; of two starts of one run the later goes on
and the earlier ends. A dead worker or node restarts the group of ranks, which continues from the newest checkpoint.
"""

from __future__ import annotations

import logging
import os
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

from beatray.corpus.manifest import CorpusError
from beatray.settings import PretrainSettings, as_dict
from beatray.track.secrets import without_secrets
from beatray.train import checkpoint as checkpoints
from beatray.train import watchdog
from beatray.train.errors import CheckpointError, TrainingError
from beatray.train.hashed_folder import FILES
from beatray.train.job import Job, check_same_run
from beatray.train.loop import Hooks, train
from beatray.train.ranks import Ranks
from beatray.train.resources import check_resources, missing_now, use_gpu
from beatray.train.run_folder import SETTINGS, STARTED, STOP, STOPPED, RunFolder

log = logging.getLogger(__name__)

GROUP_START_S = 60.0
"""How long Ray Train waits for a group of workers before it counts a failed start and, if elastic, tries fewer."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run is and how far it got."""

    folder: str
    steps: int
    finished: bool
    continued_from: int
    stopped_on_request: bool = False

    @property
    def exit_code(self) -> int:
        """0 when finished; 75 when stopped on request with a checkpoint (EX_TEMPFAIL of sysexits.h: try again)."""
        return 0 if self.finished else 75 if self.stopped_on_request else 1


def check(job: Job) -> checkpoints.Checkpoint | None:
    """Everything that can be wrong before the first step; returns the checkpoint the run would continue from.

    Needs an open Ray session. Raises SettingsError or TrainingError; touches nothing.
    """
    check_resources(job.settings, ray.cluster_resources())
    newest = checkpoints.latest(job.run)
    if newest is not None:
        check_same_run(job, newest.state)
        done = int(newest.state["global_step"])
        if done > job.steps:
            raise TrainingError(
                f"run {job.settings.run} has already done {done} steps, more than the {job.steps} asked for. Choose "
                "another run=, or at least as many train.epochs."
            )
    elif _is_exported(job):
        made = checkpoints.describe_encoder(job.run.location)
        if made["manifest_hash"] != job.manifest_hash or made["objective"] != job.settings.objective:
            raise TrainingError(
                f"{job.run.location} holds a finished run of another objective or corpus. Choose another run=, or "
                "remove the folder."
            )
    return newest


def _is_exported(job: Job) -> bool:
    return job.run.child(checkpoints.ENCODER_FOLDER).size(FILES) is not None


def pretrain(job: Job, callbacks: Sequence[ray.train.UserCallback] = ()) -> RunResult:
    """Train to the end, or continue a run that was interrupted. Needs an open Ray session.

    `callbacks` hear of every report of the ranks, as a sweep does.

    Raises SettingsError for a run that cannot work, TrainingError when it stopped for a reason that a retry does not
    mend.
    """
    settings, folder = job.settings, RunFolder.open(job.run)
    newest = check(job)
    began = int(newest.state["global_step"]) if newest else 0
    if _is_exported(job) and (newest is None or began == job.steps):
        return RunResult(job.run.location, job.steps, True, job.steps)
    start = uuid.uuid4().hex
    folder.write(STARTED, start)
    folder.write(SETTINGS, yaml.safe_dump(shown_settings(settings), sort_keys=True))
    folder.delete(STOP, STOPPED)
    watchdog.clear(job.run)
    waits_for = missing_now(settings, ray.available_resources())
    if waits_for:
        log.warning("waiting up to %g minutes for room: %s", settings.train.start_minutes, waits_for)
    try:
        _trainer(job, start, callbacks).fit()
    except ray.train.TrainingFailedError as error:
        why = folder.read(STOPPED) or _stalled(job) or _last_line(error)
        raise TrainingError(_advice(settings, why)) from error
    noted = folder.read(STOPPED) or _stalled(job)
    if noted is not None:
        raise TrainingError(_advice(settings, noted))
    done = checkpoints.latest(job.run)
    steps = int(done.state["global_step"]) if done else 0
    finished = _is_exported(job) and (done is None or steps == job.steps)
    stopped = job.run.size(STOP) is not None
    return RunResult(job.run.location, job.steps if finished else steps, finished, began, stopped)


def request_stop(job: Job) -> None:
    """Ask the ranks of a run for a checkpoint and an end; they hear it within a second or two."""
    RunFolder.open(job.run).write(STOP, "stop with a checkpoint\n")


def shown_settings(settings: PretrainSettings) -> dict[str, Any]:
    """The settings as they may be shown to anyone: without the password in an address."""
    shown = as_dict(settings)
    if shown["tracking"]["uri"]:
        shown["tracking"]["uri"] = without_secrets(shown["tracking"]["uri"])
    return shown


def _trainer(job: Job, start: str, callbacks: Sequence[ray.train.UserCallback]) -> TorchTrainer:
    settings = job.settings.train
    gpu = use_gpu(job.settings, ray.cluster_resources())
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{GROUP_START_S:g}")
    group_start_s = float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])
    workers: Any = settings.workers
    return TorchTrainer(
        _rank_main,
        train_loop_config={"job": job, "start": start},
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
            storage_path=job.run.child("ray").location,
            failure_config=FailureConfig(
                max_failures=settings.max_failures,
                controller_failure_limit=max(1, round(60 * settings.start_minutes / group_start_s)),
            ),
            callbacks=list(callbacks),
        ),
    )


def _advice(settings: PretrainSettings, why: str) -> str:
    return f"run {settings.run} stopped: {why}\nThe newest checkpoint is kept; the same command continues the run."


def _stalled(job: Job) -> str | None:
    dumps = watchdog.stalls(job.run)
    if not dumps:
        return None
    place = f"{job.run.location}/{watchdog.STALLS}"
    return (
        f"no step ended for {job.settings.train.stall_minutes:g} minutes; what each worker was doing is in {place} "
        f"({', '.join(dumps)}). Raise train.stall_minutes if a step may take that long"
    )


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if "Error" in line), str(error).strip())


def _rank_main(config: dict[str, Any]) -> None:
    """One Ray Train worker: become a rank and train.

    Ray restarts the group whenever a worker raises. For an error that a retry does not mend, the rank leaves a note,
    so that the restarted group ends at once and the driver can tell the user.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    job: Job = config["job"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    place = job.run
    ended = ranks.is_first and (place.size(STOPPED) is not None or bool(watchdog.stalls(place)))
    if ranks.from_first(ended):
        return
    if not ranks.all_true(place.size(SETTINGS) is not None):
        raise TrainingError(f"{place.location} is not the same folder on every node; out= must be a shared one")
    hooks = Hooks(
        start=config["start"],
        report=lambda metrics: ray.train.report(metrics),
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    try:
        train(job, ranks, hooks)
    except (TrainingError, CorpusError, CheckpointError) as error:
        if RunFolder.open(place).read(STARTED) == config["start"]:  # not in the run of a later start
            place.write(STOPPED, str(error).encode())
        raise
