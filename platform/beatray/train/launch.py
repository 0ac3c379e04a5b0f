"""Starts a pretraining run on Ray Train: resolves the job, checks that it fits, runs the ranks, survives their deaths.

The run folder `out/run` must be visible to every node. It holds settings.yaml, metrics.jsonl, ids.jsonl (when asked
for), checkpoints/ and, at the end, encoder/. Starting the same run again continues it from its newest checkpoint; a
finished run is left alone. A dead worker restarts the group, which continues from the run's own newest checkpoint.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.train
import torch
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from beatray.corpus.manifest import CorpusError
from beatray.corpus.reader import Corpus, open_corpus
from beatray.corpus.splits import Role, SplitPolicy, assign_roles
from beatray.corpus.store import Store
from beatray.settings import CorpusSettings, PretrainSettings, SettingsError, as_dict
from beatray.train import checkpoint as checkpoints
from beatray.train.errors import TrainingError
from beatray.train.job import Job, build_model, check_same_run
from beatray.train.loop import train
from beatray.train.order import OrderSettings
from beatray.train.ranks import Ranks
from beatray.train.stream import RowGroup, StreamSettings

SETTINGS = "settings.yaml"
STOPPED = "stopped.txt"
"""In the run folder: why a rank ended the run for good."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run is and how far it got."""

    folder: str
    steps: int
    finished: bool
    continued_from: int


def policy_of(settings: CorpusSettings) -> SplitPolicy:
    """The split policy that the corpus settings ask for."""
    return SplitPolicy(validation_folds=settings.validation_folds, test_folds=settings.test_folds)


def select_rows(corpus: Corpus, settings: CorpusSettings) -> pd.DataFrame:
    """The index rows that pretraining may use: held-out folds, test records and everything tied to them left out."""
    index = corpus.index
    if settings.pretrain_sees_test:
        return index
    trained_on: pd.DataFrame = index.loc[assign_roles(index, policy_of(settings)) == Role.TRAIN]
    return trained_on


def row_groups(corpus: Corpus, chosen: pd.DataFrame) -> tuple[RowGroup, ...]:
    """The chosen rows by row group, in manifest order; row groups without any are left out."""
    by_group: dict[tuple[int, int], list[int]] = {}
    for shard, group, row in chosen[["shard", "group", "row"]].to_numpy(np.int64).tolist():
        by_group.setdefault((shard, group), []).append(row)
    return tuple(
        RowGroup(corpus.manifest.shards[shard], group, tuple(sorted(by_group[shard, group])))
        for shard, group in sorted(by_group)
    )


def hashes_of(rows: pd.DataFrame) -> bytes:
    """The rows' content hashes, cut to 8 bytes, sorted and joined."""
    hashes = np.frombuffer(b"".join(value[:8] for value in rows["content_hash"]), "<u8")
    return np.unique(hashes).tobytes()


def prepare_job(settings: PretrainSettings) -> Job:
    """Open the corpus, choose the rows and fix everything a rank needs; clear errors before anything starts."""
    if not settings.corpus.path:
        raise SettingsError("which corpus? say corpus=PATH (make one with `beatray ingest`)")
    out = Store(settings.out)
    if not out.is_local:
        raise SettingsError(f"out={settings.out} must be a folder that every node sees")
    settings = replace(settings, out=str(out.folder))
    corpus_store = Store(settings.corpus.path)
    if corpus_store.is_local:
        path = str(corpus_store.folder)
        settings = replace(settings, corpus=replace(settings.corpus, path=path))
    corpus = open_corpus(settings.corpus.path)
    chosen = select_rows(corpus, settings.corpus)
    groups = row_groups(corpus, chosen)
    if not groups:
        raise SettingsError(f"no recording of {settings.corpus.path} may be trained on: all are held out for tests")
    statistics = {name: corpus.manifest.statistics[f"{name}_features"] for name in ("record", "beat")}
    arrays = _columns(settings, statistics)
    clusters = corpus.manifest.statistics.get("beat_clusters")
    if "beat_class" in arrays and clusters is None:
        raise SettingsError("the corpus has too few beats for clusters: choose objective.hard_beat=same_record")
    train_settings = settings.train
    stream = StreamSettings(
        store=corpus.store,
        groups=groups,
        order=OrderSettings(
            seed=settings.seed,
            batch_size=train_settings.batch_size,
            lanes=train_settings.lanes,
            window=train_settings.window,
            parts=train_settings.accumulate,
        ),
        arrays=arrays,
        clusters=clusters if "beat_class" in arrays else None,
        readers=train_settings.readers_per_worker,
        cpus_per_reader=train_settings.cpus_per_reader,
        chunk_steps=train_settings.chunk_steps,
        cache_mb=train_settings.cache_mb,
    )
    return Job(settings, stream, statistics, corpus.recipe, corpus.manifest.hash, hashes_of(chosen))


