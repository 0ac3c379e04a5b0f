"""Small networks on top of an encoder: projectors for pretraining, classifiers for what comes after.

Projectors belong to an objective and are dropped after pretraining (Chen et al., SimCLR, ICML 2020, section 4.2). None
of them normalises its output: the losses take the cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.encoder import Stage
from beatray.models.roi_align import roi_align_1d


class ProjectionHead(nn.Module):
    """Pooled record to contrast space: Linear, batch norm over all ranks, ReLU, Linear; (B, embed_dim) -> (B, out)."""

    def __init__(self, embed_dim: int, hidden: int = 256, out: int = 128, batch_norm: bool = True) -> None:
        super().__init__()
        self.hidden = nn.Linear(embed_dim, hidden, bias=not batch_norm)
        self.norm = GlobalBatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.out = nn.Linear(hidden, out)

    def forward(self, pooled: Tensor) -> Tensor:
        z: Tensor = self.out(torch.relu(self.norm(self.hidden(pooled))))
        return z


class BeatHead(nn.Module):
    """Beats to contrast space: RoIAlign with `bins` cells, flattened, Linear, ReLU, Linear -> (K, out)."""

    def __init__(self, channels: int, bins: int = 8, hidden: int = 256, out: int = 128) -> None:
        super().__init__()
        self.bins = bins
        self.hidden = nn.Linear(channels * bins, hidden)
        self.out = nn.Linear(hidden, out)

    def forward(self, fmap: Tensor, boxes: Tensor, owner: Tensor, stage: Stage) -> Tensor:
        """fmap (B, C, T'), boxes (K, 2) in samples, owner (K,) rows of fmap -> (K, out); K may be 0."""
        regions = roi_align_1d(fmap, boxes, owner, stage, self.bins)
        z: Tensor = self.out(torch.relu(self.hidden(regions.flatten(1))))
        return z


class LinearClassifier(nn.Module):
    """Logits from a pooled record: (B, embed_dim) -> (B, classes)."""

    def __init__(self, embed_dim: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(embed_dim, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.out(pooled)
        return logits


class MlpClassifier(nn.Module):
    """Logits through one hidden layer with dropout: (B, embed_dim) -> (B, classes)."""

    def __init__(self, embed_dim: int, classes: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.hidden = nn.Linear(embed_dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.out(self.dropout(torch.relu(self.hidden(pooled))))
        return logits
