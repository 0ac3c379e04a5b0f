"""Embedding a corpus through real Ray Data: exact, the same whoever computes it, resumable, on disks and on S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.data import DataContext

import beatray
from beatray.cli import main
from beatray.commands.demo import SAMPLE
from beatray.commands.embed import settings_from
from beatray.corpus.manifest import write_manifest
from beatray.corpus.reader import Corpus, open_corpus
from beatray.errors import SettingsError
from beatray.infer.files import EmbeddingsError, read_listing
from beatray.infer.plan import prepare_plan
from beatray.infer.run import Embedded, embed
from beatray.infer.stream import check_resources
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree
from beatray.models import encoder_folder
from beatray.models.registry import build_encoder
from beatray.models.roi_align import roi_align_1d
from beatray.objectives.beat_ssl import BeatSsl
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.preprocess import prepare
from beatray.storage.store import TEMPORARY_PREFIX, Store
from s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

BOX_BEFORE_S, BOX_AFTER_S, BINS = 0.3, 0.5, 6


def export(run: Store, recipe: dict[str, Any], seed: int = 0) -> str:
    """An encoder as a training run leaves it, with statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    encoder = build_encoder("tiny").train()
    for _ in range(3):
        encoder(torch.randn(4, 12, 2000))
    objective = {"name": "beat_ssl", "box_before_s": BOX_BEFORE_S, "box_after_s": BOX_AFTER_S, "roi_bins": BINS}
    encoder_folder.export_encoder(
        run, encoder, {"name": "tiny", "settings": {}, "recipe": recipe, "objective": objective}
    )
    return run.location


