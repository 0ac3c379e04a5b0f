"""When a recording began: read from devices and tables, kept beside a patient alone, and moved where ids are hashed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beatray.corpus.chunks import checksums
from beatray.corpus.id_key import MOVED_AT_MOST_S, IdKey
from beatray.corpus.manifest import Manifest, Shard, write_manifest
from beatray.corpus.reader import open_corpus
from beatray.corpus.schema import ACQUIRED, SCHEMA
from beatray.dsp.analyse import AnalysisSettings
from beatray.ingest.formats.people import moment_of
from beatray.ingest.formats.registry import format_of
from beatray.ingest.patients import protect
from beatray.ingest.plan import IngestSettings, list_items, plan, recipe_of
from beatray.ingest.slices import convert_slice
from beatray.ingest.sources import arrays, mimic
from beatray.ingest.tree import open_tree
from beatray.record import Record
from beatray.storage.store import Store
from device_files import aecg_xml
from source_copies import mimic_copy
from wfdb_files import ecg_counts

ID_KEY = IdKey(b"0123456789abcdef-secret")
TAKEN = datetime(2024, 2, 17, 10, 15)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20240217101500", TAKEN),
        ("20240217101500.123-0500", TAKEN),
        ("20240217 101500000", TAKEN),
        ("2024-02-17 10:15:00", TAKEN),
        ("2024-02-17T10:15", TAKEN),
        ("2024/02/17 10:15:00.5Z", TAKEN),
        (" 20240217 10:15:00 ", TAKEN),
        ("2024-02-17", None),  # may be a day off
        ("20240217 ", None),
        ("2024-02-30 10:15:00", None),
        ("17.02.2024 10:15", None),
        ("19700101 000000000", None),  # of a clock that nobody set
        ("19000101000000", None),
        ("00000000000000", None),
        ("9999-12-31 23:59:59", None),
        ("", None),
        (None, None),
    ],
)
def test_what_is_a_time(text: str | None, moment: datetime | None) -> None:
    assert moment_of(text) == moment


@pytest.mark.parametrize(
    ("path", "moment"),
    [
        ("misc/dicom/sample_12lead_500Hz.dcm", datetime(2009, 4, 28, 11, 39, 9)),
        ("misc/hl7_aecg/Example_aECG.xml", datetime(2002, 11, 22, 9, 10)),
        ("misc/philips_xml/2020-5-18_15-48-11.xml", datetime(2020, 5, 18, 15, 48, 11)),
        ("misc/schiller_xml/sample.xml", None),  # 1970-01-01 00:00:00
    ],
)
def test_times_of_real_files(data_dir: Path, path: str, moment: datetime | None) -> None:
    tree = open_tree(str((data_dir / path).parent))
    name = path.rpartition("/")[2]
    found = format_of(tree, name)
    assert found is not None
    assert next(iter(found.read(tree, name))).acquired == moment


def test_each_rhythm_series_of_an_aecg_has_its_own_time(tmp_path: Path) -> None:
    text = aecg_xml(ecg_counts(3000)).decode()
    head, _, rest = text.partition("<component><series>")
    series = "<component><series>" + rest.removesuffix("</AnnotatedECG>")
    began = '<code code="RHYTHM"/><effectiveTime><low value="20240217131500"/></effectiveTime>'
    later = series.replace('<code code="RHYTHM"/>', began)
    absolute = series.replace("TIME_RELATIVE", "TIME_ABSOLUTE").replace("GLIST_PQ", "GLIST_TS")
    absolute = absolute.replace('<head value="0" unit="s"/>', '<head value="20240217160000.000"/>')
    (tmp_path / "a.xml").write_text(head + series + later + absolute + "</AnnotatedECG>")
    tree = open_tree(str(tmp_path))
    found = format_of(tree, "a.xml")
    assert found is not None
    hours = [each.acquired.hour for each in found.read(tree, "a.xml") if each.acquired is not None]
    assert hours == [10, 13, 16]


def record(patient: str | None, *, private: bool = True, source: str = "files") -> Record:
    signal = np.zeros((12, 3000))
    return Record("files/x", source, signal, 500.0, patient_id=patient, patient_is_private=private, acquired=TAKEN)


def test_times_go_where_ids_go() -> None:
    assert protect(record("files/1"), None)[0].acquired is None
    assert protect(record(None), None)[0].acquired is None
    assert protect(record(None), ID_KEY)[0].acquired is None
    assert protect(record("ptbxl/1", private=False, source="ptbxl"), None)[0].acquired == TAKEN


def test_all_times_of_a_patient_are_moved_by_one_span_that_follows_from_the_key() -> None:
    first, _ = protect(record("files/1"), ID_KEY)
    later, _ = protect(replace(record("files/1"), acquired=TAKEN + timedelta(hours=30)), ID_KEY)
    assert first.acquired is not None and later.acquired is not None
    assert later.acquired - first.acquired == timedelta(hours=30)
    spans = []
    for number in range(400):
        moved, _ = protect(record(f"files/{number}"), ID_KEY)
        assert moved.acquired is not None
        spans.append((moved.acquired - TAKEN).total_seconds())
    assert len(set(spans)) == 400 and max(map(abs, spans)) <= MOVED_AT_MOST_S
    assert min(spans) < -MOVED_AT_MOST_S / 2 and max(spans) > MOVED_AT_MOST_S / 2
    assert len({round(span) % 86_400 for span in spans}) > 300  # the time of day says nothing
    other, _ = protect(record("files/1"), IdKey(b"another key of 16 bytes"))
    assert other.acquired not in (None, first.acquired)


def test_tables_of_public_data_and_of_arrays(tmp_path: Path) -> None:
    tree = mimic_copy(tmp_path / "mimic")
    found = [next(iter(mimic.read(tree, item))) for item in mimic.find(tree) if "refused" not in item.meta]
    assert found and {each.acquired for each in found} == {datetime(2110, 10, 11, 13, 6)}
    folder = tmp_path / "own"
    folder.mkdir()
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(12, 5000)))
    np.save(folder / "b.npy", np.random.default_rng(1).normal(size=(12, 5000)))
    (folder / "recordings.yaml").write_text(
        "files: '*.npy'\nrate_hz: 500\nunits: mV\nleads: [I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6]\n"
        "table: t.csv\ncolumns: {file: f, patient: mrn, time: taken}\n"
    )
    for second in ("17.2.2024", "2024-02-17 10:15:00+00:00", "2024-02-17T10:15:00Z"):  # the clock there is not known
        (folder / "t.csv").write_text(f"f,mrn,taken\na,7,2024-02-17 10:15:00\nb,7,{second}\n")
        plain = open_tree(str(folder))
        one, other = (next(iter(arrays.read(plain, item))) for item in arrays.find(plain))
        assert (one.acquired, other.acquired) == (TAKEN, None)


def mimic_corpus(folder: Path, out: Path) -> Store:
    """A committed corpus of a small copy of MIMIC's tree, without Ray."""
    mimic_copy(folder)
    settings = IngestSettings({"mimic": str(folder)}, str(out))
    store = Store(str(out))
    (part,) = plan(settings, recipe_of(settings), list_items(settings), set())
    (stored,) = convert_slice(store, part, AnalysisSettings(), None).shards
    shard = Shard(**{**stored, "row_groups": tuple(stored["row_groups"])})
    write_manifest(store, Manifest(0, recipe_of(settings), (shard,), {}, {}))
    return store


