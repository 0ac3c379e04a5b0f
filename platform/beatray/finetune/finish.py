"""The end of a run that learned from labels: what it can do is measured, and the model folder written.

On validation recordings alone: the calibration, the thresholds (of the calibrated probabilities, with the highest F1).
Then both parts are scored. A recording longer than 10 s is judged as it is predicted (infer/model.py): by the mean over
its windows. A test recording that the encoder was pretrained on is no clean test: it is left out, and
counted. Contract: the same run gives the same folder; a folder that is there and was made of this run's weights stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from beatray.corpus.label_settings import without_folders
from beatray.errors import CheckpointError, TrainingError
from beatray.evaluate.metrics import best_thresholds
from beatray.evaluate.recordings import count, recording_of
from beatray.finetune.card import model_card
from beatray.finetune.outputs import logits_of, masks_of
from beatray.finetune.prepare import Assignment, Parts, assignment, settings_of
from beatray.finetune.scores import Scores, class_of_scores, multilabel_scores, number_scores, wave_scores_of
from beatray.finetune.targets import WAVES, Index
from beatray.models.calibration import Calibration, fitted, window_means
from beatray.models.encoder_folder import describe_encoder, seen_by
from beatray.models.labelled_heads import OF_SAMPLES, LabelledModel
from beatray.models.model_folder import describe_model, write_model
from beatray.objectives.registry import objective_class
from beatray.schema import as_dict
from beatray.train import checkpoint as checkpoints
from beatray.train.run_spec import RunSpec, build_model
from beatray.train.writer import describe

TASKS = {"multilabel": "classify", "classes": "classify", "numbers": "regress", WAVES: "segment"}
MADE_OF = ("steps", "ended_at", "run_steps")
MAIN = ("auroc", "f1", "accuracy", "dice", "mae", "r2")


def is_made(run_spec: RunSpec) -> bool:
    """Whether nothing is left to finish: the folder is that of the run's weights, or the run learned without labels."""
    if not objective_class(run_spec.settings.objective["name"]).supervised:
        return True
    try:
        made = describe_model(run_spec.run.location)["made_of"]
        return bool({"test_targets": run_spec.test_targets, **made} == _made_of(run_spec))  # older ones do not have it
    except (CheckpointError, KeyError):
        return False


def make_model(run_spec: RunSpec, found: Assignment | None = None) -> dict[str, float]:
    """Write `model/` of a finished run, unless it is there; returns its scores by name. Nothing without labels.

    `found` is what the run was prepared from; without it corpus and labels are read again. CheckpointError where the
    weights are not there any more, or the folder cannot be written; TrainingError where corpus or labels are others.
    """
    if not objective_class(run_spec.settings.objective["name"]).supervised:
        return {}
    if is_made(run_spec):
        return figures(describe_model(run_spec.run.location))
    found = found or assignment(run_spec.settings)
    refuse_changed(run_spec, found)
    model, head = trained_model(run_spec)
    use_gpu = torch.cuda.is_available() and run_spec.settings.train.device != "cpu"
    description = described(run_spec, found, model, torch.device("cuda" if use_gpu else "cpu"))
    description["head"] = head
    try:
        write_model(run_spec.run, model, description, run_spec.trained_on, model_card(description))
    except OSError as error:
        raise CheckpointError(describe(error, f"model could be written to {run_spec.run.where()}")) from error
    return figures(description)


def refuse_changed(run_spec: RunSpec, found: Assignment) -> None:
    """Raise TrainingError unless corpus and labels are those that the run was prepared with."""
    objective, tested = run_spec.settings.objective, found.table(found.parts.test)
    differing = [
        what
        for what, now, then in (
            ("snapshot of the corpus", found.corpus.manifest.hash, run_spec.manifest_hash),
            ("names of outputs", list(found.targets.names), list(objective["names"])),
            ("targets trained or validated on", found.learned().sha256(), objective["targets_sha256"]),
            ("test targets", tested.sha256(), run_spec.test_targets),
        )
        if now != then
    ]
    if differing:
        raise TrainingError(
            f"run {run_spec.settings.run} has no model yet, and its corpus or labels have changed since it began "
            f"(different: {', '.join(differing)}): thresholds and scores would be of others than it learned from. Put "
            "back those it began with and start the same command again, or choose another run="
        )


def trained_model(run_spec: RunSpec) -> tuple[LabelledModel, dict[str, Any]]:
    """The network with the weights that the run chose, and the description of its head."""
    settings, step = run_spec.settings, int(_made_of(run_spec)["steps"])
    objective: Any = build_model(settings.objective, settings.encoder, settings.seed, run_spec.statistics)
    objective.load_state_dict(checkpoints.load(run_spec.run, checkpoints.name_of(step)).model)
    head: dict[str, Any] = objective.head_description
    model = LabelledModel(objective.encoder, objective.head, head["name"] in OF_SAMPLES)
    return model.float().eval(), head


