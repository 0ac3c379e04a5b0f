"""What a clumsy user does to `beatray ingest`: nothing of theirs is lost, nothing stale or partial passes for whole."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from beatray.cli import main
from beatray.commands.ingest import remove_corpus, settings_from
from beatray.corpus.reader import open_corpus
from beatray.dsp.analyse import AnalysisSettings
from beatray.errors import CorpusError, SettingsError
from beatray.ingest.convert import convert_slice, ingest
from beatray.ingest.plan import IngestSettings, known_items, list_items, plan, recipe_of
from beatray.ingest.tree import open_tree
from beatray.record import Reason, RecordError
from beatray.storage.store import Store


def copy_records(ludb_dir: Path, into: Path, names: dict[str, str]) -> Path:
    """Records of LUDB under other names: {new name: number}."""
    into.mkdir(parents=True)
    for name, number in names.items():
        shutil.copy(ludb_dir / "data" / f"{number}.dat", into / f"{name}.dat")
        header = (ludb_dir / "data" / f"{number}.hea").read_text()
        lines = [line.replace(f"{number}.dat", f"{name}.dat") for line in header.splitlines()]
        (into / f"{name}.hea").write_text("\n".join([f"{name} {lines[0].split(' ', 1)[1]}", *lines[1:]]) + "\n")
    return into


def test_overwrite_removes_the_corpus_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "a.parquet").write_bytes(b"x")
    (folder / "manifest-0.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    remove_corpus(Store(str(folder)))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(CorpusError, match="holds no corpus"):
        remove_corpus(Store(str(folder)))


def test_a_wrong_path_is_refused_before_an_old_corpus_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "c"
    corpus.mkdir()
    (corpus / "manifest-0.json").write_text("{}")
    assert main(["ingest", f"wfdb={tmp_path / 'nope'}", "--out", str(corpus), "--overwrite"]) == 1
    assert "nope" in capsys.readouterr().err
    assert (corpus / "manifest-0.json").exists()


@pytest.mark.parametrize(
    ("overrides", "out", "message"),
    [
        (["wfdb="], "c", "wfdb= is empty"),
        (["wfdb=data"], "", "--out is empty"),
        (["wfdb=proj/raw"], "proj", "lies inside --out"),
        (["wfdb=a", "wfdb=b", "wfdb=a/"], "c", "a are one location, or one lies in the other: give it once"),
        (["ludbb=a"], "c", "did you mean 'ludb'"),
        (["wfdb=a", "limit=0"], "c", "at least 1"),
        ([], "c", "name at least one source"),
    ],
)
def test_overrides_that_would_surprise_are_refused(overrides: list[str], out: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from(overrides, out)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    settings, _ = settings_from(["wfdb=~/ecg"], "~/corpus")
    assert settings.sources["wfdb"] == "/home/somebody/ecg" and settings.out == "/home/somebody/corpus"


@pytest.mark.ray
def test_leftovers_of_an_interrupted_ingest_never_pass_for_other_data(
    local_ray: None, ludb_dir: Path, tmp_path: Path
) -> None:
    first = copy_records(ludb_dir, tmp_path / "a", {"r1": "1", "r2": "2"})
    second = copy_records(ludb_dir, tmp_path / "b", {"r1": "3", "r2": "4"})
    out = str(tmp_path / "c")
    interrupted = IngestSettings({"wfdb": str(first)}, out)
    (part,) = plan(
        interrupted,
        recipe_of(interrupted),
        list_items(interrupted),
        known_items(Store(out), None, retry_refused=False),
    )
    assert convert_slice(Store(out), part, AnalysisSettings()).read == 2  # and then the power went
    ingest(IngestSettings({"wfdb": str(second)}, out))
    alone = ingest(IngestSettings({"wfdb": str(second)}, str(tmp_path / "d")))
    rows, expected = open_corpus(out).rows(), open_corpus(str(tmp_path / "d")).rows()
    assert alone.manifest.rows == len(rows) == 2
    assert np.array_equal(rows.signal_uv, expected.signal_uv)


@pytest.mark.ray
def test_all_refused_is_explained_and_mended_files_are_read(local_ray: None, ludb_dir: Path, tmp_path: Path) -> None:
    folder = copy_records(ludb_dir, tmp_path / "a", {"r1": "1"})
    whole = (folder / "r1.dat").read_bytes()
    (folder / "r1.dat").write_bytes(whole[:-100])
    settings = IngestSettings({"wfdb": str(folder)}, str(tmp_path / "c"))
    with pytest.raises(CorpusError, match="r1: truncated"):
        ingest(settings)
    (folder / "r1.dat").write_bytes(whole)
    assert ingest(settings).manifest.rows == 1


@pytest.mark.parametrize("fault", ["flipped header", "cut in a header", "cut in the data", "no end"])
def test_a_damaged_plain_tar_is_not_a_shorter_one(ludb_dir: Path, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "a.tar"
    starts = []
    with tarfile.open(path, "w") as archive:
        for number in ("1", "2", "3"):
            for suffix in (".hea", ".dat"):
                data = (ludb_dir / "data" / f"{number}{suffix}").read_bytes()
                info = tarfile.TarInfo(f"{number}{suffix}")
                info.size = len(data)
                starts.append(archive.offset)
                archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    assert len(open_tree(str(path)).names()) == 6
    data = bytearray(path.read_bytes())
    if fault == "flipped header":
        data[starts[3] + 20] ^= 1
    cut = {"cut in a header": starts[3] + 100, "cut in the data": starts[3] + 5000, "no end": end}.get(fault, len(data))
    path.write_bytes(bytes(data[:cut]))
    with pytest.raises(RecordError) as caught:
        open_tree(str(path)).names()
    assert caught.value.reason == Reason.CORRUPT_ARCHIVE


def test_faults_of_the_disk_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    for overrides in (["corpus", "show"], ["corpus", "verify"], ["corpus", "refused"]):
        assert main([*overrides, str(tmp_path / "file")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("beatray corpus:") and error.count("\n") == 1
