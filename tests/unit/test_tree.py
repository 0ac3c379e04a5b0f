"""Folders, zips and tars as trees: what is listed, what is refused, and what is read."""

from __future__ import annotations

import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from beatray.commands.ingest import split_overrides
from beatray.errors import CorpusError
from beatray.ingest import folder_tree, tar_tree
from beatray.ingest.member_checks import Cause, is_plain_path, passed_over_text
from beatray.ingest.plan import IngestSettings, list_items
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Reason, RecordError

FILES = {"top/a.hea": b"alpha", "top/data/b.dat": bytes(range(256)) * 40, "top/data/empty": b""}
KINDS = ("folder", "x.zip", "lzma.zip", "stored.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.xz")


def build(folder: Path, kind: str) -> str:
    path = folder / kind
    if kind == "folder":
        for name, data in FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif kind.endswith(".zip"):
        method = {"l": zipfile.ZIP_LZMA, "s": zipfile.ZIP_STORED}.get(kind[0], zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(path, "w", method) as packed:
            packed.writestr("top/", b"")
            for name, data in FILES.items():
                packed.writestr(name, data)
    else:
        mode = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.xz": "w:xz"}[kind.split(".", 1)[1]]
        with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
            for name, data in FILES.items():
                info = tarfile.TarInfo("./" + name)
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
    return str(path)


def reason_of(tree: Tree, name: str, max_bytes: int = 1 << 20) -> Reason:
    with pytest.raises(RecordError) as caught:
        tree.read(name, max_bytes)
    return caught.value.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_uri_is_the_path_it_names(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data set"
    folder.mkdir()
    path = build(folder, kind)
    for location in (Path(path).as_uri(), f"file://{path}"):
        assert open_tree(location).read("top/a.hea") == b"alpha"
        given, _ = split_overrides([f"files={location}"])
        assert given == {"files": path}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same(tmp_path: Path, kind: str) -> None:
    tree = open_tree(build(tmp_path, kind))
    assert tree.names() == tuple(sorted(FILES))
    assert not tree.passed_over
    for name, data in FILES.items():
        assert name in tree
        assert tree.read(name) == data
        assert tree.read(name, len(data)) == data
    assert "top/none" not in tree
    assert reason_of(tree, "top/none") is Reason.MISSING_FILE
    assert reason_of(tree, "top/data/b.dat", 10_239) is Reason.ABSURD_SIZE
    with pytest.raises(RecordError) as caught:
        tree.read("top/a.hea", 4, too_long=Reason.TRAILING_BYTES)
    assert caught.value.reason is Reason.TRAILING_BYTES
    for name in ("../x", "/etc/passwd", "top/../../x", "top//a.hea", "./top/a.hea", "", "top\\a.hea", "C:/x", "a\nb"):
        assert reason_of(tree, name) is Reason.UNSAFE_PATH


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_crosses_process_borders(tmp_path: Path, kind: str) -> None:
    tree = open_tree(build(tmp_path, kind))
    tree.names()
    wire = pickle.dumps(tree)
    assert len(wire) < 300 + len(str(tmp_path))
    script = "import pickle, sys; t = pickle.loads(sys.stdin.buffer.read()); print(t.read('top/a.hea').decode())"
    done = subprocess.run([sys.executable, "-c", script], input=wire, capture_output=True, check=True)
    assert done.stdout.strip() == b"alpha"


def test_a_forked_reader_does_not_disturb_its_parent(tmp_path: Path) -> None:
    """File positions are shared by fork, so a child must open the archive anew."""
    tree = open_tree(build(tmp_path, "stored.zip"))
    assert tree.read("top/a.hea") == b"alpha"
    child = os.fork()
    if child == 0:
        os._exit(0 if all(tree.read("top/data/b.dat") == FILES["top/data/b.dat"] for _ in range(200)) else 1)
    assert all(tree.read("top/data/b.dat") == FILES["top/data/b.dat"] for _ in range(200))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_replaced_archive_is_noticed(tmp_path: Path) -> None:
    tree = open_tree(build(tmp_path, "x.zip"))
    assert "new" not in tree
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr("new", b"content")
    (tmp_path / "other.zip").replace(tmp_path / "x.zip")
    assert tree.names() == ("new",)


def test_links_and_pipes_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f.hea").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "good.hea").write_bytes(b"good")
    (root / "file.hea").symlink_to(tmp_path / "secret" / "f.hea")
    (root / "inside.hea").symlink_to(root / "sub" / "good.hea")
    (root / "folder").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe.hea")
    tree = open_tree(str(root))
    assert tree.names() == ("sub/good.hea",)
    assert tree.passed_over == {Cause.LINK: 3, Cause.SPECIAL: 1}
    for name in ("file.hea", "inside.hea", "folder/f.hea", "pipe.hea", "sub"):
        assert reason_of(tree, name) is Reason.UNSAFE_PATH
    # A file that is swapped for a link after the listing.
    (root / "sub" / "good.hea").unlink()
    (root / "sub" / "good.hea").symlink_to(tmp_path / "secret" / "f.hea")
    assert reason_of(tree, "sub/good.hea") is Reason.UNSAFE_PATH


def test_ordinary_names_of_any_script_are_read_and_hidden_ones_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = ("a\u00a0b", "\u5c71\u7530\u3000\u592a\u90ce", "a\u200eb", "a:b", "smith.2024.01", "lost+found")
    hidden = (".Trash/x", ".Trash/y/z", ".ipynb_checkpoints/x", "d/._x", "__MACOSX/x", "$RECYCLE.BIN/x")
    unfit = ("turned\u202etxt", "two\u2028lines", "bell\a", "back\\slash")
    folder = tmp_path / "folder"
    for name in (*ordinary, *hidden, *unfit):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    latin = Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller"))
    latin.mkdir()
    for name in ("a.hea", "a.dat"):
        (latin / name).write_bytes(b"x")
    (folder / ".empty" / "y").mkdir(parents=True)
    tree = open_tree(str(folder))
    assert tree.names() == tuple(sorted(ordinary))
    assert all(tree.read(name) == name.encode() for name in ordinary)
    assert tree.passed_over == {Cause.HIDDEN: 6, Cause.NAME: 4, Cause.NOT_UTF8: 2}
    with tarfile.open(tmp_path / "same.tar", "w") as packed:
        packed.add(folder, ".")
    assert open_tree(str(tmp_path / "same.tar")).passed_over == tree.passed_over
    monkeypatch.setattr(folder_tree, "MAX_COUNTED", 0)
    few = open_tree(str(folder))
    assert few.names() == tree.names()
    assert few.passed_over == {Cause.HIDDEN: 6, Cause.NAME: 4, Cause.NOT_UTF8: 1}  # d/._x and 5 folders
    assert "names that are not UTF-8 (convmv -r -f latin1 -t utf8 --notest renames them): 2" in passed_over_text(
        tree.passed_over
    )


def test_a_folder_that_may_not_be_opened_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, "folder")
    (tmp_path / "folder" / "lost+found").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:  # whoever runs the tests may be allowed everything
        if path.endswith("lost+found/"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    tree = open_tree(str(tmp_path / "folder"))
    assert "top/a.hea" in tree.names() and tree.passed_over == {Cause.NO_ENTRY: 1}


def test_encrypted_and_odd_members_of_a_zip_are_called_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "plain.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("r1.hea", b"text")
    good = path.read_bytes()
    for central, local, value, cause in ((8, 6, 1, Cause.ENCRYPTED), (10, 8, 9, Cause.DEFLATE64)):
        bad = bytearray(good)
        bad[good.find(b"PK\1\2") + central] = bad[good.find(b"PK\3\4") + local] = value
        path.write_bytes(bad)
        os.utime(path, ns=(value, value))
        assert open_tree(str(path)).passed_over == {cause: 1}
        with pytest.raises(CorpusError, match=f"not listed are {cause.value[1][:17]}.*: 1; no .hea file"):
            list_items(IngestSettings(out="none", sources={"wfdb": str(path)}))


def test_a_root_that_is_a_link_is_the_users_choice(tmp_path: Path) -> None:
    build(tmp_path, "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert open_tree(str(tmp_path / "link")).read("top/a.hea") == b"alpha"


def test_hostile_zip_members_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("good", b"good")
        for name in ("/absolute", "../up", "a/../../b", "..\\up", "c:/drive", "new\nline", ".hidden"):
            packed.writestr(name, b"bad")
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, b"/etc/passwd")
        packed.writestr("bz2", b"bad", zipfile.ZIP_BZIP2)
        packed.writestr("folder\\of\\windows", b"good")
        packed.writestr("__MACOSX/._good", b"bad")
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr("good", b"second")
    tree = open_tree(str(path))
    assert tree.names() == ("folder/of/windows", "good")
    assert tree.read("folder/of/windows") == b"good"
    counts = {Cause.OUTSIDE: 5, Cause.NAME: 1, Cause.HIDDEN: 2, Cause.LINK: 1, Cause.BZIP2: 1, Cause.SECOND: 1}
    assert tree.passed_over == counts
    assert reason_of(tree, "link") is Reason.MISSING_FILE


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_hostile_tar_members_are_counted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    with tarfile.open(path, "w" if suffix == "tar" else f"w:{suffix[4:]}") as packed:  # type: ignore[call-overload]
        for name, kind in [
            ("good", tarfile.REGTYPE),
            ("/absolute", tarfile.REGTYPE),
            ("../up", tarfile.REGTYPE),
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("good", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            info.size = 4 if kind == tarfile.REGTYPE else 0
            packed.addfile(info, io.BytesIO(b"good"))
    tree = open_tree(str(path))
    assert tree.names() == ("good",)
    assert tree.passed_over == {Cause.OUTSIDE: 2, Cause.LINK: 2, Cause.SPECIAL: 2, Cause.SECOND: 1}
    assert tree.read("good") == b"good"


def test_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as packed:
            packed.writestr("bomb", bytes(8 << 20))
        assert reason_of(open_tree(str(path)), "bomb", 1 << 30) is Reason.ABSURD_SIZE


def test_zip_member_that_lies_about_its_size(tmp_path: Path) -> None:
    """The directory says 100 bytes; the stream holds 4 MiB of zeros."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("liar", bytes(4 << 20))
    data = path.read_bytes()
    path.write_bytes(data.replace((4 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    assert reason_of(open_tree(str(path)), "liar") is Reason.CORRUPT_ARCHIVE


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz"])
def test_tar_bomb_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    with tarfile.open(path, f"w:{suffix[4:]}") as packed:  # type: ignore[call-overload]
        info = tarfile.TarInfo("bomb")
        info.size = 64 << 20
        packed.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(RecordError) as caught:
        open_tree(str(path)).names()
    assert caught.value.reason is Reason.ABSURD_SIZE


def test_a_compressed_tar_beyond_memory_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = build(tmp_path, "x.tar.gz")
    monkeypatch.setattr(tar_tree, "MAX_UNPACKED_BYTES", 5000)
    with pytest.raises(RecordError, match="repack it as zip"):
        open_tree(location).names()


@pytest.mark.parametrize("kind", ["x.zip", "lzma.zip", "stored.zip", "x.tar.gz", "x.tar.xz"])
def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path, kind: str) -> None:
    """Compressed archives and zips carry checksums: one bit anywhere never gives other bytes silently."""
    location = Path(build(tmp_path, kind))
    good = location.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(good), max(1, 8 * len(good) // 150)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        location.write_bytes(bad)
        os.utime(location, ns=(bit, bit))
        tree = open_tree(str(location))
        try:
            for name in tree.names():
                if name in FILES:
                    assert tree.read(name) == FILES[name]
        except RecordError as error:
            assert error.reason in (Reason.CORRUPT_ARCHIVE, Reason.ABSURD_SIZE, Reason.MISSING_FILE)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_a_cut_archive_is_refused(tmp_path: Path, kind: str) -> None:
    location = Path(build(tmp_path, kind))
    whole = location.read_bytes()
    for length in (len(whole) * 2 // 5, len(whole) // 5):
        location.write_bytes(whole[:length])
        os.utime(location, ns=(length, length))
        with pytest.raises(RecordError) as caught:
            open_tree(str(location)).names()
        assert caught.value.reason is Reason.CORRUPT_ARCHIVE


def test_what_is_no_tree(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_tree(str(tmp_path / "nothing"))
    (tmp_path / "x.rar").write_bytes(b"x")
    with pytest.raises(ValueError, match="neither a folder"):
        open_tree(str(tmp_path / "x.rar"))


def test_plain_paths() -> None:
    assert all(is_plain_path(name) for name in ("a", "a/b.hea", "records500/00000/00001_hr.dat", "\u00fc/x y"))
    assert not any(is_plain_path(name) for name in ("", "/a", "a/", "a//b", ".", "a/./b", "..", "a/..", "a\0b"))
