"""Ingest through real Ray tasks: exact, repeatable, resumable, and every recording accounted for."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import device_files
from beatray.cli import main
from beatray.commands.demo import SAMPLE
from beatray.corpus.reader import open_corpus, verify
from beatray.corpus.splits import Role, SplitPolicy, assign_roles, duplicates
from beatray.dsp.analyse import AnalysisSettings
from beatray.dsp.features import HRV_FEATURES, RECORD_FEATURES
from beatray.errors import CorpusError
from beatray.ingest import convert
from beatray.ingest.convert import ingest
from beatray.ingest.plan import IngestSettings, list_items, plan, read_quarantine, recipe_of
from beatray.ingest.progress_board import ProgressReader
from beatray.ingest.slices import convert_slice
from beatray.ingest.sources.ptbxl import find as find_ptbxl
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree
from beatray.storage.store import Store
from beatray.train.blocks import decode
from source_copies import code15_copy
from wfdb_files import ecg_counts

pytestmark = pytest.mark.ray

PLAN = IngestSettings(
    {"ludb": str(SAMPLE / "ludb-sample.zip"), "ptbxl": str(SAMPLE / "ptbxl-sample.zip")},
    "",
    items_per_shard=8,
    limit=24,
)


def shard_bytes(corpus: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((corpus / "shards").iterdir())}


def test_same_input_same_bytes_and_a_second_ingest_does_nothing(local_ray: None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ingest(replace(PLAN, out=str(tmp_path / name)))
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")
    assert (tmp_path / "a" / "manifest-0.json").read_bytes() == (tmp_path / "b" / "manifest-0.json").read_bytes()
    again = ingest(replace(PLAN, out=str(tmp_path / "a")))
    assert again.manifest.number == 0 and again.known == 48
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.is_file()) == ["manifest-0.json"]


def test_the_corpus_holds_the_samples_of_the_files(local_ray: None, tmp_path: Path) -> None:
    ingest(replace(PLAN, out=str(tmp_path / "c")))
    corpus = open_corpus(str(tmp_path / "c"))
    rows = corpus.rows()
    assert len(rows) == 48 and set(rows.source) == {"ludb", "ptbxl"}
    for source in ("ludb", "ptbxl"):
        tree = open_tree(PLAN.sources[source])
        items = {f"{source}/{item.name}": item for item in SOURCES[source].find(tree)}
        for position in [n for n, name in enumerate(rows.source) if name == source][:6]:
            (record,) = SOURCES[source].read(tree, items[rows.record_id[position]])
            error_uv = np.abs(rows.signal_uv[position] - record.signal_mv * 1000)
            assert error_uv.max() <= 0.5 + 1e-6
            assert rows.labels[position] == record.labels
            assert len(rows.waves[position]) == len(record.waves)
    assert all(len(waves) > 50 for waves, source in zip(rows.waves, rows.source, strict=True) if source == "ludb")
    index = corpus.index
    assert index["fold"][index["source"] == "ptbxl"].between(1, 9).all()


def test_new_recordings_become_a_new_manifest_and_the_old_snapshot_stays(local_ray: None, tmp_path: Path) -> None:
    out = str(tmp_path / "c")
    ingest(IngestSettings({"ludb": PLAN.sources["ludb"]}, out, limit=10))
    grown = ingest(IngestSettings({"ptbxl": PLAN.sources["ptbxl"]}, out, limit=10)).manifest
    assert grown.number == 1 and grown.statistics["by_source"] == {"ludb": 10, "ptbxl": 10}
    assert set(open_corpus(out, 0).index["source"]) == {"ludb"}
    with pytest.raises(CorpusError, match="detector"):
        ingest(IngestSettings({"ludb": PLAN.sources["ludb"]}, out, detector="neurokit"))


def test_quality_and_variability_of_neurokit_are_in_the_corpus_where_they_are_asked_for(
    local_ray: None, tmp_path: Path
) -> None:
    sources, out = {"ludb": PLAN.sources["ludb"]}, str(tmp_path / "c")
    manifest = ingest(IngestSettings(sources, out, quality="beatray+neurokit", hrv="neurokit", limit=12)).manifest
    names = [*RECORD_FEATURES, *HRV_FEATURES]
    assert manifest.recipe["record_features"] == names
    assert manifest.statistics["record_features"]["names"] == names
    corpus = open_corpus(out)
    assert list(verify(corpus)) == []
    rows = corpus.rows(np.arange(12))
    assert rows.record_features.shape == (12, len(names))
    column = dict(zip(names, rows.record_features.T, strict=True))
    assert column["HRV_MeanNN"] == pytest.approx(1e3 * column["rr_mean_s"], rel=1e-5)
    table = pq.read_table(next((tmp_path / "c").rglob("*.parquet")))
    assert table.schema.metadata[b"beatray.record_features"].decode().split() == names
    read = decode(table, ["record_features"], None)["record_features"]
    at = [rows.record_id.index(name) for name in table["record_id"].to_pylist()]
    assert np.array_equal(read, rows.record_features[at], equal_nan=True)
    with pytest.raises(CorpusError, match="different: dsp_version, hrv, quality, record_features"):
        ingest(IngestSettings(sources, out, limit=20))


def test_refused_recordings_are_quarantined_with_their_reason_and_the_rest_goes_on(
    local_ray: None, tmp_path: Path, ludb_dir: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("1", "2", "3", "4", "5", "6", "7"):
        for suffix in (".hea", ".dat"):
            shutil.copy(ludb_dir / "data" / f"{name}{suffix}", folder / f"{name}{suffix}")

    def edit(name: str, old: str, new: str) -> None:
        path = folder / f"{name}.hea"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    data = bytearray((folder / "2.dat").read_bytes())
    data[5000] ^= 16
    (folder / "2.dat").write_bytes(bytes(data))  # checksum
    (folder / "3.dat").write_bytes((folder / "3.dat").read_bytes()[:-7])  # truncated
    first = next(line for line in (folder / "4.hea").read_text().splitlines() if "/mV" in line)
    edit("4", first.split()[2], "0/mV")  # gain
    (folder / "5.dat").unlink()  # missing
    edit("6", "6.dat", "../6.dat")  # outside
    (folder / "8.hea").symlink_to(ludb_dir / "data" / "8.hea")
    manifest = ingest(IngestSettings({"wfdb": str(folder)}, str(tmp_path / "c"))).manifest
    assert manifest.statistics["recordings"] == 2
    assert manifest.statistics["quarantine_reasons"] == {
        "bad_gain": 1, "checksum": 1, "missing_file": 1, "truncated": 1, "unsafe_path": 2,
    }  # fmt: skip
    refused = read_quarantine(Store(str(tmp_path / "c")), manifest)
    assert {row["item"] for row in refused} == {"2", "3", "4", "5", "6", "(not listed)"}
    assert all(row["detail"] for row in refused)
    shutil.copy(ludb_dir / "data" / "2.dat", folder / "2.dat")  # repaired: read again only when asked
    plan = IngestSettings({"wfdb": str(folder)}, str(tmp_path / "c"))
    assert ingest(plan).manifest.number == 0
    repaired = ingest(replace(plan, retry_refused=True)).manifest
    assert repaired.number == 1 and repaired.statistics["recordings"] == 3
    assert "checksum" not in repaired.statistics["quarantine_reasons"]
    sample = {"ludb": str(SAMPLE / "ludb-sample.zip")}  # another source leaves what was said of this one
    other = ingest(IngestSettings(sample, str(tmp_path / "c"), limit=2)).manifest
    refused = read_quarantine(Store(str(tmp_path / "c")), other)
    assert {(row["source"], row["item"]) for row in refused} == {
        ("wfdb", item) for item in ("3", "4", "5", "6", "(not listed)")
    }


def test_a_file_of_many_recordings_is_no_longer_refused_once_it_is_there(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code15_copy(tmp_path / "in")
    store, late = Store(str(tmp_path / "c")), tmp_path / "in" / "exams_part2.hdf5"
    late.rename(tmp_path / late.name)
    before = ingest(IngestSettings({"code15": str(tmp_path / "in")}, str(tmp_path / "c"))).manifest
    assert [row["item"] for row in read_quarantine(store, before)] == [late.name]
    (tmp_path / late.name).rename(late)
    after = ingest(IngestSettings({"code15": str(tmp_path / "in")}, str(tmp_path / "c"))).manifest
    assert (before.statistics["recordings"], after.statistics["recordings"]) == (2, 4)
    assert read_quarantine(store, after) == []


def test_withdrawn_recordings_are_refused_by_name(local_ray: None, ptbxl_dir: Path, tmp_path: Path) -> None:
    items = find_ptbxl(open_tree(str(ptbxl_dir)))
    assert len(items) == 434
    manifest = ingest(IngestSettings({"ptbxl": str(ptbxl_dir)}, str(tmp_path / "c"), items_per_shard=128)).manifest
    assert manifest.statistics["quarantine_reasons"] == {"metadata": 12}
    assert manifest.statistics["recordings"] == 422


def test_the_same_signal_from_two_sources_shares_the_strictest_role(
    local_ray: None, data_dir: Path, ptbxl_dir: Path, tmp_path: Path
) -> None:
    sources = {"cinc": str(data_dir / "misc" / "bad_headers"), "ptbxl": str(ptbxl_dir)}
    ingest(IngestSettings(sources, str(tmp_path / "c")))
    index = open_corpus(str(tmp_path / "c")).index
    twins = duplicates(index)
    assert {"cinc/HR00002", "ptbxl/00002"} <= set(twins["record_id"])
    fold = int(index["fold"][index["record_id"] == "ptbxl/00002"].iloc[0])
    roles = assign_roles(index, SplitPolicy(validation_folds=(), test_folds=(fold,)))
    assert roles[(index["record_id"] == "cinc/HR00002").to_numpy()] == Role.TEST
    assert open_corpus(str(tmp_path / "c")).manifest.statistics["duplicates"] == len(twins) >= 2
    for column in ("patient_id", "content_hash"):
        assert (index.assign(role=roles).dropna(subset=[column]).groupby(column)["role"].nunique() == 1).all()


def test_rows_come_in_the_order_asked_for(sample_corpus: str) -> None:
    corpus = open_corpus(sample_corpus)
    expected = np.array([70, 3, 3, 119, 0])
    rows = corpus.rows(expected)
    assert rows.record_id == corpus.index["record_id"].iloc[expected].tolist()
    everything = corpus.rows()
    assert np.array_equal(rows.signal_uv, everything.signal_uv[expected])
    assert len(rows.take([4, 1])) == 2 and rows.take([4]).record_id == rows.record_id[4:]


def test_a_corpus_is_shown(
    local_ray: None, sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text, as JSON and as a page with a strip for each flag that occurs."""
    assert main(["corpus", "show", sample_corpus]) == 0
    text = capsys.readouterr().out
    assert "500 (60)" in text and "12 in all rows" in text and "leads_inconsistent" in text
    assert main(["corpus", "show", sample_corpus, "--json"]) == 0
    public = json.loads(capsys.readouterr().out)
    rows = open_corpus(sample_corpus).rows()
    assert sum(about["beats"] for about in public["sources"].values()) == sum(map(len, rows.r_peaks)) == public["beats"]
    labels = Counter(label for codes, source in zip(rows.labels, rows.source, strict=True) for label in codes)
    assert Counter(public["sources"]["ptbxl"]["labels"]) + Counter(public["sources"]["ludb"]["labels"]) == labels
    assert public["sources"]["ptbxl"]["rates_hz"] == {"500": 60}
    page = tmp_path / "corpus.html"
    assert main(["corpus", "show", sample_corpus, "--html", str(page)]) == 0
    written = page.read_text()
    assert written.count("<img") == len(public["flags"]) > 1
    assert all(name.replace("_", " ").capitalize() in written for name in public["flags"])


