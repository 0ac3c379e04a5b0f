"""Model folders with random weights, as `beatray finetune` would leave them, for tests that need no training."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beatray.ingest.plan import SAMPLE, IngestSettings, recipe_of
from beatray.models.labelled_heads import OF_SAMPLES, LabelledModel, build_head
from beatray.models.model_folder import write_model
from beatray.models.registry import build_encoder
from beatray.preprocess import prepare
from beatray.record import RATE_HZ, WAVE_KINDS
from beatray.storage.store import Store
from evaluation_rows import read_rows

CLASSES = ("AF", "LBBB", "SR")
KINDS = ("multilabel", "classes", "numbers", "waves")


def made_model(folder: Path, kind: str, *, seed: int = 0, leads: str = "shared", **changes: Any) -> str:
    """Write a model of this kind into `folder`; statistics of its batch norms are not those of fresh ones."""
    names = {"numbers": ("lvef", "age"), "waves": WAVE_KINDS}.get(kind, CLASSES)
    torch.manual_seed(seed)
    encoder = build_encoder("tiny").train()
    head: dict[str, Any] = {"name": "linear", "outputs": len(names), "standardise": True}
    if kind == "waves":
        head = {"name": "conv", "outputs": 4 * (12 if leads == "per_lead" else 1), "depth": 1, "hidden": 8, "kernel": 5}
    model = LabelledModel(encoder, build_head(encoder, head), head["name"] in OF_SAMPLES)
    with torch.no_grad():
        for _ in range(20):  # the means and deviations that batch norms keep, of real recordings
            model.train()(_ecgs())
        for matrix in model.head.parameters():
            matrix.mul_(4.0 if matrix.ndim > 1 else 1.0)  # answers that differ from recording to recording
    draw = np.random.default_rng(seed)
    about: dict[str, Any] = {
        "multilabel": {
            "calibration": {"kind": "multilabel", "slope": [1.5, 0.8, 1.0], "offset": [0.1, 0.0, -0.2]},
            "thresholds": [0.5, 0.4, 0.6],
        },
        "classes": {"calibration": {"kind": "classes", "slope": [1.3] * 3, "offset": [0.0] * 3}},
        "numbers": {"mean": [50.0, 60.0], "sd": draw.uniform(5, 15, 2).tolist()},
        "waves": {"leads": leads},
    }[kind]
    description = {
        "task": {"numbers": "regress", "waves": "segment"}.get(kind, "classify"),
        "kind": kind,
        "names": list(names),
        "title": "test",
        "encoder": {"name": "tiny", "settings": encoder.described_settings()},
        "head": head,
        "recipe": recipe_of(IngestSettings({}, "")),
        "seed": seed,
        "scores": {"validation": {}, "test": {}},
        **about,
        **changes,
    }
    write_model(Store(str(folder)), model.eval(), description, b"", "# a model of a test\n")
    return str(folder)


@cache
def _ecgs() -> Tensor:
    signal_uv = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 8)).signal_uv
    return prepare(torch.from_numpy(signal_uv), float(RATE_HZ))
