"""Members opened for reading at any place: the same bytes from folders and archives, and nothing outside the member."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from beatray.ingest import zip_tree
from beatray.ingest.tree import open_tree
from beatray.record import Reason, RecordError

DATA = bytes(range(256)) * 500
NAMES = ("before", "top/long", "after")
KINDS = ("folder", "stored.zip", "packed.zip", "x.tar", "x.tar.gz")


def build(folder: Path, kind: str) -> str:
    path = folder / kind
    if kind == "folder":
        for name in NAMES:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(DATA if name == "top/long" else b"secret" * 100)
    elif kind.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if kind[0] == "s" else zipfile.ZIP_DEFLATED) as packed:
            for name in NAMES:
                packed.writestr(name, DATA if name == "top/long" else b"secret" * 100)
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as tar:
            for name in NAMES:
                content = DATA if name == "top/long" else b"secret" * 100
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_member_and_no_more(tmp_path: Path, kind: str) -> None:
    tree = open_tree(build(tmp_path, kind))
    with tree.open_random("top/long") as file:
        assert file.size == len(DATA)
        assert file.read() == DATA
        assert file.read(10) == b""
        assert file.seek(-5, os.SEEK_END) == len(DATA) - 5
        assert file.read(100) == DATA[-5:]
        assert file.read_at(len(DATA) - 3, 50) == DATA[-3:]
        assert file.read_at(len(DATA) + 3, 50) == b""
        assert file.read_exactly(300, 700) == DATA[300:1000]
        with file.part("inner", 256, 256, ()) as part:
            assert part.read() == bytes(range(256))
            assert part.read_at(250, 100) == bytes(range(250, 256))
        with pytest.raises(ValueError, match="before"):
            file.seek(-1)
        for position, size in ((len(DATA) - 1, 2), (-1, 1), (0, -1), (0, 1 << 62)):
            with pytest.raises(RecordError) as caught:
                file.read_exactly(position, size)
            assert caught.value.reason is Reason.TRUNCATED
        first = file.identity
    with tree.open_random("top/long") as again:
        assert again.identity == first
    with tree.open_random("before") as other:
        assert other.identity != first
    with pytest.raises(RecordError) as caught:
        tree.open_random("nowhere")
    assert caught.value.reason is Reason.MISSING_FILE
    with pytest.raises(RecordError) as caught:
        tree.open_random("../top/long")
    assert caught.value.reason is Reason.UNSAFE_PATH


def test_links_and_folders_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "outside").write_bytes(b"private")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "set" / "folder").mkdir()
    (tmp_path / "set" / "through").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "set" / "pipe")
    tree = open_tree(str(tmp_path / "set"))
    handles = open_files()
    for name in ("link", "through/outside", "folder", "pipe"):
        with pytest.raises(RecordError) as caught:
            tree.open_random(name)
        assert caught.value.reason is Reason.UNSAFE_PATH
    assert open_files() == handles


def test_a_changed_file_has_another_identity(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    tree = open_tree(str(tmp_path))
    with tree.open_random("a") as file:
        before = file.identity
    os.utime(tmp_path / "a", ns=(1, 1))
    with tree.open_random("a") as file:
        assert file.identity != before


def test_a_file_that_shrinks_while_open_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    with open_tree(str(tmp_path)).open_random("a") as file:
        os.truncate(tmp_path / "a", 1000)
        with pytest.raises(RecordError) as caught:
            file.read_exactly(500, 1000)
    assert caught.value.reason is Reason.TRUNCATED


def test_closed_files_leave_no_descriptor(tmp_path: Path) -> None:
    for kind in KINDS:
        tree = open_tree(build(tmp_path, kind))
        tree.open_random("top/long").close()
        handles = open_files()
        for _ in range(5):
            with tree.open_random("top/long") as file, file.part("p", 0, 1, ()) as part:
                part.read()
            file.close()
        assert open_files() == handles


@pytest.mark.parametrize("field", [(42, 4), (22, 4), (20, 4), (28, 2)])
def test_a_zip_directory_that_points_elsewhere(tmp_path: Path, field: tuple[int, int]) -> None:
    """Offset, sizes and name length of the member's directory entry, grown in turn: refused or unreadable, never
    bytes of another member past the archive's end."""
    path = Path(build(tmp_path, "stored.zip"))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    at = entry + field[0]
    data[at : at + field[1]] = (0x7FFFFF00 if field[1] == 4 else 0x7000).to_bytes(field[1], "little")
    path.write_bytes(data)
    with pytest.raises(RecordError) as caught:
        open_tree(str(path)).open_random("top/long")
    assert caught.value.reason in (Reason.CORRUPT_ARCHIVE, Reason.MISSING_FILE)


def test_a_large_packed_member_is_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_tree, "MAX_FILE_BYTES", 1000)
    with pytest.raises(RecordError, match="unpack the archive to a folder") as caught:
        open_tree(build(tmp_path, "packed.zip")).open_random("top/long")
    assert caught.value.reason is Reason.ABSURD_SIZE
    with open_tree(build(tmp_path, "stored.zip")).open_random("top/long") as file:
        assert file.size == len(DATA)
