"""What tests of learning from labels share: objectives with targets on bundled recordings, and their loss by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.reader import Rows
from beatray.evaluate.label_spaces import superclass_targets
from beatray.evaluate.labels import wave_masks
from beatray.settings import PretrainSettings
from beatray.train.blocks import Arrays
from beatray.train.composed import pretrain_settings
from beatray.train.order import OrderSettings
from beatray.train.run_spec import RunSpec
from beatray.train.stream_settings import RowGroup, StreamSettings
from evaluation_rows import read_rows
from every_method import SAMPLE, rows_of

KINDS = ("multilabel", "classes", "numbers", "waves")
OVERRIDES = ("corpus=/corpus", "encoder=tiny", "train.workers=1", "train.epochs=10", "train.warmup_epochs=1")
FILLED: dict[str, tuple[str, ...]] = {
    "multilabel": ("objective=supervised", "objective.names=[CD,HYP,MI,NORM,STTC]"),
    "classes": ("objective=supervised", "objective.kind=classes", "objective.names=[a,b,c]"),
    "numbers": (
        "objective=supervised",
        "objective.kind=numbers",
        "objective.names=[age,other]",
        "objective.mean=[60.0,1.0]",
        "objective.sd=[15.0,2.0]",
    ),
    "waves": ("objective=segmentation", "objective.labels=waves"),
}
"""Settings of an objective as they are once the labels of a corpus have filled them in."""


def settings_for(kind: str, *overrides: str) -> PretrainSettings:
    """A small run of a kind of labels, with crops of 1.6 s."""
    usual = (*OVERRIDES, *FILLED[kind], "+objective.augment.crop_seconds=1.6")
    return pretrain_settings([*usual, *overrides])


def labelled_rows(kind: str, count: int = 8) -> tuple[Arrays, dict[str, Any]]:
    """Arrays of bundled recordings with targets, some of which are unknown; half of them are LUDB's."""
    arrays, statistics = rows_of(count)
    return {**arrays, "target": targets_of(kind, count)}, statistics


def targets_of(kind: str, count: int) -> NDArray[Any]:
    """Targets of `rows_of(count)`; superclasses and waves are real, the others drawn."""
    rows, generator = _recordings(count), np.random.default_rng(3)
    if kind == "waves":
        return wave_masks(rows.waves)
    if kind == "classes":
        return generator.integers(-1, 3, count).astype(np.int16)
    if kind == "numbers":
        values = generator.normal(60.0, 15.0, (count, 2)).astype(np.float32)
        values[generator.random(values.shape) < 0.3] = np.nan
        return values
    truth = superclass_targets(rows.labels).astype(np.int8)
    truth[generator.random(truth.shape) < 0.2] = -1
    return truth


def run_spec_for(settings: PretrainSettings, statistics: dict[str, Any], rows: int) -> RunSpec:
    """A run of so many recordings whose batches a test hands over."""
    nothing = cast(Any, None)
    settings = replace(settings, train=replace(settings.train, batch_size=rows))
    stream = StreamSettings(nothing, (RowGroup(nothing, 0, tuple(range(rows))),), OrderSettings(0, rows), ())
    return RunSpec(settings, stream, replace(stream, groups=()), statistics, {}, "", b"", 0)


@lru_cache
def _recordings(count: int) -> Rows:
    half = count // 2
    return read_rows(
        ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), count - half), ludb=(str(SAMPLE / "ludb-sample.zip"), half)
    )
