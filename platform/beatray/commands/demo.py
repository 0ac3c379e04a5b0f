"""`beatray demo`: the whole main job on the bundled real recordings, from archives to a report.

Each stage looks at what is there: a finished stage is reported and kept, an interrupted one continues, a folder that
the demo did not make is left alone. Test records (PTB-XL folds 8 and 9, two fifths of LUDB) are never trained on.
"""

from __future__ import annotations

import contextlib
import json
import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from beatray.commands import ingest, pretrain
from beatray.commands.console import say
from beatray.commands.evaluate import evaluated, track_results
from beatray.commands.local import local_folder
from beatray.commands.report import run_material
from beatray.config import NO_RECIPE, config_folder
from beatray.corpus.reader import open_corpus
from beatray.errors import SettingsError
from beatray.evaluate.encoders import spec_of
from beatray.evaluate.files import NAMES, write_tables
from beatray.evaluate.results import MAPS
from beatray.evaluate.settings import EvaluateSettings
from beatray.ingest.plan import SAMPLE, IngestSettings
from beatray.ray_session import RaySettings, session
from beatray.report.build import build_report
from beatray.schema import as_dict, build
from beatray.settings import (
    CheckpointSettings,
    ClusterSettings,
    CorpusSettings,
    PretrainSettings,
    TrackingSettings,
    TrainSettings,
)
from beatray.storage.store import Store
from beatray.track.setup import tracking_for
from beatray.track.tracker import Tracker, how_to_open
from beatray.train.composed import pretrain_content

MARK = "demo.json"
REPORT = "report.html"
ITEMS_PER_SHARD = 64


