"""Table 1 of Beat-SSL (Rizqyawan et al., ISBI 2026, arXiv:2601.16147) and what it says, as data.

The figures are those of the ablation table on the project's page (github.com/ilham1012/beat-ssl): 14 rows of what
rhythms and beats are contrasted with and of the exponent that sharpens `soft_1`; task 1 is PTB-XL superclasses, task 2
the segmentation of LUDB. Absolute values are not ours to match (other data, encoder and settings); directions are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AUROC, F1, SEGMENT_F1 = "task 1 AUROC", "task 1 F1", "task 2 F1"
PAPER_SCORES = (AUROC, F1, SEGMENT_F1)


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row; `beat` is none where only rhythms are contrasted."""

    number: int
    rhythm: str
    beat: str
    exponent: float
    scores: Mapping[str, float]

    @property
    def name(self) -> str:
        """As the table shows it."""
        return described(self.rhythm, self.beat, self.exponent)


def _row(number: int, rhythm: str, beat: str, exponent: float, *scores: float) -> PaperRow:
    return PaperRow(number, rhythm, beat, exponent, dict(zip(PAPER_SCORES, scores, strict=True)))


PAPER = (
    _row(1, "hard", "none", 1, 0.811, 0.595, 0.802),
    _row(2, "hard", "hard", 1, 0.797, 0.551, 0.827),
    _row(3, "hard", "soft_1", 1, 0.789, 0.552, 0.785),
    _row(4, "hard", "soft_1", 50, 0.794, 0.540, 0.805),
    _row(5, "hard", "soft_2", 1, 0.795, 0.567, 0.784),
    _row(6, "soft_1", "none", 1, 0.834, 0.593, 0.869),
    _row(7, "soft_1", "none", 50, 0.814, 0.572, 0.895),
    _row(8, "soft_1", "hard", 1, 0.681, 0.247, 0.784),
    _row(9, "soft_1", "hard", 50, 0.843, 0.622, 0.911),
    _row(10, "soft_1", "soft_1", 1, 0.704, 0.389, 0.807),
    _row(11, "soft_1", "soft_1", 50, 0.833, 0.598, 0.881),
    _row(12, "soft_2", "none", 1, 0.797, 0.534, 0.888),
    _row(13, "soft_2", "hard", 1, 0.801, 0.525, 0.872),
    _row(14, "soft_2", "soft_2", 1, 0.805, 0.537, 0.878),
)
BASELINE = PAPER[0]
KEYS = {"objective.rhythm", "objective.beat", "objective.exponent", "objective.positive_mass"}
"""What makes a row; a plain soft target has no positive_mass."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the table says: in `score`, row `higher` lies above row `lower`."""

    text: str
    higher: int
    lower: int
    score: str


CLAIMS = (
    *(Claim("sharpened soft rhythm with hard beats beats the baseline", 9, 1, each) for each in PAPER_SCORES),
    *(Claim("a soft rhythm alone lifts the segmentation", row, 1, SEGMENT_F1) for row in (6, 7, 12)),
    *(Claim("sharpening rescues a soft rhythm with hard beats", 9, 8, each) for each in PAPER_SCORES),
    *(Claim("sharpening rescues a soft rhythm with soft beats", 11, 10, each) for each in PAPER_SCORES),
    *(Claim("under a hard rhythm, a beat term costs the classification", 1, row, AUROC) for row in (2, 3, 4, 5)),
    *(Claim("under a sharpened soft rhythm, hard beats help", 9, 7, each) for each in PAPER_SCORES),
)  # fmt: skip


def paper_row(changes: Mapping[str, Any]) -> PaperRow | None:
    """The row that a method with these dotted settings stands for: they must be the paper's four and no others."""
    if set(changes) != KEYS or changes["objective.positive_mass"] is not None:
        return None
    wanted = (changes["objective.rhythm"], changes["objective.beat"], float(changes["objective.exponent"]))
    return next((row for row in PAPER if (row.rhythm, row.beat, float(row.exponent)) == wanted), None)


def described(rhythm: str, beat: str, exponent: float | None = None) -> str:
    """A row in a few words: `soft_1^50 / hard`."""
    sharpened = f"^{exponent:g}" if exponent is not None and exponent != 1 else ""
    parts = [f"{each}{sharpened}" if each == "soft_1" else each for each in (rhythm, beat)]
    return " / ".join("-" if part == "none" else part for part in parts)
