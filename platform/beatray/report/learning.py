"""How a run learned, in pictures: training curves and the course of soft targets, from the lines of metrics.jsonl.

Contract: a line is what training wrote of one step; figures that a line does not have are gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.objectives.objective import Curve
from beatray.objectives.terms import MAX_TARGET_ENTROPY
from beatray.report import pictures
from beatray.report.canvas import to_svg
from beatray.report.html import Picture

USUAL = (Curve("loss", "total loss"), Curve("learning_rate", "learning rate"))
"""What is drawn of every run, beside what its method asks for (`Objective.curves`)."""

MOST_POINTS = 1000
"""Of one curve in a picture."""

QUANTILES = (5, 25, 50, 75, 95)
"""Of the similarities behind soft targets, as the metrics lines name them."""


def learning_pictures(
    metrics: Sequence[Mapping[str, object]],
    method_curves: Sequence[Curve],
    others: Sequence[Sequence[Mapping[str, object]]] = (),
) -> list[Picture]:
    """How a run learned, from the lines of its metrics.jsonl: the curves that its method asks for, and what soft
    targets there were. `others` are runs of the same method, drawn thin beside it."""
    keys = [curve.key for curve in (*USUAL, *method_curves)]
    metrics, others = _thinned(metrics, keys), [_thinned(each, keys) for each in others]
    steps = [_number(line.get("step")) for line in metrics]
    curves, shown_curves = {}, {}
    for curve in (*USUAL, *method_curves):
        values = _column(metrics, curve.key)
        if np.isfinite(values).any():
            curves[curve.title], shown_curves[curve.title] = values, curve
    figures = []
    if curves and len(steps) > 1:
        marks = {
            name: (curve.level, curve.level_name) for name, curve in shown_curves.items() if curve.level is not None
        }
        shares = [name for name, curve in shown_curves.items() if curve.share]
        beside = {
            name: [(_column(each, "step"), _column(each, curve.key)) for each in others]
            for name, curve in shown_curves.items()
        }
        figures.append(
            Picture(
                to_svg(pictures.training_curves(steps, curves, marks, shares, beside)),
                alt="Training curves over optimizer steps: " + ", ".join(curves),
                caption=_curve_caption([curve.key for curve in shown_curves.values()]),
                share=min(1.0, max(2, len(curves)) / pictures.PANELS_PER_ROW),
            )
        )
    course = _target_course(metrics)
    if course and len(steps) > 1:
        figures.append(
            Picture(
                to_svg(pictures.target_course(steps, course, MAX_TARGET_ENTROPY)),
                alt="Soft targets over optimizer steps: " + ", ".join(course),
                caption="Similarities between different recordings (or beats) of a batch, raw and as sharpened into "
                "targets: median, middle half, and 5 to 95 %. Bands squeezed against 1 after sharpening mean targets "
                "that call everything alike; against 0, targets that are hard after all.",
            )
        )
    return figures


def _column(metrics: Sequence[Mapping[str, object]], key: str) -> NDArray[np.float64]:
    return np.array([_number(line.get(key)) for line in metrics], np.float64)


def _thinned(metrics: Sequence[Mapping[str, object]], keys: Sequence[str]) -> Sequence[Mapping[str, object]]:
    """Every so many lines of a long run, its last among them: a picture shows no more.

    Lines stay that have one of the `keys` which few lines have, such as the scores of validation.
    """
    every = -(-len(metrics) // MOST_POINTS)
    if every <= 1:
        return metrics
    known = np.array([np.isfinite(_column(metrics, key)) for key in keys], np.bool_).reshape(len(keys), len(metrics))
    kept = known[known.sum(axis=1) <= MOST_POINTS].any(axis=0)
    kept[::-1][::every] = True
    return [metrics[position] for position in np.flatnonzero(kept).tolist()]


def _curve_caption(keys: Sequence[str]) -> str:
    """What the panels that need an explanation mean."""
    texts = {
        "target_entropy": "target entropy is relative to that of a uniform target (1: the target is uninformative)",
        "positive_mass": "positive mass is what a target leaves on the other view of the same recording or beat",
        "embedding_std": "embedding SD is relative to embeddings all over the sphere (0: collapsed)",
    }
    chosen = [text for what, text in texts.items() if any(key.endswith(f"/{what}") for key in keys)]
    text = "; ".join(chosen)
    return f"{text[:1].upper()}{text[1:]}." if chosen else ""


def _target_course(metrics: Sequence[Mapping[str, object]]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What `pictures.target_course` draws, from the lines of metrics.jsonl; only terms with soft targets."""
    course = {}
    soft = "/raw_similarity_q50"
    terms = dict.fromkeys(key.removesuffix(soft) for line in metrics for key in line if key.endswith(soft))
    for term in terms:
        keys = {
            "raw": [f"{term}/raw_similarity_q{level:02d}" for level in QUANTILES],
            "sharp": [f"{term}/sharp_similarity_q{level:02d}" for level in QUANTILES],
            "entropy": [f"{term}/target_entropy"],
            "own_mass": [f"{term}/positive_mass"],
        }
        found = {
            name: np.array([[_number(line.get(key)) for key in several] for line in metrics], np.float64)
            for name, several in keys.items()
        }
        if np.isfinite(found["raw"]).any():
            course[term] = {**found, **{name: found[name][:, 0] for name in ("entropy", "own_mass")}}
    return course


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