def test_a_hospitals_folder_with_and_without_a_salt(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Device files through the tasks: patients told apart under the id key, dropped and counted without it."""
    ward = tmp_path / "ward"
    ward.mkdir()
    (ward / "a.dcm").write_bytes(device_files.dicom([device_files.dicom_group(ecg_counts(3000, seed=0))]))
    (ward / "b.scp").write_bytes(device_files.scp_record(device_files.scp_bodies(ecg_counts(3000, seed=1))))
    (ward / "c.edf").write_bytes(device_files.edf(ecg_counts(3000, seed=2)))
    (tmp_path / "id-key").write_text("a secret of more than 16 bytes")
    hashed, plain = tmp_path / "hashed", tmp_path / "plain"
    assert main(["ingest", f"files={ward}", "--out", str(hashed), "--id-key-file", str(tmp_path / "id-key")]) == 0
    assert "warning" not in capsys.readouterr().out
    (patient,) = set(open_corpus(str(hashed)).index["patient_id"])  # one person, in three formats
    assert patient.startswith("files/") and device_files.PERSON["id"] not in patient
    assert main(["ingest", f"files={ward}", "--out", str(plain)]) == 0
    assert capsys.readouterr().out.count("warning: 3 recordings have a hospital's patient id") == 1
    assert set(open_corpus(str(plain)).index["patient_id"]) == {None}
    assert main(["ingest", f"files={ward}", "--out", str(hashed)]) == 1
    assert "id key" in capsys.readouterr().err


def test_one_data_set_from_two_locations_is_one_corpus(local_ray: None, ptbxl_dir: Path, tmp_path: Path) -> None:
    """Cut in two folders with one recording in both; the rows are those of the whole, and a third folder is added."""
    lines = (ptbxl_dir / "ptbxl_database.csv").read_text().splitlines()
    parts = {"a": lines[1:13], "b": lines[12:25], "c": lines[25:31]}
    for name, rows in parts.items():
        for row in csv.DictReader([lines[0], *rows]):
            for suffix in (".hea", ".dat"):
                target = tmp_path / name / (row["filename_hr"] + suffix)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ptbxl_dir / (row["filename_hr"] + suffix), target)
        (tmp_path / name / "ptbxl_database.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    a, b, c = (str(tmp_path / name) for name in parts)
    plan = IngestSettings({"ptbxl": (a, b)}, str(tmp_path / "out"), items_per_shard=5)
    both = ingest(plan).manifest
    assert both.rows == 24
    refused = read_quarantine(Store(plan.out), both)
    (detail,) = [row["detail"] for row in refused if row["item"] == "(not listed)"]
    assert detail.startswith("location 2 of 2: 1 recordings are at another location of the source too")
    assert ingest(plan).manifest.number == 0  # nothing is left to do
    grown = ingest(replace(plan, sources={"ptbxl": (a, b, c)})).manifest
    assert grown.number == 1 and grown.rows == 30
    rows = open_corpus(plan.out).rows()
    assert len(set(rows.record_id)) == len(rows) == 30
    ingest(IngestSettings({"ptbxl": str(ptbxl_dir)}, str(tmp_path / "whole")))
    reference = open_corpus(str(tmp_path / "whole")).index.set_index("record_id")["content_hash"]
    index = open_corpus(plan.out).index
    assert [reference[name] for name in index["record_id"]] == index["content_hash"].tolist()


def test_progress_within_a_slice(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tasks report reaches the driver: the slices that run, each once however often it was tried."""
    reader = ProgressReader(every_s=0.0)
    first, second = reader.reporter("a"), reader.reporter("b")
    for reporter, read in ((first, 20), (second, 5), (first, 3)):  # the first was tried again
        reporter.report(read, 1)
    deadline = time.monotonic() + 60
    while reader.counts(["a", "b", "not begun"]) != (8, 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reader.counts(["a", "b"]) == (8, 2) and reader.counts(["b"]) == (5, 1)
    monkeypatch.setattr(convert, "WORTH_TELLING", 1)
    reports: list[convert.Progress] = []
    ingest(replace(PLAN, out=str(tmp_path / "c"), limit=2), reports.append)
    counts = [progress.done for progress in reports]
    assert counts == sorted(counts) and counts[-1] == reports[-1].total == 4


def test_a_slice_reports_its_progress(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []

    class Recording:
        def report(self, read: int, refused: int) -> None:
            reports.append((read, refused))

    settings, store = replace(PLAN, out=str(tmp_path), limit=3), Store(str(tmp_path))
    part = next(plan(settings, recipe_of(settings), list_items(settings), set()))
    convert_slice(store, part, AnalysisSettings(), reporter=Recording())  # type: ignore[arg-type]
    assert reports == [(1, 0), (2, 0), (3, 0)]
