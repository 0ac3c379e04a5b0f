"""The order of an epoch: complete, reproducible, shuffled, and the same for every number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beatray.train.order import OrderSettings, StepSequence, epoch_order, lanes_for, share, steps_per_epoch

RAGGED = [128] * 30 + [77, 3, 128, 1, 64]


def taken(
    sizes: list[int], order: OrderSettings, world: int, start: tuple[int, int], n_steps: int
) -> list[list[tuple[int, int, int]]]:
    """(epoch, row group, row) of every global step, put together from the plans of all ranks."""
    steps: list[list[tuple[int, int, int]]] = [[] for _ in range(n_steps)]
    for rank in range(world):
        plan = StepSequence(sizes, order, rank, world, start)
        group_of: dict[int, int] = {}
        position = 0
        while position < n_steps:
            chunk, units = plan.chunk(min(7, n_steps - position))
            group_of |= {unit.number: unit.group for unit in units}
            for step in chunk:
                rows = zip(step.unit.tolist(), step.row.tolist(), strict=True)
                steps[position] += [(step.epoch, group_of[unit], row) for unit, row in rows]
                position += 1
    return steps


def test_every_row_once_and_differently_shuffled_each_epoch() -> None:
    order = OrderSettings(seed=3, batch_size=64)
    epochs = [epoch_order(RAGGED, order, epoch) for epoch in range(3)]
    for rows in epochs:
        assert len({tuple(row) for row in rows.tolist()}) == sum(RAGGED) == len(rows)
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(epochs[0], epoch_order(RAGGED, order, 0))
    assert not np.array_equal(epochs[0], epoch_order(RAGGED, OrderSettings(4, 64), 0))


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    order = OrderSettings(seed=1, batch_size=48)
    n_steps = 2 * steps_per_epoch(sum(RAGGED), 48) + 5
    assert taken(RAGGED, order, world, (0, 0), n_steps) == taken(RAGGED, order, 1, (0, 0), n_steps)


def test_a_plan_started_in_the_middle_goes_on_exactly() -> None:
    order = OrderSettings(seed=1, batch_size=64)
    per_epoch = steps_per_epoch(sum(RAGGED), 64)
    whole = taken(RAGGED, order, 2, (0, 0), 2 * per_epoch)
    for done in (1, per_epoch - 1, per_epoch, per_epoch + 17):
        rest = taken(RAGGED, order, 3, divmod(done, per_epoch), 2 * per_epoch - done)
        assert rest == whole[done:]


def test_rows_used_lets_every_unit_go_when_its_last_row_is_taken() -> None:
    plan = StepSequence(RAGGED, OrderSettings(seed=2, batch_size=64), 1, 2, (0, 3))
    steps, units = plan.chunk(steps_per_epoch(sum(RAGGED), 64) - 3)
    counts = np.bincount(np.concatenate([step.unit for step in steps]), minlength=len(units))
    assert counts.tolist() == [unit.rows_used for unit in units]


def test_lanes_spare_ranks_most_double_reads() -> None:
    sizes = [128] * 400
    order = OrderSettings(seed=0, batch_size=256, streams=4)
    reads = 0
    for rank in range(4):
        _, units = StepSequence(sizes, order, rank, 4, (0, 0)).chunk(steps_per_epoch(sum(sizes), 256))
        reads += len(units)
    assert reads < 1.1 * len(sizes)


def test_a_small_corpus_is_shuffled_as_a_whole() -> None:
    sizes = [64, 64, 64]
    order = OrderSettings(seed=0, batch_size=64)
    assert lanes_for(3, order) == 1
    first_batch = epoch_order(sizes, order, 0)[:64, 0]
    assert min(np.bincount(first_batch, minlength=3)) > 8  # every row group is well represented


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    batch=st.integers(1, 40),
    lanes=st.integers(1, 6),
    window=st.integers(1, 5),
    world=st.integers(1, 5),
)
def test_any_layout_is_complete(sizes: list[int], batch: int, lanes: int, window: int, world: int) -> None:
    order = OrderSettings(seed=9, batch_size=batch, streams=lanes, window=window)
    n_steps = steps_per_epoch(sum(sizes), batch)
    rows = [row for step in taken(sizes, order, world, (0, 0), n_steps) for row in step]
    assert sorted(rows) == [(0, g, r) for g, n in enumerate(sizes) for r in range(n)]


def test_shares_cover_a_short_last_batch() -> None:
    parts = [share(10, 4, 2, rank, 3) for rank in range(3)]
    assert np.concatenate([rows for cuts in parts for rows, _ in cuts]).tolist() == [8, 9]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n_rows", [100, 83])
def test_micro_batches_do_not_depend_on_the_number_of_ranks(world: int, n_rows: int) -> None:
    for step in range(5):
        alone = share(n_rows, 20, step, 0, 1, parts=4)
        ranks = [share(n_rows, 20, step, rank, world, parts=4) for rank in range(world)]
        for part in range(4):
            together = np.concatenate([cuts[part][0] for cuts in ranks])
            assert together.tolist() == alone[part][0].tolist()
            assert {cuts[part][1] for cuts in ranks} == {len(together)}
