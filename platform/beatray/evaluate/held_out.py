"""An encoder on the recordings that a corpus holds out: which ones train its heads, choose, and test.

Contract: nothing that the encoder was pretrained on is tested, by the hash of its signal; CheckpointError otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.corpus.label_check import refuse_patients_in_two_splits
from beatray.corpus.label_table import Labels, read_labels
from beatray.corpus.reader import Corpus, Rows
from beatray.corpus.splits import Role, assign_roles, policy_of, tied_groups
from beatray.errors import CheckpointError
from beatray.evaluate.encoders import EncoderSpec
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.metrics import IGNORE
from beatray.evaluate.own_labels import TableSpace, table_space
from beatray.evaluate.recordings import recording_of
from beatray.evaluate.results import Evaluation
from beatray.evaluate.run import Progress, evaluate
from beatray.evaluate.settings import EvaluateSettings
from beatray.evaluate.split import Index
from beatray.models.encoder_folder import check_recipe, describe_encoder, seen_by
from beatray.settings import CorpusSettings

LABELLED_SOURCES = {"snomed": ("ludb", "cinc")}
"""Sources with the labels that the two tasks need, by label space; (ludb, ptbxl) unless listed here."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The labelled recordings of a corpus, and positions in them."""

    rows: Rows
    train: Index
    validation: Index
    test: Index
    own: TableSpace | None = None  # the label space of a user's own table, row by row


def labelled_rows(corpus: Corpus, policy: CorpusSettings, plan: EvaluateSettings) -> HeldOut:
    """What the tasks of the plan are learned and tested on.

    Raises LabelError for a table of labels that does not fit, or by which a patient is in two splits.
    """
    roles = assign_roles(corpus.index, policy_of(policy))
    own: TableSpace | None = None
    labels: Labels | None = None
    if plan.classify.labels == TABLE and "classify" in plan.tasks:
        labels = read_labels(plan.labels, corpus.index, corpus.recipe, corpus.acquired)
        refuse_patients_in_two_splits(labels, corpus.index, roles)
        own = table_space(labels)
        with_waves = (corpus.index["source"] == "ludb").to_numpy() & ("segment" in plan.tasks)
        selected = np.flatnonzero((own.truth != IGNORE).any(axis=1) | with_waves)
    else:
        sources = LABELLED_SOURCES.get(plan.classify.labels, ("ludb", "ptbxl"))
        selected = np.flatnonzero(corpus.index["source"].isin(sources).to_numpy())
    if plan.classify.validation == "inner" or "classify" not in plan.tasks:
        selected = selected[roles[selected] != Role.VALIDATION]
    rows, chosen = corpus.rows(selected), roles[selected]
    index = corpus.index.iloc[selected]
    if labels is not None:
        owners = labels.owners(selected, rows.patient_id)
        index = index.assign(patient_id=np.array(owners, object))
        rows = replace(rows, patient_id=owners)
    rows = replace(rows, patient_id=one_owner(rows.patient_id, index["record_id"], tied_groups(index)))
    train, validation, test = (np.flatnonzero(chosen == role) for role in (Role.TRAIN, Role.VALIDATION, Role.TEST))
    return HeldOut(rows, train, validation, test, None if own is None else own.take(selected))


def one_owner(patients: Sequence[str | None], record_ids: Iterable[str], groups: NDArray[np.int64]) -> list[str | None]:
    """The patients of rows, with one for all rows that are tied, as copies of one signal in two sources are.

    So no copy chooses or tests what the other one trained. `groups` as `splits.tied_groups` gives them.
    """
    owners = [patient or recording_of(name) for patient, name in zip(patients, record_ids, strict=True)]
    first: dict[int, str] = {}
    pairs = list(zip(groups.tolist(), owners, strict=True))
    several = {group for group, owner in pairs if first.setdefault(group, owner) != owner}
    return [
        first[group] if group in several else patient for group, patient in zip(groups.tolist(), patients, strict=True)
    ]


def evaluate_encoder(
    corpus: Corpus,
    policy: CorpusSettings,
    encoder: EncoderSpec,
    plan: EvaluateSettings,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> tuple[Evaluation, HeldOut]:
    """Run the tasks on the corpus's own splits; `folder` as in `run.evaluate`.

    Raises CheckpointError when the encoder was made for another recipe than the corpus's, or was pretrained on a
    recording that it would be tested on.
    """
    if encoder.weights is not None:
        check_recipe(describe_encoder(encoder.weights)["recipe"], corpus.recipe, f"the encoder {encoder.weights}")
        tested = assign_roles(corpus.index, policy_of(policy)) == Role.TEST
        if "segment" in plan.tasks and plan.segment.folds and plan.segment.fold_over == "all":
            tested = tested | (corpus.index["source"] == "ludb").to_numpy()
        refuse_seen(encoder.weights, corpus.index[tested])
    held = labelled_rows(corpus, policy, plan)
    parts = (held.train, held.test, [encoder], plan, progress, held.validation)
    return evaluate(held.rows, *parts, folder, corpus.manifest.hash if folder else "", held.own), held


def refuse_seen(weights: str, test: pd.DataFrame) -> None:
    """Raise CheckpointError if the encoder was pretrained on a test recording, by the hash of its signal."""
    seen = seen_by(weights, test["content_hash"])
    if seen.any():
        examples = ", ".join(test["record_id"][seen].head(3))
        raise CheckpointError(
            f"the encoder {weights} was pretrained on {int(seen.sum())} of the {len(test)} test recordings "
            f"({examples}, ...): its scores would mean nothing. Use the corpus.test_folds it was pretrained with, "
            "evaluate.segment.fold_over=held_out, and, for a run of version 0.1 with other corpus.hashed_test_sources "
            "than ludb, corpus.hashed_test_by=recording."
        )
