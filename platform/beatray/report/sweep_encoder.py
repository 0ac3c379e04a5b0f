"""Sections of a sweep's report about one encoder, that of the best method: classes, embeddings, a heart vector.

Contract: as `sweep_page`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from beatray.evaluate.metrics import IGNORE, macro_auroc
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.report.build import vcg_section
from beatray.report.canvas import to_png, to_svg
from beatray.report.encoder_figures import class_bars, confusion, embedding_map, projections
from beatray.report.html import Picture, Section
from beatray.report.sweep_material import SweepMaterial
from beatray.report.sweep_table import name_of
from beatray.sweep.results import Method


def classes_section(best: Method) -> Section | None:
    trial = best.trials[0]
    part = trial.results["tasks"].get("classify")
    runs = [run for run in trial.results["runs"] if run["task"] == "classify" and run["condition"] == "clean"]
    if part is None or not part.get("truth") or not runs:
        return None
    fraction = max(run["fraction"] for run in runs)
    truth = np.array([[IGNORE if each is None else each for each in row] for row in part["truth"]], np.int8)
    classes = part["classes"] or [f"class {k}" for k in range(truth.shape[1])]

    def of(results: Mapping[str, Any], variant: str) -> list[Mapping[str, Any]]:
        return [
            run
            for run in results.get("runs", ())
            if (run["task"], run["protocol"], run["variant"], run["fraction"], run["condition"])
            == ("classify", MAIN_PROTOCOL["classify"], variant, fraction, "clean")
        ]

    scores = {}
    variants = (("pretrained", name_of(best), trial.results), ("random", "random weights", trial.controls))
    for variant, label, results in (*variants, ("features", "measured features", trial.controls)):
        found = of(results, variant)
        if found:
            tables = [np.array(run["test"]["scores"], np.float64) for run in found]
            scores[label] = np.array([macro_auroc(truth, table).per_class for table in tables])
    if not scores:
        return None
    first = of(trial.results, "pretrained")[0]["test"]
    decided = np.array(first["scores"], np.float64) >= np.array(first["thresholds"], np.float64)
    counts = (truth == 1).sum(axis=0).tolist()
    return Section(
        title="Class by class",
        pictures=[
            Picture(
                to_svg(class_bars(classes, scores, counts, "AUROC of each class")),
                alt="AUROC of each class for " + ", ".join(scores),
                caption=f"The encoder of trial {trial.trial}; whiskers are one SD over the seeds of the evaluation.",
                share=0.7,
            ),
            Picture(
                to_png(confusion(classes, truth == 1, decided, "Predicted together")),
                alt="Share of the recordings of each class for which each class was predicted",
                caption="First seed, thresholds chosen without the test recordings. A recording may have several "
                "classes, so a row need not sum to 1.",
                share=0.45,
            ),
        ],
    )


def embedding_section(material: SweepMaterial) -> Section | None:
    if material.embeddings is None or len(material.embeddings.vectors) < 3:
        return None
    points = projections(material.embeddings.vectors)
    return Section(
        title="Where recordings lie",
        pictures=[
            Picture(
                to_png(embedding_map(points, material.embeddings.groups)),
                alt="Embeddings in two dimensions, coloured by " + ", ".join(material.embeddings.groups),
                caption=f"{name_of(material.best)}: {len(material.embeddings.vectors)} recordings held out. In "
                "t-SNE only nearness means something, not distance or size.",
            )
        ],
    )


def heart_section(material: SweepMaterial) -> Section | None:
    if material.example is None:
        return None
    return vcg_section(
        material.example, f"A heart vector ({material.example.record_id}), and what augmentation does to it"
    )
