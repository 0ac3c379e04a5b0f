"""Roles of rows: folds, patients, equal signals, and copies of PTB-XL under other names."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from beatray.corpus.splits import (
    Role,
    SplitPolicy,
    assign_roles,
    drawn_patients,
    duplicates,
    hashed_fifth,
    published_numbers,
    rotated,
    tied_groups,
)
from beatray.record import BLANK

TRAIN, VALIDATION, TEST = Role.TRAIN, Role.VALIDATION, Role.TEST


def index_of(*rows: tuple[str, str | None, int, str]) -> pd.DataFrame:
    """Rows of (record id, patient, fold, signal)."""
    names, patients, folds, signals = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "record_id": names,
            "patient_id": pd.Series(patients, dtype=object),
            "source": [name.partition("/")[0] for name in names],
            "fold": np.array(folds, np.int16),
            "content_hash": [signal.encode().ljust(16) for signal in signals],
        }
    )


def roles_of(index: pd.DataFrame, policy: SplitPolicy | None = None) -> list[int]:
    return assign_roles(index, policy or SplitPolicy()).tolist()


def test_rows_of_a_patient_share_the_strictest_role() -> None:
    index = index_of(
        ("ptbxl/00001", "ptbxl/7", 1, "a"),
        ("ptbxl/00002", "ptbxl/7", 10, "b"),
        ("ptbxl/00003", "ptbxl/8", 9, "c"),
        ("wfdb/x#0", None, -1, "d"),
        ("wfdb/x#1", None, -1, "b"),  # the signal of a test recording in another file: all windows of that file are out
        ("wfdb/y", None, -1, "e"),
    )
    assert roles_of(index) == [TEST, TEST, VALIDATION, TEST, TEST, TRAIN]


def test_copies_of_ptbxl_have_the_role_of_the_original_even_where_their_gain_is_wrong() -> None:
    index = index_of(
        ("ptbxl/00001", "ptbxl/7", 3, "a"),
        ("ptbxl/00002", "ptbxl/8", 10, "b"),
        ("cinc/HR00001", None, -1, "five times a"),
        ("cinc/HR00002", None, -1, "five times b"),
        ("cinc/A0002", None, -1, "c"),
    )
    assert roles_of(index) == [TRAIN, TEST, TRAIN, TEST, TRAIN]


def test_copies_whose_fold_is_not_known_are_held_out_unless_asked_for() -> None:
    index = index_of(("cinc/HR21837", None, -1, "a"), ("cinc/HR09999", None, -1, "b"), ("cinc/JS00001", None, -1, "c"))
    assert roles_of(index) == [TEST, TEST, TRAIN]
    assert roles_of(index, SplitPolicy(train_on_unknown_copies=True)) == [TRAIN, TRAIN, TRAIN]


def test_a_file_of_several_rhythms_is_of_one_person() -> None:
    names = [f"files/ward/{n}{end}" for n in range(50) for end in ("", "/rhythm-2", "/rhythm-3#0", "/rhythm-3#1")]
    index = index_of(*((name, None, -1, f"signal {n}") for n, name in enumerate(names)))
    roles = np.array(roles_of(index, SplitPolicy(hashed_test_sources=("files",)))).reshape(50, 4)
    assert (roles == roles[:, :1]).all() and set(roles[:, 0]) == {TRAIN, TEST}
    kept = drawn_patients(index, 41).reshape(50, 4)
    assert (kept == kept[:, :1]).all() and kept.sum() == 40
    mixed = index_of(
        ("files/a", None, -1, "x"), ("files/b/rhythm-2", None, -1, "y"), ("wfdb/a/rhythm-2", None, -1, "z")
    )
    assert len(set(tied_groups(mixed))) == 3


def test_windows_without_any_voltage_tie_nobody() -> None:
    index = index_of(*((f"files/{n}#{k}", None, -1, f"{n} {k}") for n in range(40) for k in range(4)))
    policy = SplitPolicy(hashed_test_sources=("files",))
    before = roles_of(index, policy)
    blank = index["record_id"].str.endswith("#2")
    index["content_hash"] = index["content_hash"].where(~blank, pd.Series([BLANK] * len(index)))
    assert roles_of(index, policy) == before and 0 < before.count(TEST) < 160
    assert duplicates(index).empty


def test_folds_of_a_users_own_count_and_others_than_ten_train() -> None:
    index = index_of(*((f"arrays/{fold}", None, fold, f"signal {fold}") for fold in (-1, 0, 1, 8, 9, 10, 11, 19)))
    assert roles_of(index) == [TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, TEST, TRAIN, TRAIN]
    assert roles_of(index, SplitPolicy(fold_rotation=1)) == [TRAIN, TRAIN, TEST, TRAIN, TRAIN, VALIDATION, TRAIN, TRAIN]


def test_published_numbers() -> None:
    names = pd.Series(["ptbxl/00017", "cinc/HR00017", "cinc/HR21837#1", "cinc/Q0017", "ludb/17", "wfdb/HR00017"])
    assert published_numbers(names).tolist() == [17, 17, 21837, -1, -1, -1]


def test_ten_splits_test_every_published_fold_once_and_the_first_is_the_published_one() -> None:
    folds = np.arange(-1, 11, dtype=np.int16)
    assert (rotated(folds, 0) == folds).all()
    tested = [folds[rotated(folds, split) == 10].tolist() for split in range(10)]
    assert sorted(fold for found in tested for fold in found) == list(range(1, 11)) and all(map(len, tested))
    assert all((rotated(folds, split)[folds <= 0] == folds[folds <= 0]).all() for split in range(10))


def many(recordings: int, patients: int = 200) -> pd.DataFrame:
    """So many recordings of each patient of a source without folds."""
    names = [(patient, number) for patient in range(patients) for number in range(recordings)]
    return index_of(*((f"mimic/{p}{n:03d}", f"mimic/p{p}", -1, f"{p} {n}") for p, n in names))


def test_two_fifths_of_the_patients_are_held_out_however_many_recordings_each_has() -> None:
    policy = SplitPolicy(hashed_test_sources=("mimic",))
    expected = np.array([hashed_fifth(f"mimic/p{patient}") < 2 for patient in range(200)])
    assert abs(expected.mean() - 0.4) < 0.08
    for recordings in (1, 2, 10):
        roles = np.array(roles_of(many(recordings), policy)).reshape(200, recordings)
        assert ((roles == TEST) == expected[:, None]).all()
    as_before = np.array(roles_of(many(10), SplitPolicy(hashed_test_sources=("mimic",), hashed_test_by="recording")))
    assert (as_before == TEST).mean() > 0.95


def test_a_recording_without_a_patient_is_dealt_by_its_name_whatever_its_windows() -> None:
    rows = [(f"mimic/{number}#{window}", None, -1, f"{number} {window}") for number in range(50) for window in range(3)]
    roles = np.array(roles_of(index_of(*rows), SplitPolicy(hashed_test_sources=("mimic",)))).reshape(50, 3)
    expected = [TEST if hashed_fifth(f"mimic/{number}") < 2 else TRAIN for number in range(50)]
    assert (roles == np.array(expected)[:, None]).all()


def test_ludb_keeps_its_test_records_under_an_id_key_and_as_they_were_published() -> None:
    ids = [f"ludb/{number}" for number in range(1, 201)]
    plain = index_of(*((name, name, -1, name) for name in ids))
    hashed = plain.assign(patient_id=[f"ludb/{number:032x}" for number in range(200)])
    roles = [name for name, role in zip(ids, roles_of(plain), strict=True) if role == TEST]
    assert roles_of(plain) == roles_of(hashed) == roles_of(plain, SplitPolicy(hashed_test_by="recording"))
    assert (len(roles), roles[:8]) == (74, [f"ludb/{number}" for number in (1, 2, 7, 8, 9, 10, 11, 12)])


def test_another_split_deals_sources_without_folds_anew() -> None:
    names = [f"ludb/{number}" for number in range(1, 201)]
    dealt = np.array([[hashed_fifth(name, split) for name in names] for split in range(10)])
    assert len({tuple(row) for row in dealt.tolist()}) == 10
    assert (abs((dealt < 2).mean(axis=1) - 0.4) < 0.12).all()
    index = pd.DataFrame(
        {
            "record_id": names,
            "patient_id": names,
            "source": "ludb",
            "fold": -1,
            "content_hash": [name.encode() for name in names],
        }
    )
    for split in (0, 3):
        roles = assign_roles(index, SplitPolicy(fold_rotation=split))
        assert ((roles == Role.TEST) == (dealt[split] < 2)).all()


def test_fewer_recordings_are_whole_patients_and_part_of_more() -> None:
    patients = [None if n % 5 == 0 else f"ptbxl/{n // 3}" for n in range(300)]
    index = index_of(*((f"ptbxl/{n:05}", patients[n], 1, str(n)) for n in range(300)))
    kept = {most: drawn_patients(index, most) for most in (1, 40, 100, 299, 300, 1000)}
    for most, chosen in kept.items():
        assert min(most, 300) - 3 < chosen.sum() <= most
        for patient in {each for each in patients if each}:
            own = np.array([each == patient for each in patients])
            assert chosen[own].all() or not chosen[own].any()
    order = sorted(kept)
    assert all((kept[more] | ~kept[fewer]).all() for fewer, more in pairwise(order))
    assert kept[300].all() and kept[1000].all()
    other = drawn_patients(index, 100, rotation=1)
    assert (other != kept[100]).any()
    shuffled = index.sample(frac=1.0, random_state=1)
    again = pd.Series(drawn_patients(shuffled, 100), shuffled.index).sort_index()
    assert np.array_equal(again.to_numpy(), kept[100])  # whatever the order of the rows
