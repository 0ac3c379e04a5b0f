"""The settings of ECG-FM: see ecg_fm.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beatray.fields import check, setting


@dataclass(frozen=True, slots=True)
class EcgFmSettings:
    """Settings of ECG-FM."""

    crop_seconds: float | None = setting(5.0, "of each segment; null: halves of the record", at_least=0.5)
    standardise: bool = setting(False, "each lead to mean 0 and SD 1 over both segments, as released")
    lead_mask: float = setting(0.5, "probability that a lead of a segment is zeroed", at_least=0.0, below=1.0)
    mask_ratio: float = setting(0.5, "of the tokens", above=0.0, at_most=1.0)
    mask_span: int = setting(10, "tokens", at_least=1)
    n_negatives: int = setting(100, "other masked tokens of the same segment", at_least=1)
    temperature: float = setting(0.1, "of the contrast of tokens", above=0.0, searchable=True)
    code_groups: int = setting(2, "codebooks G", at_least=1)
    codes: int = setting(320, "V, in each group", at_least=2)
    code_dim: int = setting(256, "of quantised tokens and projections; a multiple of code_groups", at_least=1)
    gumbel_start: float = setting(2.0, "temperature of the codes at the first step", above=0.0, searchable=True)
    gumbel_end: float = setting(0.5, "and at the end of the run", above=0.0, searchable=True)
    feature_dropout: float = setting(0.1, "of the tokens that are quantised", at_least=0.0, below=1.0)
    feature_gradient: float = setting(0.1, "part that reaches the layers before the tokens", above=0.0, searchable=True)
    token_weight: float = setting(1.0, "of the contrast of masked tokens", at_least=0.0, searchable=True)
    diversity_weight: float = setting(0.1, "of the use of all codes", at_least=0.0, searchable=True)
    penalty_weight: float = setting(10.0, "of the mean square of the tokens", at_least=0.0, searchable=True)
    patient_weight: float = setting(1.0, "of the contrast of segments; 0: wav2vec 2.0", at_least=0.0, searchable=True)
    patient_temperature: float = setting(0.1, "of that contrast", above=0.0, searchable=True)
    patient_tokens: Literal["unmasked", "masked"] = setting("unmasked", "which pass is pooled; masked: one pass less")

    def __post_init__(self) -> None:
        check(self)
