"""What the tests of damaged device files share: one small good file per format, and a watched refusal."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

import device_files as made
from beatray.ingest.canonical import to_windows
from beatray.ingest.formats.registry import FORMATS
from beatray.ingest.tree import open_tree
from beatray.record import Reason, RecordError, Window
from watched import tripwire
from wfdb_files import ecg_counts

COUNTS = ecg_counts(2600)
MEMORY = 64 << 20

GOOD: dict[str, bytes] = {
    "DICOM": made.dicom([made.dicom_group(COUNTS), made.dicom_group(COUNTS[:300], label="MEDIAN")]),
    "SCP-ECG": made.scp_record(made.scp_bodies(COUNTS)),
    "HL7 aECG": made.aecg_xml(COUNTS),
    "Philips XML": made.philips_xml(COUNTS),
    "Schiller XML": made.schiller_xml(COUNTS),
    "MUSE XML": made.muse_xml(COUNTS),
    "EDF": made.edf(COUNTS[:2500]),
}


def windows_of(folder: Path, name: str) -> list[Window]:
    """The file `x` of a folder, read as the format `name`."""
    tree = open_tree(str(folder))
    return [window for record in FORMATS[name].read(tree, "x") for window in to_windows(record)]


def warm_up(folder: Path) -> None:
    """Load late imports and codecs before anybody watches what is opened."""
    for name, data in GOOD.items():
        (folder / "x").write_bytes(data)
        assert len(windows_of(folder, name)) == 1
    for code in ("utf-16", "utf-8", "iso-8859-1", "utf-7", "shift_jis"):
        b"".decode(code)


def refused(folder: Path, name: str, data: bytes) -> Reason:
    """The reason of a refusal, with memory and opened files watched."""
    (folder / "x").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(RecordError) as caught, tripwire(folder):
            windows_of(folder, name)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert caught.value.detail and len(caught.value.detail) < 400
    for secret in ("name", "born", "id"):
        assert made.PERSON[secret] not in caught.value.detail
    return caught.value.reason
