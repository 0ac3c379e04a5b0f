"""What one evaluation found: every run with its numbers, kept so that each table and interval can be made again.

A run is one training of one head (and perhaps encoder) on one set of labels. Beside its scores it keeps what they were
computed from, per test record, which is what a paired bootstrap needs.

`results.json` holds all of it as plain JSON; numbers that are not finite are written as null. The label maps of one
run, for the pictures, lie beside it in `predictions.npz` (plain arrays, read without pickle).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.metrics import (
    IGNORE,
    SegmentCounts,
    Truth,
    dice_per_class,
    macro_auroc,
    macro_average_precision,
    macro_f1,
    mean_of_known,
    pooled_f1,
    record_dice,
)
from beatray.evaluate.recordings import positives
from beatray.evaluate.settings import EvaluateSettings
from beatray.evaluate.waves import WaveCounts
from beatray.full_disk import named
from beatray.record import WAVE_KINDS
from beatray.schema import build

VARIANTS = {
    "pretrained": "pretrained",
    "random": "random",
    "features": "features",
    "encoder_features": "encoder+features",
    "permuted_labels": "permuted labels",
}
"""What a head may read, and how it is shown: the encoder under test; the same from random weights; measured features;
the encoder's together with them; the encoder's under permuted labels. The second, third and fifth are baselines."""

MAPS = "predictions.npz"
"""The label maps of one run, beside results.json."""

PREFIX = "eval/"
"""How the names of scores begin, as metrics of a run."""

METRICS = {"segment": ("f1", "dice"), "classify": ("auroc", "auprc", "f1")}
"""The scores a table shows, first the main one."""

VALIDATION_AUROC = "validation_auroc"
"""A metric of classification runs: the AUROC of the best candidate on the records that chose it, which makes it
optimistic. Methods may be chosen by it within one split. Fine-tuning without held-out records uses one inner fold."""


def percent(fraction: float) -> str:
    """A label fraction as it is written everywhere: 10%, 0.4%."""
    return f"{100 * fraction:g}%"


@dataclass(frozen=True, slots=True)
class Decisions:
    """Classification of the test part: probabilities (n_test, c) and the thresholds (c,) of the training part."""

    scores: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """One trained model on one set of labels. `encoder` is its label, `architecture` ties an encoder to its control
    (empty where that is not known, as from files that lack it, and for measured features)."""

    task: str
    protocol: str
    variant: str
    encoder: str
    architecture: str
    fraction: float
    train_records: int
    seed: int
    seconds: float
    outcome: SegmentCounts | Decisions
    metrics: dict[str, float]
    predictions: NDArray[np.int8] | None = None
    condition: str = "clean"  # what was done to the test recordings
    train_positives: tuple[int, ...] = ()  # classification: training recordings of each class
    waves: WaveCounts | None = None  # segmentation
    fold_scores: tuple[dict[str, float], ...] = ()  # segmentation in folds: F1 and Dice of each


@dataclass(frozen=True, slots=True)
class TaskPart:
    """What a task was run on: records of the two parts, in order, and the truth of the test part.

    `truth` is (n_test, c) bool, or int8 with `IGNORE` where a class is not known, for the classification, None for the
    segmentation, whose counts contain it; `classes` names its columns, `too_few` the classes that the training part has
    too few of to be learned.
    """

    task: str
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    test_patients: tuple[str, ...]
    truth: Truth | None = None
    title: str = ""
    classes: tuple[str, ...] = ()
    train_positives: tuple[int, ...] = ()
    too_few: tuple[str, ...] = ()
    validation_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All runs of one call, and `notes` on what was left out and why."""

    settings: EvaluateSettings
    parts: dict[str, TaskPart]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    encoders: tuple[str, ...] = field(default=())
    encoder_sha256: Mapping[str, str] = field(default_factory=dict)  # of those with weights, by label


