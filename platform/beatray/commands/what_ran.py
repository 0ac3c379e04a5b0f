"""The part "What was run" of a sweep's report: the command, the corpus, its folds, the version and the dates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from beatray.corpus.splits import FOLDS
from beatray.storage.store import Store
from beatray.sweep.starts import now, read_starts, version_here

NOT_KEPT = "not written down: the sweep was started by an older version"


def what_ran(
    folder: Store,
    settings: Mapping[str, Any],
    manifest_hash: str | None,
    recordings: int | None,
    pretrained_on: int = 0,
    rotations: Collection[int] = (),
) -> dict[str, object]:
    """Facts of the sweep in `folder`, by the settings of one of its trials; `recordings` None if the corpus is gone.

    `rotations` are the `corpus.fold_rotation` of all trials.
    """
    corpus, starts = settings["corpus"], read_starts(folder)
    path = corpus["path"]
    name = f"{PurePosixPath(path.partition('?')[0].rstrip('/')).name} ({path})"
    counts = [] if recordings is None else [f"{recordings:,} recordings"]
    counts += [f"pretrained on {pretrained_on:,}"] if pretrained_on else []
    versions = dict.fromkeys(start.version for start in starts)
    return {
        "command": starts[-1].command if starts else NOT_KEPT,
        "corpus": ", ".join([name, f"manifest {(manifest_hash or 'unknown')[:16]}", *counts]),
        "folds": _folds_text(corpus, rotations),
        "started": f"{starts[0].began}{f', {len(starts)} starts' if len(starts) > 1 else ''}" if starts else NOT_KEPT,
        "beatray": f"{', '.join(versions)} (report: {version_here()})" if starts else f"report: {version_here()}",
        "report of": now(),
    }


def _folds_text(corpus: Mapping[str, Any], rotations: Collection[int]) -> str:
    """The published folds that were tested and validated on, or in how many splits other ones were."""
    parts = (("tested", corpus.get("test_folds")), ("validated", corpus.get("validation_folds")))
    if len(set(rotations)) > 1:
        text = ", ".join(f"{done} on {_listed(folds)}" for done, folds in parts)
        return f"{text} of the folds in {len(set(rotations))} rotations (corpus.fold_rotation)"
    rotation = int(corpus.get("fold_rotation") or 0)
    published = {done: [(fold - 1 + rotation) % FOLDS + 1 for fold in folds or ()] for done, folds in parts}
    return ", ".join(f"{done} on {_listed(folds)}" for done, folds in published.items())


def _listed(folds: Sequence[int] | None) -> str:
    return ", ".join(map(str, folds)) if folds else "none"
