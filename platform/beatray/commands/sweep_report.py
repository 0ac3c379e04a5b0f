"""`beatray report PLACE`: the report of a sweep, as HTML, CSV and LaTeX, in its folder and in MLflow; or of one run."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from beatray.commands import model_sweep_report, run_report
from beatray.commands.console import say
from beatray.commands.hard_recordings import hard_recordings
from beatray.commands.model_sweep_report import shared_settings
from beatray.commands.report import example_of, rows_of
from beatray.commands.sweep import where_to_look
from beatray.commands.what_ran import what_ran
from beatray.corpus.reader import Corpus, Rows, open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import CheckpointError, SettingsError
from beatray.evaluate.metrics import SegmentCounts
from beatray.evaluate.results import Evaluation, evaluation_of
from beatray.evaluate.settings import MAIN_PROTOCOL, EvaluateSettings
from beatray.infer.vectors import embed_rows
from beatray.models.encoder_folder import describe_encoder, load_encoder
from beatray.report import ecg, sweep_table_forms
from beatray.report.build import overlays_of
from beatray.report.sweep_material import Embeddings, SweepMaterial, compares_methods
from beatray.report.sweep_methods import costs_csv
from beatray.report.sweep_page import build_sweep_report
from beatray.report.sweep_scores import compared
from beatray.report.sweep_table import make_table, name_of
from beatray.schema import build
from beatray.settings import CorpusSettings
from beatray.storage.store import Store
from beatray.sweep.budget import read_costs
from beatray.sweep.model_results import read_models
from beatray.sweep.ranking import as_text
from beatray.sweep.record import REPORT, SweepRecord, read
from beatray.sweep.results import Evaluated, Method, SweepResults, best_method, by_worth, read_results
from beatray.sweep.tracking import FOLDER_TAG
from beatray.track.journal import read_lines
from beatray.track.memory import MEMORY, Memory
from beatray.track.secrets import without_secrets
from beatray.track.server import run_tags
from beatray.track.setup import resume
from beatray.track.tracker import Tracker
from beatray.train.prepare import feature_statistics
from beatray.train.run_folder import EVALUATION_FOLDER, METRICS, SETTINGS, RunFolder

MOST_EMBEDDED = 2000


def run(parent: str, corpus: str | None = None, against: str | None = None, results: str | None = None) -> int:
    """Write the report of the sweep or run in a folder, or of the sweep whose MLflow run has this id.

    `against` is the method that all others of a sweep are tested against, `results` the evaluation of a single run.
    """
    folder = Store(_folder_of(parent))
    record = read(folder)
    if record is None and folder.size(SETTINGS) is None:
        raise SettingsError(f"{parent} holds neither sweep.json nor settings.yaml: it is no folder of a sweep or a run")
    with tempfile.TemporaryDirectory(prefix="beatray-report-") as scratch:
        out = folder.folder / REPORT if folder.is_local else Path(scratch)
        if record is None:
            if against is not None:
                raise SettingsError("--against is for the report of a sweep")
            written = run_report.write(folder, out, corpus, results)
        else:
            if results is not None:
                raise SettingsError("--results is for the report of a single run: a sweep has evaluated its own")
            models = read_models(folder, record)
            if models.methods:
                if against is not None:
                    raise SettingsError("--against is for a sweep over ways to pretrain; this one is over labels")
                written = model_sweep_report.write(folder, record, models, out, corpus)
            else:
                written = write(folder, record, read_results(folder, record), out, corpus, against)
        if not folder.is_local:
            for path in written:
                folder.child(REPORT).write(path.name, path.read_bytes())
        for line in _track(folder, written):
            say(f"  {line}")
        for line in where_to_look(folder, record) if record is not None else []:
            say(f"  {line}")
    say(f"  report: {folder.child(REPORT).where('report.html')}")
    return 0


def write(
    folder: Store, record: SweepRecord, results: SweepResults, out: Path, corpus: str | None, against: str | None = None
) -> list[Path]:
    """report.html and the tables into `out`; prints the table."""
    if compares_methods(results):
        results = by_worth(results, record.metric, record.mode)
    table = make_table(results)
    compared(table, against)  # refuses a name that is none before anything is drawn
    best = best_method(results, record.metric, record.mode)
    trial = best.trials[0]
    settings = yaml.safe_load(folder.child(trial.trial).read(SETTINGS))
    opened = _opened(settings, corpus)
    found = {} if opened is None else _of_corpus(folder, best, trial, settings, opened)
    made = _made(folder.child(trial.trial))
    finished = [each for each in record.trials if each.status == "finished"]
    material = SweepMaterial(
        title=f"beatray sweep {record.run}",
        table=table,
        results=results,
        best=best,
        facts={
            **what_ran(
                folder,
                settings,
                made.get("manifest_hash"),
                None if opened is None else int(opened.manifest.statistics["recordings"]),
                sum(made.get("sources", {}).values()),
                {int(t.settings["corpus"].get("fold_rotation", 0)) for m in results.methods for t in m.trials},
            ),
            "trials": f"{len(finished)} of {len(record.trials)} finished",
            "encoder": _each(results, "encoder", "name"),
            "epochs": _each(results, "train", "epochs"),
            "batch": f"{_each(results, 'train', 'batch_size')} recordings",
            "shown in the pictures": f"{name_of(best)}, trial {trial.trial}",
            "time of all trials": f"{sum(each.seconds for each in record.trials) / 60:.0f} min",
        },
        settings=yaml.safe_dump(shared_settings(folder, record, trial.trial), sort_keys=True),
        ranking=as_text(record),
        against=against,
        journals={trial.trial: _journal(folder, trial) for method in results.methods for trial in method.trials},
        costs=read_costs(folder),
        seconds={each.name: each.seconds for each in record.trials},
        tracking=[f"sweep    {folder.where()}", "trials   each a folder there, with encoder/ and evaluation/"],
        **found,
    )
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.csv": sweep_table_forms.as_csv(table),
        "table.md": sweep_table_forms.as_markdown(table),
        "table.tex": sweep_table_forms.as_latex(table),
        "scores.csv": sweep_table_forms.long_csv(results),
        "costs.csv": costs_csv(material),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    say(sweep_table_forms.as_text(table))
    return [build_sweep_report(out / "report.html", material), *(out / name for name in texts)]


def _each(results: SweepResults, group: str, key: str) -> str:
    """A setting of all methods: the one value, or all there are."""
    found = (trial.settings.get(group, {}).get(key) for method in results.methods for trial in method.trials)
    return ", ".join(map(str, dict.fromkeys(found)))


def _journal(folder: Store, trial: Evaluated) -> list[dict[str, Any]]:
    """The lines of a trial's metrics.jsonl; none if it is gone."""
    run = RunFolder.open(folder.child(trial.trial))
    run.pull(METRICS)
    return read_lines(run.scratch / METRICS)


