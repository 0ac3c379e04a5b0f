"""Beat-SSL: contrast whole recordings and single heartbeats at once, with hard or soft targets.

After Rizqyawan, Macfarlane, Hadjidemetriou and Deligianni, "Beat-SSL" (ISBI 2026, arXiv 2601.16147). Two 3KG views of
each record go through one encoder. Rhythm level: pooled and projected records of all views, targets from record
features. Beat level: the feature map under each heartbeat (RoIAlign around the R-peak, which no view moves in time),
projected, targets from beat classes or beat features. The loss is the weighted sum of both. The code of the paper is
not public: what its figures leave open is a setting here.

Targets: `rhythm` none | hard | soft_1 | soft_2 | soft_z; `beat` the same. What makes hard beats alike is
`beat_positives`: same_record (all beats of a record in both views are positive, needs R-peaks only), clusters (beat
classes of the corpus) or aami (the classes of a trained classifier); inherit_record gives soft beats the similarity of
their records instead of that of their own features. See soft_targets.py, contrast.py. This package's, not the paper's:
`feature_weight` adds the reading of measured features from the embedding, see feature_regression.py;
`prediction_weight` the prediction of tokens as CPC has it, see dense_prediction.py. Each network pass, of the views and
of the plain crop, serves all terms that read it, and is left out where there is none.

With `static_shapes` all `max_beats_per_record` slots of a record take part in every step, so that no shape follows from
what the records hold: slots without a beat are columns that no row sees, and rows that count in nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from beatray.augment.beats import BeatBox, select_beats, take_beats
from beatray.augment.draws import Draws
from beatray.augment.two_views import make_two_views
from beatray.beat_classifier import folder as classifier
from beatray.beat_classifier.labels import BeatLabels
from beatray.errors import CheckpointError, SettingsError
from beatray.models.encoder import Encoder
from beatray.models.heads import BeatHead, ProjectionHead
from beatray.objectives.beat_ssl_description import curves, described, uniform_warnings, variant
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.beat_ssl_table import TABLE_1
from beatray.objectives.beat_ssl_targets import soft_of
from beatray.objectives.contrast import unit_rows
from beatray.objectives.dense_prediction import DensePrediction, Tokens
from beatray.objectives.feature_regression import feature_loss
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors
from beatray.objectives.pairs import Pairs, lay_out
from beatray.objectives.reduce import gather_counts, gather_rows, rank
from beatray.objectives.row_targets import hard_of, same_class_of, same_ids
from beatray.objectives.soft_targets import Features
from beatray.objectives.statistics import FeatureStatistics, FeatureTable
from beatray.objectives.terms import LossSettings, Term, combine_terms, contrast_term
from beatray.record import RATE_HZ
from beatray.storage.store import absolute

log = logging.getLogger(__name__)


class Slots(NamedTuple):
    """Beats (K,): record of this rank and number within it; there (K,) bool where some are not, None: all are."""

    owner: Tensor
    slot: Tensor
    there: Tensor | None


class BeatSsl(Objective):
    """The method: see the module text. Raises ValueError where soft targets lack `statistics`."""

    name = "beat_ssl"
    title = "Beat-SSL"
    paper = "Rizqyawan, Macfarlane, Hadjidemetriou and Deligianni, Beat-SSL, ISBI 2026, arXiv 2601.16147"
    views_text = (
        "A view turns and stretches the heart, goes back to 12 leads and loses a stretch of each lead; where leads are "
        "masked the loop is bent or falls to zero."
    )
    Settings = BeatSslSettings
    published = TABLE_1

    def __init__(
        self, encoder: Encoder, settings: BeatSslSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        super().__init__(encoder, settings, statistics)
        self.loss_settings = LossSettings(settings.temperature, settings.loss, settings.sigmoid_bias)
        # a part that takes no part gets no weights: data parallel training waits for the gradient of every weight
        if settings.rhythm != "none":
            self.rhythm_projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)
        if settings.beat != "none":
            self.beat_head = BeatHead(
                encoder.channels, settings.roi_bins, settings.projector_hidden, settings.projector_dim
            )
        if settings.needs_record_features:
            self.record_features = Features(_table(statistics, "record"))
        if settings.feature_weight > 0:
            self.feature_head = nn.Linear(encoder.embed_dim, len(_table(statistics, "record").names))
        if settings.needs_beat_features:
            self.beat_features = Features(_table(statistics, "beat"))
        if settings.prediction_weight > 0:
            crop_seconds = settings.augment.crop_seconds
            self.prediction = DensePrediction(encoder, settings.prediction, crop_seconds, self.title)
        self.beat_labels: BeatLabels | None = None  # no module of this one: it is not trained, saved or wrapped
        if settings.beat_positives == "aami":
            self.beat_labels = classifier.load(str(settings.beat_classifier), settings.beat_classifier_digest)
        self.reads = (
            *Objective.reads,
            *(["r_peaks"] if settings.beat != "none" or settings.augment.keep_beats else []),
            *(["record_features"] if settings.needs_record_features else []),
            *(["beat_features"] if settings.needs_beat_features else []),
            *(["beat_class"] if settings.needs_beat_class else []),
        )

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two views (B, 12, L), boxes of chosen beats (B, K, 2), what is compared, and negatives of predictions."""
        s = self.settings
        out = make_two_views(batch, s.augment, draws, with_plain=s.needs_plain)
        if s.beat != "none":
            out["boxes"], index = select_beats(
                batch["r_peaks"],
                out["crop_start"],
                out["n_valid"],
                draws,
                before_smp=s.box_before_s * RATE_HZ,
                after_smp=s.box_after_s * RATE_HZ,
                max_beats=s.max_beats_per_record,
            )
            out["beat_index"] = index
            if s.needs_beat_features:
                out["beat_features"] = take_beats(batch["beat_features"], index, float("nan"))
            if s.needs_beat_class:
                out["beat_class"] = take_beats(batch["beat_class"], index, -1)
            if self.beat_labels is not None:
                out["beat_class"] = self.beat_labels(batch, index)
        if s.needs_record_features:
            out["record_features"] = batch["record_features"]
        if s.prediction_weight > 0:
            out |= self.prediction.of.drawn(out["n_valid"], out["view_1"].shape[-1], draws)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The weighted sum of the terms that the settings ask for."""
        s: BeatSslSettings = self.settings
        parts: list[StepResult] = []
        if s.contrasts or s.predicts_in == "views":
            fmap, pooled, tokens = self._encode(views, ("view_1", "view_2"), predicts=s.predicts_in == "views")
            if s.contrasts:
                parts.append(self._contrast(fmap, pooled, views))
            if tokens is not None:
                parts.append(self._prediction_term(tokens, views, copies=2))
        if s.needs_plain:
            _, pooled, tokens = self._encode(views, ("plain",), predicts=s.predicts_in == "plain")
            if s.feature_weight > 0:
                parts.append(self._feature_term(pooled, views))
            if tokens is not None:
                parts.append(self._prediction_term(tokens, views))
        return reduce(_both, parts)

    @classmethod
    def resolved(cls, settings: BeatSslSettings) -> BeatSslSettings:
        """With the path and the digest of the beat classifier, where there is one."""
        if settings.beat_positives != "aami":
            if settings.beat_classifier:
                log.warning("objective.beat_classifier is not used: beat_positives is %s", settings.beat_positives)
            return settings
        path = absolute(str(settings.beat_classifier))
        try:
            digest = settings.beat_classifier_digest or classifier.digest_of(path)
        except (CheckpointError, OSError) as error:
            raise SettingsError(f"objective.beat_classifier={settings.beat_classifier}: {error}") from error
        return replace(settings, beat_classifier=path, beat_classifier_digest=digest)

    @classmethod
    def described(cls, settings: BeatSslSettings) -> str:
        """A phrase for the targets."""
        return described(settings)

    @classmethod
    def variant(cls, changes: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """What recordings and heartbeats are contrasted with: `soft_1^50 / hard`."""
        return variant(changes, settings)

    @classmethod
    def beat_box(cls, settings: BeatSslSettings) -> BeatBox | None:
        """The windows that are contrasted."""
        return BeatBox(settings.box_before_s, settings.box_after_s, settings.roi_bins)

    @classmethod
    def curves(cls, settings: BeatSslSettings) -> Sequence[Curve]:
        """The terms that are contrasted, how well features are predicted, and the accuracy of the next moment."""
        return curves(settings)

    @classmethod
    def warnings(cls, settings: BeatSslSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse, and uninformative targets, with the setting to change."""
        return {**super().warnings(settings, means, at), **uniform_warnings(settings, means)}

    def _encode(
        self, views: Tensors, names: tuple[str, ...], *, predicts: bool
    ) -> tuple[Tensor, Tensor, Tokens | None]:
        """One pass over some signals, one after the other: the last map, the pooled records and the tokens."""
        x_mv = torch.cat([views[name] for name in names]) if len(names) > 1 else views[names[0]]
        n_valid = views["n_valid"].repeat(len(names))
        tokens: Tokens | None = None
        if predicts:
            fmap, tokens = self.prediction.encode(self.encoder, x_mv, n_valid)
        else:
            fmap = self.encoder.forward_features(x_mv, n_valid)
        return fmap, self.encoder.pool(fmap, n_valid), tokens

    def _contrast(self, fmap: Tensor, pooled: Tensor, views: Tensors) -> StepResult:
        """The terms of recordings and beats."""
        slots = self._slots(views["beat_index"]) if self.settings.beat != "none" else None
        counts = gather_counts([len(views["view_1"]), 0 if slots is None else len(slots.owner)], fmap.device)
        pairs = lay_out([records for records, _ in counts], fmap.device)
        features = None
        if self.settings.compares_records:
            features = gather_rows(self.record_features.impute(views["record_features"]), pairs.sizes)
        terms = []
        if self.settings.rhythm != "none":
            terms.append(self._rhythm_term(pooled, pairs, features))
        if slots is not None:
            terms.append(self._beat_term(fmap, views, slots, [n for _, n in counts], pairs, features))
        result = combine_terms(terms)
        if slots is not None:
            result.counts["beats"] = result.counts["beat/rows"] / 2
        return result

    def _slots(self, beat_index: Tensor) -> Slots:
        """The beats (B, K) of this rank; with static shapes those that are not there, too."""
        there = beat_index >= 0
        if not self.static_shapes:
            owner, slot = there.nonzero(as_tuple=True)
            return Slots(owner, slot, None)
        position = torch.arange(there.numel(), device=there.device)
        return Slots(position // there.shape[1], position % there.shape[1], there.flatten())

    def _rhythm_term(self, pooled: Tensor, pairs: Pairs, features: Tensor | None) -> Term:
        s = self.settings
        z = unit_rows(self.rhythm_projector(pooled))
        targets_of = hard_of(pairs.own)
        if features is not None and s.rhythm != "hard":
            every = features[pairs.record]
            targets_of = soft_of(s, s.rhythm, self.record_features, every, pairs.own, pairs.self_index)
        columns = pairs.gather(z)
        return contrast_term("record", s.rhythm_weight, z, columns, pairs.self_index, targets_of, self.loss_settings)

    def _feature_term(self, pooled: Tensor, views: Tensors) -> StepResult:
        weight, known = self.settings.feature_weight, self.record_features
        predicted = self.feature_head(pooled)
        loss, means = feature_loss(predicted, views["record_features"], known, weight, self.static_shapes)
        return StepResult(loss, {"loss": weight * means["feature/loss"], **means})

    def _prediction_term(self, tokens: Tokens, views: Tensors, copies: int = 1) -> StepResult:
        weight, predicts = self.settings.prediction_weight, self.prediction
        found = predicts.of.loss(predicts.predictors, *tokens, views, self.chosen, copies=copies, weight=weight)
        means = {"loss": weight * found.mean, "token/loss": found.mean, **found.means}
        return StepResult(found.loss, means, {"token/rows": found.rows})

    def _beat_term(
        self,
        fmap: Tensor,
        views: Tensors,
        slots: Slots,
        sizes: list[int],
        pairs: Pairs,
        record_features: Tensor | None,
    ) -> Term:
        s = self.settings
        owner, slot, there = slots
        boxes = views["boxes"][owner, slot].repeat(2, 1)
        owners = torch.cat([owner, owner + len(views["boxes"])])
        z = unit_rows(self.beat_head(fmap, boxes, owners, self.encoder.stages[-1]))
        both = [2 * size for size in sizes]
        kind = views["beat_class"][owner, slot] if "beat_class" in views else torch.zeros_like(owner)
        labels = [owner + pairs.first, slot, kind, *([] if there is None else [there.to(kind.dtype)])]
        record, number, kind, *flags = gather_rows(torch.stack(labels, dim=1).repeat(2, 1), both).unbind(1)
        there = flags[0] > 0 if flags else None  # of all columns
        self_index = torch.arange(both[rank()], device=z.device) + sum(both[: rank()])
        same_record, own = same_ids(record), same_ids(record * s.max_beats_per_record + number)
        if s.beat == "hard" and s.beat_positives == "same_record":
            targets_of = hard_of(own, same_record)
        elif s.beat == "hard":
            targets_of = same_class_of(own, kind, there)
        elif s.beat_positives == "inherit_record" and record_features is not None:
            every = record_features[record]
            targets_of = soft_of(s, s.beat, self.record_features, every, same_record, self_index, there)
        else:
            known = self.beat_features
            every = gather_rows(known.impute(views["beat_features"][owner, slot]).repeat(2, 1), both)
            targets_of = soft_of(s, s.beat, known, every, own, self_index, there)
        columns = gather_rows(z, both)
        return contrast_term("beat", s.beat_weight, z, columns, self_index, targets_of, self.loss_settings, there)


def _both(one: StepResult, other: StepResult) -> StepResult:
    """The sum of two parts of a step."""
    total = one.means["loss"] + other.means["loss"]
    return StepResult(
        one.loss + other.loss, {**one.means, **other.means, "loss": total}, {**one.counts, **other.counts}
    )


def _table(statistics: FeatureStatistics | None, level: str) -> FeatureTable:
    if statistics is None:
        raise ValueError(f"soft targets from {level} features need the feature statistics of the corpus")
    return statistics.record if level == "record" else statistics.beat
