"""The findings of a method's paper: its table, as data for a sweep's report, and a paper that many follow.

Absolute values are not to be matched (other data, encoder and labels); directions are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AUROC, F1, SEGMENT_F1 = "classify/auroc", "classify/f1", "segment/f1"
PUBLISHED_SCORES = (AUROC, F1, SEGMENT_F1)
"""The scores that a table may have."""


FOR_ECGS = (
    "for ECGs Mehari and Strodthoff, Self-supervised representation learning from 12-lead ECG data, Comput. Biol. Med. "
    "2022, arXiv 2103.12676"
)
"""The paper that set several methods up for 12-lead ECGs."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row: the dotted settings that make it, these and no others, and its scores."""

    number: int
    settings: Mapping[str, Any]
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Claim:
    """A finding of the table: in `score`, row `higher` lies above row `lower`."""

    text: str
    higher: int
    lower: int
    score: str


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """The rows, the first the baseline of the others, and the paper's findings on them."""

    rows: tuple[PublishedRow, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def baseline(self) -> PublishedRow:
        """The first row."""
        return self.rows[0]

    def row_of(self, changes: Mapping[str, Any]) -> PublishedRow | None:
        """The row that is made by these dotted settings and no others."""
        return next((row for row in self.rows if row.settings == changes), None)
