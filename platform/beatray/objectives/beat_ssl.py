"""Beat-SSL: contrast whole recordings and single heartbeats at once, with hard or soft targets.

After Rizqyawan, Macfarlane, Hadjidemetriou and Deligianni, "Beat-SSL" (ISBI 2026, arXiv 2601.16147). Two 3KG views of
each record go through one encoder. Rhythm level: pooled and projected records of all views, targets from record
features. Beat level: the feature map under each heartbeat (RoIAlign around the R-peak, which no view moves in time),
projected, targets from beat classes or beat features. The loss is the weighted sum of both. The code of the paper is
not public: what its figures leave open is a setting here.

Targets: `rhythm` none | hard | soft_1 | soft_2 | soft_z; `beat` the same, where hard means `hard_beat`: same_record
(all beats of a record in both views are positive, needs R-peaks only) or clusters (same beat class), or with
`beat_labels` aami the classes of a trained classifier. `beat_similarity` inherit_record gives beats the similarity of
their records instead of their own features. See targets.py, contrast.py. Ours, not the paper's: `feature_weight` adds
the reading of measured features from the embedding, see feature_regression.py.

Contract: `views` runs anywhere and returns tensors with one row per record; `forward` runs under data parallel training
on any number of ranks, with any number of records and beats on each, zero included, and gives the loss to
backpropagate and logs over the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.augment.beats import select_beats, take_beats
from beatray.augment.two_views import host_keys, make_two_views
from beatray.beat_classifier.labels import BeatLabels
from beatray.models.encoder import Encoder
from beatray.models.heads import BeatHead, ProjectionHead
from beatray.objectives import targets
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.contrast import unit_rows
from beatray.objectives.feature_regression import feature_loss
from beatray.objectives.gather import gather_counts, gather_rows, rank
from beatray.objectives.pairs import Pairs, encode_views, keep_valid, lay_out, valid_in_crop
from beatray.objectives.similarity import Similarity
from beatray.objectives.statistics import FeatureStatistics, FeatureTable
from beatray.objectives.terms import LossSettings, Term, combine_terms, contrast_term
from beatray.record import RATE_HZ


class BeatSsl(nn.Module):
    """The objective: see the module text. Raises ValueError where soft targets lack `statistics`."""

    def __init__(self, encoder: Encoder, settings: BeatSslSettings, statistics: FeatureStatistics | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings
        self.loss_settings = LossSettings(settings.temperature, settings.form, settings.bce_bias)
        # a part that takes no part gets no weights: data parallel training waits for the gradient of every weight
        if settings.rhythm != "none":
            self.rhythm_projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)
        if settings.beat != "none":
            self.beat_head = BeatHead(
                encoder.channels, settings.roi_bins, settings.projector_hidden, settings.projector_dim
            )
        if settings.needs_record_features:
            self.record_features = targets.Features(_table(statistics, "record"))
        if settings.feature_weight > 0:
            self.feature_head = nn.Linear(encoder.embed_dim, len(_table(statistics, "record").names))
        if settings.needs_beat_features:
            self.beat_features = targets.Features(_table(statistics, "beat"))
        self.beat_labels: BeatLabels | None = None  # no module of this one: it is not trained, saved or wrapped
        peaks = settings.beat != "none" or settings.views.keep_beats
        self.columns: tuple[str, ...] = (
            "signal_uv",
            "n_samples",
            "record_key",
            *(["r_peaks"] if peaks else []),
            *(["record_features"] if settings.needs_record_features else []),
            *(["beat_features"] if settings.needs_beat_features else []),
            *(["beat_class"] if settings.needs_beat_class else []),
        )

    def views(self, batch: dict[str, Tensor], seed: int, epoch: int) -> dict[str, Tensor]:
        """From a batch with `columns` to two views (B, 12, L), boxes of chosen beats (B, K, 2) and what is compared."""
        s = self.settings
        out = make_two_views(batch, s.views, seed, epoch, with_plain=s.feature_weight > 0)
        out["n_valid"] = valid_in_crop(batch, out["crop_start"], out["view_1"].shape[-1])
        if s.beat != "none":
            out["boxes"], index = select_beats(
                batch["r_peaks"],
                out["crop_start"],
                out["n_valid"],
                host_keys(batch),
                seed,
                epoch,
                before_smp=s.box_before_s * RATE_HZ,
                after_smp=s.box_after_s * RATE_HZ,
                max_beats=s.max_beats_per_record,
            )
            out["beat_index"] = index
            if s.needs_beat_features:
                out["beat_features"] = take_beats(batch["beat_features"], index, float("nan"))
            if s.needs_beat_class:
                out["beat_class"] = take_beats(batch["beat_class"], index, -1)
            if s.beat_labels:
                out["beat_class"] = self._labels()(batch, index)
        if s.needs_record_features:
            out["record_features"] = batch["record_features"]
        if "valid" in batch:
            out["valid"] = batch["valid"]
        return out

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to backpropagate on this rank, and logs over the global batch, from what `views` returned."""
        views = keep_valid(views)
        fmap, pooled = encode_views(self.encoder, views)
        there = views["beat_index"] >= 0 if self.settings.beat != "none" else None
        beats = 0 if there is None else int(there.sum())
        counts = gather_counts([len(views["view_1"]), beats], fmap.device)
        pairs = lay_out([records for records, _ in counts], fmap.device)
        features = None
        if self.settings.compares_records:
            features = gather_rows(self.record_features.impute(views["record_features"]), pairs.sizes)
        terms = []
        if self.settings.rhythm != "none":
            terms.append(self._rhythm_term(pooled, pairs, features))
        if there is not None:
            terms.append(self._beat_term(fmap, views, there, [n for _, n in counts], pairs, features))
        loss, logs = combine_terms(terms)
        if self.settings.feature_weight > 0:
            of_features, more = self._feature_term(views)
            loss, logs = loss + of_features, {**logs, **more}
            logs["loss"] = logs["loss"] + self.settings.feature_weight * more["feature_loss"]
        if there is not None:
            logs["beats"] = logs["beat_rows"] / 2
        return loss, logs

    def after_step(self) -> None:
        """Nothing to do: there is no moving average and no queue."""

    def _labels(self) -> BeatLabels:
        if self.beat_labels is None:
            raise ValueError("beat_labels=aami, but no classifier was given to the objective")
        return self.beat_labels

    def _rhythm_term(self, pooled: Tensor, pairs: Pairs, features: Tensor | None) -> Term:
        s = self.settings
        z = unit_rows(self.rhythm_projector(pooled))
        wanted, similarity = targets.hard(pairs.own), None
        if features is not None and s.rhythm != "hard":
            every = features[pairs.record]
            similarity = self._similarity(s.rhythm, self.record_features, every, pairs.own, pairs.self_index)
            wanted = self._soft(similarity, pairs.own, pairs.self_index, features.dtype)
        return contrast_term(
            "rhythm",
            s.rhythm_weight,
            z,
            pairs.gather(z),
            pairs.self_index,
            wanted,
            pairs.own,
            self.loss_settings,
            similarity,
        )

    def _feature_term(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        fmap = self.encoder.forward_features(views["plain"])
        predicted = self.feature_head(self.encoder.pool(fmap, views.get("n_valid")))
        return feature_loss(predicted, views["record_features"], self.record_features, self.settings.feature_weight)

    def _beat_term(
        self,
        fmap: Tensor,
        views: dict[str, Tensor],
        there: Tensor,
        sizes: list[int],
        pairs: Pairs,
        record_features: Tensor | None,
    ) -> Term:
        s = self.settings
        owner, slot = there.nonzero(as_tuple=True)
        boxes = views["boxes"][owner, slot].repeat(2, 1)
        z = unit_rows(self.beat_head(fmap, boxes, torch.cat([owner, owner + len(there)]), self.encoder.stages[-1]))
        both = [2 * size for size in sizes]
        kind = views["beat_class"][owner, slot] if "beat_class" in views else torch.zeros_like(owner)
        labels = torch.stack([owner + pairs.first, slot, kind], dim=1).repeat(2, 1)
        record, number, kind = gather_rows(labels, both).unbind(1)
        self_index = torch.arange(both[rank()], device=z.device) + sum(both[: rank()])
        same_record = targets.own_pairs(record[self_index], record, self_index)
        beat = record * s.max_beats_per_record + number
        own = targets.own_pairs(beat[self_index], beat, self_index)
        similarity = None
        if s.beat == "hard" and s.hard_beat == "same_record" and not s.beat_labels:
            wanted = same_record.float()
        elif s.beat == "hard":
            wanted = targets.same_class(own, kind[self_index], kind, self_index)
        else:
            if s.beat_similarity == "inherit_record" and record_features is not None:
                own, known, every = same_record, self.record_features, record_features[record]
            else:
                known = self.beat_features
                every = gather_rows(known.impute(views["beat_features"][owner, slot]).repeat(2, 1), both)
            similarity = self._similarity(s.beat, known, every, own, self_index)
            wanted = self._soft(similarity, own, self_index, every.dtype)
        columns = gather_rows(z, both)
        return contrast_term("beat", s.beat_weight, z, columns, self_index, wanted, own, self.loss_settings, similarity)

    def _similarity(
        self, kind: str, known: targets.Features, every: Tensor, own: Tensor, self_index: Tensor
    ) -> Similarity:
        """Similarity (R, M) of own rows and all columns from the imputed features of all columns (M, F)."""
        s = self.settings
        if kind == "soft_1":
            return targets.soft_1(every[self_index], every, s.exponent)
        if kind == "soft_2":
            scaled = known.scale(every)
            return targets.soft_2(scaled[self_index], scaled, s.alpha, s.tau_instance)
        z = known.standardise(every)
        return targets.soft_z(z[self_index], z, own, self_index, s.z_power)

    def _soft(self, similarity: Similarity, own: Tensor, self_index: Tensor, dtype: torch.dtype) -> Tensor:
        """Soft targets (R, M) with the mass on own pairs that the settings ask for."""
        return targets.fix_own_mass(similarity.targets(own, dtype), own, self_index, self.settings.pos_mass)


def _table(statistics: FeatureStatistics | None, level: str) -> FeatureTable:
    if statistics is None:
        raise ValueError(f"soft targets from {level} features need the feature statistics of the corpus")
    return statistics.record if level == "record" else statistics.beat
