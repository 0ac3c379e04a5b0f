"""The settings of Beat-SSL, with what follows from them: which features, classes and peaks it needs of a corpus.

The defaults are those that learnt most on small real data: 3KG views of 5 s, sharpened soft targets between records of
which the positive pair holds half of the mass, and beats of one record as positives of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from beatray.augment.two_views import ViewSettings
from beatray.fields import check, setting
from beatray.objectives.contrast import Form
from beatray.objectives.dense_prediction import DensePredictionSettings

Target = Literal["none", "hard", "soft_1", "soft_2", "soft_z"]
SOFT = ("soft_1", "soft_2", "soft_z")
Positives = Literal["same_record", "clusters", "aami", "inherit_record"]


@dataclass(frozen=True, slots=True)
class BeatSslSettings:
    """Settings of Beat-SSL; see beat_ssl.py for the terms."""

    rhythm: Target = setting("soft_1", "what records are contrasted with")
    beat: Target = setting("hard", "what heartbeats are contrasted with")
    beat_positives: Positives = setting(
        "same_record",
        "of hard beats: same_record, clusters (of the corpus) or aami (classes of a classifier); of soft beats: "
        "inherit_record takes the similarity of their records, all else that of the beats' own features",
    )
    beat_classifier: str | None = setting(
        None, "with aami: the folder of a classifier (beatray beats train)", resumable=True
    )
    beat_classifier_digest: str | None = setting(None, "filled in when a run starts, so that it names what it used")
    exponent: float = setting(50.0, "sharpens soft_1", above=0.0, searchable=True)
    positive_mass: float | None = setting(
        0.5,
        "of soft_cross_entropy: part of a soft target that positive pairs hold; null: the plain target; 0: nothing, "
        "only others draw",
        at_least=0.0,
        below=1.0,
        was="pos_mass",
        searchable=True,
    )
    alpha: float = setting(0.5, "soft_2: weight of the nearest other", above=0.0, searchable=True)
    tau_instance: float = setting(20.0, "soft_2: fall-off with distance", above=0.0, searchable=True)
    z_power: float = setting(1.0, "sharpens soft_z", above=0.0, searchable=True)
    temperature: float = setting(0.1, above=0.0, searchable=True)
    loss: Form = setting(
        "soft_cross_entropy",
        "soft_cross_entropy, softclt or sigmoid (pairwise); the last two take the similarities as they are",
        was="form",
        was_values={"rownorm": "soft_cross_entropy", "bce": "sigmoid"},
    )
    sigmoid_bias: float = setting(0.0, "of loss=sigmoid", was="bce_bias", searchable=True)
    rhythm_weight: float = setting(1.0, at_least=0.0, searchable=True)
    beat_weight: float = setting(1.0, at_least=0.0, searchable=True)
    feature_weight: float = setting(
        0.0,
        "above 0: the embedding must also predict the measured features of the plain recording",
        at_least=0.0,
        absent=0.0,
    )
    prediction_weight: float = setting(
        0.0,
        "above 0: each moment must also be identified by what came before it, and before that by what came after",
        at_least=0.0,
        absent=0.0,
    )
    prediction: DensePredictionSettings = setting(DensePredictionSettings, "how moments are predicted")
    max_beats_per_record: int = setting(4, at_least=1)
    box_before_s: float = setting(0.35, "a beat's box begins so long before its R-peak", at_least=0.0)
    box_after_s: float = setting(0.55, "and ends so long after", above=0.0)
    roi_bins: int = setting(8, "points at which a beat is read", at_least=1)
    projector_hidden: int = setting(256, at_least=1)
    projector_dim: int = setting(128, at_least=1)
    augment: ViewSettings = setting(ViewSettings, "how views are made", was="views")

    def __post_init__(self) -> None:
        check(self)
        if self.beat_positives == "aami" and (self.beat != "hard" or not self.beat_classifier):
            raise ValueError(
                "beat_positives=aami needs beat=hard and beat_classifier=FOLDER (make one with `beatray beats train`)"
            )
        if self.beat_positives == "inherit_record" and self.beat == "hard":
            raise ValueError("beat_positives=inherit_record needs a soft beat: soft_1, soft_2 or soft_z")
        if not (self.contrasts or self.feature_weight or self.prediction_weight):
            raise ValueError(
                "rhythm and beat are both none: there is nothing to learn from, unless feature_weight or "
                "prediction_weight is above 0"
            )
        if self.positive_mass == 0.0 and self.loss != "soft_cross_entropy":
            raise ValueError(f"positive_mass=0 is of loss=soft_cross_entropy, not of {self.loss}")

    OLDER: ClassVar[tuple[str, ...]] = ("hard_beat", "beat_labels", "beat_similarity")
    """Three keys of before 0.2 that are one now: beat_positives."""

    @classmethod
    def older(cls, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The content without the keys `OLDER`, and for each of them what it is now."""
        rest = {key: value for key, value in content.items() if key not in cls.OLDER}
        gone = [key for key in content if key not in rest]
        inherits = content.get("beat_similarity") == "inherit_record" and content.get("beat") in SOFT
        chosen = content.get("beat_labels") or ("inherit_record" if inherits else content.get("hard_beat"))
        if chosen:
            rest["beat_positives"] = chosen
        return rest, dict.fromkeys(gone, f"beat_positives={chosen or 'same_record'}")

    @property
    def needs_record_features(self) -> bool:
        """Whether some target is made of the features of records."""
        return self.compares_records or self.feature_weight > 0

    @property
    def contrasts(self) -> bool:
        """Whether recordings or beats are contrasted."""
        return self.rhythm != "none" or self.beat != "none"

    @property
    def predicts_in(self) -> str:
        """Where tokens are predicted: plain, views or nowhere."""
        return self.prediction.signal if self.prediction_weight > 0 else "nowhere"

    @property
    def needs_plain(self) -> bool:
        """Whether the crop itself is encoded, not only its views."""
        return self.feature_weight > 0 or self.predicts_in == "plain"

    @property
    def compares_records(self) -> bool:
        """Whether some soft target compares records by their features."""
        return self.rhythm in SOFT or (self.soft_beat and self.beat_positives == "inherit_record")

    @property
    def needs_beat_features(self) -> bool:
        """Whether the beat target compares beats by their features."""
        return self.soft_beat and self.beat_positives != "inherit_record"

    @property
    def needs_beat_class(self) -> bool:
        """Whether the beat target compares beat classes that the corpus holds."""
        return self.beat == "hard" and self.beat_positives == "clusters"

    @property
    def soft_beat(self) -> bool:
        """Whether the beat target is soft."""
        return self.beat in SOFT
