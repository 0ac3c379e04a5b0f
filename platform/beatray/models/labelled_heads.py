"""The heads of models that were trained on labels, from a description that a model folder can hold.

`{"name": "linear", "outputs": 5, "standardise": true}`, `mlp` (hidden, dropout): logits of a recording from its pooled
vector, whose numbers have scales of their own: means and deviations of channels. Brought to one scale by a batch norm,
a linear head learns in tens of steps what would take it thousands. `conv` (depth, hidden, kernel), `unet`: logits of
every sample from the feature maps. `outputs` are logits, four for each mask of waves.

Contract: `LabelledModel` takes (B, 12, T) mV at 500 Hz and n_samples (B,) and gives (B, outputs), or (B, outputs, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from beatray.models.batch_norm import GlobalBatchNorm1d
from beatray.models.encoder import Encoder
from beatray.models.heads import LinearClassifier, MlpClassifier
from beatray.models.segmentation import ConvDecoder, UNetDecoder

OF_SAMPLES = ("conv", "unet")
"""Heads that speak of every sample."""


def build_head(encoder: Encoder, about: Mapping[str, Any]) -> nn.Module:
    """The head that a description means. ValueError for a name that is none."""
    name, outputs = about["name"], int(about["outputs"])
    if name in ("linear", "mlp"):
        head: nn.Module = LinearClassifier(encoder.embed_dim, outputs)
        if name == "mlp":
            head = MlpClassifier(encoder.embed_dim, outputs, int(about["hidden"]), float(about["dropout"]))
        return StandardisedHead(encoder.embed_dim, head) if about["standardise"] else head
    if name == "conv":
        depth, hidden, kernel = (int(about[key]) for key in ("depth", "hidden", "kernel"))
        return ConvDecoder(encoder.stages[-1], depth, hidden, kernel, outputs)
    if name == "unet":
        return UNetDecoder(encoder.stages, classes=outputs)
    raise ValueError(f"there is no head {name!r}; known are linear, mlp, conv and unet")


class StandardisedHead(nn.Module):
    """A head on numbers of one scale: those of the batch over all ranks while training, else the running ones."""

    def __init__(self, embed_dim: int, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = GlobalBatchNorm1d(embed_dim), head

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, embed_dim) to logits (B, outputs)."""
        logits: Tensor = self.head(self.norm(pooled))
        return logits


class LabelledModel(nn.Module):
    """An encoder and its head; see the module text."""

    def __init__(self, encoder: Encoder, head: nn.Module, of_samples: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.of_samples = encoder, head, of_samples

    def forward(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """Logits of recordings or of samples."""
        if self.of_samples:
            logits: Tensor = self.head(self.encoder.forward_stages(x_mv, n_samples), x_mv.shape[-1])
        else:
            logits = self.head(self.encoder(x_mv, n_samples))
        return logits
