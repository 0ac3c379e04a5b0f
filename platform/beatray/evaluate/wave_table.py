"""The segmentation wave by wave: samples, waves and the ends of waves.

One row for each of P, QRS and T of each arm, protocol, label fraction and condition: F1 of all samples together, mean
Dice of the records, sensitivity and PPV of waves at 150 ms, and the error of onsets and offsets (mean and SD over the
waves found, as means over seeds), as `waves` defines them. Intervals are over test patients and seeds.

Contract: rows are in the order of the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from beatray.evaluate.intervals import Interval, row_patients, wave_intervals
from beatray.evaluate.results import Evaluation, Run
from beatray.record import WAVE_KINDS

HEADER = (
    "protocol", "labels", "recordings", "arm", "wave", "F1", "Dice", "sensitivity [95 %]", "PPV [95 %]",
    "onset ms", "offset ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WaveRow:
    """One wave of one arm: `scores` holds sensitivity, ppv, onset_ms, onset_sd_ms, offset_ms, offset_sd_ms."""

    protocol: str
    fraction: float
    condition: str
    arm: str
    encoder: str
    wave: str
    f1: float
    dice: float
    scores: dict[str, Interval]


def wave_rows(evaluation: Evaluation) -> list[WaveRow]:
    """All rows of the segmentation; empty without one."""
    groups: dict[tuple[str, float, str, str, str, str], list[Run]] = {}
    for run in evaluation.runs:
        if run.waves is not None:
            key = (run.protocol, run.fraction, run.condition, run.arm, run.encoder, run.architecture)
            groups.setdefault(key, []).append(run)
    rows = []
    for (protocol, fraction, condition, arm, encoder, _), runs in groups.items():
        counts = [run.waves for run in runs if run.waves is not None]
        patients = row_patients(evaluation.parts["segment"].test_patients, len(counts[0].hits))
        found = wave_intervals(counts, patients, evaluation.settings.bootstraps)
        for k, kind in enumerate(WAVE_KINDS):
            f1, dice = (float(np.mean([r.metrics[f"{name}_{kind.lower()}"] for r in runs])) for name in ("f1", "dice"))
            scores = {name: intervals[k] for name, intervals in found.items()}
            rows.append(WaveRow(protocol, fraction, condition, arm, encoder, kind, f1, dice, scores))
    return rows


def as_markdown(rows: Sequence[WaveRow]) -> str:
    """GitHub-flavoured markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in rows:
        cells = [row.protocol, f"{100 * row.fraction:g}%", row.condition, row.encoder, row.wave]
        cells += [f"{row.f1:.3f}", f"{row.dice:.3f}"]
        for name in ("sensitivity", "ppv"):
            score = row.scores[name]
            cells.append(f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]")
        for end in ("onset", "offset"):
            cells.append(f"{row.scores[f'{end}_ms'].value:+.1f} ± {row.scores[f'{end}_sd_ms'].value:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "A wave is found when both its ends lie within 150 ms of the marked ones; runs below 20 ms are no waves. "
        "Errors are predicted - marked, mean ± SD over the waves found."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def as_rows(rows: Sequence[WaveRow]) -> list[dict[str, Any]]:
    """The rows as plain dicts."""
    return [asdict(row) for row in rows]
