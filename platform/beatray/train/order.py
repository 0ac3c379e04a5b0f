"""The order of an epoch: a pure function of (seed, epoch, row groups), known to neither rank nor world size.

Row groups are dealt in a random order onto a few lanes (a constant of the run, a divisor of the batch); within a lane
rows are shuffled over a sliding window of row groups: the sort key of a row is the position of its group plus a uniform
draw from [0, window). Every global batch takes the same number of rows from each lane, so a rank that owns whole lanes
reads each row group once, while the batches themselves stay the same for every number of ranks. What is left when
the shortest lane ends is shuffled and forms the tail; the last batch may be short.

No Ray here, so that the order can be tested, and shown to be equal, alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """What the order depends on, apart from the row groups and the epoch."""

    seed: int
    batch_size: int
    streams: int = 16
    window: int = 8
    parts: int = 1  # micro-batches of a global batch
    patients: NDArray[np.int64] | None = field(default=None, compare=False)  # keys, row group by row group


@dataclass(frozen=True, slots=True)
class Unit:
    """One row group as one rank reads it during one epoch."""

    number: int  # running number in the rank's plan: the order of reading
    epoch: int
    group: int  # position among the row groups
    rows_used: int  # how many of its rows this rank takes before the epoch ends


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch: how many of the rank's rows belong to it, and how many rows it has over all ranks."""

    rows: int
    global_rows: int


@dataclass(frozen=True, slots=True)
class Step:
    """A rank's share of one global batch: row `row[i]` of unit `unit[i]`."""

    epoch: int
    step: int
    unit: NDArray[np.int64]
    row: NDArray[np.int64]
    parts: tuple[MicroBatch, ...]

    @property
    def global_rows(self) -> int:
        """Rows of the step over all ranks."""
        return sum(part.global_rows for part in self.parts)


