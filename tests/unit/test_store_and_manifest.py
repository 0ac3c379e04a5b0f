"""A corpus's files appear whole or not at all, and its manifest notices every changed bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from beatray.corpus.manifest import CorpusError, Manifest, Shard, latest_number, name_of, read_manifest, write_manifest
from beatray.corpus.store import TEMPORARY_PREFIX, Store


def manifest(number: int = 0) -> Manifest:
    shard = Shard("a.parquet", "ludb", 200, (128, 72), 12345, "0" * 64)
    return Manifest(number, {"schema_version": 1, "rate_hz": 500}, (shard,), {}, {"recordings": 200, "hours": 0.55})


def test_write_replaces_and_create_refuses(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "new" / "folder"))
    store.write("a", b"one")
    store.write("a", b"two")
    assert store.read("a") == b"two"
    store.create("b", b"mine")
    with pytest.raises(FileExistsError):
        store.create("b", b"yours")
    assert store.read("b") == b"mine"
    assert store.names() == ["a", "b"]
    assert store.size("b") == 4 and store.size("nothing") is None


def test_a_uri_and_a_path_are_the_same_folder(tmp_path: Path) -> None:
    Store(str(tmp_path)).write("x", b"1")
    assert Store(tmp_path.as_uri()).read("x") == b"1"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}abc").write_bytes(b"half")
    (tmp_path / "kept").write_bytes(b"whole")
    store = Store(str(tmp_path))
    assert store.clear_temporary() == 1
    assert store.names() == ["kept"]


def test_manifest_round_trip_and_numbering(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert latest_number(store) is None
    with pytest.raises(CorpusError, match="beatray ingest"):
        read_manifest(store)
    write_manifest(store, manifest(0))
    write_manifest(store, manifest(1))
    assert read_manifest(store) == manifest(1)
    assert read_manifest(store, 0) == manifest(0)
    with pytest.raises(FileExistsError):
        write_manifest(store, manifest(1))


def test_any_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_manifest(store, manifest())
    path = tmp_path / name_of(0)
    good = path.read_bytes()
    chance = random.Random(0)
    harmless = 0
    for _ in range(300):
        position, bit = chance.randrange(len(good)), chance.randrange(8)
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
        try:
            assert read_manifest(store) == manifest()  # white space may change without changing the content
            harmless += 1
        except CorpusError as error:
            assert name_of(0) in str(error)
    assert harmless < 30
