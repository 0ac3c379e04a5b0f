"""The file formats that can be read, and how a file is recognised: by what it begins with, then by its suffix.

Contract: `FORMATS[name].read(tree, path)` yields the Records of one file, with `record_id` the path without its suffix
and `source` empty (the source fills both in), or raises `RecordError`; of several recordings one that cannot be used
costs no other (`ingest.each_record`). `format_of(tree, path)` gives the Format or
None; a suffix that several formats share (.xml) recognises nothing by itself. The checks of a reader can be followed
through `formats.checks`. Suffixes are compared in lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from beatray.ingest.formats import aecg, dicom, edf, muse, philips, safe_xml, schiller, scp, wfdb
from beatray.ingest.tree import Tree
from beatray.record import Record

HEAD_BYTES = 8192
"""First bytes of a file that `looks_like` is shown."""


@dataclass(frozen=True, slots=True)
class Format:
    """One file format: its name, how it is recognised and how it is read."""

    name: str
    suffixes: tuple[str, ...]
    looks_like: Callable[[bytes], bool]
    read: Callable[[Tree, str], Iterator[Record]]


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("DICOM", dicom.SUFFIXES, dicom.looks_like, dicom.read),
        Format("SCP-ECG", scp.SUFFIXES, scp.looks_like, scp.read),
        Format("HL7 aECG", safe_xml.SUFFIXES, aecg.looks_like, aecg.read),
        Format("Philips XML", safe_xml.SUFFIXES, philips.looks_like, philips.read),
        Format("Schiller XML", safe_xml.SUFFIXES, schiller.looks_like, schiller.read),
        Format("MUSE XML", safe_xml.SUFFIXES, muse.looks_like, muse.read),
        Format("EDF", edf.SUFFIXES, edf.looks_like, edf.read),
        Format("WFDB", wfdb.SUFFIXES, wfdb.looks_like, wfdb.read),
    )
}

UNSUPPORTED = (
    (b"\xffBIOSEMI", "BDF"),
    (b"GDF ", "GDF"),
    (b"ISHNE1.0", "ISHNE Holter"),
    (b"ANN  1.0", "ISHNE Holter annotations"),
    (b"\x40\x20MFR ", "MFER"),
    (b"MSH|", "HL7 version 2"),
    (b"MATLAB 5.0 MAT-file", "MATLAB"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
)
"""First bytes of formats that hold ECGs and that nothing here reads."""


def format_of(tree: Tree, path: str) -> Format | None:
    """The format of a file, or None. Raises RecordError when the file cannot be read."""
    return recognise(tree.head(path, HEAD_BYTES), path)[0]


def recognise(head: bytes, path: str) -> tuple[Format | None, str]:
    """The format of a file with these first bytes, and by what it was recognised ("content", "suffix" or "")."""
    for entry in FORMATS.values():
        if entry.looks_like(head):
            return entry, "content"
    if dicom.is_dicom(head) or unsupported(head):
        return None, ""
    fits = [entry for entry in FORMATS.values() if path.lower().endswith(entry.suffixes)]
    return (fits[0], "suffix") if len(fits) == 1 else (None, "")


def unsupported(head: bytes) -> str:
    """The name of a format that holds ECGs but is not read; empty for any other file."""
    return next((name for magic, name in UNSUPPORTED if head.startswith(magic)), "")
