"""What the recordings of a corpus are taught: targets by row of its index, from the labels that the corpus holds.

A `Taught` is what an objective reads, whatever it came from: the codes of a label space (label_spaces.py),
age or sex, or marked waves (labels.py). Rows that are not in it, and targets of -1 (NaN for numbers), are unknown,
which is not no: of a label space, a recording without any class of the space says nothing.

Contract: `rows` (n,) are sorted positions in the index; `values` (n, ...) as `objectives/supervised.py` and
`segmentation.py` read them. A space that is fitted to labels is fitted to the rows `train`. SettingsError for labels
that are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.reader import Corpus
from beatray.corpus.schema import waves_in
from beatray.errors import SettingsError
from beatray.evaluate.label_spaces import SPACES, label_space
from beatray.evaluate.labels import lead_masks, wave_masks
from beatray.objectives.segmentation import SegmentationSettings
from beatray.objectives.supervised import SupervisedSettings
from beatray.plugins import nearest
from beatray.record import WAVE_KINDS

Index = NDArray[np.int64]

OF_PEOPLE = ("age", "sex")
WAVES = "waves"
FEMALE = "female"


@dataclass(frozen=True, slots=True)
class Taught:
    """The targets of the rows that have any."""

    kind: str  # multilabel, classes, numbers or waves
    names: tuple[str, ...]
    rows: Index
    values: NDArray[Any]
    title: str
    left_out: tuple[str, ...] = ()

    @property
    def nothing(self) -> float:
        """The value of an unknown target."""
        return float("nan") if self.kind == "numbers" else -1.0


def taught_by(corpus: Corpus, settings: SupervisedSettings | SegmentationSettings, train: Index) -> Taught:
    """The targets that the settings name."""
    if isinstance(settings, SegmentationSettings):
        return _waves(corpus, settings)
    labels = settings.labels
    if labels in SPACES:
        return _codes(corpus, settings, train)
    if labels == "age":
        years = np.array([np.nan if age is None else age for age in _column(corpus, "age")], np.float32)
        rows = np.flatnonzero(np.isfinite(years))
        return Taught("numbers", ("age",), rows, years[rows, None], "age in years")
    if labels == "sex":
        female = np.array([{"F": 1, "M": 0}.get(sex, -1) for sex in _column(corpus, "sex")], np.int8)
        rows = np.flatnonzero(female >= 0)
        return Taught("multilabel", (FEMALE,), rows, female[rows, None], "sex")
    if labels == WAVES:
        raise SettingsError("labels=waves are learned with task=segment")
    if not labels:
        raise SettingsError(f"which labels? say labels=NAME ({', '.join((*SPACES, *OF_PEOPLE, WAVES))})")
    raise SettingsError(f"there are no labels {labels!r}{nearest(labels, (*SPACES, *OF_PEOPLE, WAVES))}")


def _codes(corpus: Corpus, settings: SupervisedSettings, train: Index) -> Taught:
    codes: list[Sequence[str]] = _column(corpus, "labels")
    space = label_space(settings.labels, [codes[row] for row in train.tolist()], settings.min_positives)
    if not space.classes:
        raise SettingsError(
            f"labels={settings.labels}: no class has {settings.min_positives} recordings in the training part; lower "
            "objective.min_positives"
        )
    truth = space.targets(codes)
    if settings.one_class:
        rows = np.flatnonzero(truth.sum(1) == 1)
        chosen = truth[rows].argmax(1).astype(np.int16)
        return Taught("classes", space.classes, rows, chosen, f"{space.title}, one of them", space.left_out)
    rows = np.flatnonzero(truth.any(1))
    return Taught("multilabel", space.classes, rows, truth[rows].astype(np.int8), space.title, space.left_out)


def _waves(corpus: Corpus, settings: SegmentationSettings) -> Taught:
    if settings.labels not in ("", WAVES):
        raise SettingsError(f"task=segment learns labels=waves, not labels={settings.labels}")
    marked = _column(corpus, WAVES)
    rows = np.array([row for row, waves in enumerate(marked) if waves], np.int64)
    waves = [waves_in(marked[row]) for row in rows.tolist()]
    masks = wave_masks(waves, settings.min_leads) if settings.leads == "shared" else lead_masks(waves)
    scored = (masks >= 0).reshape(len(masks), -1).any(1)
    return Taught(WAVES, WAVE_KINDS, rows[scored], masks[scored], "P, QRS and T waves")


def _column(corpus: Corpus, name: str) -> list[Any]:
    """A column of the corpus over the rows of its index."""
    return [value for shard in corpus.manifest.shards for value in corpus.columns(shard, [name])[name].to_pylist()]
