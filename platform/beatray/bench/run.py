"""The parts of `beatray bench`, turn by turn in the time there is: step, feeds, loop, and the plain loop beside them.

Every part has several rounds, each as long as its weight makes it of the time left, so that whatever else the
machine does meets all alike. Contract: nothing is written but below the folder given; one rank, on one device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from beatray.bench.feed import Fed, direct, same, stream, to_time
from beatray.bench.peak import matmul_roof, step_flop
from beatray.bench.plain import PlainLoop
from beatray.bench.timing import Timing, time_feed, time_steps
from beatray.train.order import MicroBatch, share
from beatray.train.precision import agreed
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec, ViewsOnWorker, shown_settings
from beatray.train.step import Learner
from beatray.train.timing import first_rows, processor

READERS = (1, 4, 16)
ROUNDS = 2
PLAIN, LOOP, STEP = "plain PyTorch loop", "beatray loop", "step alone"
MANY = 10**6
"""Steps: no part comes to their end."""

PLAIN_ROWS = 4096
"""Recordings of the plain loop, at most: all that a larger corpus has would not fit in memory."""

Part = Callable[[float], Timing]
"""Measures for so many seconds."""

Feed = Callable[[RunSpec, int, int], Generator[Fed]]
"""(run, steps, readers) -> batches."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured: the machine and settings, each row of the table, and what was left out and why."""

    head: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    left_out: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {"head": self.head, "rows": self.rows, "left_out": self.left_out}


def device_of(run_spec: RunSpec) -> torch.device:
    """Where the run trains."""
    return torch.device("cuda" if run_spec.settings.train.device != "cpu" and torch.cuda.is_available() else "cpu")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def first_batch(run_spec: RunSpec) -> Fed:
    """The first recordings of the run as one batch in memory; their views, where readers make those."""
    train = run_spec.settings.train
    arrays = first_rows(run_spec, train.batch_size)
    rows = len(arrays["record_key"])
    cuts = share(rows, rows, 0, 0, 1, train.gradient_accumulation_steps)
    if train.augment_on == "workers":
        arrays = ViewsOnWorker.of(run_spec)(arrays, 0)
    return Fed(0, tuple(MicroBatch(len(cut), total) for cut, total in cuts), arrays)


