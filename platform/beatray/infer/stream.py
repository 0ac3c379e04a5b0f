"""A network over many recordings with Ray Data: read tasks in order, a pool of workers, their answers in order.

Each unit of reading is one Ray Data read task and one block, each worker an actor with its own copy of the network and
a GPU where there is one. Contract: what comes back does not depend on the number of workers or readers: one answer for
each unit, in the order of the units, or CorpusError; an error of the corpus, the store or the network inside a task is
raised here as what it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from beatray.corpus.schema import SIGNAL_BYTES
from beatray.errors import CheckpointError, CorpusError, SettingsError
from beatray.storage.store import StoreError

CHUNK_UNITS = 8192
"""Units of one execution: a plan of a million read tasks would be slow to make."""
TASKS_PER_ACTOR = 3
"""Units waiting at each worker, so that it never waits for a reader."""


class Parallel(Protocol):
    """How the work is shared out: settings of a command."""

    @property
    def device(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def readers(self) -> int: ...
    @property
    def cpus_per_reader(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task reads: `read` gives its tables; `rows` is how many are expected, `name` what messages call it.

    `key` identifies it among all units: columns of what is read, and of the worker's answer, with their values.
    """

    name: str
    rows: int
    key: Mapping[str, int]
    read: Callable[[], list[pa.Table]]


class _Units(Datasource):  # type: ignore[misc]  # ray ships no types
    """A Ray Data source with one read task per unit, in order."""

    def __init__(self, units: Sequence[Unit]) -> None:
        super().__init__()
        self._units = units

    def estimate_inmemory_data_size(self) -> int:
        return sum(unit.rows for unit in self._units) * SIGNAL_BYTES

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                unit.read,
                BlockMetadata(
                    num_rows=unit.rows,
                    size_bytes=unit.rows * SIGNAL_BYTES,
                    input_files=(unit.name,),
                    exec_stats=None,
                ),
            )
            for unit in self._units
        ]


def use_gpu(settings: Parallel, group: str) -> bool:
    """`check_resources` against the Ray that is open."""
    return check_resources(settings, ray.cluster_resources(), group)


def check_resources(settings: Parallel, total: dict[str, float], group: str) -> bool:
    """True if workers get a GPU each; SettingsError with the arithmetic for settings that could only hang.

    `group` is where the settings stand: embed, predict.
    """
    s = settings
    for_workers, have = s.workers * s.cpus_per_worker, total.get("CPU", 0.0)
    if for_workers + s.cpus_per_reader > have:
        raise SettingsError(
            f"{s.workers} workers need {for_workers:g} CPUs and a reader {s.cpus_per_reader:g}; Ray has {have:g}. "
            f"Lower {group}.workers, {group}.cpus_per_worker or {group}.cpus_per_reader, or add nodes."
        )
    gpu = total.get("GPU", 0.0) > 0 if s.device == "auto" else s.device == "cuda"
    if gpu and total.get("GPU", 0.0) < s.workers:
        raise SettingsError(
            f"{s.workers} workers need as many GPUs; Ray has {total.get('GPU', 0):g}. Lower {group}.workers or set "
            f"{group}.device=cpu."
        )
    return gpu


def answers(
    units: Sequence[Unit], worker: type[Any], work: Any, settings: Parallel, gpu: bool
) -> Iterator[dict[str, Any]]:
    """The row that `worker(work=work)` returns for each unit's tables, in order, through Ray Data."""
    s = settings
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and its settings are of no use to a user
    for first in range(0, len(units), CHUNK_UNITS):
        chunk = units[first : first + CHUNK_UNITS]
        data = ray.data.read_datasource(
            _Units(chunk),
            override_num_blocks=len(chunk),
            num_cpus=s.cpus_per_reader,
            concurrency=min(s.readers, len(chunk)),
        ).map_batches(
            worker,
            fn_constructor_kwargs={"work": work},
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            num_cpus=s.cpus_per_worker,
            num_gpus=1 if gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=s.workers, max_tasks_in_flight_per_actor=TASKS_PER_ACTOR),
        )
        data.context.execution_options.preserve_order = True
        data.context.target_max_block_size = None  # one block a task: each slice of a larger one would be answered
        data.context.enable_progress_bars = False
        try:
            yield from one_each(chunk, _rows(data))
        except ray.exceptions.RayError as error:
            raise _cause(error) from error


def _rows(data: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from table.to_pylist()


def one_each(units: Sequence[Unit], rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, if they are one answer for each unit, in order; CorpusError that names the first unit where not.

    A row is handed on when it is known that the next one belongs to another unit: no part is kept for the whole.
    """
    coming = iter(rows)
    row = next(coming, None)
    for number, unit in enumerate(units, 1):
        if row is None or not _is_of(row, unit):
            raise CorpusError(f"Ray Data delivered no answer, or one out of turn, for {_called(unit)}")
        following = next(coming, None)
        if following is not None and (number == len(units) or _is_of(following, unit)):
            raise CorpusError(f"Ray Data delivered more than one answer for {_called(unit)}")
        yield row
        row = following


def _is_of(row: Mapping[str, Any], unit: Unit) -> bool:
    return all(row[name] == value for name, value in unit.key.items())


def _called(unit: Unit) -> str:
    return f"{unit.name} ({', '.join(f'{name} {value}' for name, value in unit.key.items())})"


def _cause(error: BaseException) -> BaseException:
    """The error of the corpus, the store or the network inside Ray's wrapping; otherwise the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        for candidate in (seen, inner):
            for kind in (CorpusError, StoreError, CheckpointError):
                if isinstance(candidate, kind):
                    return kind(str(candidate))
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return error
