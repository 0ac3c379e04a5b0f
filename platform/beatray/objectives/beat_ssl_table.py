"""Table 1 of Beat-SSL (Rizqyawan et al., ISBI 2026, arXiv:2601.16147) and its findings, as data.

The figures are those of the ablation table on the project's page (github.com/ilham1012/beat-ssl): 14 rows of what
rhythms and beats are contrasted with and of the exponent that sharpens `soft_1`; its task 1 is PTB-XL superclasses, its
task 2 the segmentation of LUDB.
"""

from __future__ import annotations

from beatray.objectives.published import AUROC, PUBLISHED_SCORES, SEGMENT_F1, Claim, PublishedRow, PublishedTable


def _row(number: int, rhythm: str, beat: str, exponent: float, *scores: float) -> PublishedRow:
    """A plain soft target has no positive_mass; `beat` is none where only rhythms are contrasted."""
    settings = {
        "objective.rhythm": rhythm,
        "objective.beat": beat,
        "objective.exponent": exponent,
        "objective.positive_mass": None,
    }
    return PublishedRow(number, settings, dict(zip(PUBLISHED_SCORES, scores, strict=True)))


TABLE_1 = PublishedTable(
    rows=(
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
    ),
    claims=(
        *(Claim("sharpened soft rhythm with hard beats beats the baseline", 9, 1, each) for each in PUBLISHED_SCORES),
        *(Claim("a soft rhythm alone lifts the segmentation", row, 1, SEGMENT_F1) for row in (6, 7, 12)),
        *(Claim("sharpening rescues a soft rhythm with hard beats", 9, 8, each) for each in PUBLISHED_SCORES),
        *(Claim("sharpening rescues a soft rhythm with soft beats", 11, 10, each) for each in PUBLISHED_SCORES),
        *(Claim("under a hard rhythm, a beat term costs the classification", 1, row, AUROC) for row in (2, 3, 4, 5)),
        *(Claim("under a sharpened soft rhythm, hard beats help", 9, 7, each) for each in PUBLISHED_SCORES),
    ),
)  # fmt: skip
