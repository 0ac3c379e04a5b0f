"""`beatray evaluate encoder=PATH|random corpus=PATH out=FOLDER`: both tasks beside their controls, as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from beatray.commands.console import progress, say
from beatray.corpus.reader import Corpus, Rows, open_corpus
from beatray.corpus.splits import Role, assign_roles
from beatray.evaluate.encoders import EncoderSpec, spec_of
from beatray.evaluate.results import Evaluation, write_results
from beatray.evaluate.run import evaluate
from beatray.evaluate.settings import TASKS, EvaluateSettings
from beatray.evaluate.table import as_markdown, as_text, make_table
from beatray.settings import CorpusSettings, SettingsError, TrackingSettings, as_dict, build, compose, flat
from beatray.track.setup import tracking_for
from beatray.track.tracker import Tracker
from beatray.train.checkpoint import check_recipe, describe_encoder
from beatray.train.launch import policy_of

SHORT = {"encoder": "encoder_path"}
"""In this command `encoder` names weights, not an architecture."""

LABELLED_SOURCES = ("ludb", "ptbxl")
"""Sources with the labels that the two tasks need."""


@dataclass(frozen=True, slots=True)
class EvaluateCommand:
    """Everything `beatray evaluate` needs."""

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    out: str = "evaluation"
    run: str | None = None
    encoder_path: str | None = None
    architecture: str = "tiny"
    task: str = "all"


def settings_from(words: list[str]) -> EvaluateCommand:
    """The settings that the words of the command line mean."""
    settings = build(EvaluateCommand, compose("evaluate", words, extra=SHORT))
    if settings.task not in (*TASKS, "all"):
        raise SettingsError(f"task={settings.task} is not one of {', '.join(TASKS)}, all")
    if settings.encoder_path is None and settings.run is None:
        raise SettingsError("which encoder? say encoder=PATH, encoder=random or run=RUN_FOLDER")
    return settings


def run(settings: EvaluateCommand) -> Evaluation:
    """Evaluate, write results.json and the tables, and print them."""
    corpus = open_corpus(settings.corpus.path)
    tasks = TASKS if settings.task == "all" else (settings.task,)
    plan = replace(settings.evaluate, tasks=tasks)
    folder = Path(settings.out).absolute()
    evaluation, _ = evaluate_encoder(corpus, settings.corpus, spec(settings), plan)
    say(write_tables(evaluation, folder))
    say(f"  results: {folder / 'results.json'}")
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=folder,
        run_name=f"evaluate {settings.run or settings.encoder_path}",
        folder=folder,
        settings=flat(as_dict(settings)),
        tags={"beatray.manifest": corpus.manifest.hash, "beatray.encoder": str(settings.run or settings.encoder_path)},
        dataset={"name": "corpus", "digest": corpus.manifest.hash[:32], "source": settings.corpus.path},
        every_s=settings.tracking.flush_seconds,
    )
    if tracking is not None:
        with Tracker(tracking) as tracker:
            track_results(tracker, evaluation, folder)
    return evaluation


def write_tables(evaluation: Evaluation, folder: Path) -> str:
    """results.json, table.txt and table.md in `folder`; returns the table as text."""
    write_results(evaluation, folder)
    table = make_table(evaluation)
    (folder / "table.md").write_text(as_markdown(table))
    text = as_text(table)
    (folder / "table.txt").write_text(text)
    return text


def track_results(tracker: Tracker, evaluation: Evaluation, folder: Path) -> None:
    """The table's figures as metrics (means over seeds) and the result files as artifacts."""
    figures = {}
    for row in make_table(evaluation).rows:
        name = f"{row.task}.{row.protocol}.{100 * row.fraction:g}pct.{row.metric}"
        for arm in ("pretrained", "random", "features", "shuffled"):
            cell = getattr(row, arm)
            if cell is not None and np.isfinite(cell[0]):
                figures[f"{name}.{arm}"] = float(cell[0])
    tracker.metrics(figures)
    for name in ("results.json", "table.txt", "table.md"):
        tracker.artifact(folder / name, "evaluation")


def spec(settings: EvaluateCommand) -> EncoderSpec:
    """The encoder that the words name."""
    if settings.encoder_path == "random":
        return EncoderSpec(settings.architecture)
    return spec_of(str(settings.run or settings.encoder_path))


def evaluate_encoder(
    corpus: Corpus, policy: CorpusSettings, encoder: EncoderSpec, plan: EvaluateSettings
) -> tuple[Evaluation, tuple[Rows, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Run the tasks on the corpus's own splits; also returns (rows, train positions, test positions).

    Raises CheckpointError when the encoder was made for another recipe than the corpus's.
    """
    if encoder.weights is not None:
        check_recipe(describe_encoder(encoder.weights)["recipe"], corpus.recipe, f"the encoder {encoder.weights}")
    index = corpus.index
    roles = assign_roles(index, policy_of(policy))
    wanted = np.flatnonzero(index["source"].isin(LABELLED_SOURCES).to_numpy() & (roles != Role.VALIDATION))
    rows, chosen = corpus.rows(wanted), roles[wanted]
    train, test = np.flatnonzero(chosen == Role.TRAIN), np.flatnonzero(chosen == Role.TEST)
    with progress("evaluate", "jobs") as update:
        evaluation = evaluate(rows, train, test, [encoder], plan, update)
    return evaluation, (rows, train, test)