@pytest.fixture(scope="module")
def encoder(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return export(Store(str(tmp_path_factory.mktemp("run"))), open_corpus(sample_corpus).recipe)


def start(encoder: str, corpus: str, out: str, *overrides: str) -> Embedded:
    return embed(prepare_plan(settings_from([f"encoder={encoder}", f"corpus={corpus}", f"out={out}", *overrides])))


@pytest.fixture(scope="module")
def both(encoder: str, sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both levels, by one worker, through the command."""
    out = str(tmp_path_factory.mktemp("embeddings") / "both")
    assert main(["embed", f"encoder={encoder}", f"corpus={sample_corpus}", f"out={out}", "level=both"]) == 0
    return out


def files_of(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def feature_maps(encoder: str, corpus: Corpus) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Straight from the corpus, all rows at once: the module, its feature maps and the valid lengths."""
    rows = corpus.rows()
    module: Any = beatray.load_encoder(encoder)
    valid = torch.from_numpy(rows.n_samples.astype(np.int64))
    with torch.no_grad():
        return module, module.forward_features(prepare(torch.from_numpy(rows.signal_uv.copy()), 500.0, valid)), valid


def test_recordings_have_the_encoders_own_pooling_in_the_order_of_the_corpus(
    both: str, encoder: str, sample_corpus: str
) -> None:
    found = beatray.read_embeddings(both)
    corpus = open_corpus(sample_corpus)
    module, fmap, valid = feature_maps(encoder, corpus)
    assert found.record_id == corpus.index["record_id"].tolist()
    assert found.source == corpus.index["source"].tolist() and found.fold.tolist() == corpus.index["fold"].tolist()
    assert found.vectors.dtype == np.float32 and found.vectors.shape == (120, module.embed_dim)
    np.testing.assert_allclose(found.vectors, module.pool(fmap, valid).numpy(), rtol=1e-4, atol=1e-5)
    assert len(np.unique(found.vectors, axis=0)) == 120


def test_beats_are_what_the_beat_head_of_training_takes_in(both: str, encoder: str, sample_corpus: str) -> None:
    found = beatray.read_embeddings(both, "beat")
    corpus = open_corpus(sample_corpus)
    module, fmap, _ = feature_maps(encoder, corpus)
    rows = corpus.rows()
    position = {name: row for row, name in enumerate(rows.record_id)}
    assert found.beat is not None and found.r_peak is not None
    owner = torch.tensor([position[name] for name in found.record_id])
    peaks = np.array([rows.r_peaks[row][beat] for row, beat in zip(owner.tolist(), found.beat.tolist(), strict=True)])
    assert np.array_equal(found.r_peak, peaks)
    boxes = torch.tensor(np.stack([peaks - 500 * BOX_BEFORE_S, peaks + 500 * BOX_AFTER_S], axis=1), dtype=torch.float32)
    objective = BeatSsl(module, BeatSslSettings(rhythm="hard", beat="hard", roi_bins=BINS), None).eval()
    with torch.no_grad():
        regions = roi_align_1d(fmap, boxes, owner, module.stages[-1], BINS)
        np.testing.assert_allclose(found.vectors, regions.flatten(1).numpy(), rtol=1e-4, atol=1e-5)
        head = objective.beat_head
        contrasted = head(fmap, boxes, owner, module.stages[-1])
        from_vectors = head.out(torch.relu(head.hidden(torch.from_numpy(found.vectors))))
    torch.testing.assert_close(from_vectors, contrasted, rtol=1e-4, atol=1e-5)


def test_every_beat_with_enough_of_its_box_inside_has_a_vector(both: str, sample_corpus: str) -> None:
    found = beatray.read_embeddings(both, "beat")
    rows = open_corpus(sample_corpus).rows()
    expected = []
    for name, peaks, length in zip(rows.record_id, rows.r_peaks, rows.n_samples.tolist(), strict=True):
        inside = np.minimum(peaks + 250, length) - np.maximum(peaks - 150, 0)
        expected += [(name, beat) for beat in np.flatnonzero(inside >= 0.75 * 400).tolist()]
    assert found.beat is not None
    assert list(zip(found.record_id, found.beat.tolist(), strict=True)) == expected


def test_the_same_bytes_whoever_computes_them_and_after_an_interruption(
    both: str, encoder: str, sample_corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2**18)  # a row group is 2 MB
    overrides = ("level=both", "embed.workers=2", "embed.readers=3")
    plan = prepare_plan(settings_from([f"encoder={encoder}", f"corpus={sample_corpus}", f"out={tmp_path}", *overrides]))

    def die_after_two_shards(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(plan, die_after_two_shards)
    finished = {path.name for path in (tmp_path / "staging").iterdir()}
    assert 2 <= len(finished) < 8
    with pytest.raises(EmbeddingsError, match="an unfinished run lies there"):
        beatray.read_embeddings(str(tmp_path))
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "beat").iterdir() if f"{path.name}.json" in finished
    }
    (tmp_path / "beat" / f"{TEMPORARY_PREFIX}left").write_bytes(b"half a file")
    done = embed(plan)
    assert done.kept == len(finished) and done.computed == len(done.listing.parts) // 2 - done.kept
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert files_of(str(tmp_path)) == files_of(both)
    again = embed(plan)
    assert again.computed == 0 and files_of(str(tmp_path)) == files_of(both)


def test_new_recordings_of_a_corpus_are_added(encoder: str, tmp_path: Path) -> None:
    corpus, out = str(tmp_path / "corpus"), str(tmp_path / "out")
    for limit in (4, 8):
        assert main(["ingest", f"ludb={SAMPLE / 'ludb-sample.zip'}", f"limit={limit}", "--out", corpus]) == 0
        done = start(encoder, corpus, out)
    assert (done.kept, done.computed) == (1, 1)
    found = beatray.read_embeddings(out)
    assert found.record_id == open_corpus(corpus).index["record_id"].tolist() and len(found) > 4
    assert read_listing(Store(out)).corpus["sha256"] == open_corpus(corpus).manifest.hash


def test_a_transformer_gives_the_vectors_of_the_command_on_the_files_themselves(both: str, encoder: str) -> None:
    found = beatray.read_embeddings(both)
    row = {name: number for number, name in enumerate(found.record_id)}
    for source in ("ludb", "ptbxl"):
        tree = open_tree(str(SAMPLE / f"{source}-sample.zip"))
        items = [item for item in SOURCES[source].find(tree) if f"{source}/{item.name}" in row][:12]
        assert len(items) == 12
        records = [record for item in items for record in SOURCES[source].read(tree, item)]
        assert {record.rate_hz for record in records} == {500.0}
        vectors = beatray.EcgEncoder(encoder).transform(np.stack([record.signal_mv for record in records]))
        expected = found.vectors[[row[record.record_id] for record in records]]
        np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_everything_may_lie_on_s3(s3: S3Server, both: str, sample_corpus: str) -> None:
    bucket = s3.bucket()
    corpus, local = Store(s3.uri(f"{bucket}/corpus")), Store(sample_corpus)
    for name in (*local.names(), *(f"shards/{name}" for name in local.names("shards"))):
        corpus.write(name, local.read(name))
    encoder = export(Store(s3.uri(f"{bucket}/run")), open_corpus(sample_corpus).recipe)
    out = s3.uri(f"{bucket}/embeddings")
    overrides = [f"encoder={encoder}", f"corpus={corpus.location}", f"out={out}", "level=both", "embed.workers=2"]
    assert main(["embed", *overrides]) == 0
    expected = files_of(both)
    assert {key.removeprefix("embeddings/") for key in s3.keys(bucket) if key.startswith("emb")} == set(expected)
    assert all(Store(out).read(name) == data for name, data in expected.items())
    assert np.array_equal(beatray.read_embeddings(out).vectors, beatray.read_embeddings(both).vectors)


def test_damage_is_named(both: str, encoder: str, sample_corpus: str, tmp_path: Path) -> None:
    copy = Store(str(tmp_path / "copy"))
    for name, data in files_of(both).items():
        copy.write(name, data)
    part = read_listing(copy).parts[0]
    copy.write(part.name, copy.read(part.name)[:-1] + b"?")
    with pytest.raises(EmbeddingsError, match=f"{part.name} is damaged"):
        beatray.read_embeddings(copy.location)
    copy.delete(part.name)
    with pytest.raises(EmbeddingsError, match=f"{part.name} is missing"):
        beatray.read_embeddings(copy.location)
    copy.write("embeddings.json", copy.read("embeddings.json").replace(b'"rows": 16', b'"rows": 17', 1))
    with pytest.raises(EmbeddingsError, match=r"embeddings\.json is damaged"):
        beatray.read_embeddings(copy.location)
    with pytest.raises(SettingsError, match="overwrite=true"):
        start(encoder, sample_corpus, copy.location, "level=both")
    corpus = Store(str(tmp_path / "corpus"))
    for name, data in files_of(sample_corpus).items():
        corpus.write(name, data)
    hurt = f"shards/{corpus.names('shards')[3]}"
    corpus.write(hurt, corpus.read(hurt)[:-1000])
    assert main(["embed", f"encoder={encoder}", f"corpus={corpus.location}", f"out={tmp_path / 'out'}"]) == 1


def test_mistakes_are_reported_before_anything_starts(
    both: str, encoder: str, sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    other = export(Store(str(tmp_path / "other")), open_corpus(sample_corpus).recipe, seed=1)
    foreign = export(Store(str(tmp_path / "foreign")), {**open_corpus(sample_corpus).recipe, "rate_hz": 250})
    given = (f"encoder={encoder}", f"corpus={sample_corpus}")
    for name in ("a/recording/mine.parquet", "b/staging/mine.json", "c/beat/2020/mine.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    manifest = open_corpus(sample_corpus).manifest
    shards = tuple(replace(shard, name=f"elsewhere-{shard.name}") for shard in manifest.shards)
    write_manifest(Store(str(tmp_path / "elsewhere")), replace(manifest, shards=shards))
    for overrides, code, message in (
        ((given[1],), 2, "which encoder?"),
        ((given[0],), 2, "of which corpus?"),
        ((*given, "level=beats"), 2, "level=beats is not one of recording, beat, both"),
        ((*given, "embed.worker=2"), 2, "did you mean 'embed.workers'"),
        ((*given, "embed.workers=0"), 2, "embed.workers must be at least 1"),
        ((*given, f"out={sample_corpus}/embeddings"), 2, "lies inside the corpus"),
        ((f"encoder={tmp_path}", given[1]), 2, "there is no exported encoder"),
        ((f"encoder={unfinished}", given[1]), 2, "has not ended"),
        ((given[0], f"corpus={tmp_path}"), 1, "there is no manifest"),
        ((f"encoder={foreign}", given[1]), 1, "rate_hz: 250 against 500"),
        ((f"encoder={other}", given[1], f"out={both}", "level=both"), 2, "made otherwise (different: encoder)"),
        ((*given, f"out={both}"), 2, "(different: beats, levels)"),
        ((given[0], f"corpus={tmp_path / 'elsewhere'}", f"out={both}", "level=both"), 2, "of another corpus"),
        *(
            ((*given, f"out={tmp_path / each}"), 2, f"{name} is there, and no embeddings.json")
            for each, name in (("a", "mine.parquet"), ("b", "mine.json"), ("c", "2020/mine.csv"))
        ),
        ((*given, f"out={tmp_path / 'out'}", "embed.workers=50"), 2, "50 workers need 25 CPUs"),
        ((*given, f"out={tmp_path / 'out'}", "embed.device=cuda"), 2, "workers need as many GPUs"),
    ):
        assert main(["embed", *overrides]) == code, overrides
        assert message in capsys.readouterr().err, overrides
    assert not (tmp_path / "out").exists()
    before = files_of(both)
    assert main(["embed", *given, f"out={both}", "level=both", "overwrite=true", "embed.workers=50"]) == 2
    assert files_of(both) == before


def test_a_worker_gets_a_gpu_where_there_is_one(encoder: str, sample_corpus: str) -> None:
    overrides = [f"encoder={encoder}", f"corpus={sample_corpus}"]
    assert check_resources(settings_from(overrides).embed, {"CPU": 4.0, "GPU": 1.0}, "embed")
    assert not check_resources(settings_from([*overrides, "embed.device=cpu"]).embed, {"CPU": 4.0, "GPU": 1.0}, "embed")
    assert json.loads(json.dumps(prepare_plan(settings_from(overrides)).made_by))["levels"] == ["recording"]


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid` and their command lines."""
    parents, names = {}, {}
    for position in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(position.name)] = int((position / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(position.name)] = (position / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has just ended
    found, fresh = {}, {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= {child: names[child] for child in fresh}
    return found


@pytest.mark.skipif(os.environ.get("BEATRAY_CHAOS") != "1", reason="minutes: runs with BEATRAY_CHAOS=1")
def test_killed_workers_and_a_killed_command_change_nothing(
    both: str, encoder: str, sample_corpus: str, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_a_worker(done: int, total: int) -> None:
        workers = [pid for pid, name in descendants(os.getpid()).items() if "MapWorker" in name and "Embedder" in name]
        if done and len(killed) < 2 and workers:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    overrides = [f"encoder={encoder}", f"corpus={sample_corpus}", "level=both", "embed.workers=2"]
    embed(prepare_plan(settings_from([*overrides, f"out={tmp_path / 'workers'}"])), kill_a_worker)
    assert len(killed) == 2 and files_of(str(tmp_path / "workers")) == files_of(both)
    out = tmp_path / "command"
    command = [sys.executable, "-m", "beatray", "embed", *overrides, f"out={out}", "cluster.cpus=4"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list((out / "staging").glob("*.json"))) < 2:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "embeddings.json").exists()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert files_of(str(out)) == files_of(both)
