"""Every method there is, by its small recipe, on real recordings: what the tests over the whole registry share.

A method is here by being in the registry with a recipe NAME_tiny; nothing names it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws, record_key
from beatray.config import config_folder
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES
from beatray.ingest.plan import SAMPLE
from beatray.objectives.objective import Objective
from beatray.objectives.registry import objective_classes
from beatray.objectives.statistics import FeatureStatistics
from beatray.schema import flat
from beatray.settings import PretrainSettings
from beatray.train.blocks import MAX_BEATS, Arrays, patient_keys
from beatray.train.composed import pretrain_settings
from beatray.train.order import OrderSettings
from beatray.train.run_spec import RunSpec, build_model
from beatray.train.stream_settings import RowGroup, StreamSettings
from evaluation_rows import read_rows
from feature_tables import table_of

RECIPES = sorted(path.stem for path in (config_folder() / "recipe").glob("*_tiny.yaml"))
METHODS = sorted(objective_classes())
CROP_S = 1.6


@lru_cache
def settings_of(recipe: str, *overrides: str) -> PretrainSettings:
    """The settings of a recipe with short crops, one worker and 32-bit arithmetic."""
    short = [f"{key}={CROP_S}" for key in crops_of(recipe)]
    usual = ("train.workers=1", "train.precision=fp32", "train.epochs=10", "train.warmup_epochs=1")
    return pretrain_settings(["corpus=/corpus", f"recipe={recipe}", *usual, *short, *overrides])


@lru_cache
def crops_of(recipe: str) -> list[str]:
    """The settings of a recipe that say how long windows are."""
    settings = pretrain_settings(["corpus=/corpus", f"recipe={recipe}"])
    return [key for key in flat(settings.objective, "objective") if key.endswith("crop_seconds")]


@lru_cache
def rows_of(count: int) -> tuple[Arrays, dict[str, Any]]:
    """The arrays that training reads, of bundled recordings of PTB-XL and LUDB, and their feature statistics.

    Beat classes are drawn: nothing is said of what they mean. Copy before you change a row.
    """
    half = count // 2
    rows = read_rows(
        ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), count - half), ludb=(str(SAMPLE / "ludb-sample.zip"), half)
    )
    keys = np.array([record_key(name) for name in rows.record_id])
    peaks = np.full((count, MAX_BEATS), -1, np.int64)
    beats = np.full((count, MAX_BEATS, len(BEAT_FEATURES)), np.nan, np.float32)
    for number, (at, features) in enumerate(zip(rows.r_peaks, rows.beat_features, strict=True)):
        peaks[number, : len(at)] = at
        beats[number, : len(features)] = features
    arrays: Arrays = {
        "signal_uv": rows.signal_uv,
        "n_samples": rows.n_samples.astype(np.int64),
        "record_key": keys,
        "patient_key": patient_keys(rows.patient_id, keys),
        "r_peaks": peaks,
        "beat_features": beats,
        "record_features": rows.record_features.astype(np.float32),
        "beat_class": np.where(peaks >= 0, np.random.default_rng(0).integers(-1, 3, peaks.shape), -1),
    }
    known = beats.reshape(-1, len(BEAT_FEATURES))[(peaks >= 0).reshape(-1)]
    statistics = FeatureStatistics(
        table_of(list(RECORD_FEATURES), arrays["record_features"]), table_of(list(BEAT_FEATURES), known)
    )
    return arrays, statistics.to_dict()


def model_of(settings: PretrainSettings, statistics: dict[str, Any], *, exact: bool = False) -> Objective:
    """The objective; `exact` in float64 and without dropout, the one thing that may depend on the rank."""
    objective = build_model(settings.objective, settings.encoder, settings.seed, statistics)
    if exact:
        objective.double()
        for module in objective.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout1d)):
                module.p = 0.0
    return objective


def batch_of(objective: Objective, arrays: Arrays, rows: slice | list[int] | None = None) -> dict[str, Tensor]:
    """What the objective reads of some rows."""
    chosen = slice(None) if rows is None else rows
    return {name: torch.from_numpy(np.ascontiguousarray(arrays[name][chosen])) for name in objective.reads}


def views_of(
    objective: Objective, batch: dict[str, Tensor], epoch: int = 0, *, exact: bool = False
) -> dict[str, Tensor]:
    """Views of a batch, in float64 if `exact`."""
    made = objective.views(batch, Draws.of(batch, 11, epoch))
    return {name: value.double() if exact and value.is_floating_point() else value for name, value in made.items()}


def run_spec_of(settings: PretrainSettings, statistics: dict[str, Any], rows: int) -> RunSpec:
    """A job of so many recordings whose batches are handed over by the test: it has no corpus."""
    nothing = cast(Any, None)
    settings = replace(settings, train=replace(settings.train, batch_size=rows))
    groups = (RowGroup(nothing, 0, tuple(range(rows))),)
    stream = StreamSettings(nothing, groups, OrderSettings(0, rows), ())
    return RunSpec(settings, stream, replace(stream, groups=()), statistics, {}, "", b"", 0)
