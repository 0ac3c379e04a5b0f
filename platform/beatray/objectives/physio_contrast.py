"""Physio-contrast: recordings with like measurements are positives of each other, beside a view with shuffled beats.

The idea is that of PhysioCLR (Maghsoodi et al., "Domain Knowledge is Power: Leveraging Physiological Priors for
Self-Supervised Representation Learning in Electrocardiography", arXiv 2509.08116); this is no copy of it. The first
view is a window as recorded, the second the same window with its heartbeats in another order. With z the unit
projections of both views of all N records and P_i the own other view of row i and every view of a record whose features
have a cosine of at least `threshold` with its own,

    L_con = mean over i of -1/|P_i| sum_{p in P_i} log( exp(z_i z_p / tau) / sum_{a != i} exp(z_i z_a / tau) ),

the SupCon loss (Khosla et al., NeurIPS 2020, equation 2). A decoder draws the window at about 62.5 Hz from the map of
the first view; L = L_con + signal_weight * MSE of the window + peak_weight * MSE within 60 ms of the R-peaks.

What differs from the paper: features are the record features of the corpus, standardised, at most `FARTHEST_SD` from
the mean, without PCA (a missing one lies at the mean, so a recording without any has its own view alone); the next row
of a batch is no positive; both views are anchors; beats are parted between T and P waves (augment/beats.py); both
views lose a block of each lead (`mask_fraction`), and the decoder draws what was lost too. `ratio` is the formula of
the reference code, -logsumexp(positives / tau) + logsumexp(negatives / tau), which has no lower bound; the row itself
is none of both, and a row without negatives is left out.

Contract: errors are those of leads in the encoder's own scale, averaged over 16 ms or so, as means over what counts of
a record, then over the records of the global batch. What lies beyond the signal and a lead that is zero count in
nothing; a recording without beats has no peak error, and both its views are in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.augment.beats import shuffle_beats
from beatray.augment.draws import Draws
from beatray.augment.masks import draw_mask, time_mask
from beatray.augment.two_views import crop_window
from beatray.fields import check, setting
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.models.signal_decoder import SignalDecoder, low_rate
from beatray.objectives import soft_targets
from beatray.objectives.contrast import RowLoss, rows_there, unit_rows, unseen
from beatray.objectives.feature_regression import FARTHEST_SD
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors
from beatray.objectives.pairs import encode_views, lay_out
from beatray.objectives.reduce import gather_counts, gather_rows, global_mean
from beatray.objectives.row_targets import RowTargets
from beatray.objectives.soft_targets import Similarity
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.terms import (
    MAX_TARGET_ENTROPY,
    LossSettings,
    combine_terms,
    contrast_curves,
    contrast_term,
    uniform_targets,
)
from beatray.record import RATE_HZ

PEAK_S = 0.06
"""What lies so near an R-peak counts in the error of peaks."""


@dataclass(frozen=True, slots=True)
class PhysioContrastSettings:
    """Settings of Physio-contrast."""

    crop_seconds: float | None = setting(5.0, "null: the whole record", at_least=0.5)
    mask_fraction: float = setting(
        0.5, "of each lead, in one block, in both views; 0 as in the paper", at_least=0.0, below=1.0, searchable=True
    )
    threshold: float = setting(
        0.25, "records whose features have this cosine are positives; above 1: none are", above=0.0, searchable=True
    )
    ratio: bool = setting(False, "the formula of the reference code, without positives in the denominator")
    temperature: float = setting(0.1, above=0.0, searchable=True)
    signal_weight: float = setting(0.2, "of the error of the drawn window", at_least=0.0)
    peak_weight: float = setting(0.1, "of its error around R-peaks", at_least=0.0)
    decoder_width: int = setting(64, at_least=1)
    projector_hidden: int = setting(256, at_least=1)
    projector_dim: int = setting(128, at_least=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def draws_signal(self) -> bool:
        """Whether there is a decoder."""
        return self.signal_weight > 0 or self.peak_weight > 0


class PhysioContrast(Objective):
    """The method: see the module text. ValueError without the feature statistics of the corpus."""

    name = "physio_contrast"
    title = "Physio-contrast"
    paper = (
        "after Maghsoodi et al., Domain Knowledge is Power: Leveraging Physiological Priors for "
        "Self-Supervised Representation Learning in Electrocardiography, 2025, arXiv 2509.08116"
    )
    remedy = "raise objective.threshold or lower the learning rate"
    views_text = (
        "The first view is the stretch as recorded, the second has its heartbeats in another order; "
        "each has lost a stretch of every lead."
    )
    Settings = PhysioContrastSettings

    def __init__(
        self, encoder: Encoder, settings: PhysioContrastSettings, statistics: FeatureStatistics | None = None
    ) -> None:
        super().__init__(encoder, settings, statistics)
        if statistics is None:
            raise ValueError(f"{self.title} compares record features: it needs the feature statistics of the corpus")
        self.known = soft_targets.Features(statistics.record)
        self.projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, settings.projector_dim)
        if settings.draws_signal:  # a part that takes no part gets no weights
            self.decoder = SignalDecoder(encoder.stages[-1], settings.decoder_width)
        self.reads = (*Objective.reads, "r_peaks", "record_features")

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Two views (B, 12, L) of one window, R-peaks in it (B, P), features; with masks `plain`, what is drawn."""
        s = self.settings
        out = crop_window(batch, s.crop_seconds, draws)
        x_mv = out.pop("plain")
        known = batch["r_peaks"].to(x_mv.device)
        peaks = known - out["crop_start"][:, None]
        inside = (known >= 0) & (peaks >= 0) & (peaks < out["n_valid"][:, None])
        out["peaks"] = peaks.masked_fill(~inside, -1)
        out["record_features"] = batch["record_features"]
        drawn = draws.uniform("beat_order", peaks.shape[1])
        out["view_1"], out["view_2"] = x_mv, shuffle_beats(x_mv, out["peaks"], out["n_valid"], drawn)
        if s.mask_fraction > 0:
            if s.draws_signal:
                out["plain"] = x_mv
            for view in (1, 2):
                starts = draw_mask(draws, view)
                out[f"view_{view}"] = time_mask(out[f"view_{view}"], starts, s.mask_fraction, in_place=view == 2)
        return out

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text."""
        s = self.settings
        fmap, pooled = encode_views(self.encoder, views)
        records = len(views["view_1"])
        pairs = lay_out([counts[0] for counts in gather_counts([records], pooled.device)], pooled.device)
        z = unit_rows(self.projector(pooled))
        columns = pairs.gather(z)
        features = self.known.standardise(self.known.impute(views["record_features"])).clamp(-FARTHEST_SD, FARTHEST_SD)
        every = gather_rows(features, pairs.sizes)[pairs.record]

        def targets_of(index: Tensor) -> RowTargets:
            own, similarity = pairs.own(index), alike(every[index], every, s.threshold)
            return RowTargets(similarity.targets(own, z.dtype), own, similarity)

        settings = RatioLoss(s.temperature) if s.ratio else LossSettings(s.temperature)
        contrast = combine_terms([contrast_term("record", 1.0, z, columns, pairs.self_index, targets_of, settings)])
        if not s.draws_signal:
            return contrast
        with torch.autocast(fmap.device.type, enabled=False):
            window = views["plain"] if "plain" in views else views["view_1"]
            signal, peak = self._errors(fmap[:records], window.to(z.dtype), views)
            loss_signal, of_signal = global_mean(*signal, s.signal_weight)
            loss_peak, of_peak = global_mean(*peak, s.peak_weight)
        total = contrast.means["loss"] + s.signal_weight * of_signal + s.peak_weight * of_peak
        means = {**contrast.means, "signal/loss": of_signal, "peak/loss": of_peak, "loss": total}
        return StepResult(contrast.loss + loss_signal + loss_peak, means, contrast.counts)

    @classmethod
    def described(cls, settings: PhysioContrastSettings) -> str:
        """What makes records alike."""
        form = ", ratio of sums" if settings.ratio else ""
        return f"{cls.title}, features with cosine {settings.threshold:g} alike{form}"

    @classmethod
    def curves(cls, settings: PhysioContrastSettings) -> Sequence[Curve]:
        """The contrast, and how well the signal is drawn."""
        drawn = [Curve("signal/loss", "error of the signal"), Curve("peak/loss", "error around R-peaks")]
        return [*contrast_curves("record"), *(drawn if settings.draws_signal else [])]

    @classmethod
    def warnings(cls, settings: PhysioContrastSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse, and features that make all records alike."""
        found = super().warnings(settings, means, at)
        for term in uniform_targets(means):
            key = f"{term}/target_entropy"
            found[key] = (
                f"nearly all records count as alike (normalised entropy {means[key]:.2f} > {MAX_TARGET_ENTROPY}): "
                f"raise objective.threshold (now {settings.threshold:g})"
            )
        return found

    def _errors(self, fmap: Tensor, x_mv: Tensor, views: Tensors) -> tuple[tuple[Tensor, Tensor], ...]:
        """Sum over records of their mean squared error, and how many have one: of the window, and around R-peaks."""
        drawn = self.decoder(fmap.to(x_mv.dtype))
        at_smp = self.decoder.sample_positions(fmap.shape[-1], fmap.device)
        squared = (drawn - low_rate(self.encoder.lead_scale(x_mv), at_smp, self.decoder.step_smp)).square()
        leads = (x_mv != 0).any(-1)
        valid = (at_smp >= 0) & (at_smp < views["n_valid"][:, None])
        near = (at_smp[:, None] - views["peaks"][:, None, :]).abs() <= PEAK_S * RATE_HZ
        at_peak = (near & (views["peaks"] >= 0)[:, None, :]).any(-1)
        return region_error(squared, leads, valid), region_error(squared, leads, valid & at_peak)


