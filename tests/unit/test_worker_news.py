"""What is said of workers that die, leave or come: from the files they leave in the run folder."""

from __future__ import annotations

from pathlib import Path
from queue import Queue

from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from beatray.errors import PeerError, TrainingError
from beatray.storage.store import Store
from beatray.sweep.trial import Reports
from beatray.train.worker_news import Deaths, WorkerNews, note_group, reasons

NODE_GONE = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tip: 10.0.0.2\n"
    "The actor died because its node has died. Node Id: 0abc\n\tthe actor's node was terminated"
)


class Dead(ActorDiedError):  # type: ignore[misc]
    """As Ray raises it, which writes its text from a table that only its own core fills."""

    def __str__(self) -> str:
        return NODE_GONE


def test_each_event_is_reported_once_and_the_first_group_not_at_all(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    note_group(run, 0, [("older", 1)])
    news = WorkerNews(run)  # of a start after that
    note_group(run, 4, [("a", 11), ("b", 12), ("b", 13)])
    assert list(news.fresh()) == []
    lost = {1: WorkerHealthCheckFailedError("a check failed", Dead()), 0: RuntimeError("connection closed by peer")}
    Deaths(run).after_exception(None, lost)
    note_group(run, 1040, [("a", 21)])
    assert list(news.fresh()) == [
        "worker of rank 1 (node b, process 12) died: The actor died because its node has died. Node Id: 0abc",
        "continues from step 1,040 with 1 worker instead of 3 (-2 on b)",
    ]
    note_group(run, 1050, [("a", 31), ("c", 32)])  # an elastic run that got a node, without a death
    note_group(run, 1060, [("a", 41), ("c", 42)])
    assert list(news.fresh()) == [
        "continues from step 1,050 with 2 workers instead of 1 (+1 on c)",
        "continues from step 1,060 with 2 workers",
    ]
    assert list(news.fresh()) == []


def test_what_the_run_reports_at_its_end_is_not_reported_twice(tmp_path: Path) -> None:
    ended: dict[int, Exception] = {0: TrainingError("not finite"), 1: TrainingError("not finite")}
    assert reasons(ended) == {}
    Deaths(Store(str(tmp_path))).after_exception(None, ended)
    assert list(tmp_path.iterdir()) == []
    assert reasons({0: PeerError("disk"), 1: OSError("disk\nis full")}) == {1: "failed: OSError: disk"}
    assert reasons({0: PeerError("disk")}) == {0: "failed: PeerError: disk"}
    assert len(reasons({0: OSError("x" * 5000)})[0]) < 400


def test_a_trial_of_a_sweep_passes_its_losses_on() -> None:
    queue: Queue[dict[str, object]] = Queue()
    reports = Reports(queue)  # type: ignore[arg-type]
    reports.after_report(None, [{"step": 1}, {"step": 1}], None)
    reports.after_exception(None, {0: TrainingError("for good")})
    reports.after_exception(None, {1: Dead()})
    lost = "worker of rank 1 died: The actor died because its node has died. Node Id: 0abc"
    assert [queue.get_nowait() for _ in range(queue.qsize())] == [{"report": {"step": 1}}, {"lost": [lost]}]


def test_a_folder_that_takes_no_news_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("in the way")
    note_group(Store(str(tmp_path)), 0, [("a", 1)])
    assert (tmp_path / "workers").read_text() == "in the way"
