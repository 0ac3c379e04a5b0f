"""Label fractions are nested and by patient; inner folds never share a patient."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from beatray.evaluate.split import nested_fractions, patient_folds, patient_keys, refuse_shared_patients

PATIENTS = [f"p{i // 3}" if i % 7 else None for i in range(300)]
TRAIN = np.arange(20, 280)


def test_fractions_are_nested_by_patient_and_repeatable() -> None:
    parts = nested_fractions(PATIENTS, TRAIN, (0.05, 0.1, 0.5, 1.0), seed=3)
    assert np.array_equal(parts[1.0], TRAIN)
    sizes = [len(np.unique(patient_keys(PATIENTS, part))) for part in parts.values()]
    everyone = sizes[-1]
    assert sizes == [int(f * everyone + 0.5) for f in (0.05, 0.1, 0.5, 1.0)]
    ordered = list(parts.values())
    for small, large in pairwise(ordered):
        assert np.isin(small, large).all() and len(small) < len(large)
        outside = np.setdiff1d(TRAIN, small)
        assert not np.isin(patient_keys(PATIENTS, outside), patient_keys(PATIENTS, small)).any()
    again = nested_fractions(PATIENTS, TRAIN, (0.1,), seed=3)
    assert np.array_equal(again[0.1], parts[0.1])
    assert not np.array_equal(nested_fractions(PATIENTS, TRAIN, (0.1,), seed=4)[0.1], parts[0.1])


def test_folds_cover_everything_once_and_keep_patients_together() -> None:
    folds = patient_folds(PATIENTS, TRAIN, 5, seed=0)
    held = np.concatenate([held_out for _, held_out in folds])
    assert np.array_equal(np.sort(held), np.arange(len(TRAIN)))
    for fit_on, held_out in folds:
        assert np.array_equal(np.sort(np.concatenate([fit_on, held_out])), np.arange(len(TRAIN)))
        keys = patient_keys(PATIENTS, TRAIN)
        assert not np.isin(keys[held_out], keys[fit_on]).any()
        assert abs(len(held_out) - len(TRAIN) / 5) <= 3


def test_a_fraction_keeps_the_patients_that_inner_folds_need() -> None:
    parts = nested_fractions(PATIENTS, TRAIN, (0.001, 0.01, 0.05, 0.1, 0.5, 1.0), seed=0, at_least=2)
    owners = {fraction: set(patient_keys(PATIENTS, part)) for fraction, part in parts.items()}
    assert len(owners[0.001]) == 2 and owners[1.0] == set(patient_keys(PATIENTS, TRAIN))
    ordered = [owners[fraction] for fraction in sorted(owners)]
    assert all(small <= large for small, large in pairwise(ordered))
    assert len(nested_fractions(["a"], np.array([0]), (0.5,), seed=0, at_least=2)[0.5]) == 1


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction"):
        nested_fractions(PATIENTS, TRAIN, (0.0,), seed=0)
    with pytest.raises(ValueError, match="no recording with labels"):
        nested_fractions(PATIENTS, np.empty(0, np.int64), (0.5,), seed=0)
    with pytest.raises(ValueError, match="two patients"):
        patient_folds(["a", "a"], np.array([0, 1]), 3, seed=0)
    with pytest.raises(ValueError, match="p0"):
        refuse_shared_patients(["p0", "p1", "p0"], np.array([0, 1]), np.array([2]))
    refuse_shared_patients([None, None], np.array([0]), np.array([1]))
