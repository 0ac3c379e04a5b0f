"""Statistics of a corpus: what `corpus show` prints and what objectives need to scale features.

Contract: a pure function of the shards, in manifest order; plain JSON without NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.clusters import fit_clusters
from beatray.corpus.manifest import Manifest
from beatray.corpus.reader import Corpus
from beatray.corpus.schema import beat_features_of
from beatray.dsp.features import BEAT_FEATURES, RECORD_FEATURES
from beatray.dsp.quality import Flag
from beatray.record import RATE_HZ

COLUMNS = ["record_id", "patient_id", "source", "n_samples", "r_peaks", "beat_features", "record_features", "flags"]


def summarise(corpus: Corpus, more_flags: Mapping[int, str] | None = None) -> dict[str, Any]:
    """One pass over the light columns of every shard; `more_flags` names the bits that reading sets."""
    flag_names = {flag.value: str(flag.name).lower() for flag in Flag} | dict(more_flags or {})
    recordings: set[str] = set()
    patients: set[str] = set()
    by_source: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    samples = beats = rows = 0
    beat_parts: list[NDArray[np.float32]] = []
    record_parts: list[NDArray[np.float32]] = []
    for number, shard in enumerate(corpus.manifest.shards):
        for group in range(len(shard.row_groups)):
            table = corpus.row_group(number, group, COLUMNS)
            names = [name.partition("#")[0] for name in table["record_id"].to_pylist()]
            fresh = set(names) - recordings
            recordings |= fresh
            by_source.update(name.partition("/")[0] for name in fresh)
            patients.update(p or n for p, n in zip(table["patient_id"].to_pylist(), names, strict=True))
            samples += int(table["n_samples"].to_numpy().sum())
            rows += table.num_rows
            features = [beat_features_of(raw) for raw in table["beat_features"].to_pylist()]
            beats += sum(map(len, features))
            beat_parts += features
            record_parts.append(np.array(table["record_features"].to_pylist(), np.float32).reshape(table.num_rows, -1))
            for value in table["flags"].to_pylist():
                flags.update(name for bit, name in flag_names.items() if value & bit)
    all_beats = np.concatenate(beat_parts) if beat_parts else np.empty((0, len(BEAT_FEATURES)), np.float32)
    all_records = np.concatenate(record_parts) if record_parts else np.empty((0, len(RECORD_FEATURES)), np.float32)
    return {
        "recordings": len(recordings),
        "rows": rows,
        "patients": len(patients),
        "beats": beats,
        "hours": round(samples / RATE_HZ / 3600, 4),
        "by_source": dict(sorted(by_source.items())),
        "flags": dict(sorted(flags.items())),
        "record_features": describe(all_records, RECORD_FEATURES),
        "beat_features": describe(all_beats, BEAT_FEATURES),
        "beat_clusters": fit_clusters(all_beats, BEAT_FEATURES),
    }


def describe(values: NDArray[np.float32], names: tuple[str, ...]) -> dict[str, Any]:
    """Mean, SD, smallest and largest known value of each column; all 0 for a column with none."""
    result: dict[str, Any] = {"names": list(names), "mean": [], "sd": [], "min": [], "max": [], "missing": []}
    for position in range(len(names)):
        column = values[:, position].astype(np.float64)
        known = column[np.isfinite(column)]
        result["mean"].append(float(known.mean()) if known.size else 0.0)
        result["sd"].append(float(known.std()) if known.size else 0.0)
        result["min"].append(float(known.min()) if known.size else 0.0)
        result["max"].append(float(known.max()) if known.size else 0.0)
        result["missing"].append(int(column.size - known.size))
    return result


def show(manifest: Manifest) -> dict[str, Any]:
    """The public summary of a corpus, as `corpus show --json` prints it."""
    keys = ("recordings", "quarantined", "patients", "beats", "hours", "by_source", "quarantine_reasons", "flags")
    public = {key: manifest.statistics[key] for key in keys}
    return {
        **public,
        "rows": manifest.rows,
        "manifest": manifest.number,
        "manifest_hash": manifest.hash,
        "shards": len(manifest.shards),
        "recipe": manifest.recipe,
    }
