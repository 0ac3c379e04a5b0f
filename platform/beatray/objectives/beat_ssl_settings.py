"""The settings of Beat-SSL, with what follows from them: which features, classes and peaks it needs of a corpus.

The defaults are those that learnt most on small real data: 3KG views of 5 s, sharpened soft targets between records of
which the own pair holds half of the mass, and beats of one record as positives of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from beatray.augment.two_views import ViewSettings
from beatray.objectives.contrast import FORMS, Form

SOFT = ("soft_1", "soft_2", "soft_z")
KINDS = ("none", "hard", *SOFT)
CHOICES = {
    "rhythm": KINDS,
    "beat": KINDS,
    "hard_beat": ("same_record", "clusters"),
    "beat_similarity": ("features", "inherit_record"),
    "form": FORMS,
}


@dataclass(frozen=True, slots=True)
class BeatSslSettings:
    """Settings of Beat-SSL; seconds for boxes, see the module text for the words.

    exponent sharpens soft_1; alpha and tau_instance shape soft_2; z_power sharpens soft_z; pos_mass is the part of
    every soft target row that own pairs hold (null: the plain target; 0: nothing, only others draw); bce_bias belongs
    to form=bce. feature_weight above 0 adds the reading of the measured features from the embedding of the plain
    recording (feature_regression.py). beat_labels=aami takes beats of one AAMI class as positives, in place of
    hard_beat, by the classifier in the folder beat_classifier; its digest is filled in when a run starts, so that a run
    names what it used.
    """

    rhythm: str = "soft_1"
    beat: str = "hard"
    hard_beat: str = "same_record"
    beat_labels: str | None = None
    beat_classifier: str | None = None
    beat_classifier_digest: str | None = None
    beat_similarity: str = "features"
    exponent: float = 50.0
    pos_mass: float | None = 0.5
    alpha: float = 0.5
    tau_instance: float = 20.0
    z_power: float = 1.0
    temperature: float = 0.1
    form: Form = "rownorm"
    bce_bias: float = 0.0
    rhythm_weight: float = 1.0
    beat_weight: float = 1.0
    feature_weight: float = 0.0
    max_beats_per_record: int = 4
    box_before_s: float = 0.35
    box_after_s: float = 0.55
    roi_bins: int = 8
    projector_hidden: int = 256
    projector_dim: int = 128
    views: ViewSettings = field(default_factory=ViewSettings)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.beat_labels not in (None, "aami"):
            raise ValueError(f"beat_labels must be null or aami, not {self.beat_labels!r}")
        if self.beat_labels and (self.beat != "hard" or not self.beat_classifier):
            raise ValueError(
                "beat_labels=aami needs beat=hard and beat_classifier=FOLDER (make one with `beatray beats train`)"
            )
        if self.rhythm == "none" and self.beat == "none":
            raise ValueError("rhythm and beat are both none: there is nothing to learn from")
        if self.pos_mass is not None and not 0.0 <= self.pos_mass < 1.0:
            raise ValueError(f"pos_mass must be null, or at least 0 and below 1, not {self.pos_mass}")
        if self.pos_mass == 0.0 and self.form == "bce":
            raise ValueError("pos_mass=0 with form=bce would push the two views of a record apart; choose rownorm")
        if self.feature_weight < 0:
            raise ValueError(f"feature_weight must not be negative, not {self.feature_weight}")
        for name in ("temperature", "exponent", "z_power", "box_after_s", "max_beats_per_record", "roi_bins"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    @property
    def needs_record_features(self) -> bool:
        """Whether some target is made of the features of records."""
        return self.compares_records or self.feature_weight > 0

    @property
    def compares_records(self) -> bool:
        """Whether some soft target compares records by their features."""
        return self.rhythm in SOFT or (self.soft_beat and self.beat_similarity == "inherit_record")

    @property
    def needs_beat_features(self) -> bool:
        """Whether the beat target compares beats by their features."""
        return self.soft_beat and self.beat_similarity == "features"

    @property
    def needs_beat_class(self) -> bool:
        """Whether the beat target compares beat classes that the corpus holds."""
        return self.beat == "hard" and self.hard_beat == "clusters" and not self.beat_labels

    @property
    def soft_beat(self) -> bool:
        """Whether the beat target is soft."""
        return self.beat in SOFT
