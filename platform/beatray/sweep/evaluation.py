"""The scores of each trial's encoder on both tasks, and the controls that all trials share.

An evaluation is one Ray task, so that it takes its turn with the training of other trials. Its files lie in the run
folder of the trial as `evaluation/`, hashed, with `scores.json`, which names what was evaluated: a sweep that continues
repeats an evaluation only if its encoder, its corpus or its settings are others now. Random weights, measured features
and permuted labels depend on no trial; they are evaluated once for each encoder and split, into `controls/`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from beatray.corpus.label_file import read_bytes
from beatray.corpus.reader import open_corpus
from beatray.corpus.splits import OWN_PATIENTS
from beatray.dsp import analyse
from beatray.errors import CheckpointError, SettingsError
from beatray.evaluate.encoders import EncoderSpec, spec_of
from beatray.evaluate.files import table_scores, write_tables
from beatray.evaluate.held_out import evaluate_encoder
from beatray.evaluate.kept_runs import RUNS_SUFFIX
from beatray.evaluate.names import of_variant
from beatray.evaluate.older import scores_today
from beatray.evaluate.outputs import own_code, remove_kept, stamp_of
from beatray.evaluate.results import PREFIX, plain
from beatray.evaluate.settings import EvaluateSettings
from beatray.models.encoder_folder import ENCODER_FOLDER
from beatray.schema import as_dict
from beatray.settings import CorpusSettings
from beatray.storage.hashed_folder import FILES, read_folder, write_folder
from beatray.storage.store import Store
from beatray.sweep.record import CONTROLS
from beatray.train.run_folder import EVALUATION_FOLDER
from beatray.train.run_spec import RunSpec

if TYPE_CHECKING:
    from beatray.sweep.progress import Prepared

SCORES = "scores.json"
SCORES_VERSION = 3
"""Counts up when the content of an evaluation changes: what was evaluated before is evaluated again."""
NOT_MADE_OF = ("workers", "device", "baselines", "keep_outputs")
"""Settings of an evaluation that change none of its figures."""
NO_PART_OF_SPLIT = ("path", "on_bad_shard", "most_recordings")
"""Settings of the corpus that change none of the recordings that heads are trained and tested on."""
CPUS = 0.9
"""Of one evaluation, a process of one thread; a little less than 1 leaves room for the driver of the trial."""
ANYWHERE = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]
"""Not inside the resources that Tune reserves for the trial's driver."""


def is_of_encoder(run: Store, scores: Mapping[str, Any]) -> bool:
    """True if a trial's scores.json is about the encoder that its folder holds now."""
    return bool(scores["made_of"]["encoder"] == _digest(run))


def kept_scores(run_spec: RunSpec, settings: EvaluateSettings) -> dict[str, float] | None:
    """The scores in the trial's folder; None unless they belong to its encoder as it is now and to these settings."""
    return _kept(run_spec.run, EVALUATION_FOLDER, _made_of(run_spec, settings, _digest(run_spec.run)))


def evaluate_trial(run_spec: RunSpec, settings: EvaluateSettings) -> dict[str, float]:
    """Evaluate the trial's encoder, unless that is done; its scores by `names.score_name`."""
    kept = kept_scores(run_spec, settings)
    if kept is not None:
        return kept
    made_of = _made_of(run_spec, settings, _digest(run_spec.run))
    spec = spec_of(run_spec.run.location)
    alone = replace(settings, baselines=False, workers=1)
    target = (run_spec.run.location, EVALUATION_FOLDER)
    about = {"made_of": made_of, "controls": control_of(run_spec, settings)}
    try:
        return dict(ray.get(_task(alone, CPUS).remote(target, run_spec.settings.corpus, spec, alone, about)))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what went wrong, not where


def control_of(run_spec: RunSpec, settings: EvaluateSettings) -> str:
    """The name of the controls that belong to a trial: the same for the same encoder, corpus and split."""
    return control_name(_made_of(run_spec, settings, _architecture(run_spec).key()))