LEAD = (
    "An encoder for 12-lead ECGs, pretrained without labels and tried on recordings it never saw, beside the same "
    "encoder with random weights, trained from scratch, and hand-made features."
)


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Everything the demo needs: the settings of its stages, and how many recordings of each source."""

    out: str = "beatray-demo"
    run: str = "pretrain"
    seed: int = 0
    recipe: str | None = None
    records: int | None = None
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    encoder: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)


def settings_from(overrides: list[str], out: str | None) -> DemoSettings:
    """The settings that the overrides of the command line mean."""
    if not any(override.startswith("recipe=") for override in overrides):
        overrides = [each for override in overrides for each in _with_recipe(override)]
    overrides = overrides + ([f"out={out}"] if out else [])
    return build(DemoSettings, pretrain_content("demo", overrides, kinds={"evaluate": EvaluateSettings}))


def _with_recipe(override: str) -> list[str]:
    """`objective=NAME` is that method with a network, an optimizer and a schedule that suit it: its small recipe, or
    none where there is none."""
    key, _, name = override.partition("=")
    if key not in ("objective", "objective.name"):
        return [override]
    small = f"{name}_tiny"
    return [f"recipe={small}"] if (config_folder() / "recipe" / f"{small}.yaml").is_file() else [NO_RECIPE, override]


def run(settings: DemoSettings, *, overwrite: bool = False) -> int:
    """All stages; returns the exit code."""
    began = time.monotonic()
    folder = local_folder("--out ", settings.out)
    settings = replace(settings, out=str(folder))
    start_anew = _open_folder(settings, folder, overwrite=overwrite)
    say(f"[1/4] ingest the bundled recordings (licences: {SAMPLE / 'ATTRIBUTION.md'})")
    with session(RaySettings(**as_dict(settings.cluster))):  # one for both stages
        if start_anew:  # only now that the work which replaces it can begin
            _remove(folder, settings.run)
            Store(str(folder)).write(MARK, _mark(settings))
        _ingest(settings, folder / "corpus")
        say("[2/4] pretrain")
        result = pretrain.run(_pretrain_settings(settings, folder))
    if not result.finished:
        return result.exit_code
    say("[3/4] evaluate on recordings that pretraining never saw")
    _evaluate(settings, folder, Path(result.folder))
    say("[4/4] done")
    say(f"  report   {folder / REPORT}  (open it in a browser)")
    for line in _where(Path(result.folder)):
        say(f"  {line}")
    say(f"  a model  {_finetune(settings, folder, result.folder)}")
    say(f"  took     {time.monotonic() - began:.0f} s")
    return 0


def _open_folder(settings: DemoSettings, folder: Path, *, overwrite: bool) -> bool:
    """Make the demo's folder, or accept the one an earlier demo with the same settings made; whether what that one
    made is to be removed."""
    mark = folder / MARK
    identity = json.loads(_mark(settings))
    if overwrite and mark.exists():
        return True
    if mark.exists():
        found = json.loads(mark.read_text())
        if found != identity:
            changed = ", ".join(key for key in identity if found.get(key) != identity[key])
            raise SettingsError(
                f"{folder} holds a demo with other settings ({changed}). Choose another --out, or pass --overwrite to "
                "start anew."
            )
        say(f"{folder} exists: finished stages are kept, an unfinished one continues (--overwrite starts anew)")
    elif folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty and was not made by beatray demo; choose another --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_bytes(_mark(settings))
    return False


def _remove(folder: Path, run: str) -> None:
    """Delete what a demo made in its folder, apart from its mark: a model that the user fine-tuned into runs/, and the
    MLflow database that tracks it, too, stay. `run` is the name of the run for a mark that is damaged."""
    store = Store(str(folder))
    with contextlib.suppress(ValueError, KeyError, TypeError):
        run = str(json.loads(store.read(MARK))["run"])
    for name in (REPORT, *NAMES, MAPS):  # results first: what is left of an interrupted removal is no finished demo
        store.delete(name)
    store.child("runs").delete_folder(run)
    store.delete_folder("corpus")


def _mark(settings: DemoSettings) -> bytes:
    """What the mark of a demo with these settings holds."""
    return json.dumps(_identity(settings), indent=1).encode()


def _identity(settings: DemoSettings) -> dict[str, Any]:
    content = as_dict(settings)
    for key in ("out", "cluster", "tracking"):
        content.pop(key)
    return content


def _ingest(settings: DemoSettings, corpus: Path) -> None:
    sources = {"ludb": str(SAMPLE / "ludb-sample.zip"), "ptbxl": str(SAMPLE / "ptbxl-sample.zip")}
    plan = IngestSettings(sources, str(corpus), items_per_shard=ITEMS_PER_SHARD, limit=settings.records)
    ingest.run(plan, settings.cluster)


def _pretrain_settings(settings: DemoSettings, folder: Path) -> PretrainSettings:
    return PretrainSettings(
        out=str(folder / "runs"),
        run=settings.run,
        seed=settings.seed,
        recipe=settings.recipe,
        corpus=replace(settings.corpus, path=str(folder / "corpus")),
        encoder=settings.encoder,
        objective=settings.objective,
        train=settings.train,
        checkpoint=settings.checkpoint,
        cluster=settings.cluster,
        tracking=settings.tracking,
    )


def _evaluate(settings: DemoSettings, folder: Path, run_folder: Path) -> None:
    results, table_file, report = folder / "results.json", folder / "table.txt", folder / REPORT
    if results.exists() and report.exists():
        say(f"  nothing to do: {results.name} and {report.name} exist")
        say(table_file.read_text())
        return
    corpus = open_corpus(str(folder / "corpus"))
    policy = replace(settings.corpus, path=str(folder / "corpus"))
    evaluation, held = evaluated(corpus, policy, spec_of(str(run_folder)), settings.evaluate)
    say(write_tables(evaluation, folder, held.rows))
    material = run_material(
        title="beatray demo",
        lead=LEAD,
        corpus=corpus,
        rows=held.rows,
        shown=int(next(n for n in held.train if held.rows.source[n] == "ptbxl" and len(held.rows.r_peaks[n]) > 5)),
        run_folder=run_folder,
        evaluation=evaluation,
        weights=str(run_folder),
        licences=_licences(),
        tracking=_where(run_folder),
    )
    build_report(report, material)
    tracking = tracking_for(
        settings.tracking.uri,
        settings.tracking.experiment,
        out=folder / "runs",
        run_name=settings.run,
        folder=run_folder,
        settings={},
        tags={},
        dataset=None,
        every_s=settings.tracking.flush_seconds,
    )
    if tracking is not None:
        with Tracker(tracking) as tracker:  # the run folder remembers its MLflow run: the figures join the curves
            track_results(tracker, evaluation, folder)
            tracker.artifact(report, "report")


def _where(run_folder: Path) -> list[str]:
    """How to load the encoder and to open the MLflow UI."""
    lines = [f"encoder  beatray.load_encoder({str(run_folder)!r})"]
    opened = how_to_open(run_folder)
    return [*lines, f"MLflow   {opened}"] if opened else lines


def _finetune(settings: DemoSettings, folder: Path, run_folder: str) -> str:
    """The command that makes a model of the encoder, tested on what pretraining never saw."""
    folds = {"test_folds": settings.corpus.test_folds, "validation_folds": settings.corpus.validation_folds}
    splits = [f"'corpus.{key}=[{','.join(map(str, numbers))}]'" for key, numbers in folds.items()]
    return (
        f"beatray finetune encoder={run_folder} corpus={folder / 'corpus'} labels=superdiagnostic {' '.join(splits)} "
        f"out={folder / 'runs'} run=superdiagnostic"
    )


def _licences() -> list[str]:
    """Attribution of the bundled recordings, as their archives carry it."""
    texts = []
    for name in sorted(SAMPLE.glob("*.zip")):
        with zipfile.ZipFile(name) as archive:
            texts.append(archive.read("ATTRIBUTION.txt").decode())
    return texts