def _columns(settings: PretrainSettings, statistics: dict[str, Any]) -> tuple[str, ...]:
    """What the objective reads of a corpus; building it here also proves its settings before anything starts."""
    try:
        built = build_model(settings.objective, settings.encoder, settings.seed, statistics)
    except (ValueError, TypeError) as error:
        raise SettingsError(str(error)) from error
    return tuple(built.columns)


def check_resources(settings: PretrainSettings, available: dict[str, float]) -> None:
    """Refuse a run that could only hang: Ray Train would wait for ever for CPUs that its own readers need."""
    train_settings = settings.train
    stages = 2 if settings.views.place == "workers" else 1
    for_ranks = train_settings.workers * train_settings.cpus_per_worker
    for_readers = train_settings.workers * train_settings.cpus_per_reader * stages
    have = available.get("CPU", 0.0)
    if for_ranks + for_readers > have:
        raise SettingsError(
            f"{train_settings.workers} workers need {for_ranks:g} CPUs and their readers at least {for_readers:g}, "
            f"together {for_ranks + for_readers:g}; Ray has {have:g}. Lower train.workers, train.cpus_per_worker or "
            "train.cpus_per_reader, or add nodes."
        )
    if _use_gpu(settings) and available.get("GPU", 0.0) < train_settings.workers:
        raise SettingsError(
            f"{train_settings.workers} workers need as many GPUs; Ray has {available.get('GPU', 0):g}. "
            "Lower train.workers or set train.device=cpu."
        )


def _use_gpu(settings: PretrainSettings) -> bool:
    if settings.train.device == "auto":
        return float(ray.cluster_resources().get("GPU", 0)) > 0
    return settings.train.device == "cuda"


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
        made = checkpoints.describe_encoder(str(job.run.folder))
        if made["manifest_hash"] != job.manifest_hash or made["objective"] != job.settings.objective:
            raise TrainingError(
                f"{job.run.folder} holds a finished run of another objective or corpus. Choose another run=, or remove "
                "the folder."
            )
    return newest


def _is_exported(job: Job) -> bool:
    return (job.run.folder / checkpoints.ENCODER_FOLDER / checkpoints.FILES).exists()


def pretrain(job: Job, callbacks: Sequence[ray.train.UserCallback] = ()) -> RunResult:
    """Train to the end, or continue a run that was interrupted. Needs an open Ray session.

    `callbacks` hear of every report of the ranks, as a sweep does.

    Raises SettingsError for a run that cannot work, TrainingError when it stopped for a reason that a retry does not
    mend.
    """
    settings, folder = job.settings, job.run.folder
    newest = check(job)
    began = int(newest.state["global_step"]) if newest else 0
    if _is_exported(job) and (newest is None or began == job.steps):
        return RunResult(str(folder), job.steps, True, job.steps)
    job.run.write(SETTINGS, yaml.safe_dump(as_dict(settings), sort_keys=True).encode())
    (folder / STOPPED).unlink(missing_ok=True)
    use_gpu = _use_gpu(settings)
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=settings.train.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": settings.train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"ray-{uuid.uuid4().hex}",  # never the same twice: Ray would resume its own record of an older start
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=settings.train.max_failures),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(_advice(settings, _last_line(error))) from error
    if (folder / STOPPED).exists():
        raise TrainingError(_advice(settings, (folder / STOPPED).read_text()))
    done = checkpoints.latest(job.run)
    steps = int(done.state["global_step"]) if done else 0
    return RunResult(str(folder), steps, steps == job.steps and _is_exported(job), began)


def _advice(settings: PretrainSettings, why: str) -> str:
    return f"run {settings.run} stopped: {why}\nThe newest checkpoint is kept; the same command continues the run."


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
    note = job.run.folder / STOPPED
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    if ranks.from_first(note.exists()):
        return
    if not ranks.all_true((job.run.folder / SETTINGS).exists()):
        raise TrainingError(f"{job.run.folder} is not the same folder on every node; out= must be a shared one")
    try:
        train(job, ranks, on_checkpoint=lambda metrics: ray.train.report(metrics))
    except (TrainingError, CorpusError, checkpoints.CheckpointError) as error:
        note.write_text(str(error))
        raise
