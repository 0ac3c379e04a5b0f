"""All a rank needs to train, resolved by the driver, and how the model and the views are made from it.

Contract: a `Job` is small and picklable; what is built from it is a function of its content alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beatray.beat_classifier.folder import load as load_labels
from beatray.config import as_dict, flat
from beatray.errors import TrainingError
from beatray.models.registry import build_encoder
from beatray.objectives.registry import build_objective
from beatray.objectives.statistics import FeatureStatistics
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.track.secrets import scrubbed
from beatray.train.blocks import Arrays
from beatray.train.order import steps_per_epoch
from beatray.train.stream import StreamSettings

RESUMABLE = (
    "out",
    "run",
    "corpus.path",
    "objective.beat_classifier",
    "train.epochs",
    "train.workers",
    "corpus.on_bad_shard",
    "train.checkpoint_every_steps",
    "train.validate_every_epochs",
    "train.log_every_steps",
    "train.log_ids",
    "train.max_failures",
    "train.max_nonfinite",
    "train.start_minutes",
    "train.resize_seconds",
    "train.stall_minutes",
    "train.stop_after_steps",
    "train.chunk_steps",
    "train.cache_mb",
    "train.readers_per_worker",
    "train.cpus_per_reader",
    "train.cpus_per_worker",
    "train.threads_per_worker",
    "train.device",
    "views.place",
)
"""Settings that may differ between a checkpoint and the run that continues it: they change no gradient.

Except for `train.epochs`, which moves the cosine: continuing to more epochs is a decision the user may take.
"""


ADDED = {"corpus.split": 0, "objective.feature_weight": 0.0, "encoder.channels": [32, 32, 64]}
"""Settings that older runs do not name, with what those runs did."""

RESUMABLE_GROUPS = ("checkpoint.", "cluster.", "tracking.")
"""Whole groups of the same kind."""


def shown_settings(settings: PretrainSettings) -> dict[str, Any]:
    """The settings as they may be shown to anyone: without the password in an address."""
    shown: dict[str, Any] = scrubbed(as_dict(settings))
    return shown


@dataclass(frozen=True, slots=True)
class Job:
    """All a rank needs, resolved by the driver."""

    settings: PretrainSettings
    stream: StreamSettings
    validation: StreamSettings  # the same, on the recordings to validate on
    statistics: dict[str, Any]
    recipe: dict[str, Any]
    manifest_hash: str
    trained_on: bytes  # sorted 8-byte content hashes of the training rows, exported with the encoder
    key_sum: int  # of the training rows' record keys: account.py
    sources: dict[str, int] = field(default_factory=dict)  # training rows by source, exported with the encoder

    @property
    def run(self) -> Store:
        """The run folder."""
        return Store(self.settings.out).child(self.settings.run)

    @property
    def rows(self) -> int:
        """Recordings of one epoch."""
        return sum(self.stream.sizes)

    @property
    def steps(self) -> int:
        """Global steps of the whole run."""
        return self.settings.train.epochs * steps_per_epoch(self.rows, self.settings.train.batch_size)


def build_model(objective: dict[str, Any], encoder: dict[str, Any], seed: int, statistics: dict[str, Any]) -> Any:
    """The objective with a fresh encoder, a module that is an `Objective`; the weights are a function of the seed.

    Raises ValueError for a name or setting that does not exist.
    """
    torch.manual_seed(seed)
    encoder_settings = {key: value for key, value in encoder.items() if key != "name"}
    objective_settings = {key: value for key, value in objective.items() if key != "name"}
    built = build_encoder(encoder["name"], **encoder_settings)
    made = build_objective(objective["name"], built, objective_settings, FeatureStatistics.from_dict(statistics))
    if objective.get("beat_labels"):
        made.beat_labels = load_labels(objective["beat_classifier"], objective.get("beat_classifier_digest"))
    return made


@dataclass(frozen=True, slots=True)
class ViewsOnWorker:
    """The objective's views as a function of arrays, for Ray Data workers: pure, so the encoder does not matter."""

    objective: str  # JSON, so that a process builds it once
    statistics: str
    seed: int

    def __call__(self, arrays: Arrays, epoch: int) -> Arrays:
        torch.set_num_threads(1)
        objective = _objective_of_process(self.objective, self.statistics)
        made = objective.views(to_tensors(arrays, torch.device("cpu")), self.seed, epoch)
        return {name: tensor.numpy() for name, tensor in made.items()}


@lru_cache(maxsize=1)
def _objective_of_process(objective: str, statistics: str) -> Any:
    return build_model(json.loads(objective), {"name": "tiny"}, 0, json.loads(statistics))


def to_tensors(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    """The arrays on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in arrays.items()}


def check_same_run(job: Job, state: dict[str, Any]) -> None:
    """Raise TrainingError if a checkpoint's state is of another corpus snapshot or other settings than the job's."""
    if state["manifest_hash"] != job.manifest_hash:
        raise TrainingError(
            f"run {job.settings.run} was started on another snapshot of the corpus; its order of records would not "
            "be the same. Choose another run= or the corpus it was started on."
        )
    now = flat(json.loads(json.dumps(shown_settings(job.settings))))
    before = {**{key: value for key, value in ADDED.items() if key in now}, **flat(state["settings"])}
    differing = [
        f"{key}: {before.get(key)!r} before, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in RESUMABLE and not key.startswith(RESUMABLE_GROUPS)
    ]
    if differing:
        raise TrainingError(
            f"run {job.settings.run} was started with other settings ({'; '.join(differing)}). Choose another run= "
            "or start it with the same settings."
        )
