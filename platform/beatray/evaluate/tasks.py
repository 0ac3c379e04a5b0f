"""The records of one task, cut out of a corpus: signals, truth, owners, and who trains and who tests.

Contract: `rows` is a `corpus.reader.Rows`. A task takes the records it has labels for: marked waves for `segment`, at
least one class of the label space for `classify`, or a label that is known in the user's own table. A label space that
is fitted to labels is fitted to the training part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.encoders import prepared
from beatray.evaluate.label_spaces import LabelSpace, label_space
from beatray.evaluate.labels import lead_masks, wave_masks
from beatray.evaluate.metrics import IGNORE
from beatray.evaluate.own_labels import TableSpace
from beatray.evaluate.recordings import positives, recording_of
from beatray.evaluate.results import TaskPart
from beatray.evaluate.robustness import condition_names
from beatray.evaluate.settings import EvaluateSettings
from beatray.evaluate.split import Index
from beatray.record import LEADS, WINDOW_SAMPLES

if TYPE_CHECKING:
    from beatray.corpus.reader import Rows

CHUNK = 64


@dataclass(frozen=True, slots=True)
class TestedSignals:
    """The test recordings as stored, in the order of `TaskData.test`: `signals` names an .npy file of microvolts."""

    signals: Path
    lead_mask: NDArray[np.int16]
    r_peaks: tuple[NDArray[np.int32], ...]
    record_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskData:
    """One task's records, training ones first: `train` and `test` are positions within these arrays.

    `truth` is (n, c) bool or, with `IGNORE` where a class is not known, int8; of waves int8 (n, 5000) or (n, 12, 5000).
    `features` (n, G) are the measured ones. `signals` names an .npy file of float32 millivolts (n, 12, 5000), so that
    worker processes map it instead of copying it.
    """

    task: str
    signals: Path
    n_samples: NDArray[np.int64]
    truth: NDArray[Any]
    features: NDArray[np.float32]
    record_ids: tuple[str, ...]
    patients: tuple[str, ...]
    train: Index
    test: Index
    validation: Index  # empty: hyper-parameters are chosen inside the training part
    tested: TestedSignals | None = None  # only where test recordings are also tested under conditions


def patient_of(rows: Rows, position: int) -> str:
    """The patient of a row; without one, the recording with all its windows."""
    return rows.patient_id[position] or recording_of(rows.record_id[position])


def task_data(
    rows: Rows,
    train: Index,
    test: Index,
    validation: Index,
    task: str,
    settings: EvaluateSettings,
    folder: Path,
    own: TableSpace | None = None,
) -> tuple[TaskData, TaskPart] | None:
    """The task's share of the rows, its signals prepared and written to `folder`; None if a part would be empty.

    `own` is the label space of a table, row by row of `rows`.
    """
    if task == "segment" or settings.classify.validation == "inner":
        validation = validation[:0]
    in_folds = task == "segment" and settings.segment.folds > 0
    if in_folds and settings.segment.fold_over == "all":
        train, test = train[:0], np.union1d(train, test)
    index = np.concatenate([train, test, validation])
    space: LabelSpace | TableSpace | None = None
    if task == "segment":
        waves = [rows.waves[i] for i in index]
        truth: NDArray[Any] = (
            wave_masks(waves, settings.min_leads) if settings.segment.target == "shared" else lead_masks(waves)
        )
    elif own is not None:
        space, truth = own, own.truth[index]
    else:
        chosen = settings.classify
        train_labels = list({recording_of(rows.record_id[i]): rows.labels[i] for i in train}.values())
        space = label_space(chosen.labels, train_labels, chosen.min_positives, chosen.snomed_classes)
        truth = space.targets([rows.labels[i] for i in index])
    labelled = truth != IGNORE if own is not None and task == "classify" else truth > 0
    usable = np.asarray(labelled.any(axis=tuple(range(1, truth.ndim))))
    n_train, n_test = int(usable[: len(train)].sum()), int(usable[len(train) : len(train) + len(test)].sum())
    if not n_test or not (n_train or in_folds):
        return None
    index, truth = index[usable], truth[usable]
    if task == "classify" and (truth != IGNORE).all():
        truth = truth.astype(np.bool_)
    ids = tuple(rows.record_id[i] for i in index)
    data = TaskData(
        task=task,
        signals=write_signals(rows, index, folder / f"{task}.npy"),
        n_samples=rows.n_samples[index].astype(np.int64),
        truth=truth,
        features=rows.record_features[index],
        record_ids=ids,
        patients=tuple(patient_of(rows, i) for i in index),
        train=np.arange(n_train),
        test=np.arange(n_train, n_train + n_test),
        validation=np.arange(n_train + n_test, len(index)),
    )
    if condition_names(settings.robustness):
        data = replace(data, tested=_tested(rows, index[data.test], folder / f"{task}-tested.npy"))
    tests = slice(n_train, n_train + n_test)
    part = TaskPart(task, ids[:n_train], ids[tests], data.patients[tests], validation_ids=ids[tests.stop :])
    if space is not None:
        part = replace(
            part,
            truth=truth[tests],
            title=space.title,
            classes=space.classes,
            train_positives=positives(ids[:n_train], truth[:n_train]),
            too_few=space.left_out if isinstance(space, LabelSpace) else (),
        )
    return data, part


def _tested(rows: Rows, index: Index, path: Path) -> TestedSignals:
    np.save(path, rows.signal_uv[index])
    peaks = tuple(rows.r_peaks[i] for i in index)
    return TestedSignals(path, rows.lead_mask[index], peaks, tuple(rows.record_id[i] for i in index))


def write_signals(rows: Rows, index: Index, path: Path) -> Path:
    """Prepare the signals of `index` to millivolts, a chunk at a time, into the .npy file `path`."""
    shape = (len(index), len(LEADS), WINDOW_SAMPLES)
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, len(index), CHUNK):
        chosen = index[first : first + CHUNK]
        target[first : first + CHUNK] = prepared(rows.signal_uv[chosen], rows.n_samples[chosen])
    target.flush()
    return path
