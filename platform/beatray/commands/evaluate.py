"""`beatray evaluate encoder=PATH|random corpus=PATH out=FOLDER`: both tasks beside their controls, as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from beatray.commands.console import progress, say
from beatray.corpus.reader import Corpus, Rows, open_corpus
from beatray.corpus.splits import Role, assign_roles
from beatray.evaluate import classes, wave_table
from beatray.evaluate.encoders import EncoderSpec, spec_of
from beatray.evaluate.results import Evaluation, plain, write_results
from beatray.evaluate.run import evaluate
from beatray.evaluate.settings import TASKS, EvaluateSettings
from beatray.evaluate.table import as_markdown, as_rows, as_text, make_table
from beatray.settings import CorpusSettings, SettingsError, TrackingSettings, as_dict, build, compose, flat
from beatray.track.setup import tracking_for
from beatray.track.tracker import Tracker
from beatray.train.checkpoint import check_recipe, describe_encoder, trained_on
from beatray.train.errors import CheckpointError
from beatray.train.prepare import policy_of

SHORT = {"encoder": "encoder_path"}
"""In this command `encoder` names weights, not an architecture."""

LABELLED_SOURCES = {"snomed": ("ludb", "cinc")}
"""Sources with the labels that the two tasks need, by label space; (ludb, ptbxl) unless said here."""


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
    overwrite: bool = False


def settings_from(words: list[str]) -> EvaluateCommand:
    """The settings that the words of the command line mean."""
    settings = build(EvaluateCommand, compose("evaluate", words, extra=SHORT))
    if settings.task not in (*TASKS, "all"):
        raise SettingsError(f"task={settings.task} is not one of {', '.join(TASKS)}, all")
    if (settings.encoder_path is None) == (settings.run is None):
        raise SettingsError("which encoder? say one of encoder=PATH, encoder=random, run=RUN_FOLDER")
    if not settings.corpus.path:
        raise SettingsError("on which corpus? say corpus=PATH (make one with `beatray ingest`)")
    return settings


def run(settings: EvaluateCommand) -> Evaluation:
    """Evaluate, write results.json and the tables, and print them."""
    corpus = open_corpus(settings.corpus.path)
    tasks = TASKS if settings.task == "all" else (settings.task,)
    plan = replace(settings.evaluate, tasks=tasks)
    folder = Path(settings.out).absolute()
    if (folder / "results.json").exists() and not settings.overwrite:
        raise SettingsError(f"{folder} holds results already; choose another out=, or say overwrite=true")
    evaluation, _ = evaluate_encoder(corpus, settings.corpus, spec(settings), plan)
    say(write_tables(evaluation, folder))
    say(f"  results: {folder / 'results.json'}")
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=Path(settings.run).absolute().parent if settings.run else folder,
        run_name=f"evaluate {settings.encoder_path}",
        folder=Path(settings.run).absolute() if settings.run else folder,  # a run remembers its MLflow run
        settings={} if settings.run else flat(as_dict(settings)),
        tags={} if settings.run else {"beatray.manifest": corpus.manifest.hash},
        dataset={"name": "corpus", "digest": corpus.manifest.hash[:32], "source": settings.corpus.path},
        every_s=settings.tracking.flush_seconds,
    )
    if tracking is not None:
        with Tracker(tracking) as tracker:
            track_results(tracker, evaluation, folder)
    return evaluation


def write_tables(evaluation: Evaluation, folder: Path) -> str:
    """results.json, table.txt, table.md, table.json, classes.md and waves.md in `folder`; returns the table as text."""
    write_results(evaluation, folder)
    table, by_class = make_table(evaluation), classes.class_rows(evaluation)
    by_wave = wave_table.wave_rows(evaluation)
    content = {
        "rows": as_rows(table),
        "notes": table.notes,
        "classes": classes.as_rows(by_class),
        "waves": wave_table.as_rows(by_wave),
    }
    (folder / "table.json").write_text(json.dumps(plain(content), indent=1))
    if by_class:
        (folder / "classes.md").write_text(classes.as_markdown(by_class))
    if by_wave:
        (folder / "waves.md").write_text(wave_table.as_markdown(by_wave))
    (folder / "table.md").write_text(as_markdown(table))
    text = as_text(table)
    (folder / "table.txt").write_text(text)
    return text


def track_results(tracker: Tracker, evaluation: Evaluation, folder: Path) -> None:
    """The table's figures as metrics (means over seeds) and the result files as artifacts."""
    figures = {}
    for row in make_table(evaluation).rows:
        name = f"{row.task}.{row.protocol}.{100 * row.fraction:g}pct.{row.metric}"
        if row.condition != "clean":
            name = f"{name}.{row.condition.replace(' ', '_')}"
        for arm in ("pretrained", "random", "features", "shuffled"):
            cell = getattr(row, arm)
            if cell is not None and np.isfinite(cell[0]):
                figures[f"{name}.{arm}"] = float(cell[0])
    tracker.metrics(figures)
    for name in ("results.json", "table.txt", "table.md", "table.json", "classes.md", "waves.md"):
        if (folder / name).exists():
            tracker.artifact(folder / name, "evaluation")