def measure(run_spec: RunSpec, folder: Path, ends: float, *, ray: bool, say: Callable[[str], None]) -> Report:
    """All parts until about `ends`, by time.perf_counter; with `ray` in an open session."""
    began, train, device = time.perf_counter(), run_spec.settings.train, device_of(run_spec)
    torch.set_num_threads(train.threads_per_worker)
    fed, last = first_batch(run_spec), run_spec.steps - 1
    flop = step_flop(run_spec, device, fed)
    ranks = Ranks(device=device)
    train = replace(train, precision=agreed(train.precision, ranks))
    run_spec = replace(run_spec, settings=replace(run_spec.settings, train=train))
    roof = matmul_roof(device, train.precision)
    learner = Learner(run_spec, ranks)
    arrays = first_rows(run_spec, min(run_spec.rows, max(PLAIN_ROWS, train.batch_size)))
    plain = PlainLoop(run_spec, device, folder, arrays, train.readers_per_worker)
    del arrays
    feed = stream if ray else direct

    parts: dict[str, tuple[float, Part]] = {
        STEP: (2.0, lambda s: time_steps(learner, same(fed), s, last)),
        LOOP: (3.0, lambda s: time_steps(learner, feed(run_spec, MANY, train.readers_per_worker), s, last)),
        PLAIN: (3.0, lambda s: plain.time(s)),
    }
    short = to_time(run_spec)
    counts, left_out = reader_counts(cores())
    for count in counts:
        if ray:
            parts[feed_name("Ray Data", count)] = (1.5, _feed_part(stream, short, count))
        parts[feed_name("direct", count)] = (1.0, _feed_part(direct, short, count))
    timings = _in_turns(parts, ends, device, say)
    head = {
        **about(run_spec, device),
        "flop_per_record": flop / fed.rows,
        "roof_flop_per_s": roof,
        "feed_of_the_loop": f"{'Ray Data' if ray else 'direct'}, {train.readers_per_worker} readers",
        "workers_of_the_plain_loop": plain.workers,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if not ray:
        left_out.append("the feed by Ray Data: Ray is not installed")
    order = [PLAIN, LOOP, STEP, *(name for name in parts if name.startswith("feed"))]
    rows = {name: row_of(timings[name], flop / fed.rows, roof, name) for name in order}
    for name in (LOOP, STEP):
        for ratio, key in (("times_plain", "records_per_s"), ("times_plain_per_cpu_s", "records_per_cpu_s")):
            rows[name][ratio] = rows[name][key] / rows[PLAIN][key] if rows[PLAIN][key] else None
    return Report(head, rows, left_out)


def reader_counts(available: int) -> tuple[list[int], list[str]]:
    """1, 4 and 16 readers, or as many as there are cores; and a sentence for what is left out."""
    counts = sorted({min(count, available) for count in READERS})
    missing = [str(count) for count in READERS if count > available]
    return counts, [f"feeds of {' and '.join(missing)} readers: the machine has {available} cores"] if missing else []


def feed_name(kind: str, readers: int) -> str:
    """The name of the row of a feed."""
    return f"feed, {kind}, {readers} reader{'s' if readers > 1 else ''}"


def about(run_spec: RunSpec, device: torch.device) -> dict[str, Any]:
    """The machine, the software and what is trained."""
    settings = run_spec.settings
    shards = {group.shard.name: group.shard for group in run_spec.stream.groups}.values()
    rows = sum(shard.rows for shard in shards)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": cores(),
        "threads": settings.train.threads_per_worker,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "ray": find_spec_version("ray"),
        "corpus_rows": run_spec.rows,
        "bytes_per_row_on_disk": sum(shard.bytes for shard in shards) / max(rows, 1),
        "bytes_per_row_decoded": 2 * 12 * 5000,
        "recipe": settings.recipe,
        "objective": settings.objective["name"],
        "encoder": settings.encoder["name"],
        **{name: getattr(settings.train, name) for name in ("batch_size", "precision", "compile", "overlap")},
        "settings": shown_settings(settings),
    }


def find_spec_version(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name) if find_spec(name) is not None else None
    except (PackageNotFoundError, ValueError):
        return None


def row_of(timing: Timing, flop_per_record: float, roof: float, name: str = "") -> dict[str, Any]:
    """One row of the table: of a feed only what a feed has."""
    row: dict[str, Any] = {
        "records_per_s": timing.records_per_s,
        "records_per_cpu_s": timing.records_per_cpu_s,
        "rounds_records_per_s": timing.rounds or [timing.records_per_s],
        "steps": len(timing.step_s),
    }
    if name.startswith("feed"):
        return row
    return row | {
        "step_ms": timing.step_ms,
        "spread": timing.spread,
        "share_of_peak": timing.records_per_s * flop_per_record / roof,
        "data_wait": timing.data_wait,
        "memory_mib": timing.memory_mib,
        "refused": timing.refused,
    }


def _feed_part(feed: Feed, run_spec: RunSpec, readers: int) -> Part:
    return lambda seconds: time_feed(feed(run_spec, MANY, readers), seconds)


def _in_turns(
    parts: dict[str, tuple[float, Part]], ends: float, device: torch.device, say: Callable[[str], None]
) -> dict[str, Timing]:
    timings = {name: Timing() for name in parts}
    turns = [(name, *parts[name]) for _ in range(ROUNDS) for name in parts]
    left = sum(weight for _, weight, _ in turns)
    for number, (name, weight, part) in enumerate(turns):
        slot = max(ends - time.perf_counter(), 0.0) * weight / left
        left -= weight
        timings[name].add(part(slot))
        say(f"  {number + 1}/{len(turns)} {name}: {timings[name].rounds[-1]:,.0f} records/s")
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the next part has the whole memory
    return timings
