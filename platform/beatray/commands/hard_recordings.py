"""The test recordings that the probe on an encoder gets most wrong, and their neighbours, gathered for a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.reader import Rows
from beatray.dsp.peaks import find_r_peaks
from beatray.evaluate.encoders import pooled_features, prepared
from beatray.evaluate.results import Decisions, Evaluation, TaskPart
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.models.encoder import Encoder
from beatray.models.encoder_folder import load_encoder
from beatray.record import RATE_HZ
from beatray.report.hard_recordings import Hard, Strip, hardest, nearest

CHUNK = 256
MOST_CODES = 6


def hard_recordings(evaluation: Evaluation, rows: Rows, encoder: str) -> list[Hard]:
    """The hardest first; `rows` hold all recordings of the classification, `encoder` is where the weights lie.

    Empty where the pretrained encoder was not probed on diagnoses.
    """
    part, decided = evaluation.parts.get("classify"), _probed(evaluation)
    if part is None or part.truth is None or decided is None:
        return []
    position_of = {record_id: position for position, record_id in enumerate(rows.record_id)}
    wrong = hardest(part.truth, decided.scores)
    tested = np.array([position_of[part.test_ids[number]] for number in wrong], np.int64)
    train = np.array([position_of[each] for each in part.train_ids], np.int64)
    features = _features(rows, np.concatenate([train, tested]), encoder, evaluation.settings.pooling)
    near, cosines = nearest(features, np.arange(len(train)), np.arange(len(train), len(features)))
    found = []
    for number, position, neighbours, alike in zip(wrong, tested, near, cosines, strict=True):
        pairs = zip(neighbours, alike, strict=True)
        beside = [_strip(rows, int(train[each]), f"alike {cosine:.2f}") for each, cosine in pairs]
        decision = _decision_text(part, decided, int(number))
        found.append(Hard(_strip(rows, int(position), decision, _truth(part, int(number))), beside))
    return found


def _probed(evaluation: Evaluation) -> Decisions | None:
    runs = [
        run
        for run in evaluation.runs
        if (run.task, run.variant, run.condition, run.protocol)
        == ("classify", "pretrained", "clean", MAIN_PROTOCOL["classify"])
    ]
    best = max(runs, key=lambda run: (run.fraction, -run.seed), default=None)
    return best.outcome if best is not None and isinstance(best.outcome, Decisions) else None


def _features(rows: Rows, positions: NDArray[np.int64], location: str, pooling: str) -> NDArray[np.float32]:
    encoder, found = cast(Encoder, load_encoder(location)), []
    for first in range(0, len(positions), CHUNK):
        part = positions[first : first + CHUNK]
        x_mv, n_samples = prepared(rows.signal_uv[part], rows.n_samples[part]), rows.n_samples[part].astype(np.int64)
        peaks = find_r_peaks(x_mv, RATE_HZ, n_samples=n_samples) if pooling == "stages_beat" else None
        found.append(pooled_features(encoder, x_mv, n_samples, pooling, r_peaks=peaks))
    return np.concatenate(found)


def _truth(part: TaskPart, number: int) -> str:
    assert part.truth is not None
    names = [name for name, there in zip(part.classes, part.truth[number], strict=True) if there == 1]
    return f": {_listed(names)}" if names else ": none of the classes"


def _decision_text(part: TaskPart, decided: Decisions, number: int) -> str:
    scores = decided.scores[number]
    found = np.flatnonzero(scores >= decided.thresholds)
    named = [f"{part.classes[k]} {scores[k]:.2f}" for k in found[np.argsort(-scores[found])]]
    return f"found: {_listed(named)}" if named else "found: nothing"


def _strip(rows: Rows, position: int, decision: str, truth: str = "") -> Strip:
    x_mv = prepared(rows.signal_uv[position : position + 1], rows.n_samples[position : position + 1])[0]
    return Strip(f"{rows.record_id[position]}{truth}", f"codes: {_listed(rows.labels[position])}\n{decision}", x_mv)


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:MOST_CODES])
    return ", ".join(shown + ["..."] * (len(names) > MOST_CODES)) or "none"
