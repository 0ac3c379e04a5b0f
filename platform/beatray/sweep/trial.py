"""One trial: a function of settings that returns figures, and how Ray Tune runs it.

`run_trial` is all that a trial does: it trains and, where the sweep sets that, evaluates the encoder; the scores join
the figures it returns. `trial_main` is the same inside a Tune trial: reports of the ranks go to Tune while it trains,
the outcome or the error at the end.

Reports come through a queue and a thread of beatray, not through Ray's `TuneReportCallback`: there the thread that Tune
asks for the next result also brings in the ranks' reports, and it waits for ever when the last of them comes in after
the trial's own result (both wait for a slot in a queue of one).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.tune
from ray.util.queue import Queue

from beatray.evaluate.settings import EvaluateSettings
from beatray.finetune.finish import make_model
from beatray.finetune.prepare import prepared
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.sweep.evaluation import evaluate_trial
from beatray.sweep.ranking import figures_of
from beatray.train.launch import pretrain
from beatray.train.run_folder import STOP
from beatray.train.worker_news import reasons


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended; `finished` is False for one that was asked to stop before all was done."""

    finished: bool
    steps: int
    figures: dict[str, float]


def run_trial(
    settings: PretrainSettings,
    evaluation: EvaluateSettings | None,
    asked_to_stop: Callable[[], bool],
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> Outcome:
    """Train with these settings, to the end or on from the run's own checkpoint, and evaluate the encoder where the
    sweep sets that. Needs an open Ray session."""
    run_spec, found = prepared(settings)
    result = pretrain(run_spec, callbacks)
    figures = figures_of(run_spec)
    if result.finished:
        figures |= make_model(run_spec, found)  # of an objective that learns from labels; else nothing
    if evaluation is None or not result.finished:
        return Outcome(result.finished, result.steps, figures)
    if asked_to_stop():
        return Outcome(False, result.steps, figures)
    return Outcome(True, result.steps, {**figures, **evaluate_trial(run_spec, evaluation)})


class Reports(ray.train.UserCallback):  # type: ignore[misc]
    """Puts what the first rank reports, and which ranks were lost, into a queue; lives in the controller of the run."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._queue.put({"report": metrics[0]})

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        lost = [f"worker of rank {rank} {why}" for rank, why in reasons(worker_exceptions).items()]
        if lost:
            self._queue.put({"lost": lost})


@contextmanager
def relayed() -> Iterator[Reports]:
    """A callback whose reports reach Tune, all of them before the block ends."""
    queue = Queue(actor_options={"num_cpus": 0})

    def relay() -> None:
        while (report := queue.get()) is not None:
            ray.tune.report(report)

    thread = threading.Thread(target=relay, name="beatray-reports", daemon=True)
    thread.start()
    try:
        yield Reports(queue)
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown()


def trial_main(
    config: Mapping[str, Any],
    trials: Mapping[str, PretrainSettings],
    evaluation: EvaluateSettings | None,
    folder: str,
) -> dict[str, Any]:
    """What Tune calls, in a process of its own: `config` names the trial. The last result is its outcome."""
    settings = trials[config["trial"]]

    def asked_to_stop() -> bool:  # the whole sweep
        return Store(folder).size(STOP) is not None

    if asked_to_stop():
        return {"outcome": {"finished": False, "steps": 0, "figures": {}}}
    try:
        with relayed() as reports:
            outcome = run_trial(settings, evaluation, asked_to_stop, [reports])
    except Exception as error:
        is_own = type(error).__module__.startswith("beatray.")
        ray.tune.report({"error": str(error) if is_own else f"{type(error).__name__}: {error}"})
        raise
    return {"outcome": {"finished": outcome.finished, "steps": outcome.steps, "figures": outcome.figures}}
