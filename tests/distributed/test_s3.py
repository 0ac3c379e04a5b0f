"""Corpora and checkpoints on a real S3 server: exact, whole or not at all, and patient when the server goes away."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import beatray
from beatray.cli import main
from beatray.commands.demo import SAMPLE
from beatray.commands.ingest import remove_corpus
from beatray.corpus.manifest import read_manifest
from beatray.corpus.reader import open_corpus, read_row_group, verify
from beatray.errors import CorpusError, LabelError
from beatray.ingest.tree import open_tree
from beatray.models import encoder_folder
from beatray.models.registry import build_encoder
from beatray.storage.store import TEMPORARY_PREFIX, Store, StoreError
from beatray.track.journal import read_lines
from beatray.track.setup import Tracking
from beatray.track.tracker import Tracker
from beatray.train import checkpoint as checkpoints
from beatray.train.composed import pretrain_settings
from beatray.train.loop import train
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks
from beatray.train.stream import batches
from counts import count
from label_tables import read as read_labels_of
from label_tables import values
from s3_server import S3Server

pytestmark = pytest.mark.ray

SOURCES = (f"ludb={SAMPLE / 'ludb-sample.zip'}", f"ptbxl={SAMPLE / 'ptbxl-sample.zip'}")
SMALL = ("items_per_shard=8", "limit=24")


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket()


@pytest.fixture
def location(s3: S3Server, bucket: str) -> Store:
    return Store(s3.uri(f"{bucket}/some/folder"))


@pytest.fixture(scope="module")
def corpus(s3: S3Server, local_ray: None) -> str:
    """The URI of a corpus that Ray tasks wrote to S3 through the command."""
    uri = s3.uri(f"{s3.bucket()}/corpus")
    assert main(["ingest", *SOURCES, *SMALL, "--out", uri]) == 0
    return uri


def copied(s3: S3Server, corpus: str) -> Store:
    """A copy of the corpus that a test may damage."""
    source, to = Store(corpus), Store(s3.uri(f"{s3.bucket()}/copy"))
    for name in (*source.names(), *(f"shards/{name}" for name in source.names("shards"))):
        to.write(name, source.read(name))
    return to


def test_files_and_folders(location: Store, s3: S3Server, bucket: str) -> None:
    assert location.names() == [] and location.folders() == [] and not location.exists()
    location.write("a", b"one")
    location.write("a", b"two")
    location.create("b", b"")
    with pytest.raises(FileExistsError, match="some/folder/b already exists"):
        location.create("b", b"yours")
    assert location.read("a") == b"two" and location.read("b") == b"" and location.size("a") == 3
    location.child("step 1").write("deep/file", b"x")
    assert location.names() == ["a", "b"] and location.folders() == ["step 1"]
    assert location.child("step 1").child("deep").read("file") == b"x"
    assert location.exists("step 1") and location.exists("a") and not location.exists("c")
    assert s3.keys(bucket) == ["some/folder/a", "some/folder/b", "some/folder/step 1/deep/file"]
    location.delete_folder("step 1")
    location.delete("a")
    location.delete("nothing")
    location.delete_folder("nothing")
    assert s3.keys(bucket) == ["some/folder/b"] and location.folders() == []
    with pytest.raises(FileNotFoundError):
        location.read("a")
    assert location.size("a") is None


def test_a_large_file_comes_back_whole(location: Store) -> None:
    data = np.random.default_rng(0).bytes(23_000_001)
    location.write("large", data)
    assert location.read("large") == data


def test_a_table_of_labels_is_read_from_an_object_store(location: Store) -> None:
    """With the options of the URI behind its name; messages leave them out."""
    location.write("labels.csv", b"record,ill\n00001,1\n00002,\n")
    uri = location.child("labels.csv").location
    assert "?" in uri and values(read_labels_of(uri), "ill")[:3] == [True, None, None]
    with pytest.raises(LabelError, match=r"there is no table s3://[^?]*/none\.csv$"):
        read_labels_of(location.child("none.csv").location)


def test_the_endpoint_may_stand_in_the_environment(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    Store(f"s3://{bucket}/plain").child("sub").write("a", b"1")
    assert Store(s3.uri(f"{bucket}/plain/sub")).read("a") == b"1"


def test_of_writers_in_the_same_moment_one_commits(location: Store) -> None:
    won: list[tuple[str, bytes]] = []

    def commit(name: str, data: bytes) -> None:
        try:
            Store(location.location).create(name, data)
            won.append((name, data))
        except FileExistsError:
            pass

    for number in range(4):
        writers = [threading.Thread(target=commit, args=(f"m-{number}", b"%d" % n)) for n in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert sorted(name for name, _ in won) == [f"m-{number}" for number in range(4)]
    assert all(location.read(name) == data for name, data in won)
    assert all(not info.base_name.startswith(TEMPORARY_PREFIX) for info in location._listed())


def test_a_dead_writers_claim_holds_nobody_up_for_ever(location: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    location.write(f"{TEMPORARY_PREFIX}m-dead", b"")
    assert location.names() == [] and location.clear_temporary() == 0  # it may be alive
    time.sleep(2.1)  # S3 gives times in whole seconds
    monkeypatch.setattr("beatray.storage.store.CLAIM_VALID_S", 1.0)
    location.create("m", b"mine")
    assert location.clear_temporary() == 1
    assert [info.base_name for info in location._listed()] == ["m"]


def test_a_writer_killed_in_the_middle_leaves_nothing_to_see(location: Store, s3: S3Server, bucket: str) -> None:
    code = f"from beatray.storage.store import Store; Store({location.location!r}).write('shard', bytes(200_000_000))"
    writer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads"):
        assert time.monotonic() < deadline and writer.poll() is None
        time.sleep(0.005)
    writer.kill()
    writer.wait()
    assert location.names() == [] and s3.keys(bucket) == []
    location.write("shard", b"whole")
    assert location.read("shard") == b"whole"


@contextmanager
def guarded(s3: S3Server) -> Iterator[None]:
    """The server with its guard on duty: keys are checked, and ours are not known there."""

    def after(free_requests: str) -> None:
        headers = {"Content-Type": "text/plain"}
        url = f"{s3.endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(url, free_requests.encode(), headers, method="POST"))

    after("0")
    try:
        yield
    finally:
        after("inf")


def test_refusals_say_what_to_do(
    location: Store, s3: S3Server, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_corpus(corpus)
    with guarded(s3):
        with pytest.raises(StoreError, match=r"some/folder/a: the keys are refused .* AWS_PROFILE"):
            location.write("a", b"")
        with pytest.raises(StoreError, match=r"access denied\. Give keys that may list, read and write"):
            location.size("a")
        with pytest.raises(StoreError, match="the keys are refused"):
            location.check_writable()
        with pytest.raises(StoreError, match="access denied"):  # and not: the shard is damaged
            opened.row_group(0, 0, ["signal"])
        assert main(["corpus", "show", location.location]) == 1
    assert "the keys are refused" in capsys.readouterr().err
    location.check_writable()
    with pytest.raises(StoreError, match=r"no such bucket\. Create it first"):
        Store(s3.uri("nobodys-bucket/x")).write("a", b"")


def test_checkpoints_are_whole_or_passed_over(
    location: Store, s3: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = location.child("run")
    model = build_encoder("tiny")
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 12, 1000)).sum().backward()
    optimiser.step()
    assert checkpoints.latest(run) is None
    for step in (1, 2, 3):
        state = {"global_step": step}
        checkpoints.save(run, checkpoints.snapshot(checkpoints.name_of(step), state, model, optimiser))
    assert checkpoints.names(run) == [checkpoints.name_of(step) for step in (1, 2, 3)]
    newest = checkpoints.latest(run)
    assert newest is not None and newest.state["global_step"] == 3
    assert all(torch.equal(tensor, newest.model[name]) for name, tensor in model.state_dict().items())
    files = run.child("checkpoints")
    files.delete(f"{checkpoints.name_of(3)}/files.json")  # as a writer leaves it that died before the end
    flipped = bytearray(files.read(f"{checkpoints.name_of(2)}/model.safetensors"))
    flipped[len(flipped) // 2] ^= 4
    files.write(f"{checkpoints.name_of(2)}/model.safetensors", bytes(flipped))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.latest(run)
    assert found is not None and found.state["global_step"] == 1
    assert "is damaged" in caplog.text
    files.delete_folder(checkpoints.name_of(1))
    assert checkpoints.names(run) == [checkpoints.name_of(step) for step in (2, 3)]
    encoder_folder.export_encoder(run, model, {"name": "tiny", "settings": {}, "recipe": {}})
    x_mv = torch.randn(1, 12, 1000)
    assert torch.equal(encoder_folder.load_encoder(run.location)(x_mv), model.eval()(x_mv))


def test_ray_tasks_write_the_corpus_that_they_write_on_a_disk(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", *SOURCES, *SMALL, "--out", str(tmp_path / "c")]) == 0
    remote_store, local = Store(corpus), Store(str(tmp_path / "c"))
    assert remote_store.names() == ["manifest-0.json"] and remote_store.names("staging") == []
    assert remote_store.read("manifest-0.json") == local.read("manifest-0.json")
    assert remote_store.names("shards") == local.names("shards")
    assert main(["corpus", "show", corpus, "--json"]) == 0 and main(["corpus", "verify", corpus]) == 0
    assert '"recordings": 48' in capsys.readouterr().out
    assert main(["ingest", *SOURCES, *SMALL, "--out", corpus]) == 0
    assert "nothing to do" in capsys.readouterr().out and read_manifest(remote_store).number == 0
    remote, on_disk = open_corpus(corpus).rows([1, 30]), open_corpus(local.location).rows([1, 30])
    assert remote.record_id == on_disk.record_id and np.array_equal(remote.signal_uv, on_disk.signal_uv)


def test_a_deleted_and_a_damaged_shard_are_named(s3: S3Server, corpus: str) -> None:
    store = copied(s3, corpus)
    whole = open_corpus(store.location)
    gone, hurt = whole.manifest.shards[0], whole.manifest.shards[1]
    data = bytearray(store.read(f"shards/{hurt.name}"))
    data[len(data) // 2] ^= 1
    store.write(f"shards/{hurt.name}", bytes(data))
    store.delete(f"shards/{gone.name}")
    with pytest.raises(CorpusError, match=f"{gone.name} is missing"):
        read_row_group(store, gone, 0, ["signal"])
    with pytest.raises(CorpusError, match=f"{hurt.name} cannot be read"):
        read_row_group(store, hurt, 0, ["signal"])
    faults = list(verify(whole))
    assert len(faults) == 2 and gone.name in faults[0] and hurt.name in faults[1]
    store.write(f"shards/{hurt.name}", bytes(data[:-1000]))
    with pytest.raises(CorpusError, match=f"{hurt.name} has {hurt.bytes - 1000} bytes"):
        whole.row_group(1, 0, ["signal"])


def test_overwriting_removes_the_corpus_and_nothing_else(s3: S3Server, corpus: str) -> None:
    store = copied(s3, corpus)
    store.write("notes/mine.txt", b"keep")
    remove_corpus(store)
    assert store.names() == [] and store.folders() == ["notes"]
    with pytest.raises(CorpusError, match="is not empty and holds no corpus"):
        remove_corpus(store)


def test_a_server_that_is_away_costs_time_and_no_run(
    s3: S3Server, corpus: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_corpus(corpus)
    before = opened.row_group(0, 0, ["signal"])
    s3.say("down")
    back = threading.Timer(9.0, s3.say, ["up"])  # longer than pyarrow's own patience of six seconds
    back.start()
    try:
        with caplog.at_level(logging.WARNING, "beatray.storage.remote"):
            assert opened.row_group(0, 0, ["signal"]).equals(before)
    finally:
        back.join()
    assert "does not answer, trying again" in caplog.text


def test_batches_stream_from_s3_and_a_run_trains_on_them(s3: S3Server, corpus: str, tmp_path: Path) -> None:
    overrides = ("encoder=tiny", "train=small", "train.batch_size=12", "train.epochs=1", "train.workers=1", "run=s3")
    paths = (f"corpus={corpus}", f"out={tmp_path}", "tracking.uri=null", "train.log_ids=true", "train.cache_mb=0")
    run_spec = prepare_run(pretrain_settings([*overrides, *paths]))
    opened = open_corpus(corpus)
    where = {name: n for n, name in enumerate(opened.index["record_id"])}
    assert train(run_spec, Ranks())
    lines = read_lines(tmp_path / "s3" / "metrics.jsonl")
    assert len(lines) == run_spec.steps and all(np.isfinite(line["loss"]) for line in lines)
    seen = [line["record_ids"] for line in read_lines(tmp_path / "s3" / "ids.jsonl")]
    assert sum(map(len, seen)) == run_spec.rows == len({name for step in seen for name in step})
    first = next(iter(batches(run_spec.stream, 0, 1, (0, 0), 1)))
    expected = opened.rows([where[name] for name in seen[0]]).signal_uv
    assert np.array_equal(first.arrays["signal_uv"], expected)


@pytest.mark.skipif(count(0, 1) == 0, reason="minutes: runs with BEATRAY_CHAOS=1")
def test_a_run_folder_on_s3_is_continued_from_there(s3: S3Server, corpus: str, bucket: str, tmp_path: Path) -> None:
    """Stopped and continued with everything on S3; the weights and the journal are those of a run on a disk."""
    overrides = ("encoder=tiny", "train=small", "train.batch_size=12", "train.epochs=1", "train.workers=1", "run=r")
    common = (f"corpus={corpus}", "tracking.uri=null", "train.checkpoint_every_steps=1", "train.warmup_epochs=0.5")
    out = s3.uri(f"{bucket}/runs")
    assert main(["pretrain", *overrides, *common, f"out={tmp_path}"]) == 0
    assert main(["pretrain", *overrides, *common, f"out={out}", "train.stop_after_steps=2"]) == 1  # not all is done
    run = Store(out).child("r")
    assert run.exists("checkpoints") and not run.exists("encoder")
    assert main(["pretrain", *overrides, *common, f"out={out}"]) == 0
    there, here = (
        beatray.load_encoder(run.location).state_dict(),
        beatray.load_encoder(str(tmp_path / "r")).state_dict(),
    )
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    lines = [json.loads(line) for line in run.read("metrics.jsonl").decode().splitlines()]
    logged = [(line["step"], line["loss"]) for line in read_lines(tmp_path / "r" / "metrics.jsonl")]
    assert [(line["step"], line["loss"]) for line in lines] == logged


def test_recordings_are_read_from_s3(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A zip and a folder on S3 give the corpus that the same files on a disk give."""
    data = Store(s3.uri(f"{bucket}/data"))
    data.write("ludb.zip", (SAMPLE / "ludb-sample.zip").read_bytes())
    tree = open_tree(str(SAMPLE / "ptbxl-sample.zip"))
    unpacked = tmp_path / "ptbxl"
    for name in (*tree.names()[-60:], "ptbxl_database.csv"):
        data.write(f"ptbxl/{name}", tree.read(name))
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_bytes(tree.read(name))
    far = [f"ludb={data.location.replace('/data?', '/data/ludb.zip?')}", f"ptbxl={data.child('ptbxl').location}"]
    near = [f"ludb={SAMPLE / 'ludb-sample.zip'}", f"ptbxl={unpacked}"]
    for name, paths in (("far", far), ("near", near)):
        assert main(["ingest", *paths, "items_per_shard=16", "limit=12", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "far" / "manifest-0.json").read_bytes() == (tmp_path / "near" / "manifest-0.json").read_bytes()


@pytest.mark.skipif(os.environ.get("BEATRAY_CHAOS") != "1", reason="minutes: runs with BEATRAY_CHAOS=1")
def test_an_ingest_killed_again_and_again_ends_as_if_undisturbed(s3: S3Server, corpus: str) -> None:
    bucket = s3.bucket()
    uri = s3.uri(f"{bucket}/corpus")
    command = [sys.executable, "-m", "beatray", "ingest", *SOURCES, *SMALL, "cluster.cpus=2", "--out", uri]
    whole, killed = Store(corpus), 0
    for shards_seen in (1, 3, 5):
        child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and sum("/shards/" in key for key in s3.keys(bucket)) < shards_seen:
            time.sleep(0.02)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
        store = Store(uri)
        assert all(store.size(f"shards/{n}") == whole.size(f"shards/{n}") for n in store.names("shards"))
        with pytest.raises(CorpusError, match="there is no manifest"):
            open_corpus(uri)
    assert killed == 3
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert Store(uri).read("manifest-0.json") == whole.read("manifest-0.json")
    assert list(verify(open_corpus(uri))) == []


@pytest.mark.skipif(os.environ.get("BEATRAY_CHAOS") != "1", reason="minutes: runs with BEATRAY_CHAOS=1")
def test_a_run_outlives_an_outage_of_twenty_seconds(s3: S3Server, corpus: str, tmp_path: Path) -> None:
    overrides = ["encoder=tiny", "train=small", "train.batch_size=12", "train.epochs=12", "train.workers=1"]
    overrides += ["train.cache_mb=0", "train.chunk_steps=2", "tracking.uri=null", f"out={tmp_path}", f"corpus={corpus}"]
    metrics = tmp_path / "away" / "metrics.jsonl"

    def interrupt() -> None:
        while len(read_lines(metrics)) < 3:
            time.sleep(0.1)
        s3.say("down")
        time.sleep(20)
        s3.say("up")

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(["pretrain", *overrides, "run=away"]) == 0
    thread.join()
    assert main(["pretrain", *overrides, "run=here"]) == 0
    undisturbed = read_lines(tmp_path / "here" / "metrics.jsonl")
    assert [line["loss"] for line in read_lines(metrics)] == [line["loss"] for line in undisturbed]


@pytest.mark.skipif(os.environ.get("BEATRAY_CHAOS") != "1", reason="minutes: runs with BEATRAY_CHAOS=1")
def test_artifacts_go_through_an_mlflow_server_to_s3(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    overrides = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    overrides += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination",
        f"s3://{bucket}/m",
    ]
    environment = {**os.environ, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *overrides],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        (tmp_path / "settings.yaml").write_text("seed: 0")
        with Tracker(Tracking(f"http://127.0.0.1:{port}", "storage", "first", tmp_path / "run")) as tracker:
            tracker.artifact(tmp_path / "settings.yaml")
        assert any(key.startswith("m/") and key.endswith("artifacts/settings.yaml") for key in s3.keys(bucket))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
