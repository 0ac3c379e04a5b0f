"""What the report of a sweep is made of: plain data, gathered by the command that writes the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.results import Evaluation
from beatray.report.build import Example
from beatray.report.ecg import Overlay
from beatray.report.hard_recordings import Hard
from beatray.report.sweep_table import SweepTable
from beatray.sweep.results import Method, SweepResults

if TYPE_CHECKING:
    from beatray.corpus.reader import Rows


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Recordings (n, D) as one encoder sees them, and texts (n,) to colour them by."""

    vectors: NDArray[np.float32]
    groups: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class SweepMaterial:
    """Everything the report of a sweep may hold; `best` is the method whose encoder the pictures show."""

    title: str
    table: SweepTable
    results: SweepResults
    best: Method
    facts: Mapping[str, object] = field(default_factory=dict)
    settings: str = ""
    ranking: str = ""
    overlays: Sequence[Overlay] = ()
    min_leads: int = 3
    segment_fraction: float = 1.0  # of the labels, behind the overlays
    embeddings: Embeddings | None = None
    evaluation: Evaluation | None = None  # of the best method's first trial, with its controls
    rows: Rows | None = None  # that it was run on
    hard: Sequence[Hard] = ()
    example: Example | None = None
    tracking: Sequence[str] = ()
    against: str | None = (
        None  # the method that all others are tested against; None: the paper's baseline, or the first
    )
    journals: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # metrics.jsonl by trial
    costs: Mapping[str, Any] = field(default_factory=dict)  # costs.json
    seconds: Mapping[str, float] = field(default_factory=dict)  # by trial, evaluation included

    @property
    def compares_methods(self) -> bool:
        """True if the sweep is one over methods rather than over settings of one."""
        return compares_methods(self.results)


def compares_methods(results: SweepResults) -> bool:
    """As `SweepMaterial.compares_methods`."""
    return any({"recipe", "objective"} & set(method.changes) for method in results.methods)
