"""Runs that stand still, are asked to stop, lose their driver or are started twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from beatray.errors import TrainingError
from beatray.track.journal import read_lines
from beatray.train import checkpoint as checkpoints
from counts import count
from pretraining import OVERRIDES, ids, losses, rank_pids, run_spec_of, same_weights, start, strikes_at, train_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


def test_a_stall_becomes_stacks_and_an_exit(sample_corpus: str, tmp_path: Path) -> None:
    """One rank is frozen: the other dumps its stacks and leaves, and the message names where they are."""
    frozen: list[int] = []

    def freeze() -> bool:
        pids = rank_pids()
        frozen.extend(pids[-1:])
        for pid in pids[-1:]:
            os.kill(pid, signal.SIGSTOP)
        return bool(pids)

    overrides = ("train.workers=2", "train.epochs=40", "train.stall_minutes=0.25")
    try:
        with (
            strikes_at(tmp_path / "run" / "metrics.jsonl", [5], freeze),
            pytest.raises(TrainingError, match=r"no step ended for 0\.25 minutes; .*stalls .*-rank-"),
        ):
            start(sample_corpus, tmp_path, "run", *overrides)
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    (dump,) = (tmp_path / "run" / "stalls").glob("*-rank-*.txt")
    assert "no step ended for" in dump.read_text() and "loop.py" in dump.read_text()
    newest = checkpoints.latest(run_spec_of(sample_corpus, tmp_path, "run", *overrides).run)
    assert newest is not None and newest.state["global_step"] >= 3


@contextmanager
def command(corpus: str, out: Path, run: str, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """`beatray pretrain` in a process of its own, with a Ray of its own."""
    paths = [f"corpus={corpus}", f"out={out}", f"run={run}", "cluster.cpus=4", "cluster.object_store_mb=128"]
    process = subprocess.Popen(
        [sys.executable, "-m", "beatray", "pretrain", *paths, *OVERRIDES, "train.workers=1", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_step(journal: Path, step: int, process: subprocess.Popen[str]) -> None:
    while not (lines := read_lines(journal)) or lines[-1]["step"] < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)


def test_a_driver_stopped_and_killed_continues_with_the_same_command(sample_corpus: str, tmp_path: Path) -> None:
    """SIGTERM: a checkpoint of the last step and exit code 75. SIGKILL, again and again: the same command goes on."""
    overrides = (f"train.epochs={count(6, 30)}",)
    journal = tmp_path / "run" / "metrics.jsonl"
    with command(sample_corpus, tmp_path, "run", *overrides) as process:
        wait_for_step(journal, 2, process)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=300)
        assert process.returncode == 75, error[-3000:]
        assert "the same command continues it" in out
    run_spec = run_spec_of(sample_corpus, tmp_path, "run", *overrides)
    newest = checkpoints.latest(run_spec.run)
    assert newest is not None
    done = newest.state["global_step"]
    assert 3 <= done == len(read_lines(journal)) < run_spec.steps
    for kill in range(count(0, 3)):
        with command(sample_corpus, tmp_path, "run", *overrides) as process:
            wait_for_step(journal, done + 4 + 5 * kill, process)
            process.kill()
    if count(0, 1):
        with command(sample_corpus, tmp_path, "run", *overrides) as process:
            out, error = process.communicate(timeout=600)
            assert process.returncode == 0, error[-3000:]
            assert "continued from step" in out
    else:  # what the command does, without the start of another Ray
        assert start(sample_corpus, tmp_path, "run", *overrides, "train.workers=1").continued_from == done
    assert train_here(sample_corpus, tmp_path, "undisturbed", *overrides)
    assert ids(tmp_path, "run") == ids(tmp_path, "undisturbed")
    assert losses(tmp_path, "run") == losses(tmp_path, "undisturbed")
    assert same_weights(tmp_path, "run", "undisturbed")


@pytest.mark.skipif(count(0, 1) == 0, reason="a minute: runs with BEATRAY_CHAOS=1")
def test_of_two_starts_the_later_one_goes_on(sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("train.epochs=60",)
    journal = tmp_path / "run" / "metrics.jsonl"
    with command(sample_corpus, tmp_path, "run", *overrides) as first:
        wait_for_step(journal, 3, first)
        with command(sample_corpus, tmp_path, "run", *overrides) as second:
            _, error = first.communicate(timeout=300)
            assert first.returncode == 1 and "another start of run run has taken over" in error, error[-3000:]
            _, error = second.communicate(timeout=600)
            assert second.returncode == 0, error[-3000:]
    steps = [line["step"] for line in read_lines(journal)]
    assert (
        steps == list(range(len(steps))) and len(steps) == run_spec_of(sample_corpus, tmp_path, "run", *overrides).steps
    )
