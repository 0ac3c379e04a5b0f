"""What the page of `beatray predict --show N` is made of: recordings from all over, read again, with their answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beatray.corpus.schema import signals_of
from beatray.infer.attribution import attribution
from beatray.infer.model import Prediction
from beatray.infer.predict_plan import PredictPlan
from beatray.infer.prediction_table import recording_starts
from beatray.report.prediction_page import Shown


def recordings_shown(plan: PredictPlan, count: int) -> list[Shown]:
    """The first windows of `count` recordings, evenly spaced; fewer where so many cannot be read."""
    return [
        _shown(plan, table["record_id"][0].as_py(), signals_of(table["signal"])[0], table["n_samples"][0].as_py())
        for table in _windows(plan, count)
    ]


def page_title(plan: PredictPlan) -> str:
    """The heading of the page."""
    return f"Predictions: {', '.join(plan.model.names)}"


def page_lead(plan: PredictPlan) -> list[str]:
    """What the page shows and what it is not for."""
    about = plan.model.description
    of = plan.of.get("corpus") or plan.of.get("files")
    members = f", an ensemble of {len(plan.models)}" if len(plan.models) > 1 else ""
    lead = [f"Predictions of the model {about['title']!r}{members} for recordings of {of}. Not a medical device."]
    if plan.model.kind == "waves":
        return [*lead, "Bands are the waves that it finds: P, QRS and T, from onset to offset."]
    return [
        *lead,
        "Colour shows where the model looks for the output that is named: integrated gradients (Sundararajan et al., "
        "ICML 2017), summed over 40 ms. Orange speaks for the output (or a larger number), blue against it, and both "
        "add up to what this ECG moves the output by from a flat line. The percentage of a lead is its part of all "
        "colour. It shows what the model used, not what is ill. Values are those of the window that is shown.",
    ]


def _windows(plan: PredictPlan, count: int) -> Iterator[pa.Table]:
    """Tables of one window each, the first of its recording that the unit has."""
    seen: set[str] = set()  # the windows of a long recording may lie in several units
    units = [unit for part in plan.parts for unit in part.units]
    counts = np.bincount(np.linspace(0, len(units) - 1, count).round().astype(int), minlength=len(units))
    for unit, here in zip(units, counts.tolist(), strict=True):
        if not here:
            continue
        (table,) = unit.read()
        table = table.filter(pc.is_valid(table["signal"])).combine_chunks()
        first, _, names, _ = recording_starts(table)  # not window #0: one of a flat stretch is left out
        for row in np.unique(np.linspace(0, len(first) - 1, min(here, len(first))).round().astype(int)).tolist():
            if names[row] not in seen:
                seen.add(names[row])
                yield table.slice(first[row], 1)


def _shown(plan: PredictPlan, record_id: str, signal_uv: NDArray[np.int16], n_samples: int) -> Shown:
    model = plan.model
    x_mv = (signal_uv[:, :n_samples] / 1000.0).astype(np.float32)
    lengths = np.array([n_samples], np.int64)
    if model.kind == "waves":
        return Shown(record_id, x_mv, waves=model.waves(signal_uv[None], lengths)[0])
    found = model.prediction_of(model.values(signal_uv[None], lengths))
    output = 0 if found.probabilities is None else int(found.probabilities[0].argmax())
    shares = attribution(model, signal_uv, n_samples, output)
    value = "value" if found.probabilities is None else "probability"
    return Shown(record_id, x_mv, _answers(found), value, shares=shares, output=model.names[output])


def _answers(found: Prediction) -> list[tuple[str, ...]]:
    """A row of texts for each output: name, probability or number, spread, decision."""
    values, digits = (found.numbers, ".4g") if found.probabilities is None else (found.probabilities, ".3f")
    assert values is not None
    return [
        (
            name,
            format(values[0, output], digits),
            "" if found.spread is None else f"± {found.spread[0, output]:.3g}",
            "" if found.decisions is None else "yes" if found.decisions[0, output] else "no",
        )
        for output, name in enumerate(found.names)
    ]
