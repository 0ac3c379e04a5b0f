"""A zip behind http:// or https://, read in parts where it lies (RFC 9110, section 14: range requests).

A web server has no listing that can be relied on, and a data set of small files would be tens of thousands of requests
to a server that others use too: only a .zip is read, and only where the server gives parts of it. Contract: `size_of`
raises OSError or ValueError whose text names in one line the cause and the remedy; a read that fails on the way
is tried again, then an OSError, which is no property of a recording.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from functools import lru_cache
from typing import Any

from beatray.storage.store import Store

ANSWER_S = 30.0
PAUSES_S = (0.5, 2.0, 8.0)
"""Waits before a part is asked for again."""
ZIP_BEGINS = b"PK"
DOWNLOAD = "download it and give the folder or .zip here"


def is_web(location: str) -> bool:
    """True for http:// and https://."""
    return location.lower().startswith(("http://", "https://"))


def size_of(location: str) -> int:
    """Bytes of the zip; asked once in a process. Raises OSError or ValueError: not there, no zip, not read in parts."""
    return _size_of(location, os.getpid())


@lru_cache(maxsize=16)
def _size_of(location: str, process: int) -> int:
    Store(location)  # refuses keys in the address
    if not location.partition("?")[0].lower().endswith(".zip"):
        raise ValueError(
            f"{location}: over http only a .zip is read where it lies, no folder and no single file: {DOWNLOAD} "
            "(wget -r -N -c -np URL takes a folder)"
        )
    try:
        with _asked(location, 0, 3) as answer:
            begins, status, length = answer.read(4), answer.status, answer.headers.get("Content-Range", "")
            kind, url = answer.headers.get_content_type(), answer.geturl()
    except urllib.error.HTTPError as error:
        raise _refused(location, error.code, str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        raise OSError(
            f"{location}: the server does not answer ({why}): is the address right, the network up?"
        ) from error
    if not begins.startswith(ZIP_BEGINS):
        led = f", to which it led: {url}," if url != location else ""
        page = "a web page, perhaps for a login" if kind == "text/html" else f"no zip but {kind}"
        raise ValueError(f"{location}: the server sends {page}{led} instead of the archive: {DOWNLOAD}")
    total = re.fullmatch(r"bytes 0-3/(\d+)", length)
    if status != http.client.PARTIAL_CONTENT or total is None:
        raise ValueError(f"{location}: the server gives only whole files, not parts of them: {DOWNLOAD}")
    return int(total[1])


def _refused(location: str, code: int, reason: str) -> OSError:
    if code in (http.client.NOT_FOUND, http.client.GONE):
        return FileNotFoundError(f"{location}: no such archive on the server ({code})")
    if code in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return PermissionError(
            f"{location}: access denied ({code}): it may ask for a login or a signed agreement, which is not done "
            f"here: {DOWNLOAD}"
        )
    return OSError(f"{location}: the server refuses it ({code} {reason}): try again later, or {DOWNLOAD}")


def _asked(location: str, first: int, last: int) -> http.client.HTTPResponse:
    request = urllib.request.Request(location, headers={"Range": f"bytes={first}-{last}", "User-Agent": "beatray"})
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=ANSWER_S)
    return answer


class WebFile(io.RawIOBase):
    """The bytes of the zip, seekable; wrap it in a buffer, because every read is a request."""

    def __init__(self, location: str) -> None:
        self._location, self._size, self._at = location, size_of(location), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._size)
        if end <= self._at:
            return 0
        data = self._part(self._at, end)
        view[: len(data)] = data
        self._at = end
        return len(data)

    def _part(self, start: int, end: int) -> bytes:
        why = ""
        for pause in (*PAUSES_S, None):
            try:
                with _asked(self._location, start, end - 1) as answer:
                    data = answer.read()
                    if answer.status == http.client.PARTIAL_CONTENT and len(data) == end - start:
                        return data
                    why = f"{len(data)} of {end - start} bytes came, status {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
            if pause is not None:
                time.sleep(pause)
        raise OSError(f"{self._location}: bytes {start} to {end} do not come ({why}); the same command tries again")
