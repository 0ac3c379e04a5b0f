"""A run whose steps overlap, as on a GPU (here on the CPU: train.overlap=always), leaves what any other run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beatray.errors import TrainingError
from beatray.storage.store import Store
from beatray.track.journal import read_lines
from beatray.train import checkpoint as checkpoints
from beatray.train import loop, step
from beatray.train.ranks import Ranks
from counts import count
from pretraining import Poison, ids, losses, run_spec_of, same_weights, start, train_here, weights

pytestmark = pytest.mark.ray

OVERRIDES = ("train.precision=fp64", "train.validate_every_epochs=1")
LATE = (*OVERRIDES, "train.overlap=always")


@pytest.fixture(scope="module")
def runs(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, each step read at once and each read late."""
    out = tmp_path_factory.mktemp("overlap")
    assert train_here(sample_corpus, out, "at_once", *OVERRIDES, "train.overlap=never")
    assert train_here(sample_corpus, out, "late", *LATE)
    return out


def test_it_learns_the_same_and_writes_the_same_down(runs: Path) -> None:
    one, other = (read_lines(runs / run / "metrics.jsonl") for run in ("at_once", "late"))
    assert [line["step"] for line in other] == list(range(len(one)))
    measured = {"time_ms", "core_s", "step_s", "data_wait_s", "records_per_s"}
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert {k: v for k, v in b.items() if k not in measured} == pytest.approx(
            {k: v for k, v in a.items() if k not in measured}, rel=1e-6
        )
        assert b["step_s"] > 0 and b["records_per_s"] > 0
    assert ids(runs, "at_once") == ids(runs, "late")
    at_once, late = weights(runs, "at_once"), weights(runs, "late")
    assert all(at_once[name].numpy() == pytest.approx(late[name].numpy(), rel=1e-5, abs=1e-7) for name in at_once)


def test_an_interrupted_run_continues_to_the_bit(runs: Path, sample_corpus: str) -> None:
    assert not train_here(sample_corpus, runs, "cut", *LATE, "train.stop_after_steps=4")
    assert checkpoints.newest_step(Store(str(runs / "cut"))) == 4
    assert train_here(sample_corpus, runs, "cut", *LATE)
    assert losses(runs, "cut") == losses(runs, "late") and same_weights(runs, "cut", "late")


def test_a_checkpoint_due_by_time_is_of_the_step_it_says(runs: Path, sample_corpus: str) -> None:
    overrides = (*LATE, "checkpoint.every_minutes=1e-9", "checkpoint.keep=100")
    assert not train_here(sample_corpus, runs, "often", *overrides, "train.stop_after_steps=5")
    assert len(checkpoints.names(Store(str(runs / "often")))) == 5
    assert train_here(sample_corpus, runs, "often", *overrides)
    assert losses(runs, "often") == losses(runs, "late") and same_weights(runs, "often", "late")


def test_refused_steps_are_named_and_stop_the_run(sample_corpus: str, tmp_path: Path) -> None:
    run_spec = run_spec_of(
        sample_corpus,
        tmp_path,
        "nan",
        "train.workers=1",
        *LATE,
        "train.max_nonfinite=3",
        "train.validate_every_epochs=0",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "build_model", Poison(at_calls=(1, 4, 5, 6)))
        with pytest.raises(TrainingError, match=r"3 times in a row \(last at step 6"):
            loop.train(run_spec, Ranks())
    refused = [json.loads(text) for text in (tmp_path / "nan" / "refused_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in refused] == [1, 4, 5, 6]
    values = losses(tmp_path, "nan")
    assert values[1] is None and values[4] is None and values[0] is not None and values[2] is not None
    assert refused[0]["record_ids"] == ids(tmp_path, "nan")[1]
    newest = checkpoints.latest(run_spec.run)
    assert newest is not None and newest.state["global_step"] == 6


@pytest.mark.skipif(count(0, 1) == 0, reason="a minute: runs with BEATRAY_CHAOS=1")
def test_two_workers_train_as_one(runs: Path, sample_corpus: str) -> None:
    assert start(sample_corpus, runs, "late_2", *LATE, "train.workers=2").finished
    assert ids(runs, "late_2") == ids(runs, "late")
    assert losses(runs, "late_2") == pytest.approx(losses(runs, "late"), rel=1e-6)
