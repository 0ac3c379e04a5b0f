"""Which rows may be trained on: splits by patient, never by recording.

Folds decide where a source has them (PTB-XL: 1-8 train, 9 validation, 10 test; Strodthoff et al. 2021,
doi:10.1109/JBHI.2020.3022989; a user's own arrays may have theirs, 1 to 10). LUDB has none: two fifths of its records,
chosen by a hash of the record's name, are the test set for good. Of other sources without folds two fifths of the
patients are, by a hash of the patient's id; of recordings without one, two fifths of the recordings. Version 0.1
hashed every recording and then held out all of a patient of whom one was chosen: 64 % of the patients with two
recordings, 99 % of those with ten. `hashed_test_by` can ask for that again, to go on with its runs and to evaluate its
encoders; for LUDB both are the same.

Rows tied together, by patient, by the same signal in another source, by a published number or by one file that holds
several rhythms, always share the strictest role among them, so a test recording that comes in twice never leaks into
training. The Challenge sets hold all of PTB-XL again, `HR00001` being record 1: where the corpus does not hold that
record too, its fold is not known here, and the copy is held out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from beatray.record import BLANK
from beatray.settings import CorpusSettings

RHYTHM = r"^(files/.+)/rhythm-\d+$"
"""Further rhythms of one file (HL7 aECG): recordings of their own, of the same person."""
PTBXL_NUMBER = r"^(?:ptbxl/|cinc/HR)0*(\d{1,6})(?:#\d+)?$"
"""Record ids of PTB-XL and of its copies in the PhysioNet/CinC Challenge sets."""


FOLDS = 10
"""That PTB-XL publishes."""
FIFTHS = 5
OWN_PATIENTS = ("ludb",)
"""Sources in which every recording is of another person: the name is as good as an id, and no id key changes it."""


class Role(IntEnum):
    """What a row may be used for; the larger value wins within a group of tied rows."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True, slots=True)
class SplitPolicy:
    """Which folds are kept out of training, and how much of a source without folds is its test set."""

    validation_folds: tuple[int, ...] = (9,)
    test_folds: tuple[int, ...] = (10,)
    hashed_test_sources: tuple[str, ...] = ("ludb",)
    hashed_test_fifths: int = 2
    hashed_test_by: str = "patient"  # or "recording", as version 0.1 did
    fold_rotation: int = 0  # another split than the published one: see `rotated` and `hashed_fifth`
    train_on_unknown_copies: bool = False  # copies of PTB-XL whose fold this corpus does not know


def policy_of(settings: CorpusSettings) -> SplitPolicy:
    """The split policy that the corpus settings ask for."""
    return SplitPolicy(
        validation_folds=settings.validation_folds,
        test_folds=settings.test_folds,
        hashed_test_sources=settings.hashed_test_sources,
        hashed_test_by=settings.hashed_test_by,
        fold_rotation=settings.fold_rotation,
        train_on_unknown_copies=settings.train_on_unknown_copies,
    )


def hashed_fifth(name: str, rotation: int = 0) -> int:
    """0..4, by BLAKE2b of a patient's id or a record's name: stable whatever else is there; a rotation deals anew."""
    named = f"{rotation}/{name}" if rotation else name
    return int.from_bytes(hashlib.blake2b(named.encode(), digest_size=8).digest(), "little") % FIFTHS


def rotated(fold: NDArray[np.int16], rotation: int) -> NDArray[np.int16]:
    """The ten folds, numbered anew from fold 1 + rotation on: ten splits, each with other test folds."""
    return np.where((fold > 0) & (fold <= FOLDS), (fold - 1 - rotation) % FOLDS + 1, fold).astype(np.int16)


