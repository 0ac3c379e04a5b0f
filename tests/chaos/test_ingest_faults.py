"""Ingests that are killed, run out of disk or run twice, and corpora whose bits flip."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from beatray.commands.demo import SAMPLE
from beatray.corpus import reader
from beatray.corpus.manifest import latest_number, read_manifest
from beatray.corpus.reader import open_corpus, read_row_group, verify
from beatray.corpus.schema import SCHEMA
from beatray.errors import CorpusError
from beatray.ingest.convert import ingest
from beatray.ingest.lock import only_ingest
from beatray.ingest.plan import IngestSettings
from beatray.storage.store import TEMPORARY_PREFIX, Store
from counts import count

SOURCES = {"ludb": str(SAMPLE / "ludb-sample.zip"), "ptbxl": str(SAMPLE / "ptbxl-sample.zip")}
OVERRIDES = tuple(f"{name}={path}" for name, path in SOURCES.items())
PLAN = IngestSettings(SOURCES, "", items_per_shard=4, limit=24)
MAGIC_BYTES = 4  # "PAR1" at the start of a Parquet file, which nobody needs to read it


def start(out: Path) -> subprocess.Popen[bytes]:
    """`beatray ingest` of `PLAN` as a process group of its own."""
    overrides = ["ingest", *OVERRIDES, "--out", str(out), "items_per_shard=4", "limit=24", "cluster.cpus=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "beatray", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_shard(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the first shard is there."""
    deadline = time.monotonic() + 120
    while not list((out / "shards").glob("*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline, "the ingest wrote no shard"
        time.sleep(0.005)


def content(corpus: Path) -> dict[str, bytes]:
    """Every file of a corpus; nothing temporary may be left."""
    return {str(path.relative_to(corpus)): path.read_bytes() for path in sorted(corpus.rglob("*")) if path.is_file()}


@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_kills_at_random_moments(local_ray: None, tmp_path: Path) -> None:
    """SIGKILL of driver and workers; a new ingest gives every byte that an undisturbed one gives."""
    seconds = 0.0  # the one kill of the short form comes at the first shard
    if count(0, 1):
        process = start(tmp_path / "whole")
        wait_for_shard(tmp_path / "whole", process)
        began = time.monotonic()
        while not (tmp_path / "whole" / "manifest-0.json").exists():
            time.sleep(0.005)
        seconds = time.monotonic() - began
        assert process.wait(120) == 0
    else:
        ingest(replace(PLAN, out=str(tmp_path / "whole")))
    whole = content(tmp_path / "whole")
    chance, in_the_middle = random.Random(4), 0
    kills = count(1, 50)
    for number in range(kills):
        killed = tmp_path / f"killed-{number}"
        process = start(killed)
        wait_for_shard(killed, process)
        time.sleep(chance.uniform(0.0, 1.1 * seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if latest_number(Store(str(killed))) is None:
            in_the_middle += 1
            with pytest.raises(CorpusError, match="no corpus"):
                read_manifest(Store(str(killed)))
        ingest(replace(PLAN, out=str(killed)))
        assert content(killed) == whole, f"kill {number}"
        shutil.rmtree(killed)
    print(f"{kills} kills, {in_the_middle} of them before the manifest was there")
    assert 2 * in_the_middle >= kills


ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=1500k tmpfs "$1"
"$2" -m beatray ingest "$3" --out "$1/corpus" limit=6 items_per_shard=4 cluster.cpus=2 > "$5/first" 2>&1
code=0
"$2" -m beatray ingest "$4" --out "$1/corpus" limit=60 items_per_shard=4 cluster.cpus=2 > "$5/full" 2>&1 || code=$?
echo "$code" > "$5/code"
"$2" -m beatray corpus verify "$1/corpus" > "$5/verify" 2>&1
ls "$1/corpus" > "$5/names"
mount -o remount,size=64m "$1"
"$2" -m beatray ingest "$4" --out "$1/corpus" limit=60 items_per_shard=4 cluster.cpus=2 > "$5/after" 2>&1
cp -r "$1/corpus" "$5/corpus"
"""


@pytest.mark.skipif(count(0, 1) == 0, reason="minutes: runs with BEATRAY_CHAOS=1")
@pytest.mark.ray
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1) to mount a small disk of its own")
def test_a_full_disk(local_ray: None, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a disk of his own")
    disk, folder = tmp_path / "disk", tmp_path / "said"
    disk.mkdir()
    folder.mkdir()
    overrides = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        ON_A_SMALL_DISK,
        "sh",
        str(disk),
        sys.executable,
        *OVERRIDES,
        str(folder),
    ]
    done = subprocess.run(overrides, capture_output=True, text=True, check=False, timeout=400)
    files = {path.name: path.read_text()[-1500:] for path in folder.iterdir() if path.is_file()}
    assert done.returncode == 0, (done.stderr, files)
    assert files["code"].strip() == "1" and "No space left on device: " in files["full"], files
    assert str(disk) in files["full"].partition("No space left on device")[2], files
    assert "Traceback" not in files["full"]
    assert "whole" in files["verify"] and "manifest-0.json" in files["names"] and "manifest-1" not in files["names"]
    corpus = folder / "corpus"
    assert not [name for name in content(corpus) if TEMPORARY_PREFIX in name or name.startswith("staging")]
    grown = open_corpus(str(corpus))
    assert list(verify(grown)) == [] and grown.manifest.statistics["by_source"] == {"ludb": 6, "ptbxl": 60}
    elsewhere = tmp_path / "elsewhere"
    for source, limit in (("ludb", 6), ("ptbxl", 60)):
        ingest(IngestSettings({source: SOURCES[source]}, str(elsewhere), items_per_shard=4, limit=limit))
    assert content(corpus) == content(elsewhere)


@pytest.mark.ray
def test_two_ingests_into_one_corpus(local_ray: None, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with only_ingest(Store(str(out))), pytest.raises(CorpusError, match="another ingest is writing"):
        ingest(replace(PLAN, out=str(out)))
    assert ingest(replace(PLAN, out=str(out), limit=2)).manifest.rows == 4


def test_flipped_bits(sample_corpus: str, tmp_path: Path) -> None:
    """One bit, anywhere: `corpus verify` names the file, and so does whoever trains from it."""
    copy = tmp_path / "c"
    shutil.copytree(sample_corpus, copy)
    corpus = open_corpus(str(copy))
    assert list(verify(corpus)) == []
    groups = {s.name: [(s, group) for group in range(len(s.row_groups))] for s in corpus.manifest.shards}
    chance = random.Random(1)
    files = [*sorted((copy / "shards").iterdir()), copy / "manifest-0.json"]
    unread = 0
    for number in range(count(60, 1000)):
        path = chance.choice(files)
        good = path.read_bytes()
        at = chance.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :])
        what = f"flip {number}: byte {at} of {len(good)} of {path.name}"
        if path.suffix == ".json":
            with pytest.raises(CorpusError, match=path.name):
                open_corpus(str(copy))
        else:
            assert [path.name in fault for fault in verify(open_corpus(str(copy)))] == [True], what
            reader._layouts.clear()  # of another process, which has not read this footer yet
            if at < MAGIC_BYTES:
                unread += 1
            else:
                with pytest.raises(CorpusError, match=path.name):
                    for shard, group in groups[path.name]:
                        read_row_group(corpus.store, shard, group, SCHEMA.names)
                    pytest.fail(what)
        path.write_bytes(good)
    print(f"{unread} flips in the four bytes that nobody reads")
    for fault in (b"", None):
        shard = files[0]
        shard.unlink() if fault is None else shard.write_bytes(fault)
        assert any(shard.name in message for message in verify(open_corpus(str(copy))))