def refuse_seen(weights: str, test: pd.DataFrame) -> None:
    """Raise CheckpointError if the encoder was pretrained on a test recording, by the hash of its signal."""
    hashes = np.frombuffer(b"".join(value[:8] for value in test["content_hash"]), "<u8")
    seen = np.isin(hashes, trained_on(weights))
    if seen.any():
        examples = ", ".join(test["record_id"][seen].head(3))
        raise CheckpointError(
            f"the encoder {weights} was pretrained on {int(seen.sum())} of the {len(test)} test recordings "
            f"({examples}, ...): its scores would mean nothing. Use the corpus.test_folds it was pretrained with, and "
            "evaluate.segment.fold_over=held_out."
        )


def spec(settings: EvaluateCommand) -> EncoderSpec:
    """The encoder that the words name."""
    if settings.encoder_path == "random":
        return EncoderSpec(settings.architecture)
    return spec_of(str(settings.run or settings.encoder_path))


def evaluate_encoder(
    corpus: Corpus, policy: CorpusSettings, encoder: EncoderSpec, plan: EvaluateSettings
) -> tuple[Evaluation, tuple[Rows, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Run the tasks on the corpus's own splits; also returns (rows, train positions, test positions).

    Raises CheckpointError when the encoder was made for another recipe than the corpus's, or was pretrained on a
    recording that it would be tested on.
    """
    index = corpus.index
    roles = assign_roles(index, policy_of(policy))
    if encoder.weights is not None:
        check_recipe(describe_encoder(encoder.weights)["recipe"], corpus.recipe, f"the encoder {encoder.weights}")
        tested = roles == Role.TEST
        if "segment" in plan.tasks and plan.segment.folds and plan.segment.fold_over == "all":
            tested = tested | (index["source"] == "ludb").to_numpy()
        refuse_seen(encoder.weights, index[tested])
    sources = LABELLED_SOURCES.get(plan.classify.labels, ("ludb", "ptbxl"))
    wanted = np.flatnonzero(index["source"].isin(sources).to_numpy())
    if plan.classify.validation == "inner" or "classify" not in plan.tasks:
        wanted = wanted[roles[wanted] != Role.VALIDATION]
    rows, chosen = corpus.rows(wanted), roles[wanted]
    train, test = np.flatnonzero(chosen == Role.TRAIN), np.flatnonzero(chosen == Role.TEST)
    with progress("evaluate", "jobs") as update:
        evaluation = evaluate(rows, train, test, [encoder], plan, update, np.flatnonzero(chosen == Role.VALIDATION))
    if "classify" in plan.tasks and "classify" not in evaluation.parts:
        say(f"  no diagnoses: {_why_no_diagnoses(policy, plan)}")
    return evaluation, (rows, train, test)


def _why_no_diagnoses(policy: CorpusSettings, plan: EvaluateSettings) -> str:
    if plan.classify.labels == "snomed":
        return (
            "no recording of the Challenge sets with a class of at least evaluate.classify.min_positives="
            f"{plan.classify.min_positives} training recordings is held out; corpus.hashed_test_sources=[ludb,cinc] "
            "holds two fifths of them out (pretrain with the same words)"
        )
    folds = list(policy.test_folds)
    return f"no labelled PTB-XL record lies in corpus.test_folds={folds}; choose folds that it has"
