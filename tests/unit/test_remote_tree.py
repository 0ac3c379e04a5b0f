"""Data sets behind a URI: the same recordings as from a local copy, through fsspec's filesystem in memory."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import fsspec
import pytest

from beatray.commands.demo import SAMPLE
from beatray.ingest.sources import ludb
from beatray.ingest.tree import open_tree
from beatray.record import Reason, RecordError

ARCHIVE = SAMPLE / "ludb-sample.zip"


@pytest.fixture
def remote() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()


def test_a_zip_behind_a_uri(remote: fsspec.AbstractFileSystem) -> None:
    remote.pipe("/sets/ludb.zip", ARCHIVE.read_bytes())
    there, here = open_tree("memory://sets/ludb.zip"), open_tree(str(ARCHIVE))
    assert there.names() == here.names()
    item = ludb.find(there)[7]
    (far,), (near,) = ludb.read(pickle.loads(pickle.dumps(there)), item), ludb.read(here, item)
    assert (far.signal_mv == near.signal_mv).all() and far.waves == near.waves


def test_a_folder_behind_a_uri(remote: fsspec.AbstractFileSystem) -> None:
    here = open_tree(str(ARCHIVE))
    for name in here.names():
        remote.pipe(f"/sets/ludb/{name}", here.read(name))
    there = open_tree("memory://sets/ludb")
    assert there.names() == here.names() and not there.passed_over
    item = ludb.find(there)[7]
    assert next(ludb.read(there, item)).waves == next(ludb.read(here, item)).waves
    for tree in (there, pickle.loads(pickle.dumps(there))):  # the second has not listed anything
        with pytest.raises(RecordError) as caught:
            tree.read("data/none.dat")
        assert caught.value.reason == Reason.MISSING_FILE
        with pytest.raises(RecordError) as caught:
            tree.read("data/1.dat", 100)
        assert caught.value.reason == Reason.ABSURD_SIZE
        with pytest.raises(RecordError) as caught:
            tree.read("../ludb/data/1.dat")
        assert caught.value.reason == Reason.UNSAFE_PATH


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("memory://sets/none.zip", "no such archive"),
        ("memory://sets/none", "no such folder"),
        ("memory://sets/a.tar", "not read over the network"),
    ],
)
def test_what_is_not_there(remote: fsspec.AbstractFileSystem, location: str, message: str) -> None:
    with pytest.raises((OSError, ValueError), match=message):
        open_tree(location).names()
