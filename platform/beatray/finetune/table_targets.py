"""Targets from a user's own table: yes or no, one of several classes, several classes, or numbers.

One column that chooses among classes is learned by a softmax. Any other columns that are no numbers become yes-or-no
targets, one for each class, called and read as `beatray evaluate` reads the same table (evaluate/own_labels.py); with
task=regress all columns of numbers are learned. An empty cell is unknown, which is not no.

Contract: `targets_of_table` returns `Targets` whose `owners` are the patients that the table knows where the corpus
does not. LabelError for a table that does not fit the corpus or shows a patient in two splits, SettingsError for a task
that it has no column for.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.corpus.label_check import refuse_patients_in_two_splits
from beatray.corpus.label_settings import file_name
from beatray.corpus.label_table import Labels, read_labels
from beatray.corpus.reader import Corpus
from beatray.errors import SettingsError
from beatray.evaluate.metrics import IGNORE
from beatray.evaluate.own_labels import table_space
from beatray.finetune.targets import OwnLabel, Targets, side_by_side
from beatray.objectives.supervised import SupervisedSettings


def targets_of_table(corpus: Corpus, settings: SupervisedSettings, roles: NDArray[np.int8]) -> Targets:
    """The targets of `settings.table`, row by row of the corpus; `roles` are those of its splits."""
    labels = read_labels(settings.table, corpus.index, corpus.recipe, corpus.acquired)
    refuse_patients_in_two_splits(labels, corpus.index, roles)
    title = file_name(labels.table.location)
    numbers = [column for column in labels.targets if column.kind == "numbers"]
    others = [column for column in labels.targets if column.kind != "numbers"]
    if settings.task == "regress":
        if not numbers:
            raise SettingsError(
                f"{title} has no column of numbers ({', '.join(column.name for column in others)}): set task=classify"
            )
        targets = side_by_side(numbers, title)
    elif not others:
        first = numbers[0].name
        raise SettingsError(
            f"{title} has numbers alone ({', '.join(column.name for column in numbers)}): set task=regress, or make "
            f"yes or no of them, as 'labels.targets.low={first} < 40'"
        )
    elif settings.one_class or (len(others) == 1 and others[0].kind == "classes"):
        targets = side_by_side([_one_of_several(labels, title)], title)
    else:
        space = table_space(labels)
        rows = np.flatnonzero((space.truth != IGNORE).any(axis=1))
        targets = Targets("multilabel", space.classes, rows, space.truth[rows], title)
    known = corpus.index["patient_id"]
    everyone = np.arange(len(known))
    owners = labels.owners(everyone, known.where(known.notna(), None).tolist())
    left_out = tuple(f"{each.name}: {each.why}" for each in labels.left_out)
    unused = tuple(f"{column.name}: not of this task" for column in (numbers if targets.kind != "numbers" else others))
    return Targets(
        targets.kind, targets.names, targets.rows, targets.values, title, (*left_out, *unused), owners, _about(labels)
    )


def _one_of_several(labels: Labels, title: str) -> OwnLabel:
    """The one column that gives several classes, where it shows one of them."""
    several = [column for column in labels.targets if column.kind in ("classes", "multilabel")]
    if len(several) != 1:
        raise SettingsError(
            f"objective.one_class=true learns one column of several classes, and {title} has "
            f"{len(several) or 'none'}: set labels.columns=[COLUMN], or leave one_class out"
        )
    column = several[0]
    marks = column.values.astype(bool)
    return OwnLabel(column.name, "classes", column.classes, marks, column.known & (marks.sum(1) == 1))


def _about(labels: Labels) -> dict[str, Any]:
    """What a model folder discloses of the table it was trained on: nothing of its rows."""
    return {
        "table": file_name(labels.table.location),
        "sha256": labels.table.sha256,
        "key": labels.key,
        "key_kind": labels.key_kind,
        "columns": {column.name: column.kind for column in labels.targets},
        "conditions": {name: condition.text for name, condition in labels.conditions.items()},
        "times": None if labels.times is None else asdict(labels.times),
    }
