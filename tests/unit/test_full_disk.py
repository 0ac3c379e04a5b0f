"""A disk that takes no more: the file that did not fit is named, or else the places that are full."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beatray import cli, full_disk
from beatray.evaluate.outputs import write_whole
from beatray.report.html import write_report
from beatray.storage.hashed_folder import write_folder
from beatray.storage.store import Store
from beatray.track.journal import Journal

BIG = b"x" * 100_000


@contextmanager
def small_files() -> Iterator[None]:
    """Files of this process cannot grow beyond 10,000 bytes: writing fails as on a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def journalled(folder: Path) -> None:
    journal = Journal(folder / "name")
    journal.reopen(0)
    journal.write({"step": 0, "text": BIG.decode()})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda folder: Store(str(folder)).write("name", BIG), "name"),
        (lambda folder: write_folder(Store(str(folder)), "name", {"a": BIG}), "name/a"),
        (lambda folder: write_whole(folder / "name", lambda handle: handle.write(BIG) and None), "name"),
        (lambda folder: write_report(folder / "name", "title", [BIG.decode()], []), "name"),
        (journalled, "name"),
    ],
)
def test_what_did_not_fit_is_named(write: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    with small_files(), pytest.raises(OSError) as caught:
        write(tmp_path)
    assert cli._user_message(pickle.loads(pickle.dumps(caught.value))) in (
        f"{os.strerror(errno.EFBIG)}: {tmp_path}/{name}",
        f"{os.strerror(errno.ENOSPC)}: {tmp_path}/{name}",  # the journal's own: a part was written
    )


def test_paths_are_named_where_the_file_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(full_disk, "LITTLE", 2**60)  # every path counts as full
    message = cli._user_message(full, str(tmp_path / "not" / "there"))
    assert message is not None and message.startswith(f"No space left on device: out={tmp_path}/not/there has ")
    assert "the temporary folder" in message and "/dev/shm has" in message and "RAY_TMPDIR=" in message
    monkeypatch.setattr(full_disk, "_room", lambda path: (5 * 2**20 if "shm" in str(path) else 2**40, 1000))
    monkeypatch.setattr(full_disk, "LITTLE", 2**26)
    assert (cli._user_message(full, "s3://bucket/runs") or "").startswith(
        "No space left on device: /dev/shm has 5 MiB free;"
    )
    monkeypatch.setattr(full_disk, "_room", lambda path: (2**40, 0 if path == tmp_path else 1000))
    assert f"out={tmp_path} has no more files free; make" in (cli._user_message(full, str(tmp_path)) or "")
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    monkeypatch.setattr(full_disk, "_room", lambda path: (2**40, 1000))
    assert "has 1024.0 GiB free, " in (cli._user_message(quota, str(tmp_path)) or "")  # all are named: none looks full


def test_where_a_command_writes_is_taken_from_its_words() -> None:
    assert cli._out(cli._parse(["pretrain", "corpus=/c", "out=/a", "out=/b"])) == "/b"
    assert cli._out(cli._parse(["ingest", "ludb=/x", "--out", "/c"])) == "/c"
    assert cli._out(cli._parse(["doctor"])) is None
