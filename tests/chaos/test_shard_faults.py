"""Shards deleted, truncated, emptied or flipped while training: named, with a checkpoint; or skipped and counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from beatray.errors import CorpusError, TrainingError
from beatray.track.journal import read_lines
from beatray.train import checkpoint as checkpoints
from beatray.train import loop
from beatray.train.ranks import Ranks
from counts import count
from pretraining import ids, losses, run_spec_of, same_weights, start, strikes_at, train_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


def delete(shard: Path) -> None:
    shard.unlink()


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1000])


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


def flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16  # inside a page of signals
    shard.write_bytes(bytes(data))


FAULTS: list[Callable[[Path], None]] = [flip, delete, truncate, empty]
OVERRIDES = ("train.cache_mb=0", "train.epochs=6", "train.chunk_steps=2", "train.validate_every_epochs=0")


@pytest.fixture
def corpus(sample_corpus: str, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(sample_corpus, tmp_path / "corpus"))


@pytest.mark.skipif(count(0, 1) == 0, reason="minutes: runs with BEATRAY_CHAOS=1")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_lost_shard_ends_the_run_with_a_checkpoint_and_it_continues(
    fault: Callable[[Path], None], corpus: Path, tmp_path: Path
) -> None:
    overrides = (*OVERRIDES, "train.checkpoint_every_steps=1000", "train.workers=2")
    shard = sorted((corpus / "shards").iterdir())[0]
    shutil.copy(shard, tmp_path / "copy")
    folder = run_spec_of(str(corpus), tmp_path, "run", *overrides).run

    def strike() -> bool:
        fault(shard)
        return True

    with strikes_at(tmp_path / "run" / "metrics.jsonl", [3], strike), pytest.raises(TrainingError) as caught:
        start(str(corpus), tmp_path, "run", *overrides)
    assert shard.name in str(caught.value) and "the same command continues the run" in str(caught.value)
    newest = checkpoints.latest(folder)
    done = len(losses(tmp_path, "run"))
    assert newest is not None and newest.state["global_step"] == done >= 4  # of the very last whole step
    shutil.copy(tmp_path / "copy", shard)
    assert start(str(corpus), tmp_path, "run", *overrides).continued_from == done
    assert train_here(str(corpus), tmp_path, "alone", *overrides)
    assert ids(tmp_path, "run") == ids(tmp_path, "alone")
    assert start(str(corpus), tmp_path, "undisturbed", *overrides).finished
    assert losses(tmp_path, "run") == losses(tmp_path, "undisturbed")
    assert same_weights(tmp_path, "run", "undisturbed")


@pytest.mark.parametrize("fault", count(FAULTS[:1], FAULTS), ids=lambda fault: fault.__name__)
def test_any_fault_is_named_or_skipped_and_counted(
    fault: Callable[[Path], None], local_ray: None, corpus: Path, tmp_path: Path
) -> None:
    shard = sorted((corpus / "shards").iterdir())[1]
    overrides = (*OVERRIDES, "train.workers=1", "train.epochs=2")
    stop = run_spec_of(str(corpus), tmp_path, "stop", *overrides)
    skip = run_spec_of(str(corpus), tmp_path, "skip", *overrides, "corpus.on_bad_shard=skip")
    lost = sum(len(group.rows) for group in skip.stream.groups if group.shard.name == shard.name)
    assert lost > 0
    fault(shard)
    with pytest.raises(CorpusError, match=shard.name):
        loop.train(stop, Ranks())
    assert loop.train(skip, Ranks())
    lines = read_lines(tmp_path / "skip" / "metrics.jsonl")
    assert sum(line.get("dropped_rows", 0) for line in lines) == 2 * lost
    seen = [name for step in ids(tmp_path, "skip") for name in step]
    assert len(seen) == 2 * (skip.rows - lost) and len(set(seen)) == skip.rows - lost
    noted = [json.loads(text) for text in (tmp_path / "skip" / "skipped_shards.jsonl").read_text().splitlines()]
    assert noted and all(shard.name in line["fault"] for line in noted)
