"""The runs of finished units, kept on disk while an evaluation goes on: one that was killed does not do them again.

A unit's file lies beside the encoders' outputs and is named by the hash of what its runs depend on: corpus and
recordings, the truth, who trains, validates and tests, the encoder, the settings, and the versions of what computes.
Numbers come back as they were, to the bit; plain arrays and JSON, no pickle. Files are whole or absent, and go when the
evaluation is whole, also where outputs are kept: an evaluation that is asked for again is done again.

Contract: `read` gives None for a unit that was not finished, or under other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from beatray.dsp import analyse
from beatray.evaluate.metrics import SegmentCounts
from beatray.evaluate.outputs import Outputs, digest, source_of, write_whole
from beatray.evaluate.results import Decisions, Run
from beatray.evaluate.waves import WaveCounts
from beatray.evaluate.worker import WorkUnit

VERSION = 1
"""Changes when the same unit would give other runs."""

RUNS_SUFFIX = ".npz"

NO_PART_OF_RUNS = ("workers", "keep_outputs", "bootstraps", "baselines", "permutations", "tasks")
"""Settings that decide which units there are, or what becomes of their runs, but not the runs."""

ARRAYS = ("predictions",)
PLAIN = tuple(item.name for item in fields(Run) if item.name not in ("outcome", "waves", *ARRAYS))


class KeptRuns:
    """The kept runs of one evaluation, in the folder of its outputs."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        chosen = asdict(outputs.settings)
        self.settings = {key: value for key, value in chosen.items() if key not in NO_PART_OF_RUNS}
        self.parts = {name: _part(outputs, name) for name in outputs.tasks}

    def read(self, unit: WorkUnit) -> list[Run] | None:
        """The runs of the unit, if it was finished."""
        try:
            with np.load(self._path(unit), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            return None
        documents = json.loads(arrays.pop("runs").tobytes())
        return [_run(document, _of(arrays, f"{number}/")) for number, document in enumerate(documents)]

    def write(self, unit: WorkUnit, runs: Sequence[Run]) -> None:
        """Keep the runs of a finished unit."""
        arrays: dict[str, NDArray[Any]] = {}
        for number, run in enumerate(runs):
            held = {f"outcome/{name}": value for name, value in asdict(run.outcome).items()}
            held |= {f"waves/{name}": value for name, value in asdict(run.waves).items()} if run.waves else {}
            held |= {name: getattr(run, name) for name in ARRAYS if getattr(run, name) is not None}
            arrays |= {f"{number}/{name}": value for name, value in held.items()}
        text = json.dumps([{name: getattr(run, name) for name in PLAIN} for run in runs])
        arrays["runs"] = np.frombuffer(text.encode(), np.uint8)

        def save(handle: IO[bytes]) -> None:
            np.savez(handle, **arrays)  # type: ignore[arg-type]

        write_whole(self._path(unit), save)

    def _path(self, unit: WorkUnit) -> Path:
        spec, encoder = unit.spec, None
        if spec is not None:
            encoder = [self.outputs.identity(spec), spec.random().key(), source_of(spec, unit.seed)[1], spec.label]
        code = [VERSION, analyse.VERSION, *(version(name) for name in ("beatray", "torch", "scikit-learn"))]
        about = [code, self.parts[unit.task], self.settings]
        return self.outputs.folder / f"{digest(about, unit.protocol, unit.variant, encoder, unit.seed)}{RUNS_SUFFIX}"


def _part(outputs: Outputs, task: str) -> list[Any]:
    """What the runs of a task depend on beside encoder and settings."""
    data = outputs.tasks[task]
    index = [part.tolist() for part in (data.train, data.validation, data.test)]
    truth = hashlib.blake2b(data.truth.tobytes(), digest_size=16).hexdigest()
    return [outputs.corpus, outputs.recordings[task], outputs.noise, index, list(data.patients), truth]


def _run(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Run:
    outcome, waves = _of(arrays, "outcome/"), _of(arrays, "waves/")
    made: SegmentCounts | Decisions = Decisions(**outcome) if "scores" in outcome else SegmentCounts(**outcome)
    lists = {name: tuple(document[name]) for name in ("train_positives", "fold_scores")}
    return Run(
        **{**document, **lists},
        outcome=made,
        waves=WaveCounts(**waves) if waves else None,
        predictions=arrays.get("predictions"),
    )


def _of(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
