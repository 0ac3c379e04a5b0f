"""`beatray report RUN`: the report of one run, as HTML in its folder and in MLflow, finished or not.

Its evaluation is RUN/evaluation (where `beatray evaluate run=RUN out=RUN/evaluation` puts it), or the one that is
named. Pictures of recordings need the corpus, which may have moved.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from beatray.commands.console import say
from beatray.commands.report import described, rows_of, run_material
from beatray.corpus.reader import Corpus, Rows, open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import SettingsError
from beatray.evaluate.older import results_today
from beatray.evaluate.results import MAPS, Evaluation, evaluation_of
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.models.encoder_folder import ENCODER_FOLDER, encoder_sha256
from beatray.report.build import build_report
from beatray.schema import build
from beatray.settings import CorpusSettings
from beatray.storage.store import Store
from beatray.track.memory import MEMORY, how_to_open
from beatray.train.run_folder import EVALUATION_FOLDER, METRICS, SETTINGS, RunFolder

RESULTS = "results.json"
FEWEST_BEATS = 5
"""Of the recording that is drawn."""


def write(folder: Store, out: Path, corpus_path: str | None = None, results: str | None = None) -> list[Path]:
    """Write report.html into `out`; returns what was written."""
    run = RunFolder.open(folder)
    run.pull(SETTINGS, METRICS, MEMORY)
    settings = yaml.safe_load((run.scratch / SETTINGS).read_text())
    evaluation = _evaluation(folder, results)
    finished = folder.child(ENCODER_FOLDER).size("encoder.json") is not None
    known = set() if evaluation is None else set(evaluation.encoder_sha256.values())
    if finished and known and encoder_sha256(folder.location) not in known:
        where = results or folder.child(EVALUATION_FOLDER).where()
        raise SettingsError(
            f"{where} is from another encoder than {folder.where()} holds now: evaluate that again (overwrite=true), "
            "or name its results by --results"
        )
    corpus = _corpus(corpus_path or settings["corpus"]["path"])
    rows, shown = (None, None) if corpus is None else _rows(corpus, settings, evaluation)
    opened = how_to_open(run.scratch)
    material = run_material(
        title=f"beatray run {settings['run']}",
        lead=f"{described(settings['objective'])}, {settings['encoder']['name']}"
        + ("" if finished else ". The run is not finished")
        + ("" if evaluation is not None else ". It has not been evaluated: beatray evaluate run=RUN out=RUN/evaluation")
        + ".",
        corpus=corpus,
        rows=rows,
        shown=shown,
        run_folder=run.scratch,
        evaluation=evaluation,
        weights=folder.location if finished else None,
        tracking=[f"run      {folder.where()}", *([f"MLflow   {opened}"] if opened else [])],
    )
    return [build_report(out / "report.html", material)]


def _evaluation(folder: Store, results: str | None) -> Evaluation | None:
    store = folder.child(EVALUATION_FOLDER)
    name = RESULTS
    if results is not None:
        file = Path(results) / RESULTS if Path(results).is_dir() else Path(results)
        store, name = Store(str(file.absolute().parent)), file.name
        if store.size(name) is None:
            raise SettingsError(f"--results {results}: there is no such file")
    if store.size(name) is None:
        return None
    try:
        evaluation = evaluation_of(results_today(json.loads(store.read(name))))
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{store.where(name)} is no results.json of beatray evaluate: {error}") from error
    return evaluation if store.size(MAPS) is None else _with_maps(evaluation, store.read(MAPS))


def _with_maps(evaluation: Evaluation, maps: bytes) -> Evaluation:
    """The evaluation with the label maps beside it in the run that kept them: the first seed, with all labels."""
    with np.load(io.BytesIO(maps), allow_pickle=False) as archive:
        predictions = archive["predictions"]
    protocol, settings = MAIN_PROTOCOL["segment"], evaluation.settings
    seed, fraction = settings.seeds_of("segment", protocol)[0], max(settings.segment_fractions)
    key = ("segment", protocol, "pretrained", "clean", seed, fraction)
    kept = [
        replace(run, predictions=predictions)
        if (run.task, run.protocol, run.variant, run.condition, run.seed, run.fraction) == key
        else run
        for run in evaluation.runs
    ]
    return replace(evaluation, runs=tuple(kept))


def _corpus(path: str) -> Corpus | None:
    try:
        return open_corpus(path)
    except Exception as error:  # a report without these pictures is still a report
        say(f"  without pictures of recordings: {error} (say --corpus PATH)")
        return None


def _rows(corpus: Corpus, settings: dict[str, Any], evaluation: Evaluation | None) -> tuple[Rows | None, int | None]:
    """The recordings of the evaluation, or else some that were trained on; and one of them to draw."""
    index = corpus.index
    if evaluation is None:
        roles = assign_roles(index, policy_of(build(CorpusSettings, dict(settings["corpus"]), "corpus.")))
        rows: Rows | None = corpus.rows(np.flatnonzero(roles == Role.TRAIN)[:1])
    else:
        rows = rows_of(corpus, evaluation)
    if rows is None or not len(rows):
        return None, None
    with_beats = (n for n in range(len(rows)) if len(rows.r_peaks[n]) > FEWEST_BEATS)
    return rows, next(with_beats, 0)