def _folder_of(parent: str) -> str:
    """The folder itself, or that of the MLflow run with this id."""
    if not re.fullmatch(r"[0-9a-f]{32}", parent) or Path(parent).exists():
        return parent
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise SettingsError(f"{parent} looks like the id of an MLflow run: set MLFLOW_TRACKING_URI, or give the folder")
    found = run_tags(uri, parent).get(FOLDER_TAG)
    if found is None:
        raise SettingsError(
            f"{without_secrets(uri)} knows no sweep with run {parent}; give the sweep's folder, out/run"
        )
    return found


def _made(folder: Store) -> dict[str, Any]:
    """The description of a trial's encoder; empty where its folder is gone."""
    try:
        return describe_encoder(folder.location)
    except (OSError, CheckpointError):
        return {}


def _opened(settings: Mapping[str, Any], corpus_path: str | None) -> Corpus | None:
    """The corpus of the sweep; None, with a message, where it is gone."""
    try:
        return open_corpus(corpus_path or settings["corpus"]["path"])
    except Exception as error:  # a report without pictures of recordings is still a report
        say(f"  without pictures of recordings: {error} (say --corpus PATH)")
        return None


def _of_corpus(
    folder: Store, best: Method, trial: Evaluated, settings: Mapping[str, Any], corpus: Corpus
) -> dict[str, Any]:
    """The figures of recordings; none, with a message, where the corpus has none of those that were tested."""
    policy = build(CorpusSettings, dict(settings["corpus"]), "corpus.")
    evaluation = build(EvaluateSettings, dict(trial.results["settings"]), "evaluate.")
    tested = np.flatnonzero(assign_roles(corpus.index, policy_of(policy)) == Role.TEST)
    if not len(tested):
        say("  without pictures of recordings: this corpus has none of those that were tested (say --corpus PATH)")
        return {}
    rows = corpus.rows(tested[:MOST_EMBEDDED])
    whole = _with_controls(trial)
    labelled = rows_of(corpus, whole)
    shown = next((n for n in range(len(rows)) if rows.source[n] == "ptbxl" and len(rows.r_peaks[n]) > 5), 0)
    return {
        "overlays": [] if labelled is None else _overlays(folder, trial, corpus, evaluation),
        "min_leads": evaluation.min_leads,
        "segment_fraction": max(evaluation.segment_fractions),
        "embeddings": _embeddings(folder, trial, rows),
        "evaluation": whole,
        "rows": labelled,
        "hard": [] if labelled is None else hard_recordings(whole, labelled, folder.child(trial.trial).location),
        "example": example_of(
            rows, shown, settings["objective"], settings["encoder"], feature_statistics(corpus), settings["seed"]
        ),
    }


