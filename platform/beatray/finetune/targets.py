"""The targets of the recordings of a corpus, by row of its index: from the labels that the corpus holds, or a table.

A `Label` covers all rows of the index and marks those in which it is known; it may come from the codes of a label space
(label_spaces.py), from age or sex, or from a table (table_targets.py). `Targets` are what an objective reads: labels
side by side, or marked waves (labels.py). Rows that are not in it, and targets of -1 (NaN for numbers), are unknown,
which is not no: of a label space, a recording without any class of the space is unknown.

Contract: `rows` (n,) are sorted positions in the index; `values` (n, ...) as `objectives/supervised.py` and
`segmentation.py` read them. A space that is fitted to labels is fitted to the rows `train`. SettingsError for labels
that are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.reader import Corpus
from beatray.corpus.schema import waves_in
from beatray.errors import SettingsError
from beatray.evaluate.label_spaces import SPACES, label_space
from beatray.evaluate.labels import lead_masks, wave_masks
from beatray.evaluate.recordings import recording_of
from beatray.objectives.segmentation import SegmentationSettings
from beatray.objectives.supervised import SupervisedSettings
from beatray.plugins import nearest
from beatray.record import WAVE_KINDS

Index = NDArray[np.int64]

OF_PEOPLE = ("age", "sex")
WAVES = "waves"
FEMALE = "female"


class Label(Protocol):
    """One label over the n rows of a corpus: `values` (n, c) bool, or (n, 1) numbers, where it is `known` (n,).

    `kind` is binary (one class, called as the label), classes (one True a row), multilabel or numbers.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def values(self) -> NDArray[np.bool_] | NDArray[np.float64]: ...
    @property
    def known(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, slots=True)
class OwnLabel:
    """A `Label` that the corpus holds itself."""

    name: str
    kind: str
    classes: tuple[str, ...]
    values: NDArray[np.bool_] | NDArray[np.float64]
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of the rows that have any."""

    kind: str  # multilabel, classes, numbers or waves
    names: tuple[str, ...]
    rows: Index
    values: NDArray[Any]
    title: str
    left_out: tuple[str, ...] = ()
    owners: list[str | None] | None = None  # of a table: whose every row of the corpus is; None: as the corpus knows
    table: dict[str, Any] | None = None  # what a model may disclose of it

    @property
    def nothing(self) -> float:
        """The value of an unknown target."""
        return float("nan") if self.kind == "numbers" else -1.0


def targets_of(corpus: Corpus, settings: SupervisedSettings | SegmentationSettings, train: Index) -> Targets:
    """The targets that the settings name."""
    if isinstance(settings, SegmentationSettings):
        return _waves(corpus, settings)
    labels = settings.labels
    if labels in SPACES:
        return _codes(corpus, settings, train)
    if labels == "age":
        years = np.array([np.nan if age is None else age for age in _column(corpus, "age")], np.float64)[:, None]
        return side_by_side([OwnLabel("age", "numbers", (), years, np.isfinite(years[:, 0]))], "age in years")
    if labels == "sex":
        sexes = np.array(_column(corpus, "sex"), object)
        female, male = (np.asarray(sexes == sex, np.bool_) for sex in ("F", "M"))
        return side_by_side([OwnLabel(FEMALE, "binary", (FEMALE,), female[:, None], female | male)], "sex")
    if labels == WAVES:
        raise SettingsError("labels=waves are learned with task=segment")
    if not labels:
        raise SettingsError(
            f"which labels? set labels=NAME ({', '.join((*SPACES, *OF_PEOPLE, WAVES))}), or labels=PATH of a table"
        )
    raise SettingsError(
        f"there are no labels {labels!r}{nearest(labels, (*SPACES, *OF_PEOPLE, WAVES))} (a table is given as a path: "
        f"labels.csv, ./{labels})"
    )


def side_by_side(labels: Sequence[Label], title: str, left_out: tuple[str, ...] = ()) -> Targets:
    """Labels that one head can learn, over the rows where one of them is known.

    They are all numbers, or one that chooses among classes, or any number of yes-or-no ones. SettingsError for others.
    """
    kinds = sorted({label.kind for label in labels})
    known = np.stack([label.known for label in labels], axis=1)
    rows = np.flatnonzero(known.any(1))
    if kinds == ["numbers"]:
        numbers = np.concatenate([label.values for label in labels], axis=1)[rows]
        values = np.where(known[rows], numbers, np.nan).astype(np.float32)
        return Targets("numbers", tuple(label.name for label in labels), rows, values, title, left_out)
    if kinds == ["classes"] and len(labels) == 1:
        chosen = labels[0].values[rows].argmax(1).astype(np.int16)
        return Targets("classes", labels[0].classes, rows, chosen, title, left_out)
    if not set(kinds) <= {"binary", "multilabel"}:
        given = ", ".join(f"{label.name} ({label.kind})" for label in labels)
        raise SettingsError(
            f"one model cannot learn {given}: choose labels of one kind (numbers, yes or no), or one of several classes"
        )
    marks = [np.where(label.known[:, None], label.values, -1)[rows] for label in labels]
    several = sum(label.kind == "multilabel" for label in labels) > 1
    names = tuple(
        f"{label.name}: {each}" if several and label.kind == "multilabel" else each
        for label in labels
        for each in label.classes
    )
    return Targets("multilabel", names, rows, np.concatenate(marks, axis=1).astype(np.int8), title, left_out)


def _codes(corpus: Corpus, settings: SupervisedSettings, train: Index) -> Targets:
    codes: list[Sequence[str]] = _column(corpus, "labels")
    names = corpus.index["record_id"].to_numpy()
    of_recordings = {recording_of(names[row]): codes[row] for row in train.tolist()}  # not of windows
    space = label_space(settings.labels, list(of_recordings.values()), settings.min_positives)
    if not space.classes:
        raise SettingsError(
            f"labels={settings.labels}: no class has {settings.min_positives} recordings in the training part; lower "
            "objective.min_positives"
        )
    truth = space.targets(codes)
    if settings.one_class:
        label = OwnLabel(space.name, "classes", space.classes, truth, truth.sum(1) == 1)
        return side_by_side([label], f"{space.title}, one of them", space.left_out)
    label = OwnLabel(space.name, "multilabel", space.classes, truth, np.asarray(truth.any(1)))
    return side_by_side([label], space.title, space.left_out)


def _waves(corpus: Corpus, settings: SegmentationSettings) -> Targets:
    if settings.labels not in ("", WAVES):
        raise SettingsError(f"task=segment learns labels=waves, not labels={settings.labels}")
    marked = _column(corpus, WAVES)
    rows = np.array([row for row, waves in enumerate(marked) if waves], np.int64)
    waves = [waves_in(marked[row]) for row in rows.tolist()]
    masks = wave_masks(waves, settings.min_leads) if settings.leads == "shared" else lead_masks(waves)
    scored = (masks >= 0).any(axis=tuple(range(1, masks.ndim)))
    return Targets(WAVES, WAVE_KINDS, rows[scored], masks[scored], "P, QRS and T waves")


def _column(corpus: Corpus, name: str) -> list[Any]:
    """A column of the corpus over the rows of its index."""
    return [value for shard in corpus.manifest.shards for value in corpus.columns(shard, [name])[name].to_pylist()]
