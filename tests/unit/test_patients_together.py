"""train.keep_patients_together: recordings of a patient meet in one global batch, in an order as exact as the other."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from test_order import RAGGED, taken

from beatray.augment.draws import record_key
from beatray.train.blocks import patient_keys
from beatray.train.order import OrderSettings, epoch_order, share, steps_per_epoch

BATCH = 48


def patients(per_patient: int, seed: int = 0) -> np.ndarray:
    """Keys of the rows of RAGGED: patients with so many recordings, anywhere in the corpus."""
    owners = np.arange(sum(RAGGED)) // per_patient
    return np.random.default_rng(seed).permutation(owners)


def near(keys: np.ndarray) -> np.ndarray:
    """As corpora are: the recordings of a patient lie close together, here within some 40 rows."""
    position = np.arange(len(keys)) + np.random.default_rng(1).uniform(0, 40, len(keys))
    return np.sort(keys)[np.argsort(np.argsort(position))]


def batches_of(order: np.ndarray, keys: np.ndarray) -> dict[int, set[int]]:
    """The batches in which each patient occurs."""
    starts = np.concatenate([[0], np.cumsum(RAGGED)[:-1]])
    found: dict[int, set[int]] = defaultdict(set)
    for position, (group, row) in enumerate(order.tolist()):
        found[int(keys[starts[group] + row])].add(position // BATCH)
    return found


def settings(keys: np.ndarray | None, window: int = 8) -> OrderSettings:
    return OrderSettings(seed=5, batch_size=BATCH, streams=4, window=window, patients=keys)


def test_a_window_over_the_whole_corpus_brings_every_patient_together() -> None:
    keys = patients(3)
    order = epoch_order(RAGGED, settings(keys, window=1000), 0)
    assert len({tuple(row) for row in order.tolist()}) == sum(RAGGED) == len(order)
    assert all(len(batches) == 1 for batches in batches_of(order, keys).values())


@pytest.mark.parametrize("parts", [2, 3])
def test_a_patient_is_in_one_micro_batch_of_its_batch(parts: int) -> None:
    keys = patients(2)
    order = epoch_order(RAGGED, replace(settings(keys, window=1000), parts=parts), 0)
    assert len({tuple(row) for row in order.tolist()}) == sum(RAGGED) == len(order)
    owner = keys[np.concatenate([[0], np.cumsum(RAGGED)[:-1]])[order[:, 0]] + order[:, 1]]
    where: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for step in range(len(order) // BATCH):  # the short last batch has room for an odd number of rows in each
        for part, (rows, _) in enumerate(share(len(order), BATCH, step, 0, 1, parts)):
            for patient in owner[rows].tolist():
                where[patient].add((step, part))
    assert all(len(found) == 1 for found in where.values())


def test_patients_whose_recordings_lie_close_meet_far_more_often_than_by_chance() -> None:
    keys = near(patients(3))
    together = batches_of(epoch_order(RAGGED, settings(keys), 0), keys)
    plain = batches_of(epoch_order(RAGGED, settings(None), 0), keys)
    share = [np.mean([len(batches) == 1 for batches in found.values()]) for found in (together, plain)]
    assert share[0] > 0.75 and share[1] < 0.2, share


def test_it_is_a_function_of_seed_epoch_and_manifest_and_still_shuffles() -> None:
    keys = near(patients(2))
    first = epoch_order(RAGGED, settings(keys), 0)
    assert np.array_equal(first, epoch_order(RAGGED, settings(keys.copy()), 0))
    assert not np.array_equal(first, epoch_order(RAGGED, settings(keys), 1))
    groups = {tuple(sorted(set(first[i : i + BATCH, 0].tolist()))) for i in range(0, 480, BATCH)}
    assert all(len(each) > 4 for each in groups)  # rows of many row groups in every batch


@pytest.mark.parametrize("world", [2, 3])
def test_global_batches_do_not_depend_on_the_number_of_ranks_nor_on_where_a_run_goes_on(world: int) -> None:
    order = settings(near(patients(3)))
    per_epoch = steps_per_epoch(sum(RAGGED), BATCH)
    whole = taken(RAGGED, order, 1, (0, 0), 2 * per_epoch)
    assert taken(RAGGED, order, world, (0, 0), 2 * per_epoch) == whole
    assert taken(RAGGED, order, world, divmod(per_epoch + 7, per_epoch), per_epoch - 7) == whole[per_epoch + 7 :]


def test_a_patient_with_more_recordings_than_a_batch_holds_is_split_and_nothing_is_lost() -> None:
    keys = np.zeros(sum(RAGGED), np.int64)
    keys[: sum(RAGGED) // 2] = np.arange(sum(RAGGED) // 2) // 2 + 1
    order = epoch_order(RAGGED, settings(keys, window=1000), 0)
    assert len({tuple(row) for row in order.tolist()}) == sum(RAGGED)


def test_keys_of_patients_and_of_those_who_are_not_known() -> None:
    own = np.array([record_key(name) for name in ("a", "b", "c")])
    keys = patient_keys(["7", None, "7"], own)
    assert keys[0] == keys[2] != keys[1] == own[1]
    assert keys[0] not in own.tolist()
