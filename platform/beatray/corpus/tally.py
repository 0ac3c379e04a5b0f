"""Statistics of a corpus as sums that can be merged, so that ingesting more never means reading everything again.

A tally is plain JSON: counts by source, quality flag, rate, lead and label, and for each feature how many values are
known, their mean, SD and extremes. Contract: `merge(a, b)` is the tally of both (means and SDs up to rounding);
merging in one fixed order gives the same bytes every time. Source of the merged moments: Chan, Golub & LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", COMPSTAT 1982.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.dsp.analyse import Analysis
from beatray.dsp.features import BEAT_FEATURES
from beatray.record import LEADS, Record, Window

Tally = dict[str, Any]


def tally_rows(source: str, windows: Sequence[Window], analysis: Analysis, flag_names: Mapping[int, str]) -> Tally:
    """The tally of corpus rows of one source; recordings are counted by `tally_recordings`."""
    flags: Counter[str] = Counter()
    for window, measured in zip(windows, analysis.flags.tolist(), strict=True):
        flags.update(name for bit, name in flag_names.items() if (window.flags | measured) & bit)
    usable = [int((analysis.lead_mask >> lead & 1).sum()) for lead in range(len(LEADS))]
    beats = np.concatenate([np.empty((0, len(BEAT_FEATURES)), np.float32), *analysis.beat_features])
    return {
        "sources": {
            source: {
                "rows": len(windows),
                "samples": sum(window.n_samples for window in windows),
                "beats": len(beats),
                "flags": _sorted(flags),
                "leads": dict(zip(LEADS, usable, strict=True)),
            }
        },
        "record_features": describe(analysis.record_features, analysis.record_feature_names),
        "beat_features": describe(beats, BEAT_FEATURES),
    }


def tally_recordings(source: str, records: Iterable[Record]) -> Tally:
    """The tally of whole recordings: how many, at which rates, under which labels."""
    rates: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    recordings = 0
    for record in records:
        recordings += 1
        rates[f"{record.rate_hz:g}"] += 1
        labels.update(set(record.labels))
    return {"sources": {source: {"recordings": recordings, "rates_hz": _sorted(rates), "labels": _sorted(labels)}}}


def merge_all(tallies: Iterable[Tally]) -> Tally:
    """The tally of all of them, merged in the order given."""
    return reduce(merge, tallies, {})


def merge(one: Tally, other: Tally) -> Tally:
    """The tally of both."""
    merged: Tally = {}
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if a is None or b is None:
            merged[key] = b if a is None else a
        elif isinstance(a, dict):
            is_table = isinstance(a.get("names"), list)  # "names" may also be a label, with its count
            merged[key] = _merge_features(a, b) if is_table else merge(a, b)
        else:
            merged[key] = a + b
    return merged


def describe(values: NDArray[np.float32], names: tuple[str, ...]) -> dict[str, Any]:
    """How many values of each column (n, len(names)) are known, their mean, SD, extremes; 0 for a column with none."""
    result: dict[str, Any] = {
        "names": list(names),
        "known": [],
        "missing": [],
        "mean": [],
        "sd": [],
        "min": [],
        "max": [],
    }
    for position in range(len(names)):
        column = values[:, position].astype(np.float64)
        known = column[np.isfinite(column)]
        result["known"].append(int(known.size))
        result["missing"].append(int(column.size - known.size))
        for name, measure in (("mean", np.mean), ("sd", np.std), ("min", np.min), ("max", np.max)):
            result[name].append(float(measure(known)) if known.size else 0.0)
    return result


def _merge_features(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    a = {name: np.array(one[name], np.float64) for name in one if name != "names"}
    b = {name: np.array(other[name], np.float64) for name in other if name != "names"}
    n = a["known"] + b["known"]
    safe = np.maximum(n, 1.0)
    apart = b["mean"] - a["mean"]
    mean = a["mean"] + apart * b["known"] / safe
    squares = a["known"] * a["sd"] ** 2 + b["known"] * b["sd"] ** 2 + apart**2 * a["known"] * b["known"] / safe
    low, high = np.minimum(a["min"], b["min"]), np.maximum(a["max"], b["max"])
    for nothing, of in ((a["known"] == 0, b), (b["known"] == 0, a)):  # their zeros are no values
        mean, low, high = (np.where(nothing, of[k], v) for k, v in (("mean", mean), ("min", low), ("max", high)))
    return {
        "names": one["names"],
        "known": n.astype(int).tolist(),
        "missing": (a["missing"] + b["missing"]).astype(int).tolist(),
        "mean": mean.tolist(),
        "sd": np.sqrt(squares / safe).tolist(),
        "min": low.tolist(),
        "max": high.tolist(),
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
