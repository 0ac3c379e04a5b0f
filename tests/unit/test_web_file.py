"""Data sets behind http: a zip is read in parts where it lies, all else is refused in one line with what to do."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from beatray.cli import main
from beatray.commands.demo import SAMPLE
from beatray.errors import CorpusError
from beatray.ingest import web_file
from beatray.ingest.plan import IngestSettings, Slice, list_items, stamp_of
from beatray.ingest.sources import ludb
from beatray.ingest.tree import open_tree
from web_server import web_server

ARCHIVE = SAMPLE / "ludb-sample.zip"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, web_server(ARCHIVE.read_bytes()) as address:
        patch.setenv("no_proxy", "127.0.0.1")
        yield address


@pytest.mark.parametrize("location", ["ranges/ludb.zip", "ranges/ludb.ZIP?key=1", "shaky/ludb.zip"])
def test_a_zip_gives_the_recordings_of_a_local_copy(
    server: str, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_file, "PAUSES_S", (0.0,) * 5)
    there, here = open_tree(f"{server}/{location}"), open_tree(str(ARCHIVE))
    assert there.names() == here.names()
    items = ludb.find(there)
    (far,), (near,) = ludb.read(pickle.loads(pickle.dumps(there)), items[7]), ludb.read(here, items[7])
    assert (far.signal_mv == near.signal_mv).all() and far.waves == near.waves
    assert len(stamp_of(Slice("ludb", there.location, tuple(items[:2]), "ludb-0"))) == 32


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("whole/x.zip", "the server gives only whole files, not parts of them: download it"),
        ("missing/x.zip", r"no such archive on the server \(404\)"),
        ("denied/x.zip", r"access denied \(403\).*download it"),
        ("busy/x.zip", "the server refuses it .503 .*try again later"),
        (
            "private/x.zip",
            "a web page, perhaps for a login, to which it led: http://127.*/login, instead of the archive",
        ),
        ("folder/", "over http only a .zip is read where it lies.*download it .*wget"),
        ("ranges/x.tar.gz", "over http only a .zip is read"),
    ],
)
@pytest.mark.parametrize("source", ["ptbxl", "files"])
def test_what_is_refused(server: str, source: str, location: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        list_items(IngestSettings({source: f"{server}/{location}"}, "out"))
    assert str(caught.value).count("\n") == 0 and str(caught.value).startswith(f"{source}: {server}/{location}: ")


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/ptbxl.zip"
    assert main(["ingest", f"ptbxl={address}", "--out", f"{tmp_path}/corpus"]) == 1
    assert f"ptbxl: {address}: the server does not answer ([Errno 111] Connection refused)" in capsys.readouterr().err


def test_a_part_that_does_not_come_is_no_fault_of_a_recording(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_file, "PAUSES_S", ())
    with web_file.WebFile(f"{server}/ranges/ludb.zip") as file:
        assert file.seek(-22, 2) == file.tell() and file.read(4) == b"PK\x05\x06"
        file._location = f"{server}/denied/ludb.zip"
        file.seek(10)
        with pytest.raises(OSError, match=r"bytes 10 to 20 do not come .*403.*tries again"):
            file.read(10)
