"""Who is in which part: nested label fractions and inner folds, always by patient.

Why: a curve over label fractions is only smooth if the small set lies inside the large one, and two recordings of one
patient in both parts of a split make any score a lie. A record without a patient id is its own patient.

Contract: `patients[i]` belongs to record i; an `index` is an int64 array of record positions; all results are sorted
positions. The same (patients, index, seed) gives the same parts on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.errors import SettingsError

Index = NDArray[np.int64]


def patient_keys(patients: Sequence[str | None], index: Index) -> NDArray[np.str_]:
    """One key per position of `index`; records without a patient get a key of their own."""
    keys = [patients[i] or f"record#{i}" for i in index]
    return np.array(keys, np.str_)


def nested_fractions(
    patients: Sequence[str | None], index: Index, fractions: Sequence[float], seed: int, at_least: int = 1
) -> dict[float, Index]:
    """For each fraction in (0, 1] the records of that share of the patients; smaller sets lie in larger ones.

    `at_least` patients each, as far as there are any. Raises ValueError for a fraction outside (0, 1] or an empty
    index.
    """
    ordered = _shuffled_patients(patients, index, seed)
    keys = patient_keys(patients, index)
    parts: dict[float, Index] = {}
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"label fraction {fraction} is not in (0, 1]")
        chosen = ordered[: max(at_least, math.floor(fraction * len(ordered) + 0.5))]
        parts[fraction] = np.sort(index[np.isin(keys, chosen)])
    return parts


def patient_folds(patients: Sequence[str | None], index: Index, n_folds: int, seed: int) -> list[tuple[Index, Index]]:
    """`n_folds` pairs (train, held out) of positions *within `index`*, patients never on both sides.

    Patients are dealt in random order to the fold that is smallest so far, so folds differ by at most one patient's
    records. With fewer patients than folds there are as many folds as patients; raises ValueError for one patient.
    """
    ordered = _shuffled_patients(patients, index, seed)
    n_folds = min(n_folds, len(ordered))
    if n_folds < 2:
        raise SettingsError("inner folds need at least two patients in the training part")
    unique, owner, records = np.unique(patient_keys(patients, index), return_inverse=True, return_counts=True)
    sizes = np.zeros(n_folds, np.int64)
    fold_of_patient = np.empty(len(unique), np.int64)
    for patient in np.searchsorted(unique, ordered):
        smallest = int(np.argmin(sizes))
        fold_of_patient[patient] = smallest
        sizes[smallest] += records[patient]
    fold_of = fold_of_patient[owner]
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(n_folds)]


def fold_subsets(
    patients: Sequence[str | None], train: Index, test: Index, fractions: Sequence[float], n_folds: int, seed: int
) -> dict[float, list[tuple[Index, Index]]]:
    """For each label fraction the (train, test) pairs of one repeat: one without folds (0), or one per fold of `test`.

    A fold's model trains on everything outside the fold: the records of `train`, never tested, and the other folds.
    """
    if not n_folds:
        return {part: [(chosen, test)] for part, chosen in nested_fractions(patients, train, fractions, seed).items()}
    found: dict[float, list[tuple[Index, Index]]] = {fraction: [] for fraction in fractions}
    for others, tested in patient_folds(patients, test, n_folds, seed):
        pool = np.concatenate([train, test[others]])
        for fraction, chosen in nested_fractions(patients, pool, fractions, seed).items():
            found[fraction].append((chosen, test[tested]))
    return found


def refuse_shared_patients(
    patients: Sequence[str | None], first: Index, second: Index, name: str = "training", other: str = "test"
) -> None:
    """Raise ValueError, naming one of them, if a patient has records in both parts."""
    shared = np.intersect1d(patient_keys(patients, first), patient_keys(patients, second))
    if shared.size:
        raise ValueError(f"{shared.size} patients are in both the {name} and the {other} part, e.g. {shared[0]}")


def _shuffled_patients(patients: Sequence[str | None], index: Index, seed: int) -> NDArray[np.str_]:
    unique = np.unique(patient_keys(patients, index))
    if not unique.size:
        raise SettingsError("no recording with labels to train on: choose other test folds, or more recordings")
    return np.asarray(np.random.default_rng([seed, 0x5EED]).permutation(unique), np.str_)
