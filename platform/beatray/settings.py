"""The settings of pretraining: frozen dataclasses, each checked as it is made.

How words and YAML become one of these is in `config.py`. Contract: a value that cannot work is a `SettingsError`
that names its key; what can be checked only against a corpus or a cluster is checked there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from beatray.errors import SettingsError


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """Which corpus, and which of its rows may be trained on."""

    path: str = ""
    validation_folds: tuple[int, ...] = (9,)
    test_folds: tuple[int, ...] = (10,)
    hashed_test_sources: tuple[str, ...] = ("ludb",)  # without folds: two fifths by a hash of the name are held out
    split: int = 0  # the published folds; n: the same folds turned by n, and other records of sources without folds
    train_on_unknown_copies: bool = False
    pretrain_sees_test: bool = False  # mimics studies that pretrain on everything; never the default
    on_bad_shard: str = "stop"  # or skip: train on without the rows of a shard that cannot be read, counted

    def __post_init__(self) -> None:
        _one_of("corpus.on_bad_shard", self.on_bad_shard, ("stop", "skip"))
        if not 0 <= self.split < 10:
            raise SettingsError(f"corpus.split must be 0 (the published folds) to 9, not {self.split}")


@dataclass(frozen=True, slots=True)
class ViewPlacement:
    """Where the augmented views are made: on Ray Data workers or on the training device."""

    place: str = "device"

    def __post_init__(self) -> None:
        _one_of("views.place", self.place, ("device", "workers"))


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The optimisation, its parallelism and its safety nets. Batches are global: shared out over the workers."""

    workers: int | tuple[int, ...] = 1  # or [least, most]: as many as the cluster has room for, while it runs
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_epochs: float = 10.0
    clip_norm: float = 1.0
    accumulate: int = 1  # micro-batches per step; a contrast sees only its own micro-batch
    precision: str = "fp32"  # or bf16 (autocast; weights and losses stay fp32), or fp64 (the same curve on any workers)
    compile: bool = False
    device: str = "auto"  # auto, cpu or cuda
    threads_per_worker: int = 1
    cpus_per_worker: float = 0.5
    readers_per_worker: int = 2
    cpus_per_reader: float = 0.25
    lanes: int = 16  # queues of row groups, at most: the largest number below that divides the batch is taken
    window: int = 8  # row groups over which rows are shuffled
    chunk_steps: int = 1024  # steps fed by one Ray Data execution
    cache_mb: int = 1024  # a corpus that fits is read once and kept in memory by every worker; 0 streams always
    checkpoint_every_steps: int = 200
    validate_every_epochs: int = 10  # 0: never
    validation_rows: int = 2048  # at most so many recordings are validated on
    log_every_steps: int = 1
    log_ids: bool = False
    max_failures: int = 3  # deaths of workers that a start survives
    max_nonfinite: int = 5
    start_minutes: float = 10.0  # how long to wait for workers that the cluster has no room for now
    resize_seconds: float = 60.0  # elastic workers: how often to look for room
    stall_minutes: float = 15.0  # no step for so long: stacks of all workers, and an end
    stop_after_steps: int | None = None  # end early, with a checkpoint, as if interrupted

    def __post_init__(self) -> None:
        _one_of("train.precision", self.precision, ("fp32", "bf16", "fp64"))
        _one_of("train.device", self.device, ("auto", "cpu", "cuda"))
        if isinstance(self.workers, tuple) and (len(self.workers) != 2 or self.workers[0] > self.workers[1]):
            raise SettingsError(f"train.workers must be a number or [least, most], not {list(self.workers)}")
        if self.least_workers < 1:
            raise SettingsError(f"train.workers must be at least 1, not {self.least_workers}")
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "lanes",
            "window",
            "chunk_steps",
            "checkpoint_every_steps",
            "validation_rows",
            "log_every_steps",
            "readers_per_worker",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("threads_per_worker", "max_nonfinite", "stop_after_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"train.{name} must be at least 1, not {value}")
        for name in ("learning_rate", "clip_norm", "start_minutes", "resize_seconds", "stall_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"train.{name} must be a number above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "max_failures", "validate_every_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"train.{name} must be a number, 0 or more, not {getattr(self, name)}")
        if self.batch_size < self.most_workers * self.accumulate:
            raise SettingsError("train.batch_size must be at least train.workers x train.accumulate")
        if not self.cpus_per_reader > 0 or not self.cpus_per_worker > 0:
            raise SettingsError("train.cpus_per_worker and train.cpus_per_reader must be above 0")

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

    every_minutes: float | None = 10.0  # also one when so much time has passed since the last
    keep: int = 3  # the newest ones, besides the best by validation
    required: bool = True  # false: a checkpoint that cannot be written does not end the run
    background: bool = True  # false: training waits for every write
    export: str = "last"  # the weights that become encoder/: last, or best by validation

    def __post_init__(self) -> None:
        _one_of("checkpoint.export", self.export, ("last", "best"))
        if self.keep < 1:
            raise SettingsError(f"checkpoint.keep must be at least 1, not {self.keep}")
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise SettingsError(f"checkpoint.every_minutes must be above 0 or null, not {self.every_minutes}")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Ray: `address` of a running cluster, or the size of the local one."""

    address: str | None = None
    cpus: int | None = None
    object_store_mb: int = 512
    dashboard: bool = False  # of the local Ray, on 127.0.0.1
    allow_open_dashboard: bool = False  # join a cluster whose dashboard is public and asks for no token

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise SettingsError(f"cluster.cpus must be at least 1, not {self.cpus}")
        if self.object_store_mb < 80:
            raise SettingsError(f"cluster.object_store_mb must be at least 80, not {self.object_store_mb}")


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """MLflow: where (default: a database beside the run) and under which names; null turns it off."""

    uri: str | None = "auto"
    experiment: str = "beatray"
    flush_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.uri == "":
            raise SettingsError("tracking.uri is empty: say an address, auto, or null for no tracking")
        if not 0 < self.flush_seconds < math.inf:
            raise SettingsError(f"tracking.flush_seconds must be a number above 0, not {self.flush_seconds}")


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Everything `beatray pretrain` needs. `objective`, `encoder` and `views` carry their own keys; see configs/."""

    out: str = "runs"
    run: str = "pretrain"
    seed: int = 0
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    encoder: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    views: ViewPlacement = field(default_factory=ViewPlacement)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SettingsError(f"seed must be 0 or more, not {self.seed}")
        if not re.fullmatch(r"[\w.-]+", self.run) or not self.run.strip("."):
            raise SettingsError(f"run={self.run!r} must be the name of a folder: letters, digits, '.', '_' and '-'")
        if self.checkpoint.export == "best" and not self.train.validate_every_epochs:
            raise SettingsError("checkpoint.export=best needs a validation: set train.validate_every_epochs above 0")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{key}={value} is not one of {', '.join(allowed)}")
