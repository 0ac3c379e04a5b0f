"""Label-free beat classes: k-means clusters of beat features, fitted once over a corpus and stored in its manifest.

They are one source of hard beat targets where no beat annotations exist. The centroids, not the classes, are stored:
a beat's class is its nearest centroid, so shards stay immutable when the corpus grows and the fit is repeated.
Contract: fitting is deterministic (a fixed sample, a fixed seed); missing features count as the corpus mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

N_CLUSTERS = 8
SAMPLE = 50_000
LIMIT_SD = 5.0  # one artefact must not become a cluster of its own


def fit_clusters(beat_features: NDArray[np.float32], names: tuple[str, ...]) -> dict[str, Any] | None:
    """Fit on beats (n, F); None with fewer beats than clusters. The result is plain JSON."""
    if len(beat_features) < N_CLUSTERS:
        return None
    step = -(-len(beat_features) // SAMPLE)
    sample = beat_features[::step].astype(np.float64)
    known = np.isfinite(sample)
    mean = np.array([column[ok].mean() if ok.any() else 0.0 for column, ok in zip(sample.T, known.T, strict=True)])
    sd = np.array([column[ok].std() if ok.any() else 0.0 for column, ok in zip(sample.T, known.T, strict=True)])
    sd = np.where(sd > 0, sd, 1.0)
    fitted = KMeans(N_CLUSTERS, n_init=4, random_state=0).fit(_scaled(sample, mean, sd))
    order = np.lexsort(fitted.cluster_centers_.T[::-1])  # numbering must not depend on k-means' internals
    return {
        "features": list(names),
        "mean": mean.tolist(),
        "sd": sd.tolist(),
        "centroids": fitted.cluster_centers_[order].tolist(),
    }


def assign_clusters(beat_features: NDArray[np.float32], model: dict[str, Any]) -> NDArray[np.int8]:
    """Class of every beat (n, F) -> (n,)."""
    scaled = _scaled(beat_features.astype(np.float64), np.array(model["mean"]), np.array(model["sd"]))
    centroids = np.array(model["centroids"])
    distance = ((scaled[:, None] - centroids[None]) ** 2).sum(2)
    return np.asarray(distance.argmin(1), np.int8)


def _scaled(x: NDArray[np.float64], mean: NDArray[np.float64], sd: NDArray[np.float64]) -> NDArray[np.float64]:
    z = (x - mean) / sd
    return np.clip(np.where(np.isfinite(z), z, 0.0), -LIMIT_SD, LIMIT_SD)
