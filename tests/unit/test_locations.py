"""One data set out of several places, on the bundled PTB-XL recordings cut in two folders."""

from __future__ import annotations

import csv
import tarfile
import zipfile
from pathlib import Path

import pytest

from beatray.cli import main
from beatray.commands.ingest import settings_from
from beatray.dsp.features import HRV_FEATURES
from beatray.errors import CorpusError, SettingsError
from beatray.ingest.locations import each_name_once, locations_of, one_holds_the_other
from beatray.ingest.plan import SAMPLE, IngestSettings, list_items, plan, recipe_of
from beatray.ingest.sources import ptbxl
from beatray.ingest.sources.item import Item
from beatray.ingest.tree import open_tree


def cut(folder: Path, *, whole_tables: bool = False, overlap: int = 0, n: int = 20) -> tuple[Path, Path]:
    """The first `n` recordings of the sample in two folders, `overlap` of them in both."""
    folder.mkdir()
    halves = folder / "a", folder / "b"
    with zipfile.ZipFile(SAMPLE / "ptbxl-sample.zip") as archive:
        table = next(name for name in archive.namelist() if name.endswith("ptbxl_database.csv"))
        rows = list(csv.DictReader(archive.read(table).decode().splitlines()))[:n]
        parts = rows[: n // 2 + overlap], rows[n // 2 :]
        for half, part in zip(halves, parts, strict=True):
            for row in part:
                stem = table.removesuffix("ptbxl_database.csv") + row["filename_hr"]
                for suffix in (".hea", ".dat"):
                    target = half / (row["filename_hr"] + suffix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(stem + suffix))
            with (half / "ptbxl_database.csv").open("w", newline="") as handle:
                writer = csv.DictWriter(handle, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows if whole_tables else part)
    return halves


def names(listed: dict[tuple[str, str], tuple[list[Item], object]], location: Path) -> list[str]:
    return [item.name for item in listed["ptbxl", str(location)][0]]


def test_two_folders_give_the_recordings_of_the_whole(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in")
    settings = IngestSettings({"ptbxl": (str(a), str(b))}, str(tmp_path / "c"), items_per_shard=4)
    listed = list_items(settings)
    assert list(listed) == [("ptbxl", str(a)), ("ptbxl", str(b))]
    whole = [item.name for item in ptbxl.find(open_tree(str(SAMPLE / "ptbxl-sample.zip")))]
    assert set(names(listed, a)) | set(names(listed, b)) <= set(whole)
    assert len(names(listed, a)) == len(names(listed, b)) == 10
    slices = list(plan(settings, recipe_of(settings), listed, set()))
    assert len({part.name for part in slices}) == len(slices) == 6
    assert [part.location for part in slices] == [str(a)] * 3 + [str(b)] * 3
    assert [part.name.split("-")[1] for part in slices] == [f"{number:05d}" for number in range(6)]
    one = IngestSettings({"ptbxl": str(a)}, str(tmp_path / "c"), items_per_shard=4)
    alone = [part.name for part in plan(one, recipe_of(one), list_items(one), set())]
    assert alone == [part.name for part in slices[:3]]  # what one folder gave is the same with another beside it


def test_a_recording_in_both_is_read_once_and_that_is_said(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in", overlap=3)
    listed = list_items(IngestSettings({"ptbxl": (str(b), str(a))}, ""))
    assert len(names(listed, a)) == len(names(listed, b)) == 10 and not set(names(listed, a)) & set(names(listed, b))
    (note,) = listed["ptbxl", str(a)][1]
    assert note.detail.startswith(
        "location 2 of 2: 3 recordings are at another location of the source too and are read there"
    )
    assert "give this one first to read them here" in note.detail
    assert note.count == 3 and all(name in note.detail for name in names(listed, b)[:3])
    assert not listed["ptbxl", str(b)][1]


def test_each_recording_comes_from_where_its_file_is_though_both_tables_name_it(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in", whole_tables=True)
    listed = list_items(IngestSettings({"ptbxl": (str(a), str(b))}, ""))
    for location in (a, b):
        tree = open_tree(str(location))
        assert len(listed["ptbxl", str(location)][0]) == 10
        assert all(item.path in tree for item in listed["ptbxl", str(location)][0])


def test_what_no_location_has_is_listed_once_so_that_it_is_refused_once(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in", whole_tables=True)
    for path in a.rglob("*.hea"):
        path.unlink()
    listed = list_items(IngestSettings({"ptbxl": (str(a), str(b))}, ""))
    assert len(names(listed, a)) == 10 and len(names(listed, b)) == 10


def test_a_limit_counts_the_recordings_of_all_places(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in")
    listed = list_items(IngestSettings({"ptbxl": (str(a), str(b))}, "", limit=6))
    assert [len(items) for items, _ in listed.values()] == [3, 3]


def test_a_source_given_twice_has_two_locations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = cut(tmp_path / "in")
    settings, _ = settings_from([f"ptbxl={a}", f"ptbxl={b}"], str(tmp_path / "c"))
    assert locations_of(settings.sources) == [("ptbxl", str(a)), ("ptbxl", str(b))]
    assert main(["ingest", f"ptbxl={a}", f"ptbxl={b}", "--out", str(tmp_path / "c"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert f"ptbxl={a}" in output and f"ptbxl={b}" in output and output.count("10 would be read") == 2
    assert main(["ingest", f"ptbxl={a}", f"ptbxl={tmp_path / 'none'}", "--out", str(tmp_path / "c"), "--dry-run"]) != 0
    assert main(["ingest", f"ptbxl={a}", f"ptbxl={b}", "--out", str(b.parent), "--dry-run"]) != 0  # b lies inside


def test_a_part_without_a_table_names_where_one_lies(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in")
    (b / "ptbxl_database.csv").rename(tmp_path / "in" / "ptbxl_database.csv")
    archive = tmp_path / "in" / "b.tar.xz"
    with tarfile.open(archive, "w:xz") as whole:
        whole.add(b, "ptbxl")
    with pytest.raises(CorpusError, match=r"b\.tar\.xz: one lies beside it: unpack the archive"):
        list_items(IngestSettings({"ptbxl": (str(a), str(archive))}, ""))
    with pytest.raises(CorpusError, match=r"no ptbxl_database\.csv anywhere in .*b: is this the right data set"):
        list_items(IngestSettings({"ptbxl": (str(a), str(b))}, ""))


def test_the_same_path_in_two_plain_folders_is_no_name_for_one_recording(tmp_path: Path) -> None:
    a, b = cut(tmp_path / "in")
    for location in (a, b):
        next(iter(sorted(location.rglob("*.hea")))).rename(location / "r1.hea")
    with pytest.raises(CorpusError, match=r"a and .*b both have r1; .*put both under one parent folder"):
        list_items(IngestSettings({"wfdb": (str(a), str(b))}, ""))
    (b / "r1.hea").rename(b / "r2.hea")
    listed = list_items(IngestSettings({"wfdb": (str(a), str(b))}, ""))
    assert [len(items) for items, _ in listed.values()] == [10, 10]


class FakeTree:
    """A list of paths."""

    def __init__(self, *paths: str) -> None:
        self.location, self.paths = "", paths

    def names(self) -> tuple[str, ...]:
        return self.paths

    def __contains__(self, name: object) -> bool:
        return name in self.paths


def read_at(*locations: tuple[FakeTree, list[Item]]) -> list[list[str]]:
    """The names of what is read at each place."""
    return [[item.name for item in items] for items, _ in each_name_once(locations)]  # type: ignore[arg-type]


def test_a_location_that_refuses_a_recording_does_not_hide_another_that_has_it() -> None:
    first = FakeTree("p0.hdf5"), [Item("5", "p0.hdf5", {"refused": "p0.hdf5 does not hold it"}), Item("6", "p0.hdf5")]
    second = FakeTree("p0.hdf5"), [Item("5", "p0.hdf5"), Item("6", "p0.hdf5")]
    assert read_at(first, second) == [["6"], ["5"]]
    assert read_at(second, first) == [["5", "6"], []]
    assert read_at(first, first) == [["5", "6"], []]  # refused once


def test_what_has_no_name_of_its_own_is_not_taken_for_the_same_recording() -> None:
    first = FakeTree("exams.csv"), [Item("row-3", "exams.csv", {"refused": "row 3"}, unnamed=True)]
    assert read_at(first, first) == [["row-3"], ["row-3 (2)"]]


def test_a_part_that_another_location_has_is_not_refused_where_it_is_missing() -> None:
    missing = Item("p9.hdf5", "p9.hdf5", {"refused": "its 2 exams: it is not there"}, unnamed=True)
    first = FakeTree("exams.csv", "p0.hdf5"), [Item("1", "p0.hdf5"), missing]
    second = FakeTree("x/exams.csv", "x/p9.hdf5"), [Item("2", "x/p9.hdf5"), Item("3", "x/p9.hdf5")]
    assert read_at(first, second) == [["1"], ["2", "3"]]
    assert read_at(first, (FakeTree("exams.csv"), [])) == [["1", "p9.hdf5"], []]
    assert each_name_once([]) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/d", "/d", True),
        ("/d", "/d/2020", True),
        ("/d/2020/", "/d", True),
        ("/d/2020", "/d/2021", False),
        ("/d/20", "/d/2020", False),
        ("/d/x/../2020", "/d/2020", True),
        ("s3://b/x", "s3://b/x/", True),
        ("s3://b/x?region=r", "s3://b/x/y?region=r", True),
        ("s3://b/x", "s3://b/xy", False),
    ],
)
def test_a_location_in_another_is_seen(one: str, other: str, same: bool) -> None:
    assert one_holds_the_other(one, other) is same and one_holds_the_other(other, one) is same


def test_who_finds_beats_and_waves_is_part_of_the_recipe() -> None:
    found_by = ("detector=beatray", "detector=beatray+dwt")
    one, other = (recipe_of(settings_from(["ludb=/data/ludb", each], None)[0]) for each in found_by)
    assert {key for key in one if one[key] != other[key]} == {"detector", "dsp_version"}
    assert one == recipe_of(settings_from(["ludb=/data/ludb"], None)[0])
    more = recipe_of(settings_from(["ludb=/data/ludb", "quality=beatray+neurokit", "hrv=neurokit"], None)[0])
    assert {k for k in more if one.get(k) != more[k]} == {"quality", "hrv", "dsp_version", "record_features"}
    assert more["record_features"] == [*one["record_features"], *HRV_FEATURES]
    with pytest.raises(SettingsError, match=r"detector='dwt' is not one of beatray, neurokit, neurokit\+dwt, beatray"):
        settings_from(["ludb=/data/ludb", "detector=dwt"], None)