def assign_roles(index: pd.DataFrame, policy: SplitPolicy) -> NDArray[np.int8]:
    """Role of every row of `index` (columns record_id, patient_id, source, fold, content_hash).

    Folds count where a source has them: those that PTB-XL publishes, and those of a user's own arrays.
    """
    source, fold = index["source"].to_numpy(), rotated(index["fold"].to_numpy(np.int16), policy.fold_rotation)
    roles = np.zeros(len(index), np.int8)
    roles[np.isin(fold, policy.validation_folds)] = Role.VALIDATION
    roles[np.isin(fold, policy.test_folds)] = Role.TEST
    hashed = np.isin(source, policy.hashed_test_sources)
    number, names = pd.factorize(_dealt_by(index[hashed], policy))
    chosen = [hashed_fifth(str(name), policy.fold_rotation) < policy.hashed_test_fifths for name in names]
    roles[np.flatnonzero(hashed)[np.array(chosen, bool)[number]]] = Role.TEST
    groups = tied_groups(index)
    if not policy.train_on_unknown_copies:
        numbers = published_numbers(index["record_id"])
        known = np.isin(numbers, numbers[(source == "ptbxl") & (numbers >= 0)])
        roles[(numbers >= 0) & ~known] = Role.TEST
    strictest = np.zeros(groups.max(initial=-1) + 1, np.int8)
    np.maximum.at(strictest, groups, roles)
    return strictest[groups]


def drawn_patients(index: pd.DataFrame, most: int, rotation: int = 0) -> NDArray[np.bool_]:
    """Which rows of `index` to keep so that at most `most` are kept: whole patients, in the order of a hash of their
    id (of the recording's name without one), until the next does not fit. So a larger `most` keeps all that a
    smaller one does.
    """
    owner = index["patient_id"].where(index["patient_id"].notna(), "recording:" + of_one_person(index["record_id"]))
    numbers, owners = pd.factorize(owner)
    counts = np.bincount(numbers, minlength=len(owners))
    digests = [hashlib.blake2b(f"{rotation}/{name}".encode(), digest_size=8).digest() for name in owners]
    kept, left = np.zeros(len(owners), bool), most
    for position in sorted(range(len(owners)), key=lambda each: digests[each]):
        if counts[position] > left:
            break
        kept[position], left = True, left - int(counts[position])
    return kept[numbers]


def _dealt_by(rows: pd.DataFrame, policy: SplitPolicy) -> pd.Series[str]:
    """What decides the part of each row: the patient where the source knows one, else the recording."""
    if policy.hashed_test_by == "recording":
        return rows["record_id"].str.replace("#.*", "", regex=True)
    recording = of_one_person(rows["record_id"])
    return recording.where(rows["patient_id"].isna() | rows["source"].isin(OWN_PATIENTS), rows["patient_id"])


def of_one_person(record_ids: pd.Series[str]) -> pd.Series[str]:
    """The name that stands for the person of each row where no patient is known: that of the recording, or of the file
    that several rhythms are from."""
    recording = record_ids.str.replace("#.*", "", regex=True)  # partition has no columns where there is no row
    return recording.str.replace(RHYTHM, r"\1", regex=True)


def tied_groups(index: pd.DataFrame) -> NDArray[np.int64]:
    """Group number of every row: rows of one recording, one patient or one signal share a group.

    Connected components of the bipartite graph between rows and their patient, content-hash and PTB-XL number keys.
    """
    n = len(index)
    if n == 0:
        return np.empty(0, np.int64)
    owner = index["patient_id"].where(index["patient_id"].notna(), "recording:" + of_one_person(index["record_id"]))
    patient = pd.factorize(owner)[0]
    signal = pd.factorize(index["content_hash"])[0] + patient.max() + 1
    rows = np.arange(n)
    with_signal = np.flatnonzero(index["content_hash"] != BLANK)
    numbers = published_numbers(index["record_id"])
    copies = np.flatnonzero(numbers >= 0)
    keys = np.concatenate([patient, signal[with_signal], numbers[copies] + signal.max() + 1])
    size = n + int(keys.max()) + 1
    from_rows = np.concatenate([rows, with_signal, copies])
    graph = coo_array((np.ones(len(keys), np.int8), (from_rows, n + keys)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:n], np.int64)


def published_numbers(record_ids: pd.Series[str]) -> NDArray[np.int64]:
    """The number under which PTB-XL published a row's recording; -1 for a recording that is not of PTB-XL."""
    found = record_ids.str.extract(PTBXL_NUMBER, expand=False)
    return np.asarray(pd.to_numeric(found).fillna(-1), np.int64)


def duplicates(index: pd.DataFrame) -> pd.DataFrame:
    """Rows whose signal occurs more than once, ordered by signal."""
    repeated = index[index.duplicated("content_hash", keep=False) & (index["content_hash"] != BLANK)]
    return repeated.sort_values(["content_hash", "record_id"])
