"""`beatray report RUN`: the report of one run, as HTML in its folder and in MLflow, finished or not.

Its evaluation is RUN/evaluation (where `beatray evaluate run=RUN out=RUN/evaluation` puts it), or the one that is
named. Pictures of recordings need the corpus, which may have moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from beatray.commands.console import say
from beatray.commands.report import described, run_material
from beatray.corpus.reader import Corpus, Rows, open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import SettingsError
from beatray.evaluate.older import results_today
from beatray.evaluate.results import Evaluation, evaluation_of
from beatray.models.encoder_folder import ENCODER_FOLDER
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
    place = RunFolder.open(folder)
    place.pull(SETTINGS, METRICS, MEMORY)
    settings = yaml.safe_load((place.scratch / SETTINGS).read_text())
    evaluation = _evaluation(folder, results)
    corpus = _corpus(corpus_path or settings["corpus"]["path"])
    rows, shown = (None, None) if corpus is None else _rows(corpus, settings, evaluation)
    finished = folder.child(ENCODER_FOLDER).size("encoder.json") is not None
    opened = how_to_open(place.scratch)
    material = run_material(
        title=f"beatray run {settings['run']}",
        lead=f"{described(settings['objective'])}, {settings['encoder']['name']}"
        + ("" if finished else ". The run is not finished")
        + ("" if evaluation is not None else ". It has not been evaluated: beatray evaluate run=RUN out=RUN/evaluation")
        + ".",
        corpus=corpus,
        rows=rows,
        shown=shown,
        run_folder=place.scratch,
        evaluation=evaluation,
        weights=folder.location if finished else None,
        tracking=[f"run      {folder.where()}", *([f"MLflow   {opened}"] if opened else [])],
    )
    return [build_report(out / "report.html", material)]


def _evaluation(folder: Store, results: str | None) -> Evaluation | None:
    if results is not None:
        file = Path(results) / RESULTS if Path(results).is_dir() else Path(results)
        try:
            text = file.read_bytes()
        except OSError as error:
            raise SettingsError(f"--results {results}: {error.strerror}") from error
    else:
        place = folder.child(EVALUATION_FOLDER)
        if place.size(RESULTS) is None:
            return None
        text = place.read(RESULTS)
    try:
        return evaluation_of(results_today(json.loads(text)))
    except (ValueError, KeyError, TypeError) as error:
        where = results or folder.child(EVALUATION_FOLDER).where(RESULTS)
        raise SettingsError(f"{where} is no results.json of beatray evaluate: {error}") from error


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
        wanted = np.flatnonzero(roles == Role.TRAIN)[:1]
    else:
        parts = evaluation.parts.values()
        names = {each for part in parts for ids in (part.train_ids, part.test_ids) for each in ids}
        wanted = np.flatnonzero(index["record_id"].isin(names).to_numpy())
        if len(wanted) < len(names):
            say("  without pictures of recordings: this corpus lacks some that were evaluated (say --corpus PATH)")
            return None, None
    if not len(wanted):
        return None, None
    rows = corpus.rows(wanted)
    with_beats = (n for n in range(len(rows)) if len(rows.r_peaks[n]) > FEWEST_BEATS)
    return rows, next(with_beats, 0)
