"""WFDB as one of the formats: a header file, and the signal files that it names beside it.

Contract: `read(tree, path)` gives one Record of the header at `path`, without labels or anything about the person:
comments can hold names and are not copied. Raises `RecordError` as `wfdb_record`.
Source: WFDB Applications Guide, header(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from beatray.ingest.formats.channels import stem_of
from beatray.ingest.formats.wfdb_record import read_twelve_leads
from beatray.ingest.tree import Tree
from beatray.record import Record

SUFFIXES = (".hea",)
_BOM = b"\xef\xbb\xbf"
_RECORD_LINE = re.compile(rb"[\w.\-/]+[ \t]+\d{1,4}[ \t]+[\d.eE+\-/()]+")
_NEXT_LINE = re.compile(rb"[\w.\-~]+[ \t]+\d")


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file are a record line and a signal or segment line."""
    lines = [line.strip() for line in head.removeprefix(_BOM).splitlines()]
    content = [line for line in lines if line and not line.startswith(b"#")]
    return len(content) > 1 and bool(_RECORD_LINE.match(content[0]) and _NEXT_LINE.match(content[1]))


def files_of(head: bytes) -> set[str]:
    """Names of the signal files that a header's lines begin with, as far as `head` goes."""
    lines = [line.split() for line in head.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    return {line[0].decode("ascii", errors="replace") for line in lines[1:]}


def read(tree: Tree, path: str) -> Iterator[Record]:
    """The one recording of a header file. Raises RecordError."""
    leads = read_twelve_leads(tree, path)
    yield Record(
        record_id=stem_of(path),
        source="",
        signal_mv=leads.given_mv,
        signal_uv=leads.signal_uv,
        rate_hz=leads.rate_hz,
        lead_mask=leads.lead_mask,
        notes=leads.notes,
    )
