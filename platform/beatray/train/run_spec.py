"""All a rank needs to train, resolved by the driver, and how the model and the views are made from it.

Contract: a `RunSpec` is small and picklable; what is built from it is a function of its content alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.augment.lead_masks import without_leads
from beatray.config import renamed
from beatray.corpus.splits import OWN_PATIENTS
from beatray.errors import TrainingError
from beatray.fields import absent_values, keys_with
from beatray.models.encoder_folder import load_encoder
from beatray.models.registry import build_encoder, encoder_class
from beatray.objectives.objective import Objective
from beatray.objectives.registry import build_objective, objective_class
from beatray.objectives.statistics import FeatureStatistics
from beatray.schema import as_dict, flat
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.track.secrets import scrubbed
from beatray.train.blocks import Arrays
from beatray.train.composed import NAMED
from beatray.train.order import steps_per_epoch
from beatray.train.stream_settings import StreamSettings


def shown_settings(settings: PretrainSettings) -> dict[str, Any]:
    """The settings as they may be shown to anyone: without the password in an address."""
    shown: dict[str, Any] = scrubbed(as_dict(settings))
    return shown


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All a rank needs, resolved by the driver."""

    settings: PretrainSettings
    stream: StreamSettings
    validation: StreamSettings  # the same, on the recordings to validate on
    statistics: dict[str, Any]
    recipe: dict[str, Any]
    manifest_hash: str
    trained_on: bytes  # sorted 8-byte content hashes of the training rows, exported with the encoder
    key_sum: int  # of the training rows' record keys: epoch_audit.py
    sources: dict[str, int] = field(default_factory=dict)  # training rows by source, exported with the encoder
    earlier_sources: dict[str, int] | None = None  # the same of the encoder that training starts from, if known
    test_targets: str = ""  # SHA-256 of the targets that a model is scored by, where the objective learns from labels

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


def build_model(
    objective: dict[str, Any],
    encoder: dict[str, Any],
    seed: int,
    statistics: dict[str, Any],
    weights: str | None = None,
) -> Objective:
    """The objective with a fresh encoder, whose weights are a function of the seed, or with the one at `weights`.

    Raises ValueError for a name or setting that does not exist, and a network that the method cannot work with.
    """
    state = load_encoder(weights).state_dict() if weights is not None else None
    torch.manual_seed(seed)
    built = build_encoder(encoder["name"], **{key: value for key, value in encoder.items() if key != "name"})
    if state is not None:
        built.load_state_dict(state)  # before the objective is made, which may keep a teacher's copy
    settings = {key: value for key, value in objective.items() if key != "name"}
    return build_objective(objective["name"], built, settings, FeatureStatistics.from_dict(statistics))


def views_of(
    objective: Objective, batch: dict[str, Tensor], seed: int, epoch: int, lead_dropout: float
) -> dict[str, Tensor]:
    """The objective's views of a batch of the corpus, wherever they are made; in training recordings lose leads."""
    draws = Draws.of(batch, seed, epoch)
    return objective.views(without_leads(batch, draws, lead_dropout), draws)


@dataclass(frozen=True, slots=True)
class ViewsOnWorker:
    """The objective's views as a function of arrays, for Ray Data workers: pure, so the weights do not matter."""

    objective: str  # JSON, so that a process builds it once
    encoder: str
    statistics: str
    seed: int
    lead_dropout: float = 0.0

    @classmethod
    def of(cls, run_spec: RunSpec) -> ViewsOnWorker:
        """The views that a run makes."""
        settings = run_spec.settings
        objective, encoder = json.dumps(settings.objective), json.dumps(settings.encoder)
        statistics = json.dumps(run_spec.statistics)
        return cls(objective, encoder, statistics, settings.seed, settings.train.lead_dropout)

    def __call__(self, arrays: Arrays, epoch: int) -> Arrays:
        torch.set_num_threads(1)
        objective = _objective_of_process(self.objective, self.encoder, self.statistics)
        batch = to_tensors(arrays, torch.device("cpu"))
        made = views_of(objective, batch, self.seed, epoch, self.lead_dropout)
        return {name: tensor.numpy() for name, tensor in made.items()}


@lru_cache(maxsize=1)
def _objective_of_process(objective: str, encoder: str, statistics: str) -> Objective:
    return build_model(json.loads(objective), json.loads(encoder), 0, json.loads(statistics))


def to_tensors(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    """The arrays on a device; to a GPU they go by way of pinned memory, and no one waits for it."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def check_same_run(run_spec: RunSpec, state: dict[str, Any]) -> None:
    """Raise TrainingError if a checkpoint's state is of another corpus snapshot or other settings than the run's."""
    if state["manifest_hash"] != run_spec.manifest_hash:
        raise TrainingError(
            f"run {run_spec.settings.run} was started on another snapshot of the corpus; its order of records would "
            "not be the same. Choose another run= or the corpus it was started on."
        )
    now = flat(json.loads(json.dumps(shown_settings(run_spec.settings))))
    before = flat(json.loads(json.dumps(of_older_run(state["settings"]))))
    resumable = keys_marked(run_spec.settings, "resumable")
    differing = [
        f"{key}: {before.get(key)!r} before, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in resumable
    ]
    if differing:
        raise TrainingError(
            f"run {run_spec.settings.run} was started with other settings ({'; '.join(differing)}). Choose another "
            "run= or start it with the same settings."
        )


def keys_marked(settings: PretrainSettings, mark: str) -> set[str]:
    """Dotted keys of the settings, those of method and network included, at which a mark was set (fields.py)."""
    method = objective_class(settings.objective["name"]).Settings
    network = encoder_class(settings.encoder["name"]).Settings
    marked = keys_with(method, mark, "objective.") | keys_with(network, mark, "encoder.")
    return keys_with(PretrainSettings, mark) | marked


def of_older_run(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run wrote down, as this version would: keys renamed, and for those it did not know yet what
    it did (`absent`, set at the field; how test recordings were dealt, `corpus.splits`)."""
    content = renamed(stored)
    corpus = content.setdefault("corpus", {})
    alone = set(corpus.get("hashed_test_sources", ())) <= set(OWN_PATIENTS)
    corpus.setdefault("hashed_test_by", "patient" if alone else "recording")
    objective, encoder = content["objective"]["name"], content["encoder"]["name"]
    schemas: dict[str, type[Any]] = {
        "": PretrainSettings,
        "objective.": objective_class(objective).Settings,
        "encoder.": encoder_class(encoder).Settings,
    }
    for where, schema in schemas.items():
        for key, value in absent_values(schema, where).items():
            inner = content
            *groups, name = key.split(".")
            for group in groups:
                inner = inner.setdefault(group, {})
            inner.setdefault(name, value)
    for group in ("objective", "encoder"):
        rest = {key: value for key, value in content[group].items() if key != "name"}
        name = content[group]["name"]
        content[group] = {"name": name, **NAMED[group].complete(name, rest, f"{group}.")}
    return content