def region_error(squared: Tensor, leads: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over records of the mean of squared (B, L, K) over leads (B, L) and region (B, K), and how many have any."""
    counts = leads[:, :, None] & region[:, None, :]
    n = counts.sum((1, 2))
    return ((squared * counts).sum((1, 2)) / n.clamp_min(1)).sum(), (n > 0).sum()


def alike(row_z: Tensor, column_z: Tensor, threshold: float) -> Similarity:
    """Cosines of standardised features (R, F), (M, F), negative ones 0, and targets that are 1 from `threshold` on."""
    cosines = soft_targets.soft_1(row_z, column_z, 1.0).raw
    return Similarity(cosines, lambda raw: (raw >= threshold).double())


class RatioLoss(LossSettings):
    """`ratio_rows` in the place of the loss of contrast.py."""

    def of_rows(
        self, z_rows: Tensor, z_columns: Tensor, self_index: Tensor, targets: Tensor, there: Tensor | None
    ) -> RowLoss:
        return ratio_rows(z_rows, z_columns, self_index, targets > 0, self.temperature, there)


def ratio_rows(
    z_rows: Tensor,
    z_columns: Tensor,
    self_index: Tensor,
    positive: Tensor,
    temperature: float,
    there: Tensor | None = None,
) -> RowLoss:
    """-logsumexp(positives / tau) + logsumexp(negatives / tau) of rows (R, D) against columns (M, D), positive (R, M).

    The row itself is none of both; rows without negatives or positives are left out.
    """
    with torch.autocast(z_rows.device.type, enabled=False):
        logits = z_rows @ z_columns.T / temperature
        seen = ~unseen(self_index, len(z_columns), there)
        pulls, pushes = positive & seen, ~positive & seen
        keep = pulls.any(1) & pushes.any(1)
        pulled, pushed = (logits.masked_fill(~mask, -1e30).logsumexp(1) for mask in (pulls, pushes))
        return RowLoss(torch.where(keep, pushed - pulled, 0.0).sum(), keep.sum(), rows_there(self_index, there))