def test_a_corpus_keeps_them_and_one_of_before_is_still_read(tmp_path: Path) -> None:
    store = mimic_corpus(tmp_path / "mimic", tmp_path / "corpus")
    corpus = open_corpus(str(tmp_path / "corpus"))
    times, signals = corpus.acquired(), corpus.rows().signal_uv
    assert times.dtype == "datetime64[s]" and set(times) == {np.datetime64("2110-10-11T13:06:00")}

    (shard,) = corpus.manifest.shards  # the same without the column, as version 0.1 wrote it
    table = pq.read_table(tmp_path / "corpus" / "shards" / shard.name).drop_columns([ACQUIRED])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=128, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    footer = data[-(int.from_bytes(data[-8:-4], "little") + 8) :]
    digests = {"sha256": hashlib.sha256(data).hexdigest(), "footer_sha256": hashlib.sha256(footer).hexdigest()}
    store.write(f"shards/{shard.name}", data)
    older = replace(shard, bytes=len(data), footer_bytes=len(footer), chunk_crc32=checksums(data), **digests)
    write_manifest(store, replace(corpus.manifest, number=1, shards=(older,)))
    before = open_corpus(str(tmp_path / "corpus"))
    assert np.isnat(before.acquired()).all() and len(before.acquired()) == len(times)
    assert before.columns(older, None).column_names == SCHEMA.names
    np.testing.assert_array_equal(before.rows().signal_uv, signals)
