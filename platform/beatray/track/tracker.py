"""Sends a run to MLflow from its journal, in the background, through outages of the server.

The run folder's metrics.jsonl is the truth; a thread reads it and sends what MLflow does not have yet, in batches.
Contract: the caller never waits for the server except in `finish`; every metric arrives, once, when the server answers;
`tracking.json` remembers what is not sent, so that the same command or `beatray track sync` sends it later. Before the
first batch, and after every batch whose answer was lost, the server is asked what it has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from beatray.track.journal import Tail, figure_today
from beatray.track.memory import RUNNING, Memory, how_to_open
from beatray.track.secrets import without_secrets
from beatray.track.server import BATCH, Point, Server, Trouble, metric_name
from beatray.track.setup import Tracking

__all__ = ["Tracker", "how_to_open"]

log = logging.getLogger(__name__)

ANSWERS = (Trouble.REFUSED, Trouble.UNFIT)
AFTER_REFUSAL_S = 60.0
"""Between tries at a server that answers with a refusal: only a person can change that."""
NOT_METRICS = ("step", "time_ms")
TRAINING = "train/"
"""Before the names of a journal's figures; those of an evaluation begin with eval/."""


class Tracker:
    """One MLflow run fed from one run folder; use as a context manager."""

    def __init__(self, tracking: Tracking) -> None:
        self._to = tracking
        self.status = "FINISHED"  # what a run is called that ends without an error
        self._folder = tracking.folder.absolute()
        self._server = Server(tracking.uri)
        tracking.folder.mkdir(parents=True, exist_ok=True)
        self._memory = Memory(tracking.folder)
        self._record = self._memory.record(self._server.clean_uri, tracking.experiment, tracking.run_name)
        self._record.describe(tracking.params, tracking.tags, tracking.dataset)
        self._record.artifact_location = self._record.artifact_location or tracking.artifact_location
        self._record.parent_run_id = self._record.parent_run_id or tracking.parent_run_id
        self._tail = Tail(tracking.folder / "metrics.jsonl")
        self._unsent: list[dict[str, Any]] = []  # lines read from the journal, not yet accepted by the server
        self._sent: tuple[int, frozenset[str]] | None = None  # last step and its names; None: ask the server
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # for the record's waiting list, which the caller's thread adds to
        self._trouble: Trouble | None = None
        self._run_id_reported = False  # the run id has been passed on

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once the server has given one."""
        return self._record.run_id

    @property
    def known_status(self) -> str:
        """What the run is, as far as its folder knows."""
        return self._record.status

    def wait_for_run(self, patience_s: float) -> str | None:
        """The MLflow run, if the server gives one within `patience_s`: for a parent of nested runs."""
        deadline = time.monotonic() + patience_s
        while self.run_id is None and self._trouble not in ANSWERS and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.run_id

    def __enter__(self) -> Tracker:
        self._record.status, self._memory.newest = RUNNING, self._server.clean_uri
        self._memory.save()
        self._thread = threading.Thread(target=self._follow, name="beatray-track", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.finish(self.status if error is None else "FAILED")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log figures of an evaluation."""
        named = {metric_name(name): float(value) for name, value in values.items()}
        self._record.figures = sorted({*self._record.figures, *named})
        self._wait_in_line({"figures": named, "step": step, "time_ms": _now_ms()})

    def artifact(self, path: Path, below: str | None = None) -> None:
        """Upload a file or a folder, which must stay where it is until the run is finished."""
        path = path.absolute()
        inside = path.is_relative_to(self._folder)  # then it is found again when the run folder was moved
        name = str(path.relative_to(self._folder) if inside else path)
        self._wait_in_line({"artifact": name, "below": below, "time_ms": _now_ms()})

    def _wait_in_line(self, item: dict[str, Any]) -> None:
        with self._lock:
            others = [
                other for other in self._record.waiting if _upload(other) is None or _upload(other) != _upload(item)
            ]
            self._record.waiting = [*others, item]
            self._memory.save()

    def finish(self, status: str | None, patience_s: float = 30.0) -> bool:
        """Send what is left and end the MLflow run; False if the server takes no more after `patience_s`.

        One that answers, however slowly, is sent everything: what was begun is not cut off.
        Without a status the run stays as it is known to be: its process was killed, or is at work elsewhere.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._record.status = status or self._record.status
        self._memory.save()
        deadline = time.monotonic() + patience_s
        while True:
            sent = self._attempt(self._send_all)
            if sent and self._attempt(self._end):
                return True
            if self._trouble in ANSWERS or time.monotonic() > deadline:
                break
            time.sleep(1.0)
        if not sent:
            self._attempt(self._end)  # a file that cannot be sent does not keep the run open
        log.warning(
            "not all of the run is in MLflow at %s; `beatray track sync %s` sends the rest later",
            self._server.clean_uri,
            self._to.shown_folder or self._folder,
        )
        return False

    def _follow(self) -> None:
        while True:
            self._attempt(self._send_all)
            pause = AFTER_REFUSAL_S if self._trouble in ANSWERS else self._to.every_s
            if self._stop.wait(pause):
                return

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Run an action against the server; one warning a trouble, nothing raised: tracking must not end a training."""
        try:
            action()
        except Exception as error:
            before, (self._trouble, text) = self._trouble, self._server.explain(error)
            self._sent = None  # the server may have stored what it did not answer to
            if self._trouble is Trouble.GONE and self._record.run_id is not None:
                log.warning("%s; making another one", text)
                self._start_over()
            elif self._trouble is not before:
                log.warning("%s; the run goes on, its figures are sent later", text)
            return False
        self._trouble = None
        return True

    def _start_over(self) -> None:
        self._record.forget_run()
        self._unsent, self._tail = [], Tail(self._folder / "metrics.jsonl")
        self._memory.save()

    def _run(self) -> str:
        """The MLflow run id, made and described on first use."""
        record = self._record
        if record.run_id is None:
            record.run_id, record.experiment_id = self._server.find_or_create(record)
            self._memory.save()
        if not record.described:
            self._server.describe(record)
            record.described, record.tags_sent = True, dict(record.tags)
            self._memory.save()
        if self._sent is None:
            self._sent = self._server.newest(record.run_id, record.figures)
        if self._to.on_run is not None and not self._run_id_reported:
            self._run_id_reported = True
            try:
                self._to.on_run(record.run_id)
            except Exception as error:  # a failing `on_run` must not keep the metrics back
                log.warning("the MLflow run %s could not be noted: %s", record.run_id, without_secrets(str(error)))
        return record.run_id

    def _send_all(self) -> None:
        """Send the journal's lines that the server does not have, and whatever else waits."""
        run_id = self._run()
        while True:
            if not self._unsent:
                now = _now_ms()
                self._unsent = [{"time_ms": now, **line} for line in self._tail.fresh()[0]]
                if not self._unsent:
                    break
            part = list(_first_lines(self._unsent))
            points = [point for line in part for point in self._new_points(line)]
            if points:
                self._reopen(run_id)
                self._server.log(run_id, points)
                self._sent = _newest(self._sent, points)
            del self._unsent[: len(part)]
        while waiting := sorted(self._record.waiting, key=lambda item: "artifact" in item):  # files may fail: last
            self._send_waiting(run_id, waiting[0])
            with self._lock:
                self._record.waiting = [item for item in self._record.waiting if item != waiting[0]]
                self._memory.save()

    def _new_points(self, line: Mapping[str, Any]) -> Iterator[Point]:
        """What of a line the server does not have. A resumed run replays steps: each is stored as first seen."""
        assert self._sent is not None
        step, (last, names) = int(line["step"]), self._sent
        for name, value in line.items():
            if name in NOT_METRICS or not isinstance(value, (int, float)):
                continue
            called = metric_name(logged_as(name))
            if step > last or (step == last and called not in names):
                yield called, float(value), int(line["time_ms"]), step

    def _send_waiting(self, run_id: str, item: Mapping[str, Any]) -> None:
        if "figures" in item:
            figures: dict[str, float] = item["figures"]
            self._server.log(run_id, [(n, v, item["time_ms"], item["step"]) for n, v in figures.items()])
            return
        path = self._folder / item["artifact"]
        if path.exists():
            self._server.upload(run_id, path, item["below"])
        else:
            log.warning("%s is gone: not sent to MLflow", path)

    def _reopen(self, run_id: str) -> None:
        if self._record.status_sent != RUNNING:
            self._server.reopen(run_id)
            self._record.status_sent = RUNNING
            self._memory.save()

    def _end(self) -> None:
        record = self._record
        if record.tags != record.tags_sent:
            self._server.tag(self._run(), record.tags)
            record.tags_sent = dict(record.tags)
        if record.status != record.status_sent:
            self._server.end(self._run(), record.status)
            record.status_sent = record.status
        self._memory.save()


def logged_as(name: str) -> str:
    """How a figure of the journal is called in MLflow."""
    return f"{TRAINING}{figure_today(name)}"


def _first_lines(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As many lines as one call may carry, at least one."""
    size = 0
    for line in lines:
        size += len(line)
        if size > BATCH and size > len(line):
            return
        yield line


def _upload(item: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Which file goes where; None for figures."""
    return (item["artifact"], item["below"]) if "artifact" in item else None


def _newest(before: tuple[int, frozenset[str]] | None, points: Sequence[Point]) -> tuple[int, frozenset[str]]:
    """The last step with its names, after the points were stored."""
    last = max(step for _, _, _, step in points)
    names = frozenset(name for name, _, _, step in points if step == last)
    return last, names | before[1] if before is not None and before[0] == last else names


def _now_ms() -> int:
    return int(time.time() * 1000)
