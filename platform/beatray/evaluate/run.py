"""The whole evaluation: both tasks, the encoders under test, and their controls, over a pool of processes.

What is run, per task: each encoder with weights; the same architecture from random weights (frozen: is it the
pretraining or the architecture? trained: from scratch); measured features instead of an encoder and permuted labels
(classification). All variants see the same records, the same label subsets and the same seeds.

A unit of work is one (task, protocol, variant, encoder, seed); one random encoder serves all of one architecture.
Workers are processes of one thread that map the prepared signals from one temporary file. First they compute what the
frozen encoders give (`outputs`), once for all that reads it, then they run the units. The result does not depend on how
many there are.

Contract: `rows` is a `corpus.reader.Rows`; `train` and `test` are positions in it, chosen by the caller by patient; a
patient on both sides raises ValueError. A task without labelled records in both parts is left out with a note. With
`workers` above 1 the caller's main module must be importable (the usual `if __name__ == "__main__"`).
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from beatray.errors import SettingsError
from beatray.evaluate.encoders import EncoderSpec
from beatray.evaluate.kept_runs import KeptRuns
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.outputs import Outputs, Piece
from beatray.evaluate.own_labels import TableSpace
from beatray.evaluate.results import Evaluation, Run, TaskPart
from beatray.evaluate.settings import PROBES, PROTOCOLS, EvaluateSettings
from beatray.evaluate.split import Index, refuse_shared_patients
from beatray.evaluate.tasks import TaskData, patient_of, task_data
from beatray.evaluate.worker import Worker, WorkUnit, read_by, start_process
from beatray.models.encoder_folder import encoder_sha256

if TYPE_CHECKING:
    from beatray.corpus.reader import Rows

Progress = Callable[[int, int, str], None]

_process_worker: Worker | None = None  # a worker process holds its one Worker here


def evaluate(
    rows: Rows,
    train: Sequence[int] | Index,
    test: Sequence[int] | Index,
    encoders: Sequence[EncoderSpec],
    settings: EvaluateSettings | None = None,
    progress: Progress | None = None,
    validation: Sequence[int] | Index = (),
    folder: Path | None = None,
    corpus: str = "",
    own: TableSpace | None = None,
) -> Evaluation:
    """Run all units and collect their runs; `progress(done, all, name)` is called after each unit, and with 0 done
    while encoders read.

    `folder` keeps what the encoders give and the runs of finished units, so that an evaluation that was killed
    continues from there; whoever has written the results down calls `outputs.remove_kept`. `corpus` is the identity of
    the recordings (a manifest's hash), without which names alone would have to do. With no folder a temporary one
    serves. `own` is the label space of `classify.labels=table`, row by row of `rows`.

    `validation` are records to choose hyper-parameters and thresholds on; see `probes`. An encoder without weights
    adds its random control alone. Raises SettingsError for a GPU that is not there; ValueError if a patient is in two
    parts, if two encoders share a label, if no task has labelled records in both parts, or if held-out validation is
    asked for and there is none.
    """
    settings = settings or EvaluateSettings()
    began = time.monotonic()
    train, test = np.unique(np.asarray(train, np.int64)), np.unique(np.asarray(test, np.int64))
    if settings.device.startswith("cuda") and int(settings.device[5:] or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"evaluate.device={settings.device}: PyTorch sees {torch.cuda.device_count()} GPUs here; set cpu, or "
            "a number that is there"
        )
    if "classify" in settings.tasks and settings.classify.labels == TABLE and own is None:
        raise ValueError("classify.labels=table needs the table's label space: see own_labels.table_space")
    labels = tuple(spec.label for spec in encoders if spec.weights is not None)
    if len(set(labels)) != len(labels):
        raise ValueError(f"encoder labels must differ, got {', '.join(labels)}")
    held_out = np.unique(np.asarray(validation, np.int64))
    owners = [patient_of(rows, i) for i in range(len(rows))]
    refuse_shared_patients(owners, train, test)
    refuse_shared_patients(owners, held_out, test, "validation")
    refuse_shared_patients(owners, held_out, train, "validation", "training")
    tasks: dict[str, TaskData] = {}
    parts: dict[str, TaskPart] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="beatray-evaluate-") as scratch:
        for name in settings.tasks:
            found = task_data(rows, train, test, held_out, name, settings, Path(scratch), own)
            if found is None:
                notes.append(f"{name}: left out, no labelled records in both the training and the test part")
            else:
                tasks[name], parts[name] = found
                notes += own.notes if own is not None and name == "classify" else ()
                if name == "classify" and settings.classify.validation == "held_out" and not len(found[0].validation):
                    raise SettingsError("classify.validation=held_out needs labelled records in the validation folds")
        if not tasks:
            raise SettingsError(
                f"nothing to evaluate: {'; '.join(notes)}. Waves are those of LUDB, diagnoses those of PTB-XL or a "
                "Challenge set in the test part (beatray corpus splits); labels=TABLE takes your own"
            )
        units = plan(tuple(tasks), encoders, settings)
        runs: dict[int, list[Run]] = {}
        outputs = Outputs(folder if folder and corpus else Path(scratch) / "outputs", corpus, tasks, settings)

        def report(note: str) -> None:
            if progress is not None:
                progress(len(runs), len(units), note)

        kept = KeptRuns(outputs)
        for position, unit in enumerate(units):
            done = kept.read(unit)
            if done is not None:
                runs[position] = done  # not reported one by one: their pace is not that of a fit
        left = [position for position in range(len(units)) if position not in runs]
        for position, found_runs in _work(outputs, units, left, settings, lambda piece: report(piece.name())):
            kept.write(units[position], found_runs)
            runs[position] = found_runs
            report(f"{units[position].name()} seed {units[position].seed}")
    collected = tuple(run for position in sorted(runs) for run in runs[position])
    hashes = {spec.label: encoder_sha256(spec.weights) for spec in encoders if spec.weights is not None}
    return Evaluation(settings, parts, collected, tuple(notes), time.monotonic() - began, labels, hashes)


def plan(tasks: Sequence[str], encoders: Sequence[EncoderSpec], settings: EvaluateSettings) -> list[WorkUnit]:
    """All units, with those of the baselines if `settings.baselines`; the slow ones first, so that no worker is left
    with a long one at the end."""
    variants = [("pretrained", spec) for spec in encoders if spec.weights is not None]
    if settings.baselines:
        variants += [("random", spec) for spec in {spec.random().key(): spec.random() for spec in encoders}.values()]
    units: list[WorkUnit] = []
    for protocol in sorted(PROTOCOLS):  # "finetune" comes first
        for task in sorted(tasks, reverse=True):
            seeds = settings.seeds_of(task, protocol)
            if protocol not in settings.protocols_of(task):
                continue
            units += [WorkUnit(task, protocol, variant, spec, seed) for variant, spec in variants for seed in seeds]
            if task == "classify" and protocol in PROBES:
                units += [
                    WorkUnit(task, protocol, "encoder_features", spec, seed)
                    for variant, spec in variants
                    if variant == "pretrained"
                    for seed in seeds
                ]
            if settings.baselines and task == "classify" and protocol in PROBES:
                units += [WorkUnit(task, protocol, "features", None, seed) for seed in seeds]
                permuted = [(spec, number) for _, spec in variants[:1] for number in range(settings.permutations)]
                units += [WorkUnit(task, protocol, "permuted_labels", spec, number) for spec, number in permuted]
    return units


def _work(
    outputs: Outputs,
    units: Sequence[WorkUnit],
    left: Sequence[int],
    settings: EvaluateSettings,
    on_piece: Callable[[Piece], None],
) -> Iterator[tuple[int, list[Run]]]:
    """The runs of the units at the positions `left`, as they are done, and before them `on_piece` for each job of the
    encoders."""
    pieces = outputs.missing(each for position in left for each in read_by(units[position], settings))
    if settings.workers <= 1:
        for piece in pieces:
            outputs.compute(piece)
            on_piece(piece)
        worker = Worker(outputs.tasks, settings, outputs)
        for position in left:
            yield position, worker.run(units[position])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, context, _start, (outputs,)) as pool:
        for piece, _ in zip(pieces, pool.map(_compute, pieces), strict=True):
            on_piece(piece)
        waiting = {pool.submit(_run, units[position]): position for position in left}
        for finished in as_completed(waiting):
            yield waiting[finished], finished.result()


def _start(outputs: Outputs) -> None:
    global _process_worker
    _end_with_parent()
    start_process()
    _process_worker = Worker(outputs.tasks, outputs.settings, outputs)


def _end_with_parent() -> None:
    """A process that was started for an evaluation ends when the one that started it dies, however it died."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _worker() -> Worker:
    if _process_worker is None:
        raise RuntimeError("the worker process was not started by _start")
    return _process_worker


def _compute(piece: Piece) -> None:
    _worker().outputs.compute(piece)


def _run(unit: WorkUnit) -> list[Run]:
    return _worker().run(unit)
