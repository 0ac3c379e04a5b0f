"""What becomes of the workers of a run: which died and why, which left or came, and from which step the rest continues.

Ray Train's controller learns of a death, the first rank of the next group knows where that begins, and the driver talks
to the user; the three may be on three nodes. So each event is a small file in `workers/` of the run folder, which stays
there as a record. `Deaths` and `note_group` write them, `WorkerNews` makes lines of them.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.train
from ray.exceptions import RayActorError

from beatray.errors import CheckpointError, CorpusError, PeerError, TrainingError
from beatray.storage.store import Store

log = logging.getLogger(__name__)

WORKERS = "workers"
REPORTED_BY_THE_RUN = (TrainingError, CorpusError, CheckpointError)
"""Errors that end the run for good: the run reports them itself."""
LONGEST_REASON = 300


class Deaths(ray.train.UserCallback):  # type: ignore[misc]
    """Notes the ranks that Ray Train has lost; lives in the controller of the training run."""

    def __init__(self, run: Store) -> None:
        self._run = run

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        lost = reasons(worker_exceptions)
        if lost:
            _note(self._run, {"lost": {str(rank): why for rank, why in lost.items()}})


def note_group(run: Store, step: int, workers: Sequence[tuple[str, int]]) -> None:
    """Note that a group of workers, by node and process id in the order of ranks, continues from a step."""
    _note(run, {"step": step, "workers": [list(worker) for worker in workers]})


def _note(run: Store, event: dict[str, Any]) -> None:
    try:
        run.write(f"{WORKERS}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json", json.dumps(event).encode())
    except OSError as error:  # the news must not end what they report on
        log.warning("the run folder does not take news of the workers: %s", error)


def reasons(errors: Mapping[int, Exception]) -> dict[int, str]:
    """Why ranks are lost: of those that died, else of all that raised; not what others only met in consequence."""
    causes = {rank: getattr(error, "health_check_failure", error) for rank, error in errors.items()}
    died = {rank: f"died: {_why_dead(cause)}" for rank, cause in causes.items() if isinstance(cause, RayActorError)}
    if died:
        return died
    raised = {rank: cause for rank, cause in causes.items() if not isinstance(cause, REPORTED_BY_THE_RUN)}
    own = {rank: cause for rank, cause in raised.items() if not isinstance(cause, PeerError)}
    causes_shown = own or raised
    return {rank: f"failed: {type(cause).__name__}: {_first_line(str(cause))}" for rank, cause in causes_shown.items()}


def _why_dead(error: RayActorError) -> str:
    """Ray's reason without its table of ids: the lines that are not indented, from the last one that begins a story."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    reason = next(
        (line for line in reversed(lines) if line.startswith("The ")), lines[-1] if lines else "Ray knows no why"
    )
    return _first_line(reason)


def _first_line(text: str) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."


class WorkerNews:
    """Reads the events of one start of a run, those that come after this is made."""

    def __init__(self, run: Store) -> None:
        self._run = run
        self._known = set(run.names(WORKERS))
        self._workers: list[tuple[str, int]] = []

    def fresh(self) -> Iterator[str]:
        """A line for each event since the last call; none for the first group of workers, which is no news."""
        for name in self._run.names(WORKERS):
            if name not in self._known:
                event = json.loads(self._run.read(f"{WORKERS}/{name}"))
                self._known.add(name)
                yield from self._lost(event["lost"]) if "lost" in event else self._goes_on(event)

    def _lost(self, lost: Mapping[str, str]) -> Iterator[str]:
        for rank, why in sorted(lost.items(), key=lambda item: int(item[0])):
            known = int(rank) < len(self._workers)
            where = " (node {}, process {})".format(*self._workers[int(rank)]) if known else ""
            yield f"worker of rank {rank}{where} {why}"

    def _goes_on(self, event: Mapping[str, Any]) -> Iterator[str]:
        before, self._workers = self._workers, [(node, pid) for node, pid in event["workers"]]
        if before:
            now, was = len(self._workers), len(before)
            count = f"{now} workers" if now != 1 else "1 worker"
            yield f"continues from step {event['step']:,} with {count}{f' instead of {was}' if now != was else ''}" + (
                _moves(before, self._workers)
            )


def _moves(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> str:
    """The nodes that have fewer or more workers than before."""
    was, now = (Counter(node for node, _ in group) for group in (before, after))
    gone = [f"{-n:+d} on {node}" for node, n in sorted((was - now).items())]
    come = [f"{n:+d} on {node}" for node, n in sorted((now - was).items())]
    return f" ({', '.join(gone + come)})" if gone or come else ""