def described(run_spec: RunSpec, found: Assignment, model: LabelledModel, device: torch.device) -> dict[str, Any]:
    """model.json, but for the head."""
    settings, parts, own = found.settings, found.parts, settings_of(found.settings)
    index = found.corpus.index
    test, seen = _clean(run_spec, index, parts.test)
    scored = Parts(parts.train, parts.validation, test)
    kind = found.targets.kind
    evaluation = _of_waves(found, model, scored, device) if kind == WAVES else _of_records(found, model, scored, device)
    of_part = {"train": parts.train, "validation": parts.validation, "test": test, "test_seen": seen}
    ids = {part: index["record_id"].iloc[rows] for part, rows in of_part.items()}
    sources = ids["train"].map(recording_of).drop_duplicates()
    made_of = _made_of(run_spec)
    return {
        "task": TASKS[kind],
        "kind": kind,
        "names": list(found.targets.names),
        "title": found.targets.title,
        "left_out": list(found.targets.left_out),
        "labels": found.targets.table,
        **evaluation,
        "encoder": {"name": model.encoder.name, "settings": model.encoder.described_settings()},
        "recipe": run_spec.recipe,
        "objective": _shareable(run_spec.settings.objective),
        "train": as_dict(run_spec.settings)["train"],
        "corpus_settings": {k: v for k, v in as_dict(settings)["corpus"].items() if k != "path"},
        "manifest_hash": run_spec.manifest_hash,
        "sources": {str(name): int(n) for name, n in index["source"].loc[sources.index].value_counts().items()},
        "records": {part: count(each.tolist()) for part, each in ids.items()},
        "started_from": None if own.from_scratch else run_spec.settings.encoder_weights_sha256,
        "seed": run_spec.settings.seed,
        "made_of": made_of,
    }


def _shareable(objective: dict[str, Any]) -> dict[str, Any]:
    """The objective's settings without folders of this machine."""
    table = objective.get("table")
    if not table:
        return objective
    return {**objective, "table": without_folders(table)}


def figures(description: dict[str, Any]) -> dict[str, float]:
    """The main scores by name: test_auroc, ..."""
    return {
        f"test_{name}": float(score["value"])
        for name, score in description["scores"]["test"].items()
        if name in MAIN and score["value"] is not None
    }


def _of_records(found: Assignment, model: LabelledModel, parts: Parts, device: torch.device) -> dict[str, Any]:
    kind, names = found.targets.kind, found.targets.names
    rows, starts = {}, {}
    for part, index in (("validation", parts.validation), ("test", parts.test)):
        rows[part], starts[part] = found.recordings(index)
    truth = {part: found.values(index[starts[part]]) for part, index in rows.items()}
    empty = np.empty((0, len(names)))
    logits = {
        part: logits_of(model, found.corpus, index, device) if len(index) else empty for part, index in rows.items()
    }
    owners = {part: found.owners(index[starts[part]]) for part, index in rows.items()}
    if kind == "numbers":
        settings = objective_of(found)
        mean, sd = np.array(settings["mean"]), np.array(settings["sd"])
        numbers = {part: window_means(each * sd + mean, starts[part]) for part, each in logits.items()}
        scores = {part: number_scores(numbers[part], truth[part], owners[part], names) for part in rows}
        return {"mean": mean.tolist(), "sd": sd.tolist(), "scores": scores}
    calibration = fitted(kind, logits["validation"], truth["validation"], starts["validation"])
    chance = {part: calibration.probabilities(each, starts[part]) for part, each in logits.items()}
    results: dict[str, Any] = {"calibration": calibration.to_dict()}
    if kind == "classes":
        scores = {part: class_of_scores(chance[part], truth[part], owners[part], names) for part in rows}
    else:
        thresholds = known_thresholds(truth["validation"], chance["validation"])
        results["thresholds"] = thresholds.tolist()
        scores = {part: multilabel_scores(chance[part], truth[part], thresholds, owners[part], names) for part in rows}
    for part in rows:
        scores[part]["calibration"] = _calibration_scores(calibration, logits[part], truth[part], starts[part])
    return {**results, "scores": scores}


def objective_of(found: Assignment) -> dict[str, Any]:
    """The settings of the objective, as plain data."""
    return dict(found.settings.objective)


def known_thresholds(truth: NDArray[Any], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """`best_thresholds` of each target over the recordings whose label is known."""
    found = []
    for k in range(truth.shape[1]):
        known = truth[:, k] >= 0
        found.append(best_thresholds(truth[known, k : k + 1] > 0, chance[known, k : k + 1])[0])
    return np.array(found)


def _calibration_scores(
    calibration: Calibration, logits: NDArray[np.float64], truth: NDArray[Any], starts: Index
) -> dict[str, float | None]:
    plain = Calibration.none(calibration.kind, logits.shape[1])
    scores = {
        "nll": calibration.nll(logits, truth, starts),
        "nll_before": plain.nll(logits, truth, starts),
        "error": calibration.error(logits, truth, starts),
        "error_before": plain.error(logits, truth, starts),
    }
    return {name: value if np.isfinite(value) else None for name, value in scores.items()}


def _of_waves(found: Assignment, model: LabelledModel, parts: Parts, device: torch.device) -> dict[str, Any]:
    scores: dict[str, Scores] = {}
    for part, index in (("validation", parts.validation), ("test", parts.test)):
        rows, starts = found.recordings(index)
        masks = masks_of(model, found.corpus, rows, device)
        truth = found.values(rows)
        truth = truth[:, None] if truth.ndim == 2 else truth
        scores[part] = wave_scores_of(masks, truth, found.owners(rows[starts]), starts)
    return {"leads": objective_of(found)["leads"], "scores": scores}


def _clean(run_spec: RunSpec, index: pd.DataFrame, test: Index) -> tuple[Index, Index]:
    """The test recordings that the encoder was not pretrained on, in no window of theirs, and the others."""
    weights = run_spec.settings.encoder_weights
    if weights is None or not len(test):
        return test, test[:0]
    whole = index["record_id"].iloc[test].map(recording_of)
    seen = whole.isin(whole[seen_by(weights, index["content_hash"].iloc[test])]).to_numpy()
    return test[~seen], test[seen]


def _made_of(run_spec: RunSpec) -> dict[str, Any]:
    """Which weights of the run its encoder/ holds, and so its model, and which targets score it."""
    made = describe_encoder(run_spec.run.location)
    return {**{name: made[name] for name in MADE_OF}, "test_targets": run_spec.test_targets}
