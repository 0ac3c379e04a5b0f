"""From settings to a `RunSpec` for any objective: one that learns from labels first gets its targets.

The corpus settings decide who trains, validates and tests (corpus/splits.py): no test recording is trained or
validated on, none of its targets travels, and one that the encoder was pretrained on is refused. Where the splits name
no labelled recording to validate on, a share of the training patients does; a `fraction` is one of patients, smaller
ones lie in larger ones.

What the labels turned out to be (names, balanced weights, mean and SD of the training part, a hash of all targets that
are used) is written into the objective's settings: a run that is continued must find the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.corpus.reader import Corpus
from beatray.corpus.splits import Role, assign_roles, drawn_patients, policy_of, tied_groups
from beatray.errors import CheckpointError, SettingsError
from beatray.evaluate.label_spaces import TABLE
from beatray.evaluate.recordings import recording_of
from beatray.evaluate.split import nested_fractions
from beatray.finetune.table_targets import targets_of_table
from beatray.finetune.targets import WAVES, Index, Targets, targets_of
from beatray.models.encoder_folder import seen_by
from beatray.objectives.registry import objective_class, objective_settings
from beatray.objectives.segmentation import SegmentationSettings
from beatray.objectives.supervised import SupervisedSettings
from beatray.settings import PretrainSettings
from beatray.storage.store import absolute
from beatray.train import prepare as pretraining
from beatray.train.prepare import LabelledParts, opened
from beatray.train.run_spec import RunSpec
from beatray.train.targets import TargetTable

VALIDATION_SEED = 0x7A11
LEAST_VALIDATION = 8
"""Patients that validate at least, where training patients do."""
PRETRAINED_RATE, RANDOM_RATE = 0.1, 1.0
"""The encoder's learning rate as a part of the head's: each start gets the rate that suits it."""
HARDLY = 0.01
"""A smaller part is more likely a rate that was meant as such."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Positions in the corpus index: who trains, validates, and tests; all of them labelled."""

    train: Index
    validation: Index
    test: Index


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that follows from the settings of an objective that learns from labels, and a corpus."""

    corpus: Corpus
    settings: PretrainSettings
    targets: Targets
    parts: Parts

    def owners(self, rows: Index) -> list[str]:
        """Whose recordings these are: the patient; where none is known, the recording with all its windows."""
        index, known = self.corpus.index, self.targets.owners
        patients = index["patient_id"].tolist() if known is None else known
        records = index["record_id"].tolist()
        return [
            patients[row] if isinstance(patients[row], str) else recording_of(records[row]) for row in rows.tolist()
        ]

    def recordings(self, rows: Index) -> tuple[Index, Index]:
        """The rows with the windows of each recording side by side, and where each recording begins among them.

        Windows of one recording with different targets (a table may give them) count by themselves; of waves, each
        window has its own targets.
        """
        names: list[Any] = [recording_of(name) for name in self.corpus.index["record_id"].iloc[rows]]
        if self.targets.kind != WAVES:
            names = [(name, value.tobytes()) for name, value in zip(names, self.values(rows), strict=True)]
        numbers: dict[Any, int] = {}
        numbered = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
        order = np.argsort(numbered, kind="stable")
        return rows[order], np.flatnonzero(np.diff(numbered[order], prepend=-1))

    def values(self, rows: Index) -> NDArray[Any]:
        """The targets of rows that have some."""
        found: NDArray[Any] = self.targets.values[np.searchsorted(self.targets.rows, rows)]
        return found

    def table(self, rows: Index) -> TargetTable:
        """The same by record key."""
        keys = np.array([record_key(name) for name in self.corpus.index["record_id"].iloc[rows]], np.int64)
        return TargetTable.of(keys, self.values(rows), self.targets.nothing)

    def learned(self) -> TargetTable:
        """The targets that are trained or validated on."""
        return self.table(np.union1d(self.parts.train, self.parts.validation))


def prepare_run(settings: PretrainSettings) -> RunSpec:
    """All a rank needs, for any objective; clear errors before anything starts."""
    return prepared(settings)[0]


def prepared(settings: PretrainSettings) -> tuple[RunSpec, Assignment | None]:
    """The same, with what the model at the end is made of, for an objective that learns from labels."""
    if not objective_class(settings.objective["name"]).supervised:
        return pretraining.prepare_run(settings), None
    if settings.objective.get("from_scratch") and settings.encoder_weights is None:
        raise SettingsError(
            "from_scratch=true compares with an encoder: name it (encoder=PATH, in a sweep encoder.weights=PATH); "
            "encoder=random alone trains from random weights"
        )
    found = assignment(settings)
    refuse_seen_tests(found)
    table = found.learned()
    filled: dict[str, Any] = {"names": found.targets.names, "targets_sha256": table.sha256()}
    own = settings_of(found.settings)
    if own.encoder_lr is None:
        filled["encoder_lr"] = RANDOM_RATE if settings.first_weights is None else PRETRAINED_RATE
    if isinstance(own, SupervisedSettings):
        filled |= _label_settings(found, own)
    try:
        own = replace(own, **filled)
    except ValueError as error:
        raise SettingsError(f"objective.{error}") from error
    settings = replace(found.settings, objective={"name": settings.objective["name"], **asdict(own)})
    labelled = LabelledParts(found.parts.train, found.parts.validation, table)
    run_spec = pretraining.prepare_run(settings, found.corpus, labelled)
    return replace(run_spec, test_targets=found.table(found.parts.test).sha256()), replace(found, settings=settings)


def settings_of(settings: PretrainSettings) -> SupervisedSettings | SegmentationSettings:
    """The settings of an objective that learns from labels."""
    content = {key: value for key, value in settings.objective.items() if key != "name"}
    made = objective_settings(settings.objective["name"], content)
    if not isinstance(made, (SupervisedSettings, SegmentationSettings)):
        raise SettingsError(f"objective={settings.objective['name']} is none that this version can prepare labels for")
    return made


def assignment(settings: PretrainSettings) -> Assignment:
    """The corpus, its targets and who trains; a function of settings and snapshot, also after the run."""
    settings, corpus = opened(settings)
    own = settings_of(settings)
    if isinstance(own, SupervisedSettings) and own.table.table:
        own = replace(own, table=replace(own.table, table=absolute(own.table.table)))
        settings = replace(settings, objective={"name": settings.objective["name"], **asdict(own)})
    seed = settings.seed if own.fraction_seed is None else own.fraction_seed
    roles = assign_roles(corpus.index, policy_of(settings.corpus))
    targets = _targets(corpus, own, roles)
    of_role = [targets.rows[roles[targets.rows] == role] for role in (Role.TRAIN, Role.VALIDATION, Role.TEST)]
    train, validation, test = of_role
    what = _labels_text(own, targets)
    if len(train) < 2:
        raise SettingsError(
            f"{what}: {len(train)} recordings of the training part of {settings.corpus.path} have such labels"
            f"{_elsewhere(len(validation) + len(test))}"
        )
    index = corpus.index
    if targets.owners is not None:
        index = index.assign(patient_id=np.array(targets.owners, object))
    groups = [str(group) for group in tied_groups(index).tolist()]  # patients, and copies of one signal
    if not len(validation):
        pool = nested_fractions(groups, train, [own.validation_share], VALIDATION_SEED + seed)
        taken = next(iter(pool.values()))
        train = np.setdiff1d(train, taken)
        some = nested_fractions(groups, taken, [own.fraction], seed, LEAST_VALIDATION)
        validation = next(iter(some.values()))
    if not len(train):
        raise SettingsError(f"{what}: the training part is one patient; none is left to train on")
    chosen = next(iter(nested_fractions(groups, train, [own.fraction], seed).values()))
    most = settings.corpus.most_recordings
    if most is not None:
        few = chosen[drawn_patients(index.iloc[chosen], most, settings.corpus.fold_rotation)]
        if not len(few):
            raise SettingsError(
                f"{what}: corpus.most_recordings={most} holds no whole patient of the {len(chosen)} recordings to "
                "train on; raise it"
            )
        chosen = few
    return Assignment(corpus, settings, targets, Parts(chosen, validation, test))


def doubts(found: Assignment) -> list[str]:
    """Warnings: no labelled recording is held out to test the model on; an encoder that will hardly learn."""
    warnings = []
    if not len(found.parts.test):
        sources = sorted(set(found.corpus.index["source"].iloc[found.parts.train]))
        held = sorted({*found.settings.corpus.hashed_test_sources, *sources})
        warnings.append(
            "no labelled recording is held out, so nothing will test the model: corpus.hashed_test_sources="
            f"[{','.join(held)}] holds out two fifths of the patients of sources without published folds, "
            "corpus.test_folds=[N,...] published folds"
        )
    part, rate = settings_of(found.settings).encoder_lr, found.settings.train.learning_rate
    if part is not None and part < HARDLY:
        warnings.append(
            f"objective.encoder_lr={part:g} is a part of train.learning_rate={rate:g}, so the encoder learns at "
            f"{part * rate:.3g}: if {part:g} is the rate that is meant, set objective.encoder_lr={part / rate:.3g}"
        )
    return warnings


def refuse_seen_tests(found: Assignment) -> None:
    """Raise CheckpointError where the encoder was pretrained on labelled test recordings, unless they are left out."""
    weights, test = found.settings.encoder_weights, found.parts.test
    if weights is None or settings_of(found.settings).seen_tests == "leave_out":
        return
    rows = found.corpus.index.iloc[test]
    seen = seen_by(weights, rows["content_hash"])
    if seen.any():
        raise CheckpointError(
            f"the encoder {weights} was pretrained on {int(seen.sum())} of the {len(test)} labelled test recordings "
            f"({', '.join(rows['record_id'][seen].head(3))}, ...): scores on them would mean nothing. Set the corpus. "
            "settings it was pretrained with, or seen_tests=leave_out, which scores the others alone"
        )


def _targets(corpus: Corpus, own: SupervisedSettings | SegmentationSettings, roles: NDArray[np.int8]) -> Targets:
    if isinstance(own, SupervisedSettings) and own.labels == TABLE:
        return targets_of_table(corpus, own, roles)
    return targets_of(corpus, own, np.flatnonzero(roles == Role.TRAIN))


def _labels_text(own: SupervisedSettings | SegmentationSettings, targets: Targets) -> str:
    """The labels as they were set, for messages."""
    return f"labels={targets.title if own.labels in ('', TABLE) else own.labels}"


def _elsewhere(count: int) -> str:
    if not count:
        return ": they were not ingested with it, or another corpus has them"
    return f", {count} of those held out; change corpus.test_folds or corpus.hashed_test_sources"


def _label_settings(found: Assignment, own: SupervisedSettings) -> dict[str, Any]:
    """The settings that follow from the labels of the training part."""
    targets, values = found.targets, found.values(found.parts.train)
    if (targets.kind == "numbers") != (own.task == "regress"):
        what, task = ("numbers", "regress") if targets.kind == "numbers" else ("no numbers", "classify")
        raise SettingsError(f"{_labels_text(own, targets)} are {what}: set task={task}")
    filled: dict[str, Any] = {"kind": targets.kind}
    if targets.kind == "numbers":
        unknown = [name for name, each in zip(targets.names, np.isfinite(values).T, strict=True) if not each.any()]
        if unknown:
            raise SettingsError(
                f"{_labels_text(own, targets)}: {unknown[0]} is known in none of the {len(values)} recordings to train "
                "on; leave it out (labels.columns=[...]), or let some of those that have it train (corpus.test_folds, "
                "corpus.hashed_test_sources, fraction)"
            )
        mean, sd = np.nanmean(values.astype(np.float64), 0), np.nanstd(values.astype(np.float64), 0)
        constant = [name for name, each in zip(targets.names, sd, strict=True) if not each > 0]
        if constant:
            raise SettingsError(f"{constant[0]} is the same in all recordings of the training part: nothing to learn")
        return {**filled, "mean": tuple(mean.tolist()), "sd": tuple(sd.tolist())}
    counts = counts_of(targets.kind, values, len(targets.names))
    if targets.kind == "multilabel" and not (counts > 0).all(1).any():
        raise SettingsError(
            f"{_labels_text(own, targets)}: no target has both values in the training part ({len(values)} recordings)"
        )
    if targets.kind == "classes" and (counts > 0).sum() < 2:
        raise SettingsError(
            f"{_labels_text(own, targets)}: all {int(counts.sum())} labelled recordings of the training part have the "
            "same class: nothing to learn"
        )
    if own.class_weights == "balanced":
        filled["weights"] = tuple(balanced(counts).ravel().tolist())
    return filled


def counts_of(kind: str, values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Recordings of each class (1, K), or with no and yes of each target (C, 2)."""
    if kind == "classes":
        return np.bincount(values[values >= 0].astype(np.int64), minlength=count)[None]
    return np.stack([(values == 0).sum(0), (values > 0).sum(0)], axis=1).astype(np.int64)


def balanced(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights with which all values of a row count the same and the average weight is 1: n / (K n_k); 0 for none."""
    return np.where(counts > 0, counts.sum(1, keepdims=True) / (counts.shape[1] * np.maximum(counts, 1)), 0.0)
