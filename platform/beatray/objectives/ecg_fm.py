"""ECG-FM: tell masked tokens by their context, and recordings of a patient by their segments (W2V + CMSC + RLM).

Oh, Chung and Choi, "Lead-agnostic Self-supervised Learning for Local and Global Representations of Electrocardiogram"
(CHIL 2022), as ECG-FM is trained (McKeen et al., arXiv:2408.05178; the code is fairseq-signals): wav2vec 2.0 (Baevski
et al., NeurIPS 2020, sections 2 and 3), contrastive multi-segment coding of CLOCS, and random lead masking. Of two
adjacent segments each lead is zeroed with probability `lead_mask`, never all twelve. A network makes tokens of both; in
spans of tokens they are replaced by a learned vector, and the context must tell the quantised token q from `n_negatives`
others of the same recording. With sg(n) = 1 where a negative has other codes than the token (else it never counts),

    a = - mean over masked tokens of log( e^{cos(c, q) / t} / (e^{cos(c, q) / t} + sum_n sg(n) e^{cos(c, q_n) / t}) ),
    b = (G V - sum over groups of exp(entropy of the mean choice p)) / (G V),
    c = the mean square of the tokens,          d = patient_contrast of the mean-pooled segments,
    L = token_weight a + diversity_weight b + penalty_weight c + patient_weight d.

p is the mean of softmax(logits) over the masked tokens of the global batch; the temperature of the codes falls from
`gumbel_start` to `gumbel_end` as a power of the part of the run. What reaches the tokens' own layers of the gradient is
scaled by `feature_gradient`.

Contract: M = round(mask_ratio T') of the T' tokens that hold signal are masked, in every segment alike. Works with any
network of tokens that see both sides (`wav2vec`; `vit`; `s4d`, bidirectional): the tokens are masked before `encode`.
What a network adds to its tokens to tell their place (`token_positions`) stays, and is neither quantised nor penalised.

Differences: the learned vector stands in before the network's norm and linear map, not behind them, and the quantiser
has a norm of its own; exactly M tokens are masked, not as many as the batch can spare; p and d are over all ranks; the
norm of a pooled segment takes part in the gradient; the codes' temperature follows the run, not a count of steps; leads
are not standardised by recording, since the network scales them and amplitude carries diagnoses (`standardise` does).
The pooled segments are of a second, unmasked pass, as released; `patient_tokens=masked` spares it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.segments import adjacent_segments
from beatray.augment.token_spans import masked_tokens, other_places
from beatray.augment.two_views import VIEWS
from beatray.fields import check, setting
from beatray.models.encoder import Encoder, cells_of, pool_over_time, valid_cells
from beatray.objectives.contrast import unit_rows
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves, needs_tokens
from beatray.objectives.patient_contrast import patient_contrast
from beatray.objectives.product_quantiser import (
    ProductQuantiser,
    Stop,
    diversity,
    gumbel_noise,
    perplexity,
    straight_through,
)
from beatray.objectives.reduce import ddp_mean, embedding_std, gather_rows, sum_over_ranks, world_size
from beatray.objectives.statistics import FeatureStatistics

MIN_CODES = 0.05
"""The part of the codes of a group in use (their perplexity), below which they are said to have collapsed."""

_LEAD_TRIES = 8


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


class EcgFm(Objective):
    """The method: see the module text. ValueError for a network whose tokens do not see both sides."""

    name = "ecg_fm"
    title = "ECG-FM"
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
        others behind where a record masks fewer; `negatives_v` (B, M, N), places in it; `gumbel` (B, 2) seeds."""
        s = self.settings
        out = adjacent_segments(batch, s.crop_seconds, draws)
        segments = out.pop("segment_1"), out.pop("segment_2")
        if s.standardise:
            segments = standardised(*segments, out["n_valid"], self.encoder.lead_scale.lead_std_mv)
        tokens = -(-segments[0].shape[-1] // self.stage.stride)
        most = int(self.masked_count(torch.tensor(tokens)))
        cells = cells_of(out["n_valid"], self.stage, tokens)
        count = self.masked_count(cells).cpu().numpy()
        for view, segment in zip(VIEWS, segments, strict=True):
            drawn = draws.uniform("leads", _LEAD_TRIES * 12, view).reshape(-1, _LEAD_TRIES, 12)
            kept = torch.from_numpy(kept_leads(drawn, s.lead_mask)).to(segment.device)
            out[f"view_{view}"] = segment * kept[..., None]
            masked = masked_tokens(draws, view, tokens, cells.cpu().numpy(), count, s.mask_span)[:, :most]
            negatives = other_places(draws, view, most, count, s.n_negatives)
            for name, places in (("masked", masked), ("negatives", negatives)):  # 16 bits: workers send them around
                out[f"{name}_{view}"] = torch.from_numpy(places.astype(np.int16)).to(segment.device)
        seeds = np.stack([draws.uniform("gumbel", 1, view)[:, 0] for view in VIEWS], 1)
        out["gumbel"] = torch.from_numpy((seeds * 2.0**32).astype(np.int64)).to(out["n_valid"].device)
        return {**out, "patient_key": batch["patient_key"]}

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text; rows are segment 1 of all records, then segment 2."""
        s, network = self.settings, needs_tokens(self.encoder, self.title)
        n_valid = views["n_valid"].repeat(2)
        tokens = network.tokens(torch.cat([views[f"view_{view}"] for view in VIEWS]), n_valid)
        tokens = scaled_gradient(tokens, s.feature_gradient, self.stop_gradient)
        places = network.token_positions(tokens) if hasattr(network, "token_positions") else tokens.new_zeros(())
        there = valid_cells(n_valid, self.stage, tokens.shape[1])
        masked = torch.cat([views[f"masked_{view}"] for view in VIEWS]).long()  # (2n, M)
        counted = torch.arange(masked.shape[1], device=tokens.device) < self.masked_count(there.sum(1))[:, None]
        hidden = torch.zeros_like(there).scatter(1, masked, counted)
        context = network.encode(
            torch.where(hidden[..., None], self.mask_token.to(tokens.dtype) + places, tokens), valid=there
        )
        pooled_from = context
        if s.patient_weight > 0 and s.patient_tokens == "unmasked":
            pooled_from = network.encode(tokens, valid=there)
        with torch.autocast(tokens.device.type, enabled=False):
            features = _full(tokens) - places
            logits = self.quantiser.logits(self.dropout(self.token_norm(_at(features, masked))))
            noise = None
            if self.training:
                noise = gumbel_noise(views["gumbel"].T.flatten(), tuple(logits.shape[1:]), logits.dtype)
            chosen = straight_through(
                logits, code_temperature(at, s.gumbel_start, s.gumbel_end), noise, self.stop_gradient
            )
            lost, hit = masked_contrast(
                self.project_context(_full(_at(context, masked))),
                self.project_codes(self.quantiser.look_up(chosen)),
                chosen.argmax(-1),
                torch.cat([views[f"negatives_{view}"] for view in VIEWS]).long(),
                s.temperature,
            )
            counts = counted.to(lost.dtype)
            shares, used = (torch.einsum("bmgv,bm->gv", part, counts) for part in (logits.softmax(-1), chosen.detach()))
            square = (features.square().mean(-1) * there).sum()
            sums = [(lost * counts).sum(), (hit * counts).sum(), square, counts.sum(), there.sum()]
            summed = sum_over_ranks(torch.cat([torch.stack([part.double() for part in sums]), used.double().flatten()]))
            token_loss, accuracy, penalty, n_masked, n_tokens = summed[:5]
            n_masked, n_tokens = n_masked.clamp_min(1.0), n_tokens.clamp_min(1.0)
            # every rank has the same value of this part, so its gradient takes no factor of their number
            shares = gather_rows(shares[None], [1] * world_size()).sum(0) / n_masked.to(shares.dtype)
            unlike = diversity(shares) * (summed[3] > 0)
            loss = ddp_mean(sums[0], n_masked, s.token_weight) + ddp_mean(square, n_tokens, s.penalty_weight)
            loss = loss + s.diversity_weight * unlike
            token_loss, penalty = token_loss / n_masked, penalty / n_tokens
            mean = s.token_weight * token_loss + s.penalty_weight * penalty + s.diversity_weight * unlike.detach()
            used = perplexity(summed[5:].view(used.shape) / n_masked)
            means = {
                "token/loss": token_loss,
                "token/accuracy": accuracy / n_masked,
                "token/mean_square": penalty,
                "code/loss": unlike.detach(),
                **{f"code/perplexity_{group}": used[group - 1] for group in range(1, s.code_groups + 1)},
            }
            z = unit_rows(pool_over_time(pooled_from.transpose(1, 2), "mean", self.encoder.stages[-1], n_valid))
            if s.patient_weight > 0:
                patient = patient_contrast(z.chunk(2), views["patient_key"], s.patient_temperature)
                loss, mean = loss + s.patient_weight * patient.loss, mean + s.patient_weight * patient.mean
                means |= {"record/loss": patient.mean, "record/partners": patient.partners}
            means |= {"loss": mean, "record/embedding_std": embedding_std(z)}
        return StepResult(loss, {name: value.float() for name, value in means.items()}, {"masked": summed[3].float()})

    def masked_count(self, tokens: Tensor) -> Tensor:
        """How many of so many tokens are masked: at least one."""
        return (self.settings.mask_ratio * tokens.double() + 0.5).floor().long().clamp_min(1)

    @classmethod
    def described(cls, settings: EcgFmSettings) -> str:
        """Whether segments are contrasted, and the codebooks."""
        segments = f"patients (weight {settings.patient_weight:g})" if settings.patient_weight else "tokens alone"
        return f"{cls.title}, {settings.code_groups} x {settings.codes} codes, {segments}"

    @classmethod
    def curves(cls, settings: EcgFmSettings) -> Sequence[Curve]:
        """How often a token is told, the use of each codebook, and the contrast of segments."""
        contrast, spread = embedding_curves("record")
        level = MIN_CODES * settings.codes
        return [
            Curve("token/loss", "token loss"),
            Curve("token/accuracy", "accuracy of the masked token", True),
            *(
                Curve(f"code/perplexity_{group}", f"codes in use, group {group}", False, level, "collapsed below")
                for group in range(1, settings.code_groups + 1)
            ),
            *([contrast, spread] if settings.patient_weight else []),
        ]

    @classmethod
    def warnings(cls, settings: EcgFmSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse of the codes and, where they are contrasted, of the segments."""
        found = super().warnings(settings, means, at) if settings.patient_weight else {}
        least = max(MIN_CODES * settings.codes, 2.0)
        for group in range(1, settings.code_groups + 1):
            value = means.get(key := f"code/perplexity_{group}", least)
            if at.part > 0.1 and value < least:
                found[key] = (
                    f"codes of group {group} have nearly collapsed ({value:.1f} of {settings.codes} in use): raise "
                    "objective.diversity_weight, or lower the learning rate"
                )
        return found


def masked_contrast(
    context: Tensor, quantised: Tensor, codes: Tensor, negatives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Part `a` of the module text for every masked token, and whether the right one scored best: (B, M) each.

    context, quantised (B, M, D); codes (B, M, G) int64; negatives (B, M, N) int64, places among the M of the same row.
    """
    scores = unit_rows(context) @ unit_rows(quantised).transpose(1, 2) / temperature  # (B, M, M)
    alike = (codes[:, :, None] == codes[:, None]).all(-1)
    positive = scores.diagonal(dim1=1, dim2=2)
    others = scores.masked_fill(alike, float("-inf")).gather(2, negatives)
    # with the positive among them a logsumexp is never of -inf alone, which has no gradient
    loss = torch.cat([positive[..., None], others], 2).logsumexp(2) - positive
    return loss, (positive > others.amax(2)).to(loss.dtype)


def code_temperature(at: Progress, start: float, end: float) -> float:
    """From `start` at step 0 towards `end` at the end of the run: start (end / start)^(k / K) for step k of K."""
    return start * (end / start) ** (at.step / max(at.steps, 1))


def scaled_gradient(x: Tensor, part: float, stop: Stop = Tensor.detach) -> Tensor:
    """x itself, with `part` of its gradient."""
    if part == 1.0:
        return x
    fixed = stop(x)
    return fixed + part * (x - fixed)


def kept_leads(drawn: NDArray[np.float64], probability: float) -> NDArray[np.bool_]:
    """Which leads are not zeroed: (B, tries, L) in [0, 1) -> (B, L), of the first try that keeps any.

    Where all tries zero all leads, the one that came nearest in the last is kept.
    """
    tries = drawn >= probability
    tries[:, -1] |= ~tries.any((1, 2))[:, None] & (drawn[:, -1] == drawn[:, -1].max(1, keepdims=True))
    kept: NDArray[np.bool_] = tries[np.arange(len(tries)), tries.any(2).argmax(1)]
    return kept


def standardised(first: Tensor, second: Tensor, n_valid: Tensor, lead_std_mv: Tensor) -> tuple[Tensor, Tensor]:
    """Two segments (B, 12, L) so that the network's scaled leads have mean 0 and SD 1 over both; flat ones are zero."""
    x_mv, length = torch.cat([first, second], 2), first.shape[2]
    there = (torch.arange(length, device=x_mv.device) < n_valid[:, None]).repeat(1, 2)[:, None]
    count = there.sum(2, keepdim=True).clamp_min(1)
    centred = (x_mv - (x_mv * there).sum(2, keepdim=True) / count) * there
    sd = (centred.square().sum(2, keepdim=True) / count).sqrt()
    scaled = torch.where(sd > 1e-6, centred / sd.clamp_min(1e-6), 0.0) * lead_std_mv.to(x_mv)[:, None]
    return scaled[..., :length], scaled[..., length:]


def _at(x: Tensor, places: Tensor) -> Tensor:
    """(B, T, D) at places (B, M) -> (B, M, D)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
