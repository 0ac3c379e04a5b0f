"""XML from strangers: parsed without document types, entities or anything outside the file, and bounded in size.

Contract: `parse_xml(data, root)` gives the root element, whose tag without its namespace must be `root`. Raises
`RecordError`: ABSURD_SIZE for more bytes, tags or attributes than an ECG has, HEADER for what is no such XML. Tags are
compared by local name with `named`, `first` and `text_at`, because some devices leave the namespace out.
Parser: defusedxml with forbid_dtd, which rules out entity expansion and external references (OWASP XXE).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from beatray.ingest.formats.checks import passed
from beatray.record import Reason, RecordError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SUFFIXES = (".xml",)
MAX_XML_BYTES = 8 * 1024 * 1024
MAX_TAGS = 100_000
"""Bounds `<` and `=`, so the elements and attributes together, before anything is parsed."""

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ROOT = re.compile(r"<(?:[A-Za-z_][\w.\-]*:)?([A-Za-z_][\w.\-]*)")


def root_of(head: bytes) -> str:
    """The local name of the root element as the first bytes of a file show it; empty where they show none."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = _COMMENT.sub("", head[: len(head) & ~1].decode(encoding, errors="replace").lstrip("\ufeff \t\r\n"))
    match = _ROOT.search(text) if text.startswith("<") else None
    return match[1] if match else ""


def parse_xml(data: bytes, root: str) -> Element:
    """The root element of a file; see the module's contract."""
    try:
        from defusedxml.ElementTree import fromstring
    except ImportError as error:
        raise RecordError(Reason.FORMAT, "XML files need defusedxml: pip install 'beatray[formats]'") from error
    for what, count, limit in (
        ("bytes", len(data), MAX_XML_BYTES),
        ("tags", data.count(b"<"), MAX_TAGS),
        ("attributes", data.count(b"="), MAX_TAGS),
    ):
        if count > limit:
            raise RecordError(Reason.ABSURD_SIZE, f"XML of {count} {what}, limit {limit}")
    try:
        element: Element = fromstring(data, forbid_dtd=True)
    except Exception as error:  # of the parser, of an encoding or of a forbidden construct: all mean the same
        raise RecordError(Reason.HEADER, f"not well-formed XML without a DTD ({_what(error)})") from error
    if local(element.tag) != root:
        raise RecordError(Reason.HEADER, f"the root element is another one than {root}")
    passed("XML", f"{len(data)} bytes, root {root}, no document type")
    return element


def local(tag: object) -> str:
    """A tag without its namespace; comments and processing instructions have none."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def named(parent: Element, name: str) -> Iterator[Element]:
    """The children of `parent` called `name`."""
    return (child for child in parent if local(child.tag) == name)


def first(parent: Element | None, path: str) -> Element | None:
    """The first element at a path of names, `a/b/c`, or None. At each step the first child of that name is taken."""
    for name in path.split("/"):
        if parent is None:
            return None
        parent = next(named(parent, name), None)
    return parent


def needed(parent: Element, path: str) -> Element:
    """As `first`. Raises RecordError(HEADER) where there is none."""
    found = first(parent, path)
    if found is None:
        raise RecordError(Reason.HEADER, f"there is no element {path}")
    return found


def text_at(parent: Element | None, path: str) -> str:
    """The text of the element at a path of names without blanks around it; empty where there is none."""
    found = first(parent, path)
    return (found.text or "").strip() if found is not None else ""


def value_at(parent: Element | None, path: str, attribute: str) -> str:
    """An attribute of the element at a path of names without blanks around it; empty where there is none."""
    found = first(parent, path)
    return found.get(attribute, "").strip() if found is not None else ""


def every(parent: Element, name: str) -> Iterator[Element]:
    """All elements called `name` below `parent`, at any depth."""
    return (element for element in parent.iter() if local(element.tag) == name)


def base64_bytes(text: str | None, what: str) -> bytes:
    """The bytes of a base64 text, blanks and line ends apart. Raises RecordError(FORMAT)."""
    try:
        return base64.b64decode("".join((text or "").split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(Reason.FORMAT, f"{what}: not base64") from error


def _what(error: Exception) -> str:
    """What was wrong and where, without quoting the file."""
    position = getattr(error, "position", None)
    return type(error).__name__ + (f", line {position[0]}" if position else "")
