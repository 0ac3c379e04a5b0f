"""The heads of models that were taught by labels, from a description that a model folder can hold.

`{"name": "linear", "outputs": 5}`, `mlp` (hidden, dropout): logits of a recording from its pooled vector. `conv`
(depth, hidden, kernel), `unet`: logits of every sample from the feature maps. `outputs` are logits, four for each mask
of waves.

Contract: `LabelledModel` takes (B, 12, T) mV at 500 Hz and n_samples (B,) and gives (B, outputs), or (B, outputs, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from beatray.models.encoder import Encoder
from beatray.models.heads import LinearClassifier, MlpClassifier
from beatray.models.segmentation import ConvDecoder, UNetDecoder

OF_SAMPLES = ("conv", "unet")
"""Heads that speak of every sample."""


def build_head(encoder: Encoder, about: Mapping[str, Any]) -> nn.Module:
    """The head that a description means. ValueError for a name that is none."""
    name, outputs = about["name"], int(about["outputs"])
    if name == "linear":
        return LinearClassifier(encoder.embed_dim, outputs)
    if name == "mlp":
        return MlpClassifier(encoder.embed_dim, outputs, int(about["hidden"]), float(about["dropout"]))
    if name == "conv":
        depth, hidden, kernel = (int(about[key]) for key in ("depth", "hidden", "kernel"))
        return ConvDecoder(encoder.stages[-1], depth, hidden, kernel, outputs)
    if name == "unet":
        return UNetDecoder(encoder.stages, classes=outputs)
    raise ValueError(f"there is no head {name!r}; known are linear, mlp, conv and unet")


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
