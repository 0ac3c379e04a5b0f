"""Several recordings in one file: one that cannot be used is refused under its own name, and the others are kept."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import device_files as made
from beatray.cli import main
from beatray.corpus.manifest import Manifest, Shard, write_manifest
from beatray.corpus.writer import QUARANTINE_SCHEMA, parquet_bytes
from beatray.dsp.analyse import AnalysisSettings
from beatray.ingest.convert import UNLISTED, _is_decided_anew
from beatray.ingest.each_record import each_record
from beatray.ingest.formats import aecg
from beatray.ingest.plan import IngestSettings, known_items, list_items, plan, recipe_of
from beatray.ingest.slices import ItemRead, convert_slice, read_item
from beatray.ingest.sources import files
from beatray.ingest.tree import open_tree
from beatray.record import RecordError
from beatray.storage.store import Store
from wfdb_files import ecg_counts

COUNTS = ecg_counts(3000)
SEQUENCE = b"<component><sequence>"
GOOD = made.aecg_xml(COUNTS)
SHORT = made.aecg_xml(COUNTS[:1000])
BAD = {
    "too_short": SHORT,
    "flat": made.aecg_xml(COUNTS * 0),
    "bad_units": made.aecg_xml(COUNTS, unit=""),
    "bad_rate": made.aecg_xml(COUNTS, increment="-1"),
    "duplicate_leads": GOOD.replace(b"MDC_ECG_LEAD_AVF", b"MDC_ECG_LEAD_V1"),
    "absurd_size": GOOD.replace(SEQUENCE, b"<component><sequence/></component>" * 9 + SEQUENCE),
}


def joined(*whole: bytes) -> bytes:
    """One file with the rhythm series of all."""
    begin, end = b"<component><series>", b"</series></component>"
    series = b"".join(text[text.index(begin) : text.rindex(end) + len(end)] for text in whole)
    return whole[0][: whole[0].index(begin)] + series + b"</AnnotatedECG>"


def read(folder: Path, *whole: bytes) -> ItemRead:
    (folder / "a.xml").write_bytes(joined(*whole))
    tree = open_tree(str(folder))
    (item,) = files.find(tree)
    return read_item(tree, "files", item)


@pytest.mark.parametrize("reason", BAD)
def test_a_series_that_cannot_be_used_costs_no_other(tmp_path: Path, reason: str) -> None:
    found = read(tmp_path, GOOD, BAD[reason], made.aecg_xml(ecg_counts(3000, seed=1)))
    assert [window.record_id for window in found.windows] == ["files/a", "files/a/rhythm-3"]
    assert [(row["item"], row["reason"]) for row in found.refused] == [("a/rhythm-2", reason)]
    assert found.tally["sources"]["files"]["recordings"] == 2


def test_a_fault_of_the_reader_costs_one_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = aecg._channel
    seen: list[str] = []

    def broken(sequence: aecg.Element) -> aecg.Channel:
        seen.append("")
        if len(seen) == 1:
            raise ZeroDivisionError(made.PERSON["name"])
        return channel(sequence)

    monkeypatch.setattr(aecg, "_channel", broken)
    found = read(tmp_path, GOOD, GOOD)
    assert [window.record_id for window in found.windows] == ["files/a/rhythm-2"]
    assert [(row["item"], row["reason"]) for row in found.refused] == [("a", "reader_fault")]
    assert made.PERSON["name"] not in found.refused[0]["detail"]


def test_a_fault_of_the_disk_is_raised() -> None:
    def read() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(each_record(read))  # type: ignore[arg-type]


def test_the_list_of_recordings_raises_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(joined(GOOD, BAD["bad_units"]))
    tree = open_tree(str(tmp_path))
    with pytest.raises(RecordError):
        list(files.read(tree, files.find(tree)[0]))


def test_a_file_of_which_a_later_part_is_kept_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.xml").write_bytes(joined(SHORT, GOOD))
    (tmp_path / "in" / "b.xml").write_bytes(SHORT)
    settings = IngestSettings({"files": str(tmp_path / "in")}, str(tmp_path / "c"))
    store, recipe = Store(settings.out), recipe_of(settings)
    (part,) = plan(settings, recipe, list_items(settings), set())
    result = convert_slice(store, part, AnalysisSettings())
    assert [row["item"] for row in result.refused] == ["a", "b"]
    (shard,) = (Shard(**{**shard, "row_groups": tuple(shard["row_groups"])}) for shard in result.shards)
    store.write("quarantine-0.parquet", parquet_bytes(pa.Table.from_pylist(result.refused, schema=QUARANTINE_SCHEMA)))
    manifest = Manifest(0, recipe, (shard,), {"name": "quarantine-0.parquet"}, {})
    write_manifest(store, manifest)
    names = {False: {"a", "b", "a/rhythm-2"}, True: {"a", "a/rhythm-2"}}
    for again, known in names.items():
        assert known_items(store, manifest, retry_refused=again) == {("files", name) for name in known}


def test_explain_reports_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.xml").write_bytes(joined(GOOD, SHORT, GOOD))
    assert main(["ingest", "explain", str(tmp_path / "a.xml")]) == 1
    output = capsys.readouterr().out
    second = output[output.index("recording 2 of the file") : output.index("recording 3 of the file")]
    assert "refused: too_short" in second and "would be kept as 2 rows" in output


def test_refusals_go_when_what_they_are_of_is_tried_again() -> None:
    tried, listed = {("files", "ward/a"), ("ptbxl", "7")}, {"files"}

    def goes(source: str, item: str) -> bool:
        return _is_decided_anew({"source": source, "item": item}, tried, listed)

    assert goes("files", "ward/a") and goes("files", "ward/a/rhythm-2")  # the rhythms of a file are tried with it
    assert goes("files", UNLISTED) and not goes("ptbxl", UNLISTED)
    assert not goes("files", "ward/b") and not goes("files", "ward/a/b") and not goes("mimic", "7")