def control_name(made_of: Mapping[str, Any]) -> str:
    """What controls that were made of this are called."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def evaluate_controls(prepared: Prepared, settings: EvaluateSettings, stop: Event) -> bool:
    """Evaluate the controls of all trials that are not there yet; False if `stop` was set before the end.

    SettingsError if the corpus or the settings allow no evaluation, or none that has the sweep's metric.
    """
    if not settings.baselines:
        return True
    folder, waiting = prepared.plan.folder.child(CONTROLS), []
    cpus = min(max(1, settings.workers), ray.cluster_resources().get("CPU", 1.0))
    controls = {control_of(run_spec, settings): run_spec for run_spec in prepared.run_specs.values()}
    for name, run_spec in controls.items():
        spec = _architecture(run_spec)
        made_of = _made_of(run_spec, settings, spec.key())
        if _kept(folder, name, made_of) is None:
            task = _task(settings, cpus)
            about = {"made_of": made_of}
            waiting.append(task.remote((folder.location, name), run_spec.settings.corpus, spec, settings, about))
    while waiting and not stop.is_set():
        ended, waiting = ray.wait(waiting, timeout=1.0)
        try:
            ray.get(ended)
        except ray.exceptions.RayTaskError as error:  # before anything is trained
            raise SettingsError(f"the encoders could not be evaluated: {error.cause}") from error
    for task in waiting:
        ray.cancel(task, force=True)
    if not waiting:
        _check_metric(folder, controls, prepared.plan.sweep.metric)
    return not waiting


def _check_metric(folder: Store, names: Iterable[str], metric: str) -> None:
    """SettingsError if a metric of the evaluation is none that the controls have: no trial will have it either."""
    if not metric.startswith(PREFIX):
        return
    for name in names:
        scores = scores_today(json.loads(folder.child(name).read(SCORES)))["scores"]
        known = {score for variant in ("random", "features") for score in scores.get(variant, {})}
        if metric.replace("/encoder_features/", "/") not in known:
            raise SettingsError(f"sweep.metric={metric} is not among the scores: {', '.join(sorted(known))}")


def _task(settings: EvaluateSettings, cpus: float) -> Any:
    gpus = 1 if settings.device.startswith("cuda") else 0
    return ray.remote(_evaluate).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=ANYWHERE, max_retries=2)


def _evaluate(
    target: tuple[str, str], corpus: CorpusSettings, spec: EncoderSpec, settings: EvaluateSettings, about: Any
) -> dict[str, float]:
    """Runs in a process of Ray: evaluate, keep the files, and return the scores of the encoder under test."""
    import torch

    torch.set_num_threads(1)
    run = Store(target[0])
    outputs = run.folder / f"{target[1]}-outputs" if run.is_local else None  # a killed evaluation continues
    evaluation, held = evaluate_encoder(open_corpus(corpus.path), corpus, spec, settings, folder=outputs)
    scores = table_scores(evaluation)
    with tempfile.TemporaryDirectory(prefix="beatray-evaluation-") as folder:
        write_tables(evaluation, Path(folder), held.rows)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    files[SCORES] = json.dumps({**about, "scores": scores}, indent=1).encode()
    write_folder(run, target[1], files)
    if outputs is not None:
        remove_kept(outputs, RUNS_SUFFIX if settings.keep_outputs else "")
    return _figures(scores)


def _figures(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What becomes of the scores among a trial's figures: its own, and those with the measured features beside."""
    return {
        of_variant(name, variant): float(value)
        for variant in ("pretrained", "encoder_features")
        for name, value in scores.get(variant, {}).items()
    }


def _kept(parent: Store, name: str, made_of: dict[str, Any]) -> dict[str, float] | None:
    try:
        found = scores_today(json.loads(read_folder(parent.child(name))[SCORES]))
    except (CheckpointError, KeyError, ValueError):
        return None
    if found.get("made_of") != made_of:
        return None
    return _figures(found["scores"])


def _made_of(run_spec: RunSpec, settings: EvaluateSettings, encoder: str) -> dict[str, Any]:
    """What the scores depend on, as plain JSON."""
    kind: dict[str, Any] = {"scores": SCORES_VERSION, "encoder": encoder}
    about = {key: value for key, value in asdict(settings).items() if key not in NOT_MADE_OF}
    left_out = set(NO_PART_OF_SPLIT)
    if set(run_spec.settings.corpus.hashed_test_sources) <= set(OWN_PATIENTS):
        left_out.add("hashed_test_by")  # it changes nothing, and is not among what older scores were made of
    split = {key: value for key, value in as_dict(run_spec.settings.corpus).items() if key not in left_out}
    if settings.pooling == "stages_beat":  # R-peaks are looked for when encoders are read
        kind["analysis"] = analyse.VERSION
    code = own_code(_architecture(run_spec))
    if code:
        kind["network_sha256"] = hashlib.sha256(code.encode()).hexdigest()
    if settings.robustness.noise_folder:
        kind["noise"] = stamp_of(settings.robustness.noise_folder)
    if settings.labels.table:
        kind["labels_sha256"] = hashlib.sha256(read_bytes(settings.labels.table)).hexdigest()
    return dict(plain({**kind, "manifest": run_spec.manifest_hash, "split": split, "evaluate": about}))


def _digest(run: Store) -> str:
    """Of the encoder as it was exported; empty if there is none."""
    try:
        return hashlib.sha256(run.child(ENCODER_FOLDER).read(FILES)).hexdigest()
    except FileNotFoundError:
        return ""


def _architecture(run_spec: RunSpec) -> EncoderSpec:
    settings = {key: value for key, value in run_spec.settings.encoder.items() if key != "name"}
    return EncoderSpec(str(run_spec.settings.encoder["name"]), settings)
