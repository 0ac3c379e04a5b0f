"""What a report is made of: gathered here from the corpus, the run folder and the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.augment.two_views import VIEWS, ViewSettings, make_two_views
from beatray.augment.vcg import ecg_to_vcg
from beatray.corpus.reader import Corpus, Rows
from beatray.corpus.summary import show
from beatray.dsp.beats import beat_boxes
from beatray.evaluate.encoders import prepared
from beatray.evaluate.results import Evaluation
from beatray.record import RATE_HZ
from beatray.report.build import Example, Material, build_report
from beatray.track.journal import read_lines

SHOWN = 2 * RATE_HZ
"""Samples of the heart vector that are drawn: two beats or three."""


def write_report(
    path: Path,
    *,
    title: str,
    corpus: Corpus,
    rows: Rows,
    shown: int,
    run_folder: Path,
    evaluation: Evaluation,
    licences: list[str],
    tracking: list[str],
) -> Path:
    """Write the report of one run; `shown` is the position of the recording to draw in `rows`."""
    settings = yaml.safe_load((run_folder / "settings.yaml").read_text())
    public = show(corpus.manifest)
    lines = read_lines(run_folder / "metrics.jsonl")
    train = settings["train"]
    steps = lines[-1]["step"] + 1 if lines else 0
    material = Material(
        title=title,
        lead=[
            "An encoder for 12-lead ECGs, pretrained without labels and tried on recordings it never saw, beside the "
            "same encoder with random weights, trained from scratch, and hand-made features."
        ],
        run={
            "objective": describe_objective(settings["objective"]),
            "encoder": settings["encoder"]["name"],
            "steps": f"{steps} of {train['batch_size']} recordings on {train['workers']} workers",
            "time training": f"{sum(line['step_s'] + line['data_wait_s'] for line in lines):.0f} s",
        },
        settings=yaml.safe_dump(settings, sort_keys=True),
        corpus={
            "recordings": f"{public['recordings']:,} ({', '.join(f'{k} {v}' for k, v in public['by_source'].items())})",
            "patients": f"{public['patients']:,}",
            "beats": f"{public['beats']:,}",
            "hours": f"{public['hours']:.2f}",
            "refused": f"{public['quarantined']:,}",
            "manifest": public["manifest_hash"][:12],
        },
        licences=licences,
        metrics=lines,
        example=example_of(rows, shown, settings["objective"], settings["seed"]),
        evaluation=evaluation,
        rows=rows,
        tracking=tracking,
    )
    return build_report(path, material)


def describe_objective(objective: dict[str, object]) -> str:
    """The method and its targets in a few words."""
    if objective["name"] != "beat_ssl":
        return str(objective["name"])
    rhythm, beat = str(objective["rhythm"]), str(objective["beat"])
    sharpened = f"^{objective['exponent']:g}" if "soft_1" in (rhythm, beat) else ""
    mass = (
        f", own-pair mass {objective['pos_mass']}"
        if "soft" in rhythm + beat and objective["pos_mass"] is not None
        else ""
    )
    kind = f" ({objective.get('beat_labels') or objective['hard_beat']})" if beat == "hard" else ""
    return f"Beat-SSL, rhythm {rhythm}{sharpened if rhythm == 'soft_1' else ''}, beats {beat}{kind}{mass}"


def example_of(rows: Rows, position: int, objective: dict[str, Any], seed: int) -> Example:
    """One recording with its heart vector and, for objectives that turn it, two views of the same stretch."""
    one = rows.take([position])
    x_mv = prepared(one.signal_uv, one.n_samples)[0]
    start, shown = 0, []
    if "mode" in objective.get("views", {}):
        batch = {
            "signal_uv": torch.from_numpy(one.signal_uv.copy()),
            "n_samples": torch.from_numpy(one.n_samples.astype(np.int64)),
            "record_key": torch.tensor([record_key(one.record_id[0])]),
            "r_peaks": torch.from_numpy(one.r_peaks[0].astype(np.int64))[None],
        }
        views = make_two_views(batch, ViewSettings(**objective["views"]), seed, epoch=0)
        start = int(views["crop_start"][0])
        shown = [(f"view {view}", ecg_to_vcg(views[f"view_{view}"][..., :SHOWN])[0].numpy()) for view in VIEWS]
    return Example(
        record_id=one.record_id[0],
        x_mv=x_mv,
        r_peaks=one.r_peaks[0],
        beat_boxes=_contrasted(one.r_peaks[0], int(one.n_samples[0]), objective),
        vcg=ecg_to_vcg(torch.from_numpy(x_mv[None, :, start : start + SHOWN]))[0].numpy(),
        views=shown,
    )


def _contrasted(r_peaks: NDArray[np.int32], n_samples: int, objective: dict[str, Any]) -> NDArray[np.float32]:
    """The windows (n_beats, 2) that the objective contrasts; for objectives without beats, the usual ones."""
    if "box_before_s" not in objective:
        usual: NDArray[np.float32] = beat_boxes(r_peaks, RATE_HZ, n_samples)
        return usual
    around = np.array([-objective["box_before_s"], objective["box_after_s"]]) * RATE_HZ
    return np.asarray(r_peaks[:, None] + around, np.float32)
