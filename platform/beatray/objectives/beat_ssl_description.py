"""The description of Beat-SSL in logs, reports and sweeps: its terms, their curves, and what to change.

Contract: pure functions of settings and means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beatray.objectives.beat_ssl_settings import SOFT, BeatSslSettings
from beatray.objectives.objective import Curve
from beatray.objectives.terms import MAX_TARGET_ENTROPY, contrast_curves, uniform_targets
from beatray.objectives.token_prediction import prediction_curves

SHARPER = {"soft_1": "exponent", "soft_2": "tau_instance", "soft_z": "z_power"}
"""The setting that sharpens each kind of soft target."""


def described(settings: BeatSslSettings) -> str:
    """A phrase for the terms."""
    rhythm, beat = settings.rhythm, settings.beat
    sharpened = f"^{settings.exponent:g}" if rhythm == "soft_1" else ""
    soft = (rhythm in SOFT or beat in SOFT) and settings.loss == "soft_cross_entropy"
    mass = f", positive mass {settings.positive_mass}" if soft and settings.positive_mass is not None else ""
    kind = f" ({settings.beat_positives})" if beat == "hard" else ""
    features = f", measured features (weight {settings.feature_weight:g})" if settings.feature_weight else ""
    weight, of = settings.prediction_weight, settings.prediction
    moments = f", moments {of.horizon_s:g} s ahead in {of.signal} (weight {weight:g})" if weight else ""
    return f"Beat-SSL, rhythm {rhythm}{sharpened}, beats {beat}{kind}{mass}{features}{moments}"


def variant(changes: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """What is contrasted, and what the prediction weighs: `soft_1^50 / hard + 0.3 moments`; the settings left over.

    An exponent of None in `settings` is not to be named.
    """
    left = dict(changes)
    if not {"objective.rhythm", "objective.beat"} <= left.keys():
        return None
    exponent = left.pop("objective.exponent", settings.get("exponent", BeatSslSettings().exponent))
    sharpened = f"^{exponent:g}" if exponent not in (1, None) else ""
    targets = (str(left.pop("objective.rhythm")), str(left.pop("objective.beat")))
    weight = left.pop("objective.prediction_weight", 0)
    moments = f" + {weight:g} moments" if weight else ""
    contrasts = " / ".join(
        "-" if target == "none" else f"{target}{sharpened}" if target == "soft_1" else target for target in targets
    )
    return contrasts + moments, left


def curves(settings: BeatSslSettings) -> Sequence[Curve]:
    """Of each term that the settings ask for."""
    terms = [term for term, kind in (("record", settings.rhythm), ("beat", settings.beat)) if kind != "none"]
    features = [Curve("feature/explained", "features: variance explained", True)] if settings.feature_weight else []
    moments = prediction_curves() if settings.prediction_weight else []
    return [*(curve for term in terms for curve in contrast_curves(term)), *features, *moments]


def uniform_warnings(settings: BeatSslSettings, means: Mapping[str, float]) -> dict[str, str]:
    """A sentence for each term whose targets are uninformative, with the setting to change."""
    found = {}
    for term in uniform_targets(means):
        key = f"{term}/target_entropy"
        kind = settings.rhythm if term == "record" else settings.beat
        found[key] = (
            f"{term} targets are nearly uniform (normalised entropy {means[key]:.2f} > {MAX_TARGET_ENTROPY}): "
            f"{_remedy(kind, settings)}"
        )
    return found


def _remedy(kind: str, settings: BeatSslSettings) -> str:
    """Which setting to change where the targets of a term are nearly uniform."""
    if kind not in SHARPER:
        return "nearly all beats count as alike; choose objective.beat_positives=same_record, or a larger batch"
    sharper = SHARPER[kind]
    advice = f"raise objective.{sharper} (now {getattr(settings, sharper)})"
    if not settings.positive_mass and settings.loss == "soft_cross_entropy":
        advice += f", or set objective.positive_mass=0.5 (now {settings.positive_mass})"
    return advice
