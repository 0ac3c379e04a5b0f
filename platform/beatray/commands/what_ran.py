"""The part "What was run" of a sweep's report: the command, the corpus, its folds, the version and the dates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from beatray.storage.store import Store
from beatray.sweep.starts import now, read_starts, version_here

NOT_KEPT = "not written down: the sweep was started by an older version"


def what_ran(
    folder: Store,
    settings: Mapping[str, Any],
    manifest_hash: str | None,
    recordings: int | None,
    pretrained_on: int = 0,
) -> dict[str, object]:
    """Facts of the sweep in `folder`, by the settings of one of its trials; `recordings` None if the corpus is gone."""
    corpus, starts = settings["corpus"], read_starts(folder)
    path = corpus["path"]
    name = f"{PurePosixPath(path.partition('?')[0].rstrip('/')).name} ({path})"
    counts = [] if recordings is None else [f"{recordings:,} recordings"]
    counts += [f"pretrained on {pretrained_on:,}"] if pretrained_on else []
    versions = dict.fromkeys(start.version for start in starts)
    return {
        "command": starts[-1].command if starts else NOT_KEPT,
        "corpus": ", ".join([name, f"manifest {(manifest_hash or 'unknown')[:16]}", *counts]),
        "folds": f"tested on {_folds(corpus.get('test_folds'))}, validated on {_folds(corpus.get('validation_folds'))}",
        "started": f"{starts[0].began}{f', {len(starts)} starts' if len(starts) > 1 else ''}" if starts else NOT_KEPT,
        "beatray": f"{', '.join(versions)} (report: {version_here()})" if starts else f"report: {version_here()}",
        "report of": now(),
    }


def _folds(folds: list[int] | None) -> str:
    return ", ".join(map(str, folds)) if folds else "none"
