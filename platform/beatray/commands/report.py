"""What a report is made of: gathered here from the corpus, the run folder and the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from beatray.augment.draws import Draws, record_key
from beatray.augment.vcg import ecg_to_vcg
from beatray.commands.console import say
from beatray.commands.hard_recordings import hard_recordings
from beatray.corpus.reader import Corpus, Rows
from beatray.corpus.summary import show
from beatray.dsp.features import BEAT_FEATURES
from beatray.evaluate.encoders import prepared
from beatray.evaluate.results import Evaluation
from beatray.objectives.objective import Curve, Objective
from beatray.objectives.registry import objective_class, objective_settings
from beatray.record import LEADS, RATE_HZ
from beatray.report.build import Example, Material
from beatray.report.hard_recordings import Hard
from beatray.track.journal import read_lines
from beatray.track.setup import code_revision
from beatray.train.prepare import feature_statistics
from beatray.train.run_spec import build_model

SHOWN = 2 * RATE_HZ
"""Samples of the heart vector that are drawn: two beats or three."""


def run_material(
    *,
    title: str,
    lead: str,
    corpus: Corpus | None,
    rows: Rows | None,
    shown: int | None,
    run_folder: Path,
    evaluation: Evaluation | None,
    weights: str | None,
    licences: Sequence[str] = (),
    tracking: Sequence[str] = (),
) -> Material:
    """What the report of one run is made of; what is None leaves its sections out.

    `run_folder` holds settings.yaml and metrics.jsonl; `shown` is the position of the recording to draw in `rows`,
    which are those of the evaluation where there is one; `weights` is where the encoder lies.
    """
    settings = yaml.safe_load((run_folder / "settings.yaml").read_text())
    lines = read_lines(run_folder / "metrics.jsonl")
    train = settings["train"]
    steps = lines[-1]["step"] + 1 if lines else 0
    example = None
    if corpus is not None and rows is not None and shown is not None:
        example = example_of(
            rows, shown, settings["objective"], settings["encoder"], feature_statistics(corpus), settings["seed"]
        )
    hard: Sequence[Hard] = ()
    if evaluation is not None and rows is not None and weights is not None:
        hard = hard_recordings(evaluation, rows, weights)
    return Material(
        title=title,
        lead=[lead],
        run={
            "objective": described(settings["objective"]),
            "encoder": settings["encoder"]["name"],
            "steps": f"{steps} of {train['batch_size']} recordings on {train['workers']} workers",
            "time training": time_training(lines),
            "code": code_revision(),
        },
        settings=yaml.safe_dump(settings, sort_keys=True),
        corpus={} if corpus is None else _corpus_facts(corpus),
        licences=licences,
        metrics=lines,
        curves=curves_of(settings["objective"]),
        example=example,
        evaluation=evaluation,
        rows=rows,
        hard=hard,
        tracking=tracking,
    )


def time_training(lines: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of all steps. Where the journal has every N-th step alone (`train.log_every_steps`), a line stands for
    the steps since the line before, and the text says "about"."""
    steps = [-1, *(int(line["step"]) for line in lines)]
    spans = [after - before for before, after in pairwise(steps)]
    seconds = sum(n * (line["step_s"] + line["data_wait_s"]) for n, line in zip(spans, lines, strict=True))
    return f"{'about ' if any(n > 1 for n in spans) else ''}{seconds:.0f} s"


def rows_of(corpus: Corpus, evaluation: Evaluation) -> Rows | None:
    """The rows of all recordings trained on or tested; None, with a message, where the corpus lacks some."""
    parts = evaluation.parts.values()
    names = {each for part in parts for ids in (part.train_ids, part.test_ids) for each in ids}
    rows = np.flatnonzero(corpus.index["record_id"].isin(names).to_numpy())
    if len(rows) < len(names):
        say("  without pictures of recordings: this corpus lacks some that were evaluated (say --corpus PATH)")
        return None
    return corpus.rows(rows)


