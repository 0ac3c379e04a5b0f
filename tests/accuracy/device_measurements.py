"""What devices measured in their own recordings, beside what an ingest would store of the same recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beatray.dsp import analyse
from beatray.dsp.features import RECORD_FEATURES
from beatray.ingest.canonical import to_windows
from beatray.ingest.sources import files
from beatray.ingest.tree import open_tree
from beatray.record import Record

FOLDERS = ("dicom", "hl7_aecg", "philips_xml", "schiller_xml")

OURS: dict[str, tuple[str, float]] = {
    "rate_bpm": ("heart_rate_per_10s", 6.0),
    "p_ms": ("p_s", 1e3),
    "pr_ms": ("pr_s", 1e3),
    "qrs_ms": ("qrs_s", 1e3),
    "qt_ms": ("qt_s", 1e3),
    "qrs_axis_deg": ("qrs_axis_half_turns", 180.0),
    "t_axis_deg": ("t_axis_half_turns", 180.0),
}
"""The device's name of a measurement to our record feature and its factor. QTc is left out: the rules differ."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One measurement of one recording."""

    recording: str
    device: float
    measured: float

    @property
    def difference(self) -> float:
        return self.measured - self.device


def pairs_of(data_dir: Path) -> dict[str, list[Pair]]:
    """By measurement: all recordings of the samples for which both have a value."""
    pairs: dict[str, list[Pair]] = {name: [] for name in OURS}
    for folder in FOLDERS:
        tree = open_tree(str(data_dir / "misc" / folder))
        for item in files.find(tree):
            for record in files.read(tree, item):
                for name, value in ours_of(record).items():
                    if name in record.measured and np.isfinite(value):
                        pairs[name].append(Pair(f"{folder}/{item.name}", record.measured[name], value))
    return pairs


def ours_of(record: Record) -> dict[str, float]:
    """Our measurements of the recording's first window, in the device's units."""
    window = to_windows(record)[0]
    found = analyse.analyse(window.signal_uv[None], [window.n_samples], [window.lead_mask]).record_features[0]
    features = dict(zip(RECORD_FEATURES, found.tolist(), strict=True))
    return {name: features[measured] * factor for name, (measured, factor) in OURS.items()}


def bland_altman(pairs: list[Pair]) -> tuple[float, float, float]:
    """Mean difference (ours less the device's) and the 95 % limits of agreement (Bland & Altman, Lancet 1986)."""
    differences = np.array([pair.difference for pair in pairs])
    bias = float(differences.mean())
    spread = 1.96 * float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
    return bias, bias - spread, bias + spread
