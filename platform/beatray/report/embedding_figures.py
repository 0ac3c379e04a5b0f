"""Where recordings lie in the space of an encoder, seen in two dimensions.

PCA keeps the directions of largest variance; t-SNE (van der Maaten & Hinton, JMLR 9:2579, 2008) keeps neighbourhoods,
so that only nearness means something in its picture, not distance or size. Both are scikit-learn's, with a fixed seed.

Contract: embeddings (n, D); groups (n,) of texts, "" for no group, drawn grey. Returns a matplotlib `Figure`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beatray.report.canvas import STYLE, new_figure
from beatray.report.sweep_figures import COLOURS, MARKERS

MOST_GROUPS = 7
PERPLEXITY = 30.0


def projections(embeddings_nd: NDArray[np.float32], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """PCA and t-SNE of standardised embeddings, each (n, 2); t-SNE is left out below 10 recordings."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(np.asarray(embeddings_nd, np.float64))
    pca = PCA(n_components=2, random_state=seed).fit(scaled)
    share = pca.explained_variance_ratio_
    found = {f"PCA, {share.sum():.0%} of the variance": pca.transform(scaled)}
    if len(scaled) >= 10:
        near = min(PERPLEXITY, (len(scaled) - 1) / 3)
        found["t-SNE"] = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(scaled)
    return found


def embedding_map(places: Mapping[str, NDArray[np.float64]], groups: Mapping[str, Sequence[str]]) -> Figure:
    """A row of panels per projection, a column per way to colour (class, patient, source)."""
    with rc_context(STYLE):
        figure = new_figure(4.4 * len(groups), 4.6 * len(places))
        panels = figure.subplots(len(places), len(groups), squeeze=False)
        for line, (name, points) in zip(panels, places.items(), strict=True):
            for axes, (by, labels) in zip(line, groups.items(), strict=True):
                _cloud(axes, points, labels)
                axes.set_title(f"by {by}")
            line[0].set_ylabel(name)
    return figure


def _cloud(axes: Axes, points: NDArray[np.float64], labels: Sequence[str]) -> None:
    given = np.array(labels, dtype=object)
    common = [name for name, _ in Counter(label for label in labels if label).most_common(MOST_GROUPS)]
    others = ~np.isin(given.astype(str), common)
    axes.plot(*points[others].T, ".", color="#c8c8c8", markersize=4, label="others" if others.any() else None)
    for number, name in enumerate(common):
        chosen = given == name
        axes.plot(
            *points[chosen].T, MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], markersize=4,
            alpha=0.75, label=f"{name} ({chosen.sum()})",
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(
        fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, markerscale=1.5, handletextpad=0.2
    )