def _corpus_facts(corpus: Corpus) -> dict[str, object]:
    public = show(corpus.manifest)
    return {
        "recordings": f"{public['recordings']:,} ({', '.join(f'{k} {v}' for k, v in public['by_source'].items())})",
        "patients": f"{public['patients']:,}",
        "beats": f"{public['beats']:,}",
        "hours": f"{public['hours']:.2f}",
        "refused": f"{public['quarantined']:,}",
        "manifest": public["manifest_hash"][:12],
    }


def curves_of(objective: Mapping[str, Any]) -> Sequence[Curve]:
    """The curves that the method names for its training."""
    kind, settings = _method(objective)
    return kind.curves(settings)


def described(objective: Mapping[str, Any]) -> str:
    """A phrase for the method and its settings."""
    kind, settings = _method(objective)
    return kind.described(settings)


def _method(objective: Mapping[str, Any]) -> tuple[type[Objective], Any]:
    name = str(objective["name"])
    content = {key: value for key, value in objective.items() if key != "name"}
    return objective_class(name), objective_settings(name, content)


def example_of(
    rows: Rows, position: int, objective: Mapping[str, Any], encoder: Mapping[str, Any], statistics: Any, seed: int
) -> Example:
    """One recording with its heart vector and the views that the objective makes of the same stretch."""
    one = rows.take([position])
    x_mv = prepared(one.signal_uv, one.n_samples)[0]
    made = build_model(dict(objective), dict(encoder), seed, statistics)
    views = made.views(_batch_of(one, made.reads), Draws(np.array([record_key(one.record_id[0])]), seed, 0))
    start = int(views["crop_start"][0]) if "crop_start" in views else 0
    stretch = torch.from_numpy(x_mv[None, :, start : start + SHOWN])
    shown = [
        (name.replace("_", " "), ecg_to_vcg(view[..., :SHOWN])[0].numpy())
        for name, view in views.items()
        if name.startswith("view_") and view.dim() == 3 and view.shape[1] == len(LEADS)
        if not _same_stretch(view, stretch)  # a window that is left as it is
    ]
    return Example(
        record_id=one.record_id[0],
        x_mv=x_mv,
        r_peaks=one.r_peaks[0],
        beat_boxes=_contrasted(one.r_peaks[0], objective),
        vcg=ecg_to_vcg(stretch)[0].numpy(),
        views=shown,
        views_text=made.views_text,
    )


def _same_stretch(view: torch.Tensor, stretch: torch.Tensor) -> bool:
    count = min(SHOWN, view.shape[-1], stretch.shape[-1])
    return torch.allclose(view[..., :count], stretch[..., :count], atol=1e-4)


def _batch_of(one: Rows, reads: Sequence[str]) -> dict[str, torch.Tensor]:
    """The arrays that views are made of; features and classes, which no picture shows, are unknown."""
    beats = max(len(one.r_peaks[0]), 1)
    key = torch.tensor([record_key(one.record_id[0])])
    peaks = torch.from_numpy(one.r_peaks[0].astype(np.int64))[None]
    known = {
        "signal_uv": torch.from_numpy(one.signal_uv.copy()),
        "n_samples": torch.from_numpy(one.n_samples.astype(np.int64)),
        "record_key": key,
        "patient_key": key,
        "r_peaks": peaks if peaks.shape[1] else torch.full((1, 1), -1),
        "record_features": torch.full(one.record_features.shape, torch.nan),
        "beat_features": torch.full((1, beats, len(BEAT_FEATURES)), torch.nan),
        "beat_class": torch.full((1, beats), -1),
        "target": torch.full((1, one.signal_uv.shape[-1]), -1, dtype=torch.int8),
    }
    return {name: known[name] for name in reads}


def _contrasted(r_peaks: NDArray[np.int32], objective: Mapping[str, Any]) -> NDArray[np.float32]:
    """The windows (n_beats, 2) that the objective contrasts; none for a method that knows no beats."""
    kind, settings = _method(objective)
    box = kind.beat_box(settings)
    if box is None:
        return np.empty((0, 2), np.float32)
    around = np.array([-box.before_s, box.after_s]) * RATE_HZ
    return np.asarray(r_peaks[:, None] + around, np.float32)
