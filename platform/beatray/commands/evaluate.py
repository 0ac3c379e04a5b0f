"""`beatray evaluate encoder=PATH|random corpus=PATH out=FOLDER`: both tasks beside their controls, as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from beatray.commands.console import progress, say
from beatray.commands.local import local_folder
from beatray.config import compose
from beatray.corpus.label_settings import split_label_overrides
from beatray.corpus.reader import Corpus, open_corpus
from beatray.errors import SettingsError
from beatray.evaluate.encoders import EncoderSpec, spec_of
from beatray.evaluate.files import NAMES, table_scores, write_tables
from beatray.evaluate.held_out import HeldOut, evaluate_encoder
from beatray.evaluate.kept_runs import RUNS_SUFFIX
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.names import of_variant
from beatray.evaluate.outputs import remove_kept
from beatray.evaluate.own_labels import with_table
from beatray.evaluate.results import Evaluation
from beatray.evaluate.settings import TASKS, EvaluateSettings
from beatray.schema import as_dict, build, flat
from beatray.settings import CorpusSettings, TrackingSettings
from beatray.track.memory import how_to_open
from beatray.track.setup import check_default_database, tracking_for
from beatray.track.tracker import Tracker

SHORT = {"encoder": "encoder_path"}
"""In this command `encoder` names weights, not an architecture."""


OUTPUTS = "outputs"
"""Where what the encoders give lies while the evaluation runs, below `out`."""
ELSEWHERE = "encoder= takes the same URI; then `beatray report RUN --results OUT` finds the results"
"""What to do about a run on an object store: its MLflow run could not be continued from there."""


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


def settings_from(overrides: list[str]) -> EvaluateCommand:
    """The settings that the overrides of the command line mean."""
    labels, overrides = split_label_overrides(overrides)
    content = compose("evaluate", overrides, extra=SHORT, kinds={"evaluate": EvaluateSettings})
    content["evaluate"] = with_table(content["evaluate"], labels)
    settings = build(EvaluateCommand, content)
    if settings.task not in (*TASKS, "all"):
        raise SettingsError(f"task={settings.task} is not one of {', '.join(TASKS)}, all")
    if settings.task not in (*settings.evaluate.tasks, "all"):
        raise SettingsError(f"task={settings.task} is not among evaluate.tasks: set one of the two")
    if (settings.encoder_path is None) == (settings.run is None):
        raise SettingsError("which encoder? set one of encoder=PATH, encoder=random, run=RUN_FOLDER")
    if not settings.corpus.path:
        raise SettingsError("on which corpus? set corpus=PATH (make one with `beatray ingest`)")
    return settings


def run(settings: EvaluateCommand) -> Evaluation:
    """Evaluate, write results.json and the tables, and print them."""
    folder = local_folder("out=", settings.out)
    run_folder = local_folder("run=", settings.run, ELSEWHERE) if settings.run else None
    corpus = open_corpus(settings.corpus.path)
    plan = settings.evaluate if settings.task == "all" else replace(settings.evaluate, tasks=(settings.task,))
    if (folder / "results.json").exists() and not settings.overwrite:
        raise SettingsError(f"{folder} holds results already; choose another out=, or set overwrite=true")
    runs = run_folder.parent if run_folder else folder
    check_default_database(settings.tracking.uri, runs)
    evaluation, held = evaluated(corpus, settings.corpus, spec(settings), plan, folder / OUTPUTS)
    say(write_tables(evaluation, folder, held.rows))
    remove_kept(folder / OUTPUTS, RUNS_SUFFIX if plan.keep_outputs else "")
    say(f"  results: {folder / 'results.json'}")
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=runs,
        run_name=f"evaluate {settings.encoder_path}",
        folder=run_folder or folder,  # a run remembers its MLflow run
        settings={} if settings.run else flat(as_dict(settings)),
        tags={} if settings.run else {"beatray.manifest": corpus.manifest.hash},
        dataset={"name": "corpus", "digest": corpus.manifest.hash[:32], "source": settings.corpus.path},
        every_s=settings.tracking.flush_seconds,
    )
    if tracking is not None:
        with Tracker(tracking) as tracker:
            track_results(tracker, evaluation, folder)
        opened = how_to_open(tracking.folder)
        if opened is not None:
            say(f"  MLflow: {opened}")
    return evaluation


def track_results(tracker: Tracker, evaluation: Evaluation, folder: Path) -> None:
    """The table's figures as metrics (means over seeds) and the result files as artifacts."""
    scores = table_scores(evaluation)
    tracker.metrics(
        {of_variant(name, variant): value for variant, by_name in scores.items() for name, value in by_name.items()}
    )
    for name in NAMES:
        if (folder / name).exists():
            tracker.artifact(folder / name, "evaluation")


def spec(settings: EvaluateCommand) -> EncoderSpec:
    """The encoder that the overrides name."""
    if settings.encoder_path == "random":
        return EncoderSpec(settings.architecture)
    return spec_of(str(settings.run or settings.encoder_path))


def evaluated(
    corpus: Corpus,
    policy: CorpusSettings,
    encoder: EncoderSpec,
    plan: EvaluateSettings,
    outputs: Path | None = None,
) -> tuple[Evaluation, HeldOut]:
    """`held_out.evaluate_encoder` with a progress bar, and a message on a task that has nothing to work on."""
    with progress("evaluate", "fits") as update:
        evaluation, held = evaluate_encoder(corpus, policy, encoder, plan, update, outputs)
    if "classify" in plan.tasks and "classify" not in evaluation.parts:
        say(f"  no diagnoses: {_why_no_diagnoses(policy, plan)}")
    return evaluation, held


def _why_no_diagnoses(policy: CorpusSettings, plan: EvaluateSettings) -> str:
    if plan.classify.labels == "snomed":
        return (
            "no recording of the Challenge sets with a class of at least evaluate.classify.min_positives="
            f"{plan.classify.min_positives} training recordings is held out; corpus.hashed_test_sources=[ludb,cinc] "
            "holds two fifths of them out (pretrain with the same overrides)"
        )
    if plan.classify.labels == TABLE:
        return (
            f"no recording with a known label of {plan.labels.table} lies in both the training and the test part; "
            f"beatray labels check {plan.labels.table} corpus={policy.path} counts them by split"
        )
    folds = f"corpus.test_folds={list(policy.test_folds)}"
    folds += f" with corpus.fold_rotation={policy.fold_rotation}" if policy.fold_rotation else ""
    return f"no labelled PTB-XL record lies in {folds}; choose folds that it has"
