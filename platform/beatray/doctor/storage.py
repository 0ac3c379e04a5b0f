"""The paths of a run: `out=` can be written, the corpus can be read, and the disk has room.

Contract: what is written to try a path is removed again, and a folder that does not exist yet is not made: the nearest
one above it that exists is tried in its place. Works for folders and for URIs alike.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, Queue
from typing import TypeVar

from beatray.corpus.manifest import latest_number, read_manifest
from beatray.doctor.finding import Finding, fail, ok, warn
from beatray.errors import CorpusError
from beatray.settings import PretrainSettings
from beatray.storage.store import Store, StoreError
from beatray.track.secrets import without_secrets

T = TypeVar("T")

PATIENCE_S = 20.0
GB = 1e9
SCARCE_GB, TOO_LITTLE_GB = 5.0, 0.5


def check_writable(key: str, location: str) -> Finding:
    """A small object can be written, read and removed at `location`; `key` is the setting that names it."""
    shown = without_secrets(location)
    try:
        store = Store(location)
        if store.is_local:
            store = Store(str(existing_folder(store.folder)))
        _within_patience(store.check_writable)
    except (OSError, ValueError) as error:
        why = without_secrets(str(error))
        return fail(
            f"{key}={shown} cannot be written: {why}", f"give this user the right to write there, or another {key}="
        )
    return ok(f"{key}={shown} can be written")


def _within_patience(call: Callable[[], T]) -> T:
    """pyarrow retries object stores for a long time; a doctor reports sooner. TimeoutError after that."""
    answers: Queue[Future[T]] = Queue()

    def work() -> None:
        future: Future[T] = Future()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        answers.put(future)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE_S).result()
    except Empty:
        raise TimeoutError(f"no answer within {PATIENCE_S:g} s") from None


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(above for above in (folder, *folder.parents) if above.is_dir())


def check_disk(key: str, free_bytes: float) -> Finding:
    """Room for checkpoints, metrics and shards."""
    what = f"{free_bytes / GB:.1f} GB free on the disk of {key}="
    if free_bytes < TOO_LITTLE_GB * GB:
        return fail(what, "free space: checkpoints would fail")
    if free_bytes < SCARCE_GB * GB:
        return warn(what, "free space, or lower checkpoint.keep")
    return ok(what)


def check_corpus(location: str) -> list[Finding]:
    """The newest manifest is whole, its shards are there in full length; `beatray corpus verify` checks every byte."""
    shown = without_secrets(location)
    try:
        store = Store(location)
        if _within_patience(lambda: latest_number(store)) is None:
            remedy = f"make it: beatray ingest SOURCE=PATH --out {shown}"
            return [warn(f"there is no corpus at {shown} yet", remedy), check_writable("corpus", location)]
        manifest = read_manifest(store)
        wrong = [shard.name for shard in manifest.shards if store.size(f"shards/{shard.name}") != shard.bytes]
    except (StoreError, CorpusError, OSError, ValueError) as error:
        why = without_secrets(str(error))
        return [fail(f"the corpus at {shown} cannot be read: {why}", "check the path, its keys and its rights")]
    if wrong:
        what = f"{len(wrong)} of {len(manifest.shards)} shards are missing or cut ({', '.join(wrong[:3])})"
        return [fail(f"{what} in {shown}", "restore them from a copy; `beatray corpus verify` checks every byte")]
    what = f"corpus={shown}: {manifest.rows:,} rows in {len(manifest.shards)} shards, manifest {manifest.number}"
    return [ok(what)]


def check_travels(key: str, location: str, joins_cluster: bool) -> list[Finding]:
    """On a cluster a path must mean the same on every node."""
    if joins_cluster and "://" not in location and not location.startswith("/"):
        remedy = f"give an absolute path that every node sees, or a URI, for {key}="
        return [fail(f"{key}={location} is relative: nodes would not find it, a job would lose it", remedy)]
    return []


def check(settings: PretrainSettings, joins_cluster: bool) -> list[Finding]:
    """All checks of this file."""
    findings = [*check_travels("out", settings.out, joins_cluster), check_writable("out", settings.out)]
    out = Store(settings.out)
    if out.is_local:
        findings.append(check_disk("out", shutil.disk_usage(existing_folder(out.folder)).free))
    if settings.corpus.path:
        findings += check_travels("corpus", settings.corpus.path, joins_cluster)
        findings += check_corpus(settings.corpus.path)
    return findings
