"""ECG-FM: identify masked tokens by their context, and recordings of a patient by their segments (W2V + CMSC + RLM).

Oh, Chung and Choi, "Lead-agnostic Self-supervised Learning for Local and Global Representations of Electrocardiogram"
(CHIL 2022), as ECG-FM is trained (McKeen et al., arXiv:2408.05178; the code is fairseq-signals): wav2vec 2.0 (Baevski
et al., NeurIPS 2020, sections 2 and 3), contrastive multi-segment coding of CLOCS, and random lead masking. Of two
adjacent segments each lead is zeroed with probability `lead_mask`, never all twelve. A network makes tokens of both; a
learned vector replaces spans of them, and their context c must identify the quantised token q among `n_negatives` other
masked ones of the same segment. The loss is the weighted sum (`*_weight`) of

    token     the contrast of masked_contrast.py, as the mean over masked tokens,
    diversity (G V - sum over groups of exp(entropy of p)) / (G V), p the mean choice of product_quantiser.py,
    penalty   the mean square of the tokens,
    patient   the contrast of patient_contrast.py of the mean-pooled segments.

p is the mean of softmax(logits) over the masked tokens of the global batch; the temperature of the codes falls from
`gumbel_start` to `gumbel_end` as a power of the part of the run. Of the gradient the layers before the tokens get the
part `feature_gradient`.

Contract: M = round(mask_ratio T') of the T' tokens that hold signal are masked, in every segment alike. Works with any
network of tokens that see both sides (`wav2vec`; `vit`; `s4d`, bidirectional): the tokens are masked before `encode`.
What a network adds to its tokens to encode their position (`token_positions`) stays, and is neither quantised nor
penalised.

Differences from the released code: the learned vector stands in before the network's norm and linear map, not behind
them, and the quantiser has a norm of its own; exactly M tokens are masked, not as many as the batch can spare;
diversity and patients are over all ranks; the norm of a pooled segment takes part in the gradient; the temperature of
the codes follows the run, not a count of steps; leads are not standardised by recording, since the network scales them
and amplitude carries diagnoses (`standardise` does). The pooled segments are of a second, unmasked pass, as released;
`patient_tokens=masked` spares it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.lead_masks import mask_leads, standardise_leads
from beatray.augment.segments import adjacent_segments
from beatray.augment.token_spans import masked_tokens, negative_positions
from beatray.augment.two_views import VIEWS
from beatray.models.encoder import Encoder, at_least_float32, cells_of, pool_over_time, valid_cells
from beatray.objectives.contrast import unit_rows
from beatray.objectives.ecg_fm_settings import EcgFmSettings
from beatray.objectives.masked_contrast import masked_contrast
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_tokens
from beatray.objectives.patient_contrast import patient_contrast
from beatray.objectives.product_quantiser import (
    ProductQuantiser,
    Stop,
    code_temperature,
    diversity,
    gumbel_noise,
    perplexity,
    straight_through,
)
from beatray.objectives.reduce import ddp_mean, embedding_std, gather_rows, global_mean, sum_over_ranks, world_size
from beatray.objectives.statistics import FeatureStatistics

MIN_CODES = 0.05
"""The part of the codes of a group in use (their perplexity), below which they count as collapsed."""


class EcgFm(Objective):
    """The method: see the module text. ValueError for a network whose tokens do not see both sides."""

    name = "ecg_fm"
    title = "ECG-FM"
    paper = (
        "Oh, Chung and Choi, Lead-agnostic Self-supervised Learning for Local and Global Representations of "
        "Electrocardiogram, CHIL 2022, arXiv 2203.06889; McKeen et al., ECG-FM, 2024, arXiv 2408.05178"
    )
    remedy = "lower the learning rate, or objective.patient_weight"
    views_text = "The views are two stretches, one right after the other, each with about half of its leads zeroed."
    Settings = EcgFmSettings

    def __init__(self, encoder: Encoder, settings: EcgFmSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        network = needs_tokens(encoder, self.title)
        if network.directions:
            raise ValueError(
                f"{self.title} needs a network whose tokens see both sides, and {encoder.name} has causal stacks as it "
                "is set; s4d sees both sides with encoder.direction=bidirectional"
            )
        self.stage = network.token_stage
        self.reads = (*Objective.reads, "patient_key")
        s, width = settings, self.stage.channels
        self.mask_token = nn.Parameter(torch.rand(width))
        self.token_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(s.feature_dropout)
        self.quantiser = ProductQuantiser(width, s.code_groups, s.codes, s.code_dim)
        self.project_codes = nn.Linear(s.code_dim, s.code_dim)
        self.project_context = nn.Linear(encoder.channels, s.code_dim)

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Segments `view_1`, `view_2` (B, 12, L), and for each v `masked_v` (B, M), tokens in the order of time, with
        others behind where a record masks fewer; `negatives_v` (B, M, N), positions in it; `gumbel` (B, 2) seeds."""
        s = self.settings
        out = adjacent_segments(batch, s.crop_seconds, draws)
        segments = out.pop("segment_1"), out.pop("segment_2")
        if s.standardise:
            segments = standardise_leads(*segments, out["n_valid"], self.encoder.lead_scale.lead_std_mv)
        tokens = -(-segments[0].shape[-1] // self.stage.stride)
        most = int(self.masked_count(torch.tensor(tokens)))
        cells = cells_of(out["n_valid"], self.stage, tokens)
        count = self.masked_count(cells).cpu().numpy()
        for view, segment in zip(VIEWS, segments, strict=True):
            out[f"view_{view}"] = mask_leads(segment, draws, view, s.lead_mask)
            masked = masked_tokens(draws, view, tokens, cells.cpu().numpy(), count, s.mask_span)[:, :most]
            negatives = negative_positions(draws, view, most, count, s.n_negatives)
            for name, positions in (("masked", masked), ("negatives", negatives)):  # 16 bits: workers send them around
                out[f"{name}_{view}"] = torch.from_numpy(positions.astype(np.int16)).to(segment.device)
        seeds = np.stack([draws.uniform("gumbel", 1, view)[:, 0] for view in VIEWS], 1)
        out["gumbel"] = torch.from_numpy((seeds * 2.0**32).astype(np.int64)).to(out["n_valid"].device)
        return {**out, "patient_key": batch["patient_key"].to(out["n_valid"].device)}

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text; rows are segment 1 of all records, then segment 2."""
        s, network = self.settings, needs_tokens(self.encoder, self.title)
        n_valid = views["n_valid"].repeat(2)
        tokens = network.tokens(torch.cat([views[f"view_{view}"] for view in VIEWS]), n_valid)
        tokens = scaled_gradient(tokens, s.feature_gradient, self.stop_gradient)
        position_codes = (
            network.token_positions(tokens) if hasattr(network, "token_positions") else tokens.new_zeros(())
        )
        there = valid_cells(n_valid, self.stage, tokens.shape[1])
        masked = torch.cat([views[f"masked_{view}"] for view in VIEWS]).long()  # (2n, M)
        counted = torch.arange(masked.shape[1], device=tokens.device) < self.masked_count(there.sum(1))[:, None]
        hidden = torch.zeros_like(there).scatter(1, masked, counted)[..., None]
        context = network.encode(torch.where(hidden, self.mask_token.to(tokens) + position_codes, tokens), valid=there)
        pooled_from = context
        if s.patient_weight > 0 and s.patient_tokens == "unmasked":
            pooled_from = network.encode(tokens, valid=there)
        with torch.autocast(tokens.device.type, enabled=False):
            features = at_least_float32(tokens) - position_codes
            loss, means, counts = self._token_parts(
                features, at_least_float32(_at(context, masked)), masked, counted, views, at
            )
            square = (features.square().mean(-1) * there).sum()
            part, means["token/mean_square"] = global_mean(square, there.sum(), s.penalty_weight)
            loss, mean = loss + part, means["loss"] + s.penalty_weight * means["token/mean_square"]
            z = unit_rows(pool_over_time(pooled_from.transpose(1, 2), "mean", self.encoder.stages[-1], n_valid))
            if s.patient_weight > 0:
                found = patient_contrast(z.chunk(2), views["patient_key"], s.patient_temperature)
                loss, mean = loss + s.patient_weight * found.loss, mean + s.patient_weight * found.mean
                means |= found.means("record")
            else:
                means["record/embedding_std"] = embedding_std(z)
        return StepResult(loss, {**means, "loss": mean}, counts)

    def _token_parts(
        self, features: Tensor, context: Tensor, masked: Tensor, counted: Tensor, views: Tensors, at: Progress
    ) -> tuple[Tensor, Tensors, Tensors]:
        """Contrast and diversity, weighted: what this rank backpropagates, means (with their sum as "loss") and counts.

        features (2n, T', D); context (2n, M, C) of the masked tokens; masked and counted (2n, M).
        """
        s = self.settings
        logits = self.quantiser.logits(self.dropout(self.token_norm(_at(features, masked))))
        noise = None
        if self.training:
            noise = gumbel_noise(views["gumbel"].T.flatten(), tuple(logits.shape[1:]), logits.dtype)
        chosen = straight_through(logits, code_temperature(at, s.gumbel_start, s.gumbel_end), noise, self.stop_gradient)
        lost, hit = masked_contrast(
            self.project_context(context),
            self.project_codes(self.quantiser.look_up(chosen)),
            chosen.argmax(-1),
            torch.cat([views[f"negatives_{view}"] for view in VIEWS]).long(),
            s.temperature,
        )
        counts = counted.to(lost.dtype)
        shares, used = (torch.einsum("bmgv,bm->gv", each, counts) for each in (logits.softmax(-1), chosen.detach()))
        total = (lost * counts).sum()
        sums = torch.stack([total.detach(), (hit * counts).sum(), counts.sum()]).double()
        summed = sum_over_ranks(torch.cat([sums, used.double().flatten()]))
        number = summed[2].clamp_min(1.0)
        # all ranks backpropagate this whole part, and their gradients are averaged: it takes no factor of their number
        shares = gather_rows(shares[None], [1] * world_size()).sum(0) / number.to(shares.dtype)
        unlike = diversity(shares) * (summed[2] > 0)
        in_use = perplexity(summed[3:].view(used.shape) / number).float()
        means = {
            "token/loss": (summed[0] / number).float(),
            "token/accuracy": (summed[1] / number).float(),
            "code/loss": unlike.detach().float(),
            **{f"code/perplexity_{group}": in_use[group - 1] for group in self._groups(s)},
        }
        means["loss"] = s.token_weight * means["token/loss"] + s.diversity_weight * means["code/loss"]
        loss = ddp_mean(total, number, s.token_weight) + s.diversity_weight * unlike
        return loss, means, {"token/masked": summed[2].float()}

    def masked_count(self, tokens: Tensor) -> Tensor:
        """How many of so many tokens are masked: at least one."""
        share: float = self.settings.mask_ratio
        return (share * tokens.double() + 0.5).floor().long().clamp_min(1)

    @classmethod
    def described(cls, settings: EcgFmSettings) -> str:
        """Whether segments are contrasted, and the codebooks."""
        segments = f"patients (weight {settings.patient_weight:g})" if settings.patient_weight else "tokens alone"
        return f"{cls.title}, {settings.code_groups} x {settings.codes} codes, {segments}"

    @classmethod
    def curves(cls, settings: EcgFmSettings) -> Sequence[Curve]:
        """The accuracy of masked tokens, the use of each codebook, and the contrast of segments."""
        contrast, spread = embedding_curves("record")
        level = MIN_CODES * settings.codes
        return [
            Curve("token/loss", "token loss"),
            Curve("token/accuracy", "accuracy of the masked token", True),
            *(
                Curve(f"code/perplexity_{group}", f"codes in use, group {group}", False, level, "collapsed below")
                for group in cls._groups(settings)
            ),
            *([contrast, spread] if settings.patient_weight else []),
        ]

    @classmethod
    def warnings(cls, settings: EcgFmSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse of the codes and, where they are contrasted, of the segments."""
        found = super().warnings(settings, means, at) if settings.patient_weight else {}
        least = max(MIN_CODES * settings.codes, 2.0)
        for group in cls._groups(settings):
            value = means.get(key := f"code/perplexity_{group}", least)
            if at.part > 0.1 and value < least:
                found[key] = (
                    f"codes of group {group} have nearly collapsed ({value:.1f} of {settings.codes} in use): raise "
                    "objective.diversity_weight, or lower the learning rate"
                )
        return found

    @staticmethod
    def _groups(settings: EcgFmSettings) -> range:
        return range(1, settings.code_groups + 1)


def scaled_gradient(x: Tensor, part: float, stop: Stop = Tensor.detach) -> Tensor:
    """x itself, with `part` of its gradient."""
    if part == 1.0:
        return x
    fixed = stop(x)
    return fixed + part * (x - fixed)


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """(B, T, D) at positions (B, M) -> (B, M, D)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[2]))
