"""A data set on an object store or another remote location, read in place file by file.

Any URI is read that pyarrow or fsspec can open (s3://, gs://, hdfs://, ...), except those of the web (`web_file`); keys
come from the environment, as for a corpus. Contract: as `ingest.tree`; a member that is to be read in pieces is read
whole first, and refused beyond `MAX_FILE_BYTES`. Listing takes one request for a thousand files, reading one for each
file, so that a zip is the faster way for many small files.
"""

from __future__ import annotations

from collections import Counter

from beatray.ingest.member_checks import MAX_FILE_BYTES, Cause, check_plain_path, check_size, problem_of
from beatray.ingest.random_file import RandomFile
from beatray.record import Reason, RecordError
from beatray.storage.store import Store


class RemoteTree:
    """A folder behind a URI, listed once."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._sizes: dict[str, int] | None = None
        self._passed_over: Counter[Cause] = Counter()

    def __reduce__(self) -> tuple[type[RemoteTree], tuple[str]]:
        return (RemoteTree, (self.location,))

    @property
    def passed_over(self) -> Counter[Cause]:
        self._listed()
        return self._passed_over

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._listed()))

    def __contains__(self, name: object) -> bool:
        return name in self._listed()

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES, *, too_long: Reason = Reason.ABSURD_SIZE) -> bytes:
        check_plain_path(name)
        store = Store(self.location)
        size = store.size(name) if self._sizes is None else self._sizes.get(name)
        if size is None:
            raise RecordError(Reason.MISSING_FILE, f"{name} is not there")
        check_size(name, size, max_bytes, too_long)
        data = store.read(name)
        check_size(name, len(data), max_bytes, too_long)
        return data

    def open_random(self, name: str) -> RandomFile:
        data = self.read(name)
        return RandomFile(name, data, 0, len(data), (self.location, name, len(data)))

    def head(self, name: str, n_bytes: int) -> bytes:
        check_plain_path(name)
        if name not in self._listed():
            raise RecordError(Reason.MISSING_FILE, f"{name} is not there")
        with Store(self.location).open_input(name) as stream:
            return bytes(stream.read(n_bytes))

    def _listed(self) -> dict[str, int]:
        if self._sizes is None:
            found = Store(self.location).walk()
            causes = {name: problem_of(name) for name in found}
            self._sizes = {name: size for name, size in found.items() if causes[name] is None}
            self._passed_over = Counter(cause for cause in causes.values() if cause is not None)
        return self._sizes