def _with_controls(trial: Evaluated) -> Evaluation:
    """The evaluation of a trial, and the runs of its controls beside it where they saw the same recordings."""
    own = evaluation_of(trial.results)
    if not trial.controls or trial.controls["tasks"] != trial.results["tasks"]:
        return own
    return replace(own, runs=(*own.runs, *evaluation_of(trial.controls).runs))


def _overlays(folder: Store, trial: Evaluated, corpus: Corpus, evaluation: EvaluateSettings) -> list[ecg.Overlay]:
    store = folder.child(trial.trial).child(EVALUATION_FOLDER)
    part = trial.results["tasks"].get("segment")
    if part is None or store.size("predictions.npz") is None:
        return []
    protocol = MAIN_PROTOCOL["segment"]
    fraction, seed = round(max(evaluation.segment_fractions), 6), evaluation.seeds_of("segment", protocol)[0]
    shown = ("segment", protocol, "pretrained", fraction, seed, "clean")
    fields = ("task", "protocol", "variant", "fraction", "seed", "condition")
    kept = next((run for run in trial.results["runs"] if tuple(run[field] for field in fields) == shown), None)
    if kept is None:
        return []
    counts = SegmentCounts(*(np.array(kept["test"][name]) for name in ("both", "truth", "predicted")))
    with np.load(io.BytesIO(store.read("predictions.npz")), allow_pickle=False) as archive:
        predictions = archive["predictions"]
    ids = corpus.index["record_id"]
    rows = corpus.rows(np.flatnonzero(ids.isin(part["test_ids"]).to_numpy()))
    return overlays_of(predictions, counts, part["test_ids"], rows, evaluation.min_leads)


def classes_tested(results: Mapping[str, Any], record_ids: Sequence[str]) -> list[str]:
    """The one class that a results.json gives each recording, "several", or nothing where it gives none."""
    part = results["tasks"].get("classify")
    if part is None:
        return [""] * len(record_ids)
    has = {
        name: [label for label, there in zip(part["classes"], truth, strict=True) if there]
        for name, truth in zip(part["test_ids"], part["truth"], strict=True)
    }
    found = (has.get(name, []) for name in record_ids)
    return [each[0] if len(each) == 1 else "several" if each else "" for each in found]


def _embeddings(folder: Store, trial: Evaluated, rows: Rows) -> Embeddings:
    encoder = load_encoder(folder.child(trial.trial).location)
    vectors = embed_rows(encoder, rows.signal_uv, rows.n_samples.astype(np.int64)).recording  # type: ignore[arg-type]
    owners = [f"patient {owner}" if owner else "" for owner in rows.patient_id]
    several = Counter(owners)
    return Embeddings(
        vectors,
        {
            "class": classes_tested(trial.results, rows.record_id),
            "patient": [owner if several[owner] > 1 else "" for owner in owners],
            "source": [str(source) for source in rows.source],
        },
    )


def _track(folder: Store, written: list[Path]) -> list[str]:
    """Send the files to the sweep's MLflow run; returns where they are."""
    if folder.size(MEMORY) is None:
        return []
    run = RunFolder.open(folder)
    run.pull(MEMORY)
    lines = []
    for uri in Memory(run.scratch).records:
        tracker = Tracker(resume(run.scratch, uri))
        for path in written:
            tracker.artifact(path, REPORT)
        sent = tracker.finish(None, patience_s=10.0)
        arrived = f"MLflow: {uri}, run {tracker.run_id}, artifacts in {REPORT}/"
        lines.append(arrived if sent else f"not all sent to {uri}: give the command again when it answers")
    run.push(MEMORY)
    return lines
