"""Figures of one encoder: its score of each class, which classes are predicted together, where recordings lie.

The space of an encoder is seen in two dimensions. PCA keeps the directions of largest variance; t-SNE (van der Maaten
& Hinton, JMLR 9:2579, 2008) keeps neighbourhoods, so that only nearness means something in its picture, not distance
or size. Both are scikit-learn's, with a fixed seed.

Contract: arrays in, a matplotlib `Figure` out (see `canvas`). Embeddings (n, D); groups (n,) of texts, "" for no group,
drawn grey.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from beatray.report.canvas import BLUE, GREY, ORANGE, STYLE, new_figure, quiet_grid
from beatray.report.sweep_figures import COLOURS, MARKERS

MOST_GROUPS = 7
PERPLEXITY = 30.0


def class_bars(
    classes: Sequence[str], scores: Mapping[str, NDArray[np.float64]], counts: Sequence[int], title: str
) -> Figure:
    """Bars (one per variant and class): `scores` by variant are (runs, classes), a bar is their mean."""
    colours = (BLUE, ORANGE, GREY)
    with rc_context(STYLE):
        figure = new_figure(max(6.0, 1.5 * len(classes)), 3.4)
        axes = figure.subplots()
        width = 0.8 / max(1, len(scores))
        for number, (variant, values) in enumerate(scores.items()):
            positions = np.arange(len(classes)) + width * (number - (len(scores) - 1) / 2)
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(classes))
            axes.bar(
                positions,
                np.nanmean(values, axis=0),
                width,
                yerr=spread,
                capsize=2,
                label=variant,
                color=colours[number % 3],
            )
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xticks(
            range(len(classes)), [f"{name}\n{count} tested" for name, count in zip(classes, counts, strict=True)]
        )
        axes.set_ylim(0.0, 1.0)
        axes.set_title(title)
        quiet_grid(axes)
        figure.legend(loc="outside upper right", ncols=len(scores), fontsize=8)
    return figure


def confusion(
    classes: Sequence[str], truth_nc: NDArray[np.bool_], predicted_nc: NDArray[np.bool_], title: str
) -> Figure:
    """Of the recordings that have the class of a row, the share for which the class of a column was predicted.

    Labels are not exclusive: a row need not sum to 1, and off-diagonal cells may be right.
    """
    counts = truth_nc.sum(axis=0)
    together = truth_nc.astype(np.float64).T @ predicted_nc.astype(np.float64)
    share = together / np.maximum(counts[:, None], 1)
    with rc_context(STYLE):
        figure = new_figure(1.6 + 0.75 * len(classes), 1.4 + 0.6 * len(classes))
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        for row in range(len(classes)):
            for column in range(len(classes)):
                value = share[row, column]
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
                )
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(classes)), [f"{name} ({count})" for name, count in zip(classes, counts, strict=True)])
        axes.set_xlabel("predicted")
        axes.set_ylabel("has the class")
        axes.set_title(title)
        axes.spines[:].set_visible(False)
    return figure


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


def embedding_map(projections: Mapping[str, NDArray[np.float64]], groups: Mapping[str, Sequence[str]]) -> Figure:
    """A row of panels per projection, a column per way to colour (class, patient, source)."""
    with rc_context(STYLE):
        figure = new_figure(4.4 * len(groups), 4.6 * len(projections))
        panels = figure.subplots(len(projections), len(groups), squeeze=False)
        for line, (name, points) in zip(panels, projections.items(), strict=True):
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
