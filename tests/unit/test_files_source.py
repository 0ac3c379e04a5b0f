"""The source `files`: a mixture of formats in one folder or archive, nothing lost and nothing counted twice."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

import device_files as made
from beatray.ingest.plan import IngestSettings, list_items
from beatray.ingest.sources import files
from beatray.ingest.tree import Tree, open_tree
from beatray.record import Reason, RecordError
from wfdb_files import ecg_counts, write_record

COUNTS = ecg_counts(3000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One recording of each format, some with strange names, and what lies around beside them."""
    root = tmp_path / "mix"
    (root / "ward" / "2024").mkdir(parents=True)
    (root / "ward" / "IM000001").write_bytes(made.dicom([made.dicom_group(COUNTS)]))
    (root / "ward" / "2024" / "one.scp").write_bytes(made.scp_record(made.scp_bodies(COUNTS)))
    (root / "ward" / "2024" / "two.XML").write_bytes(made.aecg_xml(COUNTS))
    (root / "p.xml").write_bytes(made.philips_xml(COUNTS))
    (root / "s.xml").write_bytes(made.schiller_xml(COUNTS))
    (root / "m.xml").write_bytes(made.muse_xml(COUNTS))
    (root / "night.edf").write_bytes(made.edf(COUNTS))
    write_record(root, "w", COUNTS)
    (root / "w.atr").write_bytes(b"\0\0")
    (root / "readme.txt").write_text("Hello 12 leads\n")
    (root / "page.html").write_text("<html><body/></html>")
    (root / "scan.dcm").write_bytes(made.dicom([], sop_class="1.2.840.10008.5.1.4.1.1.7"))
    (root / "sleep.bdf").write_bytes(b"\xffBIOSEMI" + bytes(300))
    return root


def passed_over(tree: Tree) -> dict[str, int]:
    return {other.detail.partition(" files ")[2].partition(":")[0]: other.count for other in files.others(tree)}


def test_everything_is_listed_or_counted(folder: Path) -> None:
    tree = open_tree(str(folder))
    items = files.find(tree)
    assert {item.name: item.meta["format"] for item in items} == {
        "m": "MUSE XML", "night": "EDF", "p": "Philips XML", "s": "Schiller XML", "w": "WFDB",
        "ward/2024/one": "SCP-ECG", "ward/2024/two": "HL7 aECG", "ward/IM000001": "DICOM",
    }  # fmt: skip
    assert passed_over(tree) == {
        files.UNSUPPORTED: 1, files.NO_WAVEFORM: 1, files.OTHER_XML: 1, files.UNKNOWN: 1,
    }  # fmt: skip
    listed_or_counted = len(items) + sum(passed_over(tree).values())
    assert listed_or_counted == len(tree.names()) - 2  # w.dat and w.atr belong to w.hea
    assert pickle.loads(pickle.dumps(items)) == items
    for item in items:
        (record,) = files.read(tree, item)
        assert (record.record_id, record.source) == (f"files/{item.name}", "files")
        if item.meta["format"] != "WFDB":
            assert record.patient_id == f"files/{made.PERSON['id']}" and record.patient_is_private
        np.testing.assert_allclose(record.signal_mv[[0, 6]], COUNTS.T[[0, 6]] / 1000.0, atol=1e-9)


def test_archive_gives_the_same(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mix.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            packed.write(path, path.relative_to(folder).as_posix())
    plain, archive = open_tree(str(folder)), open_tree(str(tmp_path / "mix.zip"))
    assert files.find(plain) == files.find(archive)
    assert files.others(plain) == files.others(archive)
    for item in files.find(archive):
        (first,), (second,) = files.read(plain, item), files.read(archive, item)
        np.testing.assert_array_equal(first.signal_mv, second.signal_mv)


def test_a_name_that_comes_twice_is_refused_not_lost(folder: Path) -> None:
    (folder / "w.xml").write_bytes(made.schiller_xml(COUNTS))  # beside w.hea
    (folder / "p.scp").write_bytes(made.scp_record(made.scp_bodies(COUNTS)))
    (folder / "x#1.scp").write_bytes(made.scp_record(made.scp_bodies(COUNTS)))
    tree = open_tree(str(folder))
    refused = [item for item in files.find(tree) if "refused" in item.meta]
    assert [item.path for item in refused] == ["p.xml", "w.xml", "x#1.scp"]
    for item in refused:
        with pytest.raises(RecordError) as caught:
            list(files.read(tree, item))
        assert caught.value.reason is Reason.METADATA


def test_a_right_suffix_with_other_content_is_refused_by_name(folder: Path) -> None:
    for name in ("bad.scp", "bad.edf", "bad2.dcm", "bad3.hea"):
        (folder / name).write_bytes(b"nothing of the kind")
    tree = open_tree(str(folder))
    items = {item.path: item for item in files.find(tree)}
    for name in ("bad.scp", "bad.edf", "bad2.dcm", "bad3.hea"):
        refused = "refused" in items[name].meta  # bad.scp shares its stem with bad.edf
        with pytest.raises(RecordError) as caught:
            list(files.read(tree, items[name]))
        assert caught.value.reason is (Reason.METADATA if refused else Reason.HEADER)


def test_nothing_there_is_reported_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RecordError, match=r"no recording of a known format.*\.txt 1"):
        files.find(open_tree(str(tmp_path)))


def test_listing_passes_on_what_is_not_listed(folder: Path) -> None:
    (folder / "link.dcm").symlink_to(folder / "ward" / "IM000001")
    items, unlisted = list_items(IngestSettings({"files": str(folder)}, "unused"))["files", str(folder)]
    assert len(items) == 8
    assert {other.reason for other in unlisted} == {Reason.FORMAT, Reason.UNSAFE_PATH}
    assert sum(other.count for other in unlisted) == 5


def test_all_real_samples(data_dir: Path) -> None:
    tree = open_tree(str(data_dir / "misc"))
    kept: dict[str, int] = {}
    refused: dict[str, Reason] = {}
    for item in files.find(tree):
        try:
            list(files.read(tree, item))
            kept[item.meta["format"]] = kept.get(item.meta["format"], 0) + 1
        except RecordError as error:
            refused[item.name] = error.reason
    assert kept["DICOM"] == 1 and kept["HL7 aECG"] == 2 and kept["Philips XML"] == 3 and kept["Schiller XML"] == 1
    assert kept["WFDB"] >= 14
    assert refused["bad_headers/S0001"] is Reason.MISSING_FILE
    assert refused["qtdb/sel100"] is Reason.LEADS_MISSING
