"""A file of a tree that is too large to be read whole, opened for reading at any offset.

Several public sets put tens of thousands of recordings into one file of some gigabytes. Such a file is opened where it
lies (a member of a folder, or an unpacked member of a zip or tar) and read in pieces; libraries that want a Python file
object get one that can only be read, and only within its member.

Contract: `RandomFile` is a raw binary file object. Reads are by position on a descriptor of its own (or on bytes in
memory), so one in a process never moves another; nothing before or after the member can be reached. `identity` is the
same as long as the bytes are the same as far as the file system shows. `read_exactly` raises RecordError(TRUNCATED).
An I/O error of the disk itself is not caught; it stays in `fault`, for libraries that turn it into one of their own.
"""

from __future__ import annotations

import io
import os
from typing import Any

from beatray.record import Reason, RecordError


class RandomFile(io.RawIOBase):
    """`size` bytes from `start` of an open descriptor, which it owns; or bytes, where a member had to be unpacked."""

    def __init__(self, name: str, source: int | bytes, start: int, size: int, identity: tuple[Any, ...]) -> None:
        super().__init__()
        self.member = name
        self.size = size
        self.identity = identity
        self.fault: OSError | None = None
        self._source = source
        self._start = start
        self._position = 0

    def read_at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer where the file ends."""
        size = max(0, min(size, self.size - position))
        if isinstance(self._source, bytes):
            return self._source[position : position + size]
        parts: list[bytes] = []
        while size > 0:
            try:
                part = os.pread(self._source, size, self._start + position)  # may stop early, at 2 GiB for one
            except OSError as error:
                self.fault = error
                raise
            if not part:
                break
            parts.append(part)
            position += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_exactly(self, position: int, size: int) -> bytes:
        """`size` bytes from `position`. Raises RecordError(TRUNCATED)."""
        if position < 0 or size < 0 or position + size > self.size:
            raise RecordError(
                Reason.TRUNCATED, f"{self.member} has {self.size} bytes, {size} are needed from byte {position}"
            )
        data = self.read_at(position, size)
        if len(data) != size:
            raise RecordError(Reason.TRUNCATED, f"{self.member} ends at byte {position + len(data)} of {self.size}")
        return data

    def part(self, name: str, start: int, size: int, identity: tuple[Any, ...]) -> RandomFile:
        """A stretch of this file as a file of its own, which outlives this one."""
        if isinstance(self._source, bytes):
            return RandomFile(name, self._source[start : start + size], 0, size, identity)
        return RandomFile(name, os.dup(self._source), self._start + start, size, identity)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} lies before the file's start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self.read_at(self._position, self.size)
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed and isinstance(self._source, int):
            os.close(self._source)
        super().close()
