"""SwAV: predict from one crop of a recording the prototypes of another of its crops; no negatives, no teacher.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (NeurIPS 2020), equations 1
to 4, as tried on 12-lead ECGs by Mehari and Strodthoff (Comput. Biol. Med. 2022). Two assign crops and some shorter
local ones go through encoder and projector; z are their unit embeddings, C (K, D) unit prototypes, S_v = z_v C' the
scores of crop v of V. The loss of a record is

    1/2 sum over i in {1, 2} of 1/(V - 1) sum over v != i of [- sum_k q_ik log softmax(S_v / temperature)_k].

The targets q_i are made of S_i without gradient: `sinkhorn` turns the scores of the global batch, behind those of a
queue of earlier embeddings against today's prototypes, into rows that sum to 1 and use all prototypes about alike.

Contract: targets are those of the global batch in the order of its records, whichever rank has which. One queue for
each assign crop holds the newest `queue_rows` embeddings; it serves once it is full and `queue_start` of the run is
over. Prototypes have unit rows when they are built and after every step that moves them, and never decay. For the part
`freeze` of the run their gradient is multiplied by 0: the moments of Adam and SGD stay 0 and the prototypes what they
are, to the bit. Adam counts these steps, so after a long freeze its first steps lack the usual correction and are some
times as long. Crops of one length are one batch for the encoder's batch norms, all crops one for the projector's.

Differences from the reference codes: assignments in the log domain, which cannot overflow; the queue is filled from the
first step on, so it is full sooner; neither queue nor prototypes change in validation; crops are masked, not stretched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from beatray.augment.draws import Draws
from beatray.augment.multi_crop import make_multi_crops
from beatray.augment.two_views import VIEWS, MaskedViewSettings
from beatray.fields import check, setting
from beatray.models.encoder import Encoder
from beatray.models.heads import ProjectionHead
from beatray.objectives.contrast import unit_rows
from beatray.objectives.ema import Queue
from beatray.objectives.objective import Curve, Objective, Progress, StepResult, Tensors, embedding_curves
from beatray.objectives.published import FOR_ECGS
from beatray.objectives.reduce import embedding_std, gather_counts, gather_rows, global_mean, rank
from beatray.objectives.statistics import FeatureStatistics

UNIFORM_NATS = 0.1
"""Targets whose entropy lacks so little to log K are called nearly uniform. A fixed part of log K would not do: unit
embeddings and 3,000 prototypes in 128 dimensions lie so that a healthy run begins at 0.9 of it."""

MIN_USAGE = 0.5
"""Perplexity of the mean target as a part of the number of prototypes: below, prototypes count as idle.