def lanes_for(n_groups: int, settings: OrderSettings) -> int:
    """The lanes actually used: a divisor of the batch that leaves at least two row groups a lane.

    With fewer row groups a lane, a small corpus would hardly be shuffled.
    """
    most = max(1, min(settings.streams, n_groups // 2))
    return max(lanes for lanes in range(1, most + 1) if settings.batch_size % lanes == 0)


def epoch_order(sizes: Sequence[int], settings: OrderSettings, epoch: int) -> NDArray[np.int32]:
    """All rows of one epoch in training order: (n, 2) of [row group, row].

    `sizes` are the rows of each row group. Every row occurs exactly once.
    """
    random = np.random.default_rng([settings.seed, epoch])
    n_lanes = lanes_for(len(sizes), settings)
    lanes: list[list[int]] = [[] for _ in range(n_lanes)]
    filled = np.zeros(n_lanes, np.int64)
    for group in random.permutation(len(sizes)).tolist():
        lane = int(filled.argmin())
        lanes[lane].append(group)
        filled[lane] += sizes[group]
    shuffled = [_shuffle_lane(groups, sizes, settings.window, random) for groups in lanes]
    share_of_lane = settings.batch_size // n_lanes
    full = min(len(rows) for rows in shuffled) // share_of_lane
    head = np.stack([rows[: full * share_of_lane].reshape(full, share_of_lane, 2) for rows in shuffled], axis=1)
    tail = np.concatenate([rows[full * share_of_lane :] for rows in shuffled])
    order = np.concatenate([head.reshape(-1, 2), random.permutation(tail)]).astype(np.int32)
    if settings.patients is None:
        return order
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    keys = settings.patients[starts[order[:, 0]] + order[:, 1]]
    rows_of_window = n_lanes * settings.window * len(order) // max(len(sizes), 1)
    batches = max(rows_of_window // settings.batch_size, 1)
    return order[_patients_together(keys, settings.batch_size, settings.parts, batches, random)]


def _shuffle_lane(
    groups: list[int], sizes: Sequence[int], window: int, random: np.random.Generator
) -> NDArray[np.int64]:
    counts = [sizes[group] for group in groups]
    rows = np.stack([np.repeat(groups, counts), np.concatenate([np.arange(n) for n in counts])], axis=1)
    key = np.repeat(np.arange(len(groups)), counts) + window * random.random(len(rows))
    return rows[np.argsort(key, kind="stable")]


def _patients_together(
    keys: NDArray[np.int64], batch_size: int, parts: int, batches: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """A new order of the rows with these patient keys: within each window of so many batches, the rows of a patient
    come in one batch, and in one of its micro-batches, unless they are more than fit. The sizes of the batches stay."""
    ordered = []
    for first in range(0, len(keys), batches * batch_size):
        rows = np.arange(first, min(first + batches * batch_size, len(keys)))
        room = [min(batch_size, len(rows) - start) for start in range(0, len(rows), batch_size)]
        filled: list[list[int]] = [[] for _ in room]
        _, patient = np.unique(keys[rows], return_inverse=True)
        several = np.bincount(patient) > 1
        families = [rows[patient == number] for number in random.permutation(np.flatnonzero(several))]
        left = random.permutation(rows[~several[patient]]).tolist()
        for family in sorted(families, key=len, reverse=True):
            fits = [number for number, size in enumerate(room) if size - len(filled[number]) >= len(family)]
            if fits:
                filled[fits[random.integers(len(fits))]] += family.tolist()
            else:
                left += family.tolist()
        for number, size in enumerate(room):
            missing = size - len(filled[number])
            filled[number] += left[:missing]
            left = left[missing:]
            ordered.append(_dealt(filled[number], keys, batch_size, parts))
    return np.concatenate(ordered) if ordered else np.empty(0, np.int64)


def _dealt(rows: list[int], keys: NDArray[np.int64], batch_size: int, parts: int) -> NDArray[np.int64]:
    """The rows of one batch in an order in which `share` deals those of a patient to one micro-batch, where they fit.

    Within a micro-batch they come by lane: so the share of a rank still comes from few row groups.
    """
    families: dict[int, list[int]] = {}
    for row in sorted(rows, key=lambda row: row % batch_size):
        families.setdefault(int(keys[row]), []).append(row)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    room = [len(range(part, len(rows), parts)) for part in range(parts)]
    for family in sorted(families.values(), key=len, reverse=True):
        while family:
            part = max(range(parts), key=lambda part: room[part] - len(dealt[part]))
            fits = room[part] - len(dealt[part])
            dealt[part] += family[:fits]
            family = family[fits:]
    placed = np.empty(len(rows), np.int64)
    for part, some in enumerate(dealt):
        placed[part::parts] = sorted(some, key=lambda row: row % batch_size)
    return placed


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Global steps of an epoch, the last one possibly short."""
    return math.ceil(n_rows / batch_size)


def share(
    n_rows: int, batch_size: int, step: int, rank: int, world: int, parts: int = 1
) -> list[tuple[NDArray[np.int64], int]]:
    """What `rank` of `world` takes of the epoch's rows in global step `step`: for each of its micro-batches the
    positions, and the micro-batch's rows over all ranks.

    The global batch is cut into micro-batches first (every `parts`-th row) and each is then shared out, so that the
    micro-batches, too, are the same for every number of ranks.
    """
    whole = np.arange(step * batch_size, min(n_rows, (step + 1) * batch_size))
    cuts = [whole[part::parts] for part in range(parts)]
    return [(cut[len(cut) * rank // world : len(cut) * (rank + 1) // world], len(cut)) for cut in cuts]


class StepSequence:
    """The endless sequence of steps of one rank, from any position, and the row groups it must read for them."""

    def __init__(
        self, sizes: Sequence[int], settings: OrderSettings, rank: int, world: int, start: tuple[int, int] = (0, 0)
    ) -> None:
        self._sizes, self._settings, self._rank, self._world = sizes, settings, rank, world
        self._n_rows = int(sum(sizes))
        self._steps = steps_per_epoch(self._n_rows, settings.batch_size)
        self._epoch, self._step = start
        self._next_number = 0
        self._open_epoch()

    def _open_epoch(self) -> None:
        self._order = epoch_order(self._sizes, self._settings, self._epoch)
        positions = [cut for step in range(self._step, self._steps) for cut, _ in self._share(step)]
        mine = self._order[np.concatenate(positions), 0] if positions else np.empty(0, np.int32)
        self._used = np.bincount(mine, minlength=len(self._sizes))
        self._number_of: dict[int, int] = {}

    def _share(self, step: int) -> list[tuple[NDArray[np.int64], int]]:
        settings = self._settings
        return share(self._n_rows, settings.batch_size, step, self._rank, self._world, settings.parts)

    def chunk(self, n_steps: int) -> tuple[list[Step], list[Unit]]:
        """The next `n_steps` steps, and the units first needed in them, in the order they are needed."""
        steps, units = [], []
        for _ in range(n_steps):
            if self._step == self._steps:
                self._epoch, self._step = self._epoch + 1, 0
                self._open_epoch()
            cuts = self._share(self._step)
            groups, rows = self._order[np.concatenate([cut for cut, _ in cuts])].T
            for group in dict.fromkeys(groups.tolist()):
                if group not in self._number_of:
                    self._number_of[group] = self._next_number
                    units.append(Unit(self._next_number, self._epoch, group, int(self._used[group])))
                    self._next_number += 1
            numbers = np.array([self._number_of[group] for group in groups.tolist()], np.int64)
            parts = tuple(MicroBatch(len(cut), total) for cut, total in cuts)
            steps.append(Step(self._epoch, self._step, numbers, rows.astype(np.int64), parts))
            self._step += 1
        return steps, units
