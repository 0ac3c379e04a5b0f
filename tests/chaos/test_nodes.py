"""Nodes that die and join while recordings are read and while a model is trained: nothing is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from beatray.commands.demo import SAMPLE
from beatray.corpus.reader import open_corpus
from beatray.track.journal import read_lines
from counts import count
from pretraining import OVERRIDES, ids, losses, train_here
from ray_nodes import cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


def finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, (out + error)[-4000:]
    return out


@pytest.mark.skipif(count(0, 1) == 0, reason="a minute: runs with BEATRAY_CHAOS=1")
def test_a_node_dies_while_recordings_are_read(sample_corpus: str, tmp_path: Path) -> None:
    """The corpus has the same bytes as that of an undisturbed ingest."""
    with cluster() as nodes:
        nodes.join(1)
        nodes.wait_for(2)  # two that start together in one session folder get into each other's way
        second = nodes.join(1)
        nodes.wait_for(3)
        corpus = tmp_path / "corpus"
        sources = [f"ludb={SAMPLE / 'ludb-sample.zip'}", f"ptbxl={SAMPLE / 'ptbxl-sample.zip'}"]
        ingest = nodes.run("ingest", *sources, "--out", str(corpus), "items_per_shard=16", "limit=60")
        while not list(corpus.glob("shards/*.parquet")):
            assert ingest.poll() is None, ingest.communicate()[1][-3000:]
            time.sleep(0.01)
        nodes.kill(second)
        finish(ingest)
        made, expected = open_corpus(str(corpus)).manifest, open_corpus(sample_corpus).manifest
        assert [(shard.name, shard.sha256) for shard in made.shards] == [(s.name, s.sha256) for s in expected.shards]


@pytest.mark.skipif(count(0, 1) == 0, reason="minutes: runs with BEATRAY_CHAOS=1")
def test_elastic_training_goes_on_when_a_node_dies(sample_corpus: str, tmp_path: Path) -> None:
    """With 2 workers, then 1, then 2 again when a node joins: the records of each step stay those of the plan."""
    out = tmp_path / "runs"
    elastic = (
        *("train.workers=[1,2]", "train.cpus_per_worker=0.6", "train.resize_seconds=3"),
        "train.epochs=150",
    )
    with cluster() as nodes:
        nodes.join(1)
        nodes.wait_for(2)  # two that start together in one session folder get into each other's way
        second = nodes.join(1)
        nodes.wait_for(3)
        journal = out / "elastic" / "metrics.jsonl"
        training = nodes.run("pretrain", f"corpus={sample_corpus}", f"out={out}", "run=elastic", *OVERRIDES, *elastic)
        wait(journal, training, workers=2)
        nodes.kill(second)
        wait(journal, training, workers=1)
        nodes.join(1)
        wait(journal, training, workers=2)
        finish(training)
    workers = [line["workers"] for line in read_lines(journal)]
    changes = [w for n, w in enumerate(workers) if n == 0 or w != workers[n - 1]]
    print(f"workers over {len(workers)} steps: {changes}")
    assert changes[-3:] == [2, 1, 2]
    assert train_here(sample_corpus, tmp_path, "undisturbed", elastic[-1])
    assert ids(out, "elastic") == ids(tmp_path, "undisturbed")
    assert len(losses(out, "elastic")) == len(losses(tmp_path, "undisturbed"))
    assert json.loads((out / "elastic" / "encoder" / "encoder.json").read_text())["steps"] == len(workers)


def wait(journal: Path, training: subprocess.Popen[str], workers: int) -> None:
    """Until a step was done by so many workers, from now on."""
    already = len(read_lines(journal))
    while not any(line["workers"] == workers for line in read_lines(journal)[max(already - 1, 0) :]):
        assert training.poll() is None, "".join(training.communicate())[-4000:]
        time.sleep(0.1)
