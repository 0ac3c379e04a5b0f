"""The stream through real Ray Data on real recordings: the planned rows, for any number of ranks, from anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import ray.data
import torch

from beatray.augment.draws import Draws, record_key
from beatray.corpus.reader import open_corpus
from beatray.errors import CorpusError
from beatray.train.blocks import Arrays
from beatray.train.composed import pretrain_settings
from beatray.train.order import epoch_order, steps_per_epoch
from beatray.train.prepare import prepare_run
from beatray.train.run_spec import RunSpec, ViewsOnWorker, build_model
from beatray.train.stream import Batch, batches
from counts import count

pytestmark = pytest.mark.ray


def run_spec_on(corpus: str, *overrides: str) -> RunSpec:
    return prepare_run(pretrain_settings([f"corpus={corpus}", "encoder=tiny", "train=small", *overrides]))


@pytest.fixture(scope="module")
def run_spec(sample_corpus: str) -> RunSpec:
    return run_spec_on(sample_corpus, "train.batch_size=12", "train.chunk_steps=3", "seed=5")


def views_on_worker(run_spec: RunSpec, seed: int) -> ViewsOnWorker:
    settings = run_spec.settings
    objective, encoder, statistics = map(json.dumps, (settings.objective, settings.encoder, run_spec.statistics))
    return ViewsOnWorker(objective, encoder, statistics, seed)


def expected_keys(run_spec: RunSpec, epochs: int) -> list[list[int]]:
    """Record keys of every global step, straight from the index and the order: no Ray, no Parquet streaming."""
    index = open_corpus(run_spec.settings.corpus.path).index
    by_place = {
        (s, g, r): record_key(i) for s, g, r, i in index[["shard", "group", "row", "record_id"]].itertuples(index=False)
    }
    shards = {
        shard.name: number for number, shard in enumerate(open_corpus(run_spec.settings.corpus.path).manifest.shards)
    }
    steps = []
    for epoch in range(epochs):
        order = epoch_order(run_spec.stream.sizes, run_spec.stream.order, epoch).tolist()
        for start in range(0, len(order), run_spec.stream.order.batch_size):
            part = order[start : start + run_spec.stream.order.batch_size]
            groups = [(run_spec.stream.groups[g], row) for g, row in part]
            steps.append([by_place[shards[g.shard.name], g.group, g.rows[row]] for g, row in groups])
    return steps


def together(parts: list[list[Batch]], name: str) -> list[np.ndarray]:
    """One array of every global step from the batches of all ranks."""
    return [np.concatenate([batch.arrays[name] for batch in step]) for step in zip(*parts, strict=True)]


def test_the_same_rows_come_where_ray_hides_its_blocks(run_spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray.data.Dataset, "iter_internal_ref_bundles")
    steps = list(batches(run_spec.stream, 0, 1, (0, 0), steps_per_epoch(run_spec.rows, 12)))
    assert [step.arrays["record_key"].tolist() for step in steps] == expected_keys(run_spec, 1)


@pytest.mark.parametrize(("world", "cache_mb"), count([(1, 0), (2, 1024), (3, 0)], list(product((1, 2, 3), (0, 1024)))))
def test_ranks_together_see_the_planned_records_over_two_epochs(run_spec: RunSpec, world: int, cache_mb: int) -> None:
    run_spec = replace(run_spec, stream=replace(run_spec.stream, cache_mb=cache_mb))
    n_steps = 2 * steps_per_epoch(run_spec.rows, 12)
    parts = [list(batches(run_spec.stream, rank, world, (0, 0), n_steps)) for rank in range(world)]
    assert [keys.tolist() for keys in together(parts, "record_key")] == expected_keys(run_spec, 2)
    assert [b.global_rows for b in parts[0]] == [len(keys) for keys in expected_keys(run_spec, 2)]


def test_what_arrives_is_what_the_corpus_holds(run_spec: RunSpec) -> None:
    rows = open_corpus(run_spec.settings.corpus.path).rows()
    position = {record_key(name): n for n, name in enumerate(rows.record_id)}
    for batch in batches(run_spec.stream, 0, 1, (0, 0), 3):
        for n, key in enumerate(batch.arrays["record_key"].tolist()):
            at = position[key]
            assert np.array_equal(batch.arrays["signal_uv"][n], rows.signal_uv[at])
            peaks = batch.arrays["r_peaks"][n]
            assert np.array_equal(peaks[peaks >= 0], rows.r_peaks[at])
            assert np.array_equal(batch.arrays["record_features"][n], rows.record_features[at], equal_nan=True)


def test_a_stream_opened_in_the_middle_goes_on_exactly(run_spec: RunSpec) -> None:
    per_epoch = steps_per_epoch(run_spec.rows, 12)
    done = per_epoch + 2
    rest = list(batches(run_spec.stream, 0, 1, divmod(done, per_epoch), 5))
    assert [b.arrays["record_key"].tolist() for b in rest] == expected_keys(run_spec, 2)[done : done + 5]


def test_views_are_the_same_bits_for_any_world_and_place(run_spec: RunSpec) -> None:
    objective = build_model(run_spec.settings.objective, {"name": "tiny"}, 0, run_spec.statistics)

    def device_views(batch: Batch) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(values) for name, values in batch.arrays.items()}
        return objective.views(tensors, Draws.of(tensors, run_spec.settings.seed, batch.epoch))

    alone = [device_views(batch) for batch in batches(run_spec.stream, 0, 1, (0, 0), 4)]
    pairs = [list(batches(run_spec.stream, rank, 2, (0, 0), 4)) for rank in range(2)]
    on_worker = views_on_worker(run_spec, run_spec.settings.seed)
    streamed = list(batches(run_spec.stream, 0, 1, (0, 0), 4, on_worker))
    for step, views in enumerate(alone):
        shared = [device_views(pairs[rank][step]) for rank in range(2)]
        for name in ("view_1", "view_2", "boxes", "crop_start"):
            assert torch.equal(torch.cat([part[name] for part in shared]), views[name]), name
            assert np.array_equal(streamed[step].arrays[name], views[name].numpy()), name
    assert not torch.equal(alone[0]["view_1"], alone[0]["view_2"])


def test_held_out_records_never_arrive(run_spec: RunSpec) -> None:
    seen = {key for keys in expected_keys(run_spec, 1) for key in keys}
    index = open_corpus(run_spec.settings.corpus.path).index
    held_out = index[(index["source"] == "ptbxl") & index["fold"].isin([9, 10])]["record_id"]
    assert len(held_out) and not seen & {record_key(name) for name in held_out}
    streamed = {
        k
        for b in batches(run_spec.stream, 0, 1, (0, 0), steps_per_epoch(run_spec.rows, 12))
        for k in b.arrays["record_key"].tolist()
    }
    assert streamed == seen


def remains() -> list[str]:
    """Threads of a stream or of Ray Data that are still alive, after some seconds to end."""
    for _ in range(100):
        names = [thread.name for thread in threading.enumerate()]
        left = [
            name for name in names if name.startswith(("beatray-", "StreamingExecutor", "iter_threaded", "ray-data"))
        ]
        if not left:
            return []
        time.sleep(0.1)
    return left


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


DAMAGE = {"delete": delete, "truncate": truncate, "empty": empty, "flip": flip}


def copy_of(run_spec: RunSpec, folder: Path, *overrides: str) -> RunSpec:
    """The job on a copy of its corpus that may be damaged."""
    shutil.copytree(run_spec.settings.corpus.path, folder / "corpus")
    return run_spec_on(str(folder / "corpus"), "train.batch_size=12", "train.chunk_steps=3", "seed=5", *overrides)


def shard_names(run_spec: RunSpec) -> list[str]:
    return list(dict.fromkeys(group.shard.name for group in run_spec.stream.groups))


def keys_in(run_spec: RunSpec, names: list[str]) -> set[int]:
    """Record keys of the usable rows of some shards."""
    index, shards = (
        open_corpus(run_spec.settings.corpus.path).index,
        open_corpus(run_spec.settings.corpus.path).manifest.shards,
    )
    rows = {(g.shard.name, g.group, row) for g in run_spec.stream.groups if g.shard.name in names for row in g.rows}
    located = index[["shard", "group", "row", "record_id"]].itertuples(index=False)
    return {record_key(name) for s, g, row, name in located if (shards[s].name, g, row) in rows}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_stops_the_stream_when_its_rows_are_due(run_spec: RunSpec, tmp_path: Path, kind: str) -> None:
    run_spec = copy_of(run_spec, tmp_path)
    planned = expected_keys(run_spec, 1)

    def first_use(name: str) -> int:
        lost = keys_in(run_spec, [name])
        return next(step for step, keys in enumerate(planned) if lost & set(keys))

    name = max(shard_names(run_spec), key=first_use)
    due = first_use(name)
    assert due > 0
    DAMAGE[kind](tmp_path / "corpus" / "shards" / name)
    feed, seen = batches(run_spec.stream, 0, 1, (0, 0), len(planned)), []
    with pytest.raises(CorpusError, match=name):
        seen.extend(batch.arrays["record_key"].tolist() for batch in feed)
    assert seen == planned[:due]  # those read ahead of the fault, in later chunks too, are as planned
    assert next(feed, None) is None
    assert remains() == []


@pytest.mark.parametrize(
    ("world", "cache_mb", "location"),
    count([(2, 0, "workers"), (1, 1024, "device")], [(1, 0, "device"), (3, 0, "workers"), (2, 1024, "device")]),
)
def test_damaged_shards_can_be_skipped_and_counted(
    run_spec: RunSpec, tmp_path: Path, world: int, cache_mb: int, location: str
) -> None:
    run_spec = copy_of(run_spec, tmp_path, "corpus.on_bad_shard=skip", f"train.cache_mb={cache_mb}")
    planned, per_epoch = expected_keys(run_spec, 3), steps_per_epoch(run_spec.rows, 12)
    damaged = shard_names(run_spec)[1 : 1 + len(DAMAGE)]
    lost = keys_in(run_spec, damaged)
    make = views_on_worker(run_spec, 0) if location != "device" else None
    feeds = [batches(run_spec.stream, rank, world, (0, 0), len(planned), make) for rank in range(world)]
    if cache_mb:  # what was read is kept, so only a fault from the start is seen
        for name, damage in zip(damaged, DAMAGE.values(), strict=True):
            damage(tmp_path / "corpus" / "shards" / name)
    missing: list[set[int]] = [set(), set(), set()]
    dropped = [0, 0, 0]
    reported: list[list[str]] = [[] for _ in feeds]
    for number, keys in enumerate(planned):
        parts = [next(feed) for feed in feeds]
        if number == 0 and not cache_mb:  # the rest happens while the stream is running
            for name, damage in zip(damaged, DAMAGE.values(), strict=True):
                damage(tmp_path / "corpus" / "shards" / name)
        got = [key for part in parts for key in part.arrays["record_key"].tolist()]
        assert got == [key for key in keys if key in set(got)]  # in order, and nothing else
        assert all(len(values) == len(part.arrays["record_key"]) for part in parts for values in part.arrays.values())
        assert [len(part.dropped) for part in parts] == [len(part.parts) for part in parts]
        missing[number // per_epoch] |= set(keys) - set(got)
        dropped[number // per_epoch] += sum(sum(part.dropped) for part in parts)
        for faults, part in zip(reported, parts, strict=True):
            faults.extend(part.faults)
    assert all(epoch <= lost for epoch in missing) and missing[2] == lost
    assert dropped == [len(epoch) for epoch in missing]
    assert all(next(feed, None) is None for feed in feeds)
    for faults in reported:
        assert len(set(faults)) == len(faults)
    assert all(any(name in fault for faults in reported for fault in faults) for name in damaged)
    assert remains() == []


def test_killed_readers_change_nothing(run_spec: RunSpec, tmp_path: Path) -> None:
    """Ray reads again what a dead reader had not delivered: nothing is missing, doubled or out of order."""
    deaths = count(1, 12)

    def die_once(arrays: Arrays, epoch: int) -> Arrays:
        """Views that kill their own reader, the first time that they see a row group."""
        if len(arrays["record_key"]) and len(list(tmp_path.iterdir())) < deaths:
            mark = tmp_path / f"{epoch}-{arrays['record_key'][0]}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"signal_uv": arrays["signal_uv"]}

    planned = expected_keys(run_spec, 3)
    seen = list(batches(run_spec.stream, 0, 1, (0, 0), len(planned), die_once))
    assert [batch.arrays["record_key"].tolist() for batch in seen] == planned
    assert len(list(tmp_path.iterdir())) == deaths


def test_a_stream_can_be_closed_at_any_time(run_spec: RunSpec) -> None:
    for taken in (0, 1, 4):
        feed = batches(replace(run_spec.stream, cache_mb=0), 0, 1, (0, 0), 200)
        for _ in range(taken):
            next(feed)
        feed.close()
        assert remains() == []


def test_seed_changes_the_order(run_spec: RunSpec) -> None:
    other = replace(run_spec.stream, order=replace(run_spec.stream.order, seed=6))
    a = next(iter(batches(run_spec.stream, 0, 1, (0, 0), 1))).arrays["record_key"].tolist()
    b = next(iter(batches(other, 0, 1, (0, 0), 1))).arrays["record_key"].tolist()
    assert a != b
