"""Small pretraining runs for tests, and what they leave in their folders."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import beatray
from beatray.track.journal import read_lines
from beatray.train import step
from beatray.train.composed import pretrain_settings
from beatray.train.launch import RunResult, pretrain
from beatray.train.loop import train
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec

OVERRIDES = (
    "encoder=tiny",
    "train=small",
    "train.batch_size=24",
    "train.epochs=3",
    "train.precision=fp32",
    "train.log_ids=true",
    "train.checkpoint_every_steps=3",
    "tracking.uri=null",
    "train.warmup_epochs=0.5",
)


def run_spec_of(corpus: str, out: Path, run: str, *overrides: str) -> RunSpec:
    """A small job; later words win."""
    paths = [f"corpus={corpus}", f"out={out}", f"run={run}"]
    return prepare_run(pretrain_settings([*paths, *OVERRIDES, *overrides]))


def start(corpus: str, out: Path, run: str, *overrides: str) -> RunResult:
    """Train it, or continue it, through Ray Train."""
    return pretrain(run_spec_of(corpus, out, run, *overrides))


def train_here(corpus: str, out: Path, run: str, *overrides: str) -> bool:
    """Train it, or continue it, as one rank in this process: the same loop and stream without Ray Train around it."""
    return train(run_spec_of(corpus, out, run, "train.workers=1", *overrides), Ranks())


def losses(out: Path, run: str) -> list[float]:
    """The loss of every global step."""
    return [line["loss"] for line in read_lines(out / run / "metrics.jsonl")]


def ids(out: Path, run: str) -> list[list[str]]:
    """The record ids of every global step."""
    return [line["record_ids"] for line in read_lines(out / run / "ids.jsonl")]


def weights(out: Path, run: str) -> dict[str, torch.Tensor]:
    """The exported encoder's weights."""
    state: dict[str, torch.Tensor] = beatray.load_encoder(str(out / run)).state_dict()
    return state


def same_weights(out: Path, one: str, other: str) -> bool:
    """True if two runs ended with the same bits."""
    a, b = weights(out, one), weights(out, other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rank_pids() -> list[int]:
    """Processes of Ray Train workers on this machine, by the name that Ray gives them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            overrides = path.read_bytes()
        except OSError:
            continue
        if (
            b"RayTrainWorker" in overrides
            and b"IDLE" not in overrides
            and _is_descendant(int(path.parent.name), os.getpid())
        ):
            found.append(int(path.parent.name))
    return sorted(found)


def _is_descendant(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return False
    return False


@contextmanager
def strikes_at(journal: Path, steps: list[int], strike: Callable[[], bool]) -> Iterator[list[int]]:
    """While inside, call `strike` once for each of `steps`, when the journal reaches it; yields the steps struck.

    `strike` returns False when there was nothing to hit yet; it is then called again.
    """
    struck: list[int] = []
    end = threading.Event()

    def watch() -> None:
        waiting = sorted(steps)
        while waiting and not end.wait(0.01):
            lines = read_lines(journal)
            if lines and lines[-1]["step"] >= waiting[0] and strike():
                struck.append(waiting.pop(0))
                time.sleep(0.5)  # the dead are still listed for a moment

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield struck
    finally:
        end.set()
        thread.join()


def kill_a_rank() -> bool:
    """SIGKILL one Ray Train worker; False if there is none."""
    pids = rank_pids()
    if not pids:
        return False
    os.kill(pids[-1], signal.SIGKILL)
    return True


class Poison:
    """Builds the real objective and lets some of its batches hold a NaN, as a broken recording would."""

    def __init__(self, at_calls: tuple[int, ...]) -> None:
        self.at_calls, self.calls, self.real = at_calls, 0, step.build_model

    def __call__(self, *arguments: object) -> torch.nn.Module:
        built = self.real(*arguments)  # type: ignore[arg-type]
        make_views = built.views

        def views(*batch: object) -> dict[str, torch.Tensor]:
            made = make_views(*batch)
            if self.calls in self.at_calls:
                made["view_1"][0, 0, 0] = float("nan")
            self.calls += 1
            return made

        built.views = views
        return built