The assignment itself keeps it near 1 unless embeddings lie so far from some prototypes that its few rounds do not
reach them. Embeddings that collapse show elsewhere: their targets become uniform, and the loss stays at log K.
"""


@dataclass(frozen=True, slots=True)
class SwavSettings:
    """Settings of SwAV."""

    prototypes: int = setting(3000, "at most half of batch and queue together is sane", at_least=2)
    temperature: float = setting(0.1, "of the predictions", above=0.0, searchable=True)
    epsilon: float = setting(0.05, "of the targets: the smaller, the sharper", above=0.0, searchable=True)
    iterations: int = setting(3, "of Sinkhorn and Knopp", at_least=1)
    queue_rows: int = setting(8192, "of each queue, best some batches; 0: no queue", at_least=0)
    queue_start: float = setting(0.075, "part of the run after which queues serve", at_least=0.0, at_most=1.0)
    freeze: float = setting(0.005, "part of the run with frozen prototypes", at_least=0.0, at_most=1.0)
    local_crops: int = setting(4, "besides the two of augment.crop_seconds", at_least=0)
    local_seconds: float = setting(2.5, "of a local crop", at_least=0.5)
    projector_hidden: int = setting(2048, at_least=1)
    projector_dim: int = setting(128, at_least=1)
    augment: MaskedViewSettings = setting(MaskedViewSettings, "how long assign crops are and how all are masked")

    def __post_init__(self) -> None:
        check(self)


class Swav(Objective):
    """The method: see the module text."""

    name = "swav"
    title = "SwAV"
    paper = (
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS "
        f"2020, arXiv 2006.09882; {FOR_ECGS}"
    )
    remedy = "lower objective.epsilon or the learning rate, or freeze the prototypes longer (objective.freeze)"
    views_text = (
        "A view is a window of the recording at its own moment that lost a stretch of each lead and one of all."
    )
    Settings = SwavSettings

    def __init__(self, encoder: Encoder, settings: SwavSettings, statistics: FeatureStatistics | None = None) -> None:
        super().__init__(encoder, settings, statistics)
        width = settings.projector_dim
        self.projector = ProjectionHead(encoder.embed_dim, settings.projector_hidden, width)
        self.prototypes = nn.Parameter(unit_rows(torch.randn(settings.prototypes, width)))
        self.prototypes.no_decay = True  # type: ignore[attr-defined]
        queues = len(VIEWS) if settings.queue_rows else 0
        self.queues = cast("Sequence[Queue]", nn.ModuleList(Queue(settings.queue_rows, width) for _ in range(queues)))

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """Assign crops view_1, view_2 (B, 12, L) and local crops local_1, local_2 .. (B, 12, L')."""
        s = self.settings
        return make_multi_crops(batch, s.augment, s.local_crops, s.local_seconds, draws)

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of the module text, as the mean over the global batch."""
        s, records = self.settings, len(views["view_1"])
        pooled = [self._pooled([views[f"view_{view}"] for view in VIEWS], views.get("n_valid"))]
        if s.local_crops:
            crops = [views[f"local_{number}"] for number in range(1, s.local_crops + 1)]
            pooled.append(self._pooled(crops, views.get("local_n_valid")))
        projected = self.projector(torch.cat(pooled))
        with torch.autocast(projected.device.type, enabled=False):
            z = unit_rows(projected).unflatten(0, (len(VIEWS) + s.local_crops, records))
            prototypes: Tensor = self.prototypes
            if self._frozen(at):  # a gradient of 0 and not none, which data parallel training would wait for
                prototypes = prototypes.detach() + 0.0 * prototypes
            sizes = [counts[0] for counts in gather_counts([records], z.device)]
            q, logs = self._targets(z[: len(VIEWS)].detach(), sizes, at)
            losses = swapped_prediction(z @ prototypes.T, self.stop_gradient(q), s.temperature)
        loss, mean = global_mean(losses.sum(), records)
        spread = embedding_std(z[: len(VIEWS)].flatten(0, 1))
        means = {"loss": mean, "record/loss": mean, "record/embedding_std": spread, **logs}
        return StepResult(loss, means, {"record/rows": mean.new_full((), float(sum(sizes)))})

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Prototypes back to unit length, and the embeddings of this step into the queues."""
        if not self._frozen(at):
            self.prototypes.copy_(unit_rows(self.prototypes))
        for queue in self.queues:
            queue.commit()

    @classmethod
    def described(cls, settings: SwavSettings) -> str:
        """Prototypes, crops and queue."""
        queue = f"queue {settings.queue_rows}" if settings.queue_rows else "no queue"
        return f"{cls.title}, {settings.prototypes} prototypes, 2 + {settings.local_crops} crops, {queue}"

    @classmethod
    def curves(cls, settings: SwavSettings) -> Sequence[Curve]:
        """Loss and spread, how sharp targets are and how many prototypes they use."""
        loss, spread = embedding_curves("record")
        return [
            loss,
            Curve("record/target_entropy", "record: target entropy", True, _uniform(settings), "nearly uniform"),
            Curve("record/prototype_usage", "share of prototypes in use", True, MIN_USAGE, "idle below"),
            spread,
        ]

    @classmethod
    def warnings(cls, settings: SwavSettings, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """Collapse of embeddings, uninformative targets, and prototypes that nothing is assigned to."""
        found = super().warnings(settings, means, at)
        if at.part <= 0.1 or means.get("record/rows", 2.0) < 2.0:
            return found
        entropy = means.get("record/target_entropy", 0.0)
        if entropy > _uniform(settings):
            found["record/target_entropy"] = (
                f"record targets are nearly uniform (entropy {entropy:.3f} of 1): {cls.remedy}"
            )
        usage = means.get("record/prototype_usage", 1.0)
        if usage < MIN_USAGE:
            found["record/prototype_usage"] = (
                f"targets use as little as {usage:.0%} of {settings.prototypes} prototypes: take fewer "
                "(objective.prototypes), more objective.iterations or a longer queue (objective.queue_rows)"
            )
        return found

    def _pooled(self, crops: list[Tensor], n_valid: Tensor | None) -> Tensor:
        """Crops of one length, as one batch: (crops B, embed_dim)."""
        pooled: Tensor = self.encoder(torch.cat(crops), None if n_valid is None else n_valid.repeat(len(crops)))
        return pooled

    @torch.no_grad()
    def _targets(self, z: Tensor, sizes: list[int], at: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Targets (2, n, K) of this rank's assign crops z (2, n, D), and what is logged of those of all.

        Every rank works out the targets of all rows: they are equal to the bit, in the order of the queue.
        """
        s, records = self.settings, z.shape[1]
        first, batch = sum(sizes[: rank()]), sum(sizes)
        everyone = gather_rows(z.transpose(0, 1).contiguous(), sizes)
        queues = self.queues if self._over(s.queue_start, at) else ()
        own, entropies, shares = [], [], []
        for view in range(len(VIEWS)):
            rows, there = everyone[:, view], None
            for queue in queues[view : view + 1]:
                rows, there = self._behind(queue, rows)
            q = sinkhorn(rows @ self.prototypes.T, s.epsilon, s.iterations, there)
            shares.append(q.sum(0) / (max(len(q), 1) if there is None else there.sum().clamp_min(1)))
            q = q[len(q) - batch :]
            entropies.append(torch.special.entr(q).sum() / max(batch, 1))
            own.append(q[first : first + records])
        share = torch.stack(shares).mean(0)
        logs = {
            "record/target_entropy": (torch.stack(entropies).mean() / math.log(s.prototypes)).float(),
            "record/prototype_usage": (torch.special.entr(share).sum().exp() / s.prototypes).float(),
        }
        for view, queue in enumerate(self.queues):
            queue.stage(everyone[:, view])
        return torch.stack(own), logs

    def _behind(self, queue: Queue, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows behind those of a queue, if it is full; which take part (N,) bool, None: all."""
        full = queue.filled == len(queue.rows)
        if not self.static_shapes:
            return (torch.cat([queue.newest, rows]) if bool(full) else rows), None
        there = torch.cat([full.expand(len(queue.rows)), full.new_ones(len(rows))])
        return torch.cat([queue.rows, rows]), there

    def _frozen(self, at: Progress) -> bool:
        return not self._over(self.settings.freeze, at)

    def _over(self, part: float, at: Progress) -> bool:
        """Whether a part of the run is over when this step begins."""
        return at.step >= part * at.steps


def _uniform(settings: SwavSettings) -> float:
    """The entropy above which targets are nearly uniform, as a part of log K."""
    return 1.0 - UNIFORM_NATS / math.log(settings.prototypes)


def sinkhorn(scores: Tensor, eps: float, iterations: int, there: Tensor | None = None) -> Tensor:
    """Soft assignments of rows to prototypes: scores (N, K) -> (N, K), every row sums to 1; N may be 0.

    there (N,) bool: rows that take no part become 0 and change nothing for the others; None: all take part.

    exp(scores / eps) is divided by the sum over rows of each column, then by the sum of each row, `iterations` times
    (section 3.1; Cuturi, NeurIPS 2013), here in the log domain. In the limit every column sums to N / K.
    """
    log_q = scores / eps
    gone = None if there is None else ~there[:, None]
    for _ in range(iterations):
        if gone is not None:
            log_q = log_q.masked_fill(gone, float("-inf"))
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    q = log_q.exp()
    return q if gone is None else q.masked_fill(gone, 0.0)


def swapped_prediction(scores: Tensor, q: Tensor, temperature: float) -> Tensor:
    """The loss of each record: scores (V, B, K) of all crops, targets q (2, B, K) of the first two -> (B,)."""
    log_p = (scores / temperature).log_softmax(-1)
    of_others = (log_p.sum(0) - log_p[: len(q)]) / (len(scores) - 1)
    return -(q * of_others).sum(-1).mean(0)
