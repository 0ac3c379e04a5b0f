"""The settings of pretraining: frozen dataclasses, each checked as it is made.

How overrides and YAML become one of these is in `config.py` and `schema.py`, the metadata of a field in
`fields.py`. Contract: a value that cannot work is a `SettingsError` that names its key; what can be checked only
against a corpus or a cluster is checked there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from beatray.errors import SettingsError
from beatray.fields import check, setting


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """Which corpus, and which of its rows may be trained on."""

    path: str = setting("", "folder or URI of the corpus", resumable=True)
    validation_folds: tuple[int, ...] = setting((9,), "of the ten that PTB-XL publishes", at_least=1, at_most=10)
    test_folds: tuple[int, ...] = setting((10,), "never pretrained on", at_least=1, at_most=10)
    hashed_test_sources: tuple[str, ...] = setting(
        ("ludb",), "sources without folds of which two fifths of the patients are held out, by a hash"
    )
    hashed_test_by: Literal["patient", "recording"] = setting(
        "patient", "recording: as version 0.1 chose them, for its runs and encoders; far more than two fifths"
    )
    fold_rotation: int = setting(
        0,
        "0: the published folds; 1 to 9: the folds rotated by so many, and other records of sources without folds",
        at_least=0,
        at_most=9,
        was="split",
        absent=0,
    )
    most_recordings: int | None = setting(
        None,
        "train on at most so many, of patients drawn by a hash: more hold all of fewer; null: on all",
        at_least=1,
        absent=None,
    )
    train_on_unknown_copies: bool = setting(
        False, "PTB-XL recordings of the Challenge sets whose fold the corpus does not know"
    )
    pretrain_sees_test: bool = setting(False, "mimics studies that pretrain on everything; never the default")
    on_bad_shard: Literal["stop", "skip"] = setting(
        "stop", "skip: train on without the rows of a shard that cannot be read, counted", resumable=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The optimization, its parallelism and its safety nets. Batches are global: shared out over the workers."""

    workers: int | tuple[int, ...] = setting(
        1, "or [least, most]: as many as the cluster has room for, while it runs", at_least=1, resumable=True
    )
    epochs: int = setting(100, at_least=1, resumable=True)  # moves the schedule: a decision that the user may take
    batch_size: int = setting(256, "recordings of a global step", at_least=1)
    keep_patients_together: bool = setting(
        False, "recordings of one patient within a shuffling window come in one batch", absent=False
    )
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = setting("adamw", absent="adamw")
    learning_rate: float = setting(1e-3, above=0.0, searchable=True)
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "of adamw and adam", at_least=0.0, below=1.0, absent=(0.9, 0.999)
    )
    eps: float = setting(1e-8, "of adamw and adam", above=0.0, absent=1e-8)
    momentum: float = setting(0.9, "of sgd and lars", at_least=0.0, below=1.0, absent=0.9)
    weight_decay: float = setting(
        1e-4, "of matrices; biases, norms and what a network marks never decay", at_least=0.0, searchable=True
    )
    weight_decay_end: float | None = setting(
        None, "the decay goes there along a half cosine; null: it stays", at_least=0.0, absent=None
    )
    schedule: Literal["cosine", "constant"] = setting("cosine", "after the warm-up", absent="cosine")
    schedule_floor: float = setting(
        0.0, "where the cosine ends, as a part of the learning rate", at_least=0.0, at_most=1.0, absent=0.0
    )
    warmup_epochs: float = setting(10.0, "of a linear warm-up, at most half of the run", at_least=0.0)
    max_grad_norm: float = setting(1.0, above=0.0, was="clip_norm", searchable=True)
    gradient_accumulation_steps: int = setting(
        1, "micro-batches of a step; a contrast sees only its own micro-batch", at_least=1, was="accumulate"
    )
    lead_dropout: float = setting(
        0.0,
        "each lead of a recording is left out of all its views with this probability, never all, as if it had not been "
        "recorded; not in validation",
        at_least=0.0,
        below=1.0,
        absent=0.0,
    )
    augment_on: Literal["device", "workers"] = setting(
        "device", "where views are made: the training device or Ray Data workers", was="views.place", resumable=True
    )
    precision: Literal["auto", "fp32", "bf16", "fp64"] = setting(
        "fp32",
        "bf16: autocast, weights and losses stay fp32; auto: bf16 where all processors have it, else fp32; fp64: the "
        "same curve on any number of workers",
    )
    compile: Literal["none", "encoder", "step", "graphs"] = setting(
        "none",
        "torch.compile: the network; step: forward and backward whole; graphs: as CUDA graphs, too",
        was_values={True: "encoder", False: "none"},
    )
    overlap: Literal["auto", "always", "never"] = setting(
        "auto",
        "views and copies are made a step ahead, and a step is read when the next one runs; auto: on a GPU",
        resumable=True,
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", resumable=True)
    threads_per_worker: int = setting(1, at_least=1, resumable=True)
    cpus_per_worker: float = setting(0.5, above=0.0, resumable=True)
    readers_per_worker: int = setting(2, at_least=1, resumable=True)
    cpus_per_reader: float = setting(0.25, above=0.0, resumable=True)
    shuffle_streams: int = setting(
        16,
        "queues of row groups, at most; best at least train.workers and a divisor of batch_size",
        at_least=1,
        was="lanes",
    )
    window: int = setting(8, "row groups over which rows are shuffled", at_least=1)
    chunk_steps: int = setting(1024, "steps fed by one Ray Data execution", at_least=1, resumable=True)
    cache_mb: int = setting(
        1024, "a corpus that fits is read once and kept by every worker; 0 streams always", at_least=0, resumable=True
    )
    checkpoint_every_steps: int = setting(200, at_least=1, resumable=True)
    validate_every_epochs: int = setting(10, "0: never", at_least=0, resumable=True)
    validation_rows: int = setting(2048, "at most so many recordings are validated on", at_least=1)
    patience: int | None = setting(
        None,
        "validations in a row without a better one after which a run ends; null: never",
        at_least=1,
        resumable=True,
    )
    log_every_steps: int = setting(1, at_least=1, resumable=True)
    log_ids: bool = setting(False, "the record ids of every step, in ids.jsonl", resumable=True)
    max_failures: int = setting(3, "deaths of workers that a start survives", at_least=0, resumable=True)
    max_nonfinite: int = setting(5, "refused steps in a row after which a run stops", at_least=1, resumable=True)
    start_minutes: float = setting(
        10.0, "how long to wait for workers that the cluster has no room for now", above=0.0, resumable=True
    )
    resize_seconds: float = setting(60.0, "elastic workers: how often to look for room", above=0.0, resumable=True)
    stall_minutes: float = setting(
        15.0, "no step for so long: stacks of all workers, and an end", above=0.0, resumable=True
    )
    stop_after_steps: int | None = setting(
        None, "end early, with a checkpoint; a later start continues", at_least=1, resumable=True
    )

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.workers, tuple) and (len(self.workers) != 2 or self.workers[0] > self.workers[1]):
            raise SettingsError(f"workers must be a number or [least, most], not {list(self.workers)}")
        if self.batch_size < self.most_workers * self.gradient_accumulation_steps:
            raise SettingsError("batch_size must be at least workers x gradient_accumulation_steps")

    @property
    def least_workers(self) -> int:
        """Workers without which the run does not start."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """Workers when the cluster has room for all."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """How checkpoints are kept; how often in steps is `train.checkpoint_every_steps`."""

    every_minutes: float | None = setting(
        10.0, "also one when so much time has passed since the last; null: only by steps", above=0.0, resumable=True
    )
    keep: int = setting(3, "the newest ones, besides the best by validation", at_least=1, resumable=True)
    required: bool = setting(True, "false: a checkpoint that cannot be written does not end the run", resumable=True)
    background: bool = setting(True, "false: training waits for every write", resumable=True)
    export: Literal["last", "best"] = setting(
        "last", "the weights that become encoder/: last, or best by validation", resumable=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Ray: `address` of a running cluster, or the size of the local one."""

    address: str | None = setting(None, "of a running cluster (or RAY_ADDRESS); null: a private Ray", resumable=True)
    cpus: int | None = setting(None, "of the local Ray", at_least=1, resumable=True)
    object_store_mb: int = setting(512, "of the local Ray", at_least=80, resumable=True)
    dashboard: bool = setting(False, "of the local Ray, on 127.0.0.1", resumable=True)
    allow_open_dashboard: bool = setting(
        False, "join a cluster whose dashboard is public and asks for no token", resumable=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """MLflow: where (default: a database beside the run) and under which names; null turns it off."""

    uri: str | None = setting(
        "auto", "auto: MLFLOW_TRACKING_URI, or mlflow.db beside the runs; null: no tracking", resumable=True
    )
    experiment: str = setting("beatray", resumable=True)
    flush_seconds: float = setting(5.0, above=0.0, resumable=True)

    def __post_init__(self) -> None:
        check(self)
        if self.uri == "":
            raise SettingsError("uri is empty: set an address, auto, or null for no tracking")


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Everything `beatray pretrain` needs.

    `objective` and `encoder` hold a name and all settings of that method and network: see their `Settings`.
    """

    out: str = setting("runs", "folder or URI of the runs", resumable=True)
    run: str = setting("pretrain", "name of the run", resumable=True)
    seed: int = setting(0, at_least=0, below=2**63)
    recipe: str | None = setting(
        None, "objective, encoder, optimizer and schedule together, as a method is published", resumable=True
    )
    corpus: CorpusSettings = setting(CorpusSettings)
    encoder_weights: str | None = setting(
        None, "set as encoder.weights=: a run folder or exported encoder to start from", resumable=True
    )
    encoder_weights_sha256: str | None = setting(None, "filled in: of that encoder", absent=None)
    encoder: dict[str, Any] = setting({})
    objective: dict[str, Any] = setting({})
    train: TrainSettings = setting(TrainSettings)
    checkpoint: CheckpointSettings = setting(CheckpointSettings)
    cluster: ClusterSettings = setting(ClusterSettings)
    tracking: TrackingSettings = setting(TrackingSettings)

    @property
    def first_weights(self) -> str | None:
        """The encoder whose weights the run begins with; None where they are drawn, `encoder_weights` set or not."""
        return None if self.objective.get("from_scratch") else self.encoder_weights

    def __post_init__(self) -> None:
        check(self)
        check_run_name(self.run)
        for name, is_set in (
            ("checkpoint.export=best", self.checkpoint.export == "best"),
            ("train.patience", self.train.patience),
        ):
            if is_set and not self.train.validate_every_epochs:
                raise SettingsError(f"{name} needs a validation: set train.validate_every_epochs above 0")


def check_run_name(run: str) -> None:
    """Raise SettingsError for a run that is not the name of a folder."""
    if not re.fullmatch(r"[\w.-]+", run) or not run.strip("."):
        raise SettingsError(f"run={run!r} must be the name of a folder: letters, digits, '.', '_' and '-'")


def lasting(settings: PretrainSettings, epochs: int) -> PretrainSettings:
    """The settings with so many epochs, the warm-up the same part of them as before."""
    train = settings.train
    warmup = round(train.warmup_epochs * epochs / train.epochs, 6)
    return replace(settings, train=replace(train, epochs=epochs, warmup_epochs=warmup))
