"""A corpus's files appear whole or not at all, and its manifest notices every changed bit."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from pathlib import Path

import pytest

from beatray.corpus.manifest import Manifest, Shard, latest_number, name_of, read_manifest, write_manifest
from beatray.errors import CorpusError
from beatray.storage import remote
from beatray.storage.remote import explain, is_remote_fault, may_pass, patiently
from beatray.storage.store import CLAIM_VALID_S, TEMPORARY_PREFIX, Store, StoreError


def manifest(number: int = 0) -> Manifest:
    shard = Shard("a.parquet", "ludb", 200, (128, 72), 12345, "0" * 64, 99, "1" * 64, "AAAA")
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


def test_a_disk_without_hard_links_still_creates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    store = Store(str(tmp_path))
    store.create("b", b"mine")
    with pytest.raises(FileExistsError):
        store.create("b", b"yours")
    assert store.read("b") == b"mine" and store.names() == ["b"]


def test_a_uri_and_a_path_are_the_same_folder(tmp_path: Path) -> None:
    Store(str(tmp_path)).write("x", b"1")
    assert Store(tmp_path.as_uri()).read("x") == b"1"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}abc").write_bytes(b"half")
    (tmp_path / "kept").write_bytes(b"whole")
    store = Store(str(tmp_path))
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()  # of a deletion that was cut off
    (tmp_path / f"{TEMPORARY_PREFIX}folder" / "rest").write_bytes(b"")
    assert store.clear_temporary() == 2
    assert store.names() == ["kept"]


def test_in_a_shared_folder_what_another_writer_is_about_to_rename_stays(tmp_path: Path) -> None:
    young, old = (tmp_path / f"{TEMPORARY_PREFIX}{name}" for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    before = time.time() - CLAIM_VALID_S - 1
    os.utime(old, (before, before))
    assert Store(str(tmp_path)).clear_temporary(shared=True) == 1
    assert young.exists() and not old.exists()


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


def test_folders_come_and_go_in_one_step(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.child("one").write("deep/file", b"1")
    store.child("two").write("file", b"2")
    (tmp_path / f"{TEMPORARY_PREFIX}half").mkdir()
    assert store.folders() == ["one", "two"] and store.exists("one") and not store.exists("three")
    store.delete_folder("one")
    store.delete_folder("one")
    assert store.folders() == ["two"] and not (tmp_path / "one").exists()
    for name in ("", "/", "..", "two/../.."):
        with pytest.raises(StoreError, match="not the name of a sub-folder"):
            store.delete_folder(name)
    assert store.child("two").read("file") == b"2"


def test_a_uri_keeps_its_options_and_names_are_escaped() -> None:
    store = Store("s3://bucket/corpus/?endpoint_override=127.0.0.1:9000&scheme=http")
    child = store.child("shards").child("a b#c")
    assert child.location == "s3://bucket/corpus/shards/a%20b%23c?endpoint_override=127.0.0.1:9000&scheme=http"
    assert store.where("manifest-0.json") == "s3://bucket/corpus/manifest-0.json"
    assert not store.is_local and Store("s3://bucket").child("x").location == "s3://bucket/x"
    assert Store("/data/what?").child("x").folder == Path("/data/what?/x")


def test_locations_that_cannot_be_opened_are_refused_with_how_to_write_them() -> None:
    with pytest.raises(StoreError, match="keys as AWS_ACCESS_KEY_ID") as refused:
        Store("s3://AKIASECRET:verysecret@bucket/x")
    assert "verysecret" not in str(refused.value)
    for location in ("s3://bucket/a b", "s3://bucket/x?bogus=1", "nfs4://host/x"):
        with pytest.raises(StoreError, match="not a location that pyarrow can open"):
            Store(location).names()


@pytest.mark.parametrize(
    ("aws", "passes", "message"),
    [
        ("NETWORK_CONNECTION", True, "does not answer"),
        ("SLOW_DOWN", True, "does not answer"),
        ("UNKNOWN (HTTP status 503)", True, "does not answer"),
        ("NO_SUCH_BUCKET", False, "Create it first"),
        ("ACCESS_DENIED", False, "Give keys that may"),
        ("REQUEST_EXPIRED", False, "the keys are refused"),
        ("UNKNOWN (HTTP status 301)", False, "another region"),
        ("REQUEST_TIME_TOO_SKEWED", False, "the clock"),
        ("NO_SUCH_KEY", False, None),
        ("UNKNOWN (HTTP status 416)", False, None),
    ],
)
def test_what_an_object_store_refuses_is_told_apart(aws: str, passes: bool, message: str | None) -> None:
    _check_refusal(
        f"When reading key 'k' in bucket 'b': AWS Error {aws} during GetObject operation: text", passes, message
    )


@pytest.mark.parametrize(
    ("status", "passes", "message"),
    [
        ("UNAVAILABLE", True, "does not answer"),
        ("RESOURCE_EXHAUSTED", True, "does not answer"),
        ("PERMISSION_DENIED", False, "Give keys that may .*GOOGLE_APPLICATION_CREDENTIALS"),
        ("UNAUTHENTICATED", False, "the keys are refused"),
        ("FAILED_PRECONDITION", False, "it refuses the request"),
        ("NOT_FOUND", False, None),
    ],
)
def test_what_google_refuses_is_told_apart(status: str, passes: bool, message: str | None) -> None:
    _check_refusal(f"google::cloud::Status({status}: Retry policy exhausted in GetObjectMetadata)", passes, message)


def _check_refusal(text: str, passes: bool, message: str | None) -> None:
    error = OSError(text)
    assert may_pass(error) == passes and is_remote_fault(error) == (message is not None)
    explained = explain(error, "s3://b/k")
    if message is None:
        assert explained is error  # it speaks of the file: the reader of the file judges
    else:
        assert isinstance(explained, StoreError) and "s3://b/k" in str(explained)
        assert re.search(message, str(explained))


def test_a_store_without_times_of_files_can_be_written_again() -> None:
    store = Store("memory://bucket/x")
    store.write(f"{TEMPORARY_PREFIX}m-1.json-another", b"")
    assert store.clear_temporary() == 0  # it may be alive
    with pytest.raises(FileExistsError, match="another process"):
        store.create("m-1.json", b"mine")
    store.create("m-2.json", b"mine")
    assert store.read("m-2.json") == b"mine"


def test_what_passes_is_tried_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0.0, 0.0))
    answers: list[str | None] = ["SLOW_DOWN", "NETWORK_CONNECTION", None, "ACCESS_DENIED", *3 * ["SLOW_DOWN"]]

    def call() -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise OSError(f"AWS Error {answer} during PutObject operation: text")
        return "done"

    assert patiently(call, "s3://b/k") == "done" and len(answers) == 4
    with pytest.raises(StoreError, match="access denied"):
        patiently(call, "s3://b/k")
    assert len(answers) == 3
    with pytest.raises(StoreError, match="does not answer"):
        patiently(call, "s3://b/k")
    assert answers == []


def test_a_location_is_checked_to_be_writable(tmp_path: Path) -> None:
    Store(str(tmp_path / "new")).check_writable()
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written to"):
        Store(str(tmp_path / "file" / "below")).check_writable()
