"""From a description of an encoder to the numbers it gives: weights, feature maps, pooled features.

An `EncoderSpec` is small and picklable, so worker processes build their own copy. Weights None means random weights
from the seed, which is both control groups: frozen ("does the architecture alone do it?") and trained from scratch.

Contract: signals are prepared millivolts float32 (n, 12, 5000) at 500 Hz; a feature map is (n, C, T') with
`T' * stride >= 5000`; features are float32 numpy. Everything runs in eval mode and without gradients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.evaluate.pooling import pooled
from beatray.models.encoder import Encoder
from beatray.models.encoder_folder import describe_encoder, load_encoder
from beatray.models.registry import build_encoder
from beatray.preprocess import prepare
from beatray.record import RATE_HZ

FORWARD_BATCH = 32


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """An encoder by registry `name` and `settings`; `weights` is a folder that `load_encoder` reads, or None.

    `label` names it in tables. With weights the folder decides the architecture; name and settings then serve to build
    the random control beside it (`spec_of` reads them from the folder).
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    label: str = "pretrained"

    def random(self) -> EncoderSpec:
        """The same architecture with random weights."""
        return replace(self, weights=None, label="random")

    def key(self) -> str:
        """A text that two specs share only if they build the same encoder (given the same seed)."""
        return json.dumps([self.name, dict(self.settings), self.weights], sort_keys=True, default=str)


def spec_of(path: str, label: str = "pretrained") -> EncoderSpec:
    """The spec of an exported encoder: its folder names the architecture that the random control must have."""
    described = describe_encoder(path)
    return EncoderSpec(str(described["name"]), dict(described["settings"]), path, label)


def build(spec: EncoderSpec, seed: int) -> Encoder:
    """The encoder in eval mode; random weights depend on `seed` alone and leave the global generator untouched."""
    if spec.weights is not None:
        return cast(Encoder, load_encoder(spec.weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(spec.name, **dict(spec.settings)).eval()


def prepared(signal_uv: NDArray[np.int16] | NDArray[np.float32], n_samples: NDArray[np.int32]) -> NDArray[np.float32]:
    """Corpus signals (n, 12, 5000) in microvolts to the millivolts that encoders take."""
    chunks = [
        prepare(
            torch.from_numpy(np.ascontiguousarray(signal_uv[i : i + FORWARD_BATCH])),
            rate_hz=RATE_HZ,
            n_samples=torch.from_numpy(np.asarray(n_samples[i : i + FORWARD_BATCH], np.int64)),
        ).numpy()
        for i in range(0, len(signal_uv), FORWARD_BATCH)
    ]
    return np.concatenate(chunks) if chunks else np.empty(signal_uv.shape, np.float32)


@torch.no_grad()
def feature_maps(encoder: Encoder, x_mv: NDArray[np.float32], device: str = "cpu") -> Tensor:
    """Feature maps (n, C, T') of whole records, kept on the CPU."""
    encoder.to(device)
    return torch.cat([encoder.forward_features(chunk.to(device)).float().cpu() for chunk in _chunks(x_mv)])


def pooled_features(
    encoder: Encoder,
    x_mv: NDArray[np.float32],
    n_samples: NDArray[np.int64],
    pooling: str = "mean_std",
    device: str = "cpu",
    r_peaks: Sequence[NDArray[np.int32]] | None = None,
) -> NDArray[np.float32]:
    """One vector per record (n, D) over its valid samples, as `pooling.pooled` makes it; so with `r_peaks`."""
    encoder.to(device)
    vectors = []
    for first in range(0, len(x_mv), FORWARD_BATCH):
        part = slice(first, first + FORWARD_BATCH)
        peaks = None if r_peaks is None else r_peaks[part]
        vectors.append(pooled(encoder, np.array(x_mv[part], np.float32), n_samples[part], pooling, peaks))
    return np.concatenate(vectors)


def _chunks(x_mv: NDArray[np.float32]) -> Iterator[Tensor]:
    for first in range(0, len(x_mv), FORWARD_BATCH):
        yield torch.from_numpy(np.array(x_mv[first : first + FORWARD_BATCH], np.float32))
