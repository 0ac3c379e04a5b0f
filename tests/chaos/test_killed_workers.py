"""Train workers killed at random steps, runs resumed on other numbers of workers: nothing of the result changes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from beatray.commands.pretrain import watched
from beatray.train.launch import pretrain
from beatray.train.run_folder import RunFolder
from counts import count
from pretraining import ids, kill_a_rank, losses, run_spec_of, start, strikes_at, train_here, weights

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]


def test_killed_workers_change_nothing(
    sample_corpus: str, on_two_workers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL a rank at seeded random steps: ids, losses and final weights are those of the undisturbed run."""
    kills = count(1, 20)
    overrides = ("train.workers=2", f"train.epochs={count(3, 24)}", f"train.max_failures={kills + 5}")
    whole = (on_two_workers, "w2")  # of three epochs
    if count(0, 1):
        whole = (tmp_path, "whole")
        assert start(sample_corpus, *whole, *overrides).finished
    total = len(losses(*whole))
    steps = sorted(random.Random(7).sample(range(1, total - 1), kills))
    spec = run_spec_of(sample_corpus, tmp_path, "killed", *overrides)
    journal, folder = tmp_path / "killed" / "metrics.jsonl", RunFolder.open(spec.run)
    with strikes_at(journal, steps, kill_a_rank) as struck, watched(spec, folder, "pretrain"):
        assert pretrain(spec).finished
    output = capsys.readouterr().err
    died = re.findall(r"rank [01] \(node \S+, process \d+\) died: The actor is dead", output)
    continued = re.findall(r"pretrain: continues from step \d+ with 2 workers$", output, re.MULTILINE)
    at_least = max(1, len(struck) - 1)  # the last may come too late
    assert len(died) >= at_least and len(continued) >= at_least, output
    print(f"killed a worker {len(struck)} times, at steps {struck} of {total}")
    assert len(struck) >= max(1, kills - 1)
    assert ids(tmp_path, "killed") == ids(*whole)
    assert losses(tmp_path, "killed") == losses(*whole)
    killed, unbroken = weights(tmp_path, "killed"), weights(*whole)
    assert killed.keys() == unbroken.keys() and all(torch.equal(killed[name], unbroken[name]) for name in killed)


@pytest.mark.skipif(count(0, 1) == 0, reason="a minute: runs with BEATRAY_CHAOS=1")
def test_resumed_on_other_numbers_of_workers(sample_corpus: str, tmp_path: Path) -> None:
    """The same ids, and in double precision the same curve, as the run that one worker did alone."""
    overrides = (
        "train.precision=fp64",
        f"train.epochs={count(2, 4)}",
        "train.cpus_per_worker=0.25",
        "train.cpus_per_reader=0.25",
    )
    assert train_here(sample_corpus, tmp_path, "alone", *overrides)
    total = len(losses(tmp_path, "alone"))
    first, moves = "train.stop_after_steps=2", count(((3, total),), ((4, total // 3), (2, 2 * total // 3), (3, total)))
    train_here(sample_corpus, tmp_path, "moved", *overrides, first)  # one worker
    for workers, until in moves:
        result = start(
            sample_corpus, tmp_path, "moved", *overrides, f"train.workers={workers}", f"train.stop_after_steps={until}"
        )
        assert result.steps == until and result.as_asked == (until < total)
    assert ids(tmp_path, "moved") == ids(tmp_path, "alone")
    one, other = losses(tmp_path, "alone"), losses(tmp_path, "moved")
    apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
    print(f"largest difference of the loss over {total} steps: {apart:.1e}")
    assert apart < 1e-5
    assert one[-1] < one[0]
