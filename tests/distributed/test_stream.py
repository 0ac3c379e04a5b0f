"""The stream through real Ray Data on real recordings: the planned rows, for any number of ranks, from anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beatray.corpus.manifest import CorpusError
from beatray.corpus.reader import open_corpus
from beatray.settings import PretrainSettings, build, compose
from beatray.train.job import Job, ViewsOnWorker, build_model
from beatray.train.order import epoch_order, steps_per_epoch
from beatray.train.prepare import prepare_job
from beatray.train.stream import Batch, batches
from beatray.views.draws import record_key

pytestmark = pytest.mark.ray


def job_on(corpus: str, *words: str) -> Job:
    settings = build(PretrainSettings, compose("pretrain", [f"corpus={corpus}", "encoder=tiny", "train=small", *words]))
    return prepare_job(settings)


@pytest.fixture(scope="module")
def job(sample_corpus: str) -> Job:
    return job_on(sample_corpus, "train.batch_size=12", "train.chunk_steps=3", "seed=5")


def expected_keys(job: Job, epochs: int) -> list[list[int]]:
    """Record keys of every global step, straight from the index and the order: no Ray, no Parquet streaming."""
    index = open_corpus(job.settings.corpus.path).index
    by_place = {
        (s, g, r): record_key(i) for s, g, r, i in index[["shard", "group", "row", "record_id"]].itertuples(index=False)
    }
    shards = {shard.name: number for number, shard in enumerate(open_corpus(job.settings.corpus.path).manifest.shards)}
    steps = []
    for epoch in range(epochs):
        order = epoch_order(job.stream.sizes, job.stream.order, epoch).tolist()
        for start in range(0, len(order), job.stream.order.batch_size):
            part = order[start : start + job.stream.order.batch_size]
            groups = [(job.stream.groups[g], row) for g, row in part]
            steps.append([by_place[shards[g.shard.name], g.group, g.rows[row]] for g, row in groups])
    return steps


def together(parts: list[list[Batch]], name: str) -> list[np.ndarray]:
    """One array of every global step from the batches of all ranks."""
    return [np.concatenate([batch.arrays[name] for batch in step]) for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("cache_mb", [0, 1024])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_the_planned_records_over_two_epochs(job: Job, world: int, cache_mb: int) -> None:
    job = replace(job, stream=replace(job.stream, cache_mb=cache_mb))
    n_steps = 2 * steps_per_epoch(job.rows, 12)
    parts = [list(batches(job.stream, rank, world, (0, 0), n_steps)) for rank in range(world)]
    assert [keys.tolist() for keys in together(parts, "record_key")] == expected_keys(job, 2)
    assert [b.global_rows for b in parts[0]] == [len(keys) for keys in expected_keys(job, 2)]


def test_what_arrives_is_what_the_corpus_holds(job: Job) -> None:
    rows = open_corpus(job.settings.corpus.path).rows()
    position = {record_key(name): n for n, name in enumerate(rows.record_id)}
    for batch in batches(job.stream, 0, 1, (0, 0), 3):
        for n, key in enumerate(batch.arrays["record_key"].tolist()):
            at = position[key]
            assert np.array_equal(batch.arrays["signal_uv"][n], rows.signal_uv[at])
            peaks = batch.arrays["r_peaks"][n]
            assert np.array_equal(peaks[peaks >= 0], rows.r_peaks[at])
            assert np.array_equal(batch.arrays["record_features"][n], rows.record_features[at], equal_nan=True)


def test_a_stream_opened_in_the_middle_goes_on_exactly(job: Job) -> None:
    per_epoch = steps_per_epoch(job.rows, 12)
    done = per_epoch + 2
    rest = list(batches(job.stream, 0, 1, divmod(done, per_epoch), 5))
    assert [b.arrays["record_key"].tolist() for b in rest] == expected_keys(job, 2)[done : done + 5]


def test_views_are_the_same_bits_for_any_world_and_place(job: Job) -> None:
    import json

    objective = build_model(job.settings.objective, {"name": "tiny"}, 0, job.statistics)

    def device_views(batch: Batch) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(values) for name, values in batch.arrays.items()}
        return objective.views(tensors, job.settings.seed, batch.epoch)

    alone = [device_views(batch) for batch in batches(job.stream, 0, 1, (0, 0), 4)]
    pairs = [list(batches(job.stream, rank, 2, (0, 0), 4)) for rank in range(2)]
    on_worker = ViewsOnWorker(json.dumps(job.settings.objective), json.dumps(job.statistics), job.settings.seed)
    streamed = list(batches(job.stream, 0, 1, (0, 0), 4, on_worker))
    for step, views in enumerate(alone):
        shared = [device_views(pairs[rank][step]) for rank in range(2)]
        for name in ("view_1", "view_2", "boxes", "crop_start"):
            assert torch.equal(torch.cat([part[name] for part in shared]), views[name]), name
            assert np.array_equal(streamed[step].arrays[name], views[name].numpy()), name
    assert not torch.equal(alone[0]["view_1"], alone[0]["view_2"])


def test_held_out_records_never_arrive(job: Job) -> None:
    seen = {key for keys in expected_keys(job, 1) for key in keys}
    index = open_corpus(job.settings.corpus.path).index
    held_out = index[(index["source"] == "ptbxl") & index["fold"].isin([9, 10])]["record_id"]
    assert len(held_out) and not seen & {record_key(name) for name in held_out}
    streamed = {
        k
        for b in batches(job.stream, 0, 1, (0, 0), steps_per_epoch(job.rows, 12))
        for k in b.arrays["record_key"].tolist()
    }
    assert streamed == seen


def test_a_damaged_shard_stops_the_stream_and_is_named(job: Job, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "corpus"
    shutil.copytree(job.settings.corpus.path, copy)
    broken = job_on(str(copy), "train.batch_size=12", "seed=5")
    name = broken.stream.groups[0].shard.name
    path = copy / "shards" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CorpusError, match=name):
        list(batches(broken.stream, 0, 1, (0, 0), steps_per_epoch(broken.rows, 12)))
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match=f"{name} has 0 bytes"):
        list(batches(broken.stream, 0, 1, (0, 0), steps_per_epoch(broken.rows, 12)))


def test_seed_changes_the_order(job: Job) -> None:
    other = replace(job.stream, order=replace(job.stream.order, seed=6))
    a = next(iter(batches(job.stream, 0, 1, (0, 0), 1))).arrays["record_key"].tolist()
    b = next(iter(batches(other, 0, 1, (0, 0), 1))).arrays["record_key"].tolist()
    assert a != b