def score(
    outcome: SegmentCounts | Decisions, truth: Truth | None, rows: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """All scores of a run, on the test records `rows` (all of them if None)."""
    if isinstance(outcome, SegmentCounts):
        picked = outcome if rows is None else SegmentCounts(*(part[rows] for part in _counts(outcome)))
        pooled = pooled_f1(picked)
        by_wave = {f"f1_{kind.lower()}": float(f1) for kind, f1 in zip(WAVE_KINDS, pooled.per_class, strict=True)}
        by_wave |= {
            f"dice_{kind.lower()}": float(dice) for kind, dice in zip(WAVE_KINDS, dice_per_class(picked), strict=True)
        }
        return {"f1": pooled.value, "dice": mean_of_known(record_dice(picked)), **by_wave}
    if truth is None:
        raise ValueError("classification scores need the truth of the test part")
    scores = outcome.scores if rows is None else outcome.scores[rows]
    known = truth if rows is None else truth[rows]
    area = macro_auroc(known, scores)
    precision = macro_average_precision(known, scores)
    decided = macro_f1(known, scores >= outcome.thresholds)
    return {"auroc": area.value, "auprc": precision.value, "f1": decided.value, "classes": float(area.counted)}


def write_results(evaluation: Evaluation, folder: Path) -> Path:
    """Write results.json (and predictions.npz, if a run kept any) into `folder`; returns the path of the first.

    results.json, which makes the folder an evaluation, comes last, whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = next((run for run in evaluation.runs if run.predictions is not None), None)
    if kept is not None and kept.predictions is not None:
        np.savez_compressed(folder / MAPS, predictions=kept.predictions)
    path = folder / "results.json"
    aside = path.with_name(f"{path.name}.part")
    text = json.dumps(plain(as_document(evaluation)), indent=1, allow_nan=False) + "\n"
    with named(path):
        aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def as_document(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as nested dicts and lists."""
    return {
        "settings": asdict(evaluation.settings),
        "notes": list(evaluation.notes),
        "seconds": evaluation.seconds,
        "encoder_sha256": dict(evaluation.encoder_sha256),
        "tasks": {
            name: {
                "train_ids": part.train_ids,
                "test_ids": part.test_ids,
                "validation_ids": part.validation_ids,
                "test_patients": part.test_patients,
                "truth": None if part.truth is None else _truth_document(part.truth),
                "title": part.title,
                "classes": part.classes,
                "train_positives": part.train_positives,
                "test_positives": [] if part.truth is None else positives(part.test_ids, part.truth),
                "too_few_to_learn": part.too_few,
            }
            for name, part in evaluation.parts.items()
        },
        "runs": [_run_document(run) for run in evaluation.runs],
    }


def _truth_document(truth: Truth) -> list[list[int | None]]:
    return [[None if value == IGNORE else int(value) for value in row] for row in truth.tolist()]


def _run_document(run: Run) -> dict[str, Any]:
    plain = {
        name: getattr(run, name)
        for name in (
            "task", "protocol", "variant", "encoder", "architecture", "fraction", "train_records", "seed", "seconds",
            "metrics", "condition", "train_positives", "fold_scores",
        )
    }  # fmt: skip
    waves = {} if run.waves is None else {"waves": asdict(run.waves)}
    return {**plain, "test": asdict(run.outcome), **waves}


def _counts(counts: SegmentCounts) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return counts.both, counts.truth, counts.predicted


def evaluation_of(document: Mapping[str, Any]) -> Evaluation:
    """The evaluation that a results.json of this version holds, but for label maps, counts of waves and folds."""
    parts = {}
    for name, part in document["tasks"].items():
        truth = part["truth"]
        if truth is not None:
            known = np.array([[IGNORE if value is None else value for value in row] for row in truth], np.int8)
            truth = known if (known == IGNORE).any() else known.astype(np.bool_)
        lists = ("train_ids", "test_ids", "test_patients", "classes", "train_positives", "validation_ids")
        given = {key: tuple(part[key]) for key in lists}
        parts[name] = TaskPart(name, truth=truth, title=part["title"], too_few=tuple(part["too_few_to_learn"]), **given)
    settings = build(EvaluateSettings, dict(document["settings"]), "evaluate.")
    runs = tuple(_run_of(run) for run in document["runs"])
    hashes = document.get("encoder_sha256", {})
    return Evaluation(settings, parts, runs, tuple(document["notes"]), document["seconds"], tuple(hashes), dict(hashes))


def _run_of(document: Mapping[str, Any]) -> Run:
    test = document["test"]
    outcome: SegmentCounts | Decisions
    if "scores" in test:
        outcome = Decisions(np.array(test["scores"], np.float64), np.array(test["thresholds"], np.float64))
    else:
        outcome = SegmentCounts(*(np.array(test[name], np.int64) for name in ("both", "truth", "predicted")))
    same = (
        "task", "protocol", "variant", "encoder", "fraction", "train_records", "seed", "seconds", "condition",
    )  # fmt: skip
    metrics = {name: math.nan if value is None else float(value) for name, value in document["metrics"].items()}
    positives = tuple(document["train_positives"])
    return Run(
        **{name: document[name] for name in same},
        architecture=str(document.get("architecture", "")),
        outcome=outcome,
        metrics=metrics,
        train_positives=positives,
    )


def plain(value: Any) -> Any:
    """JSON's own types only: arrays become lists, numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
