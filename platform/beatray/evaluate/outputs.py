"""What frozen encoders give, computed once and kept on disk: every probe, label fraction and seed reads it from there.

Of the classification that is one pooled vector per recording (float32), of the segmentation the last feature map. One
job takes some recordings under one condition through all encoders that are read there, so a signal is made noisy, its
filter run and its R-peaks found once for all of them; jobs share the processes of the evaluation, and the first reader
of an encoder waits for no other. All is kept in single precision: in half, decoders trained on maps come out otherwise.

A file is named by the hash of what it depends on: the weights (or the architecture and seed of random ones), the
corpus, the recordings, the condition, the reading. It is written under another name and then renamed, so that a
killed evaluation leaves whole files, and the next one with the same folder takes them.

Contract: `read` gives the recordings of a task's part in its order: all of them when clean, the tested ones under a
condition. Numbers do not depend on how many processes compute them, nor on which encoders are read together.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.dsp import analyse
from beatray.dsp.peaks import find_r_peaks
from beatray.evaluate.encoders import FORWARD_BATCH, EncoderSpec, build, feature_maps, pooled_features
from beatray.evaluate.robustness import CLEAN, in_chunks, leads_left, without_leads
from beatray.evaluate.settings import EvaluateSettings
from beatray.evaluate.tasks import TaskData
from beatray.full_disk import named
from beatray.models.encoder_folder import encoder_files
from beatray.models.registry import encoder_class
from beatray.record import RATE_HZ

VERSION = 2
"""Changes when the same encoder and recordings would give other numbers."""

PIECE = {"classify": 256, "segment": 64}
"""Recordings of one job: a multiple of the batches they are computed in. Maps are large: those of all encoders of a job
are in memory at once."""

KEPT_NAME = re.compile(r"[0-9a-f]{32}(\.npy|\.npz|-[0-9a-f]{32}\.part)")

Source = tuple[EncoderSpec, int]
"""An encoder and the seed of its random weights; -1 with weights of its own."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A job: recordings [first, last) of a task's part under a condition, through some encoders."""

    task: str
    condition: str
    first: int
    last: int
    sources: tuple[Source, ...]

    def name(self) -> str:
        """For progress lines."""
        return f"{self.task} encoders read {self.condition} recordings {self.first + 1} to {self.last}"


def remove_kept(folder: Path, suffix: str = "") -> None:
    """Delete what an evaluation kept in its folder (what ends with `suffix`), and the folder if nothing else lies in
    it: a user named the one above."""
    if folder.is_dir():
        for path in folder.iterdir():
            if KEPT_NAME.fullmatch(path.name) and path.name.endswith(suffix):
                path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


def source_of(spec: EncoderSpec, seed: int) -> Source:
    """The seed counts for random weights alone."""
    return spec, -1 if spec.weights is not None else seed


class Outputs:
    """The outputs in a folder. `corpus` names the corpus that the recordings are from (a manifest's hash)."""

    def __init__(self, folder: Path, corpus: str, tasks: Mapping[str, TaskData], settings: EvaluateSettings) -> None:
        self.folder, self.corpus, self.tasks, self.settings = folder, corpus, tasks, settings
        self.recordings = {name: digest(data.record_ids, data.n_samples.tolist()) for name, data in tasks.items()}
        self.noise = stamp_of(settings.robustness.noise_folder)
        self._identities: dict[str, str] = {}  # by encoder: made once here and carried to the other processes

    def missing(self, needed: Iterable[tuple[str, str, Source]]) -> list[Piece]:
        """The jobs that make what is needed (task, condition, source) and not there yet."""
        by_part: dict[tuple[str, str], dict[tuple[str, int], Source]] = {}
        for task, condition, source in needed:
            by_part.setdefault((task, condition), {})[source[0].key(), source[1]] = source
        pieces = []
        for (task, condition), sources in by_part.items():
            for first, last in self._spans(task, condition):
                absent = [s for s in sources.values() if not self._path(task, condition, s, first).exists()]
                if absent:
                    pieces.append(Piece(task, condition, first, last, tuple(absent)))
        return pieces

    def compute(self, piece: Piece) -> None:
        """Do a job; the caller's random generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            self._compute(piece)

    def _compute(self, piece: Piece) -> None:
        encoders = [build(spec, max(seed, 0)) for spec, seed in piece.sources]
        found: list[list[NDArray[np.float32]]] = [[] for _ in encoders]
        settings = self.settings
        for x_mv, n_samples in self._signals(piece):
            peaks = None
            if piece.task == "classify" and settings.pooling == "stages_beat":
                peaks = find_r_peaks(x_mv, RATE_HZ, n_samples=n_samples)
            for encoder, parts in zip(encoders, found, strict=True):
                if piece.task == "classify":
                    read = pooled_features(encoder, x_mv, n_samples, settings.pooling, settings.device, peaks)
                else:
                    read = feature_maps(encoder, x_mv, settings.device).numpy()
                parts.append(read)
        for source, parts in zip(piece.sources, found, strict=True):
            path = self._path(piece.task, piece.condition, source, piece.first)
            write_whole(path, partial(np.save, arr=np.concatenate(parts)))

    def read(self, task: str, condition: str, source: Source) -> NDArray[np.float32]:
        """The outputs (n, ...) of one encoder, float32."""
        spans = self._spans(task, condition)
        return np.concatenate([np.load(self._path(task, condition, source, first)) for first, _ in spans]).astype(
            np.float32, copy=False
        )

    def _spans(self, task: str, condition: str) -> list[tuple[int, int]]:
        data = self.tasks[task]
        n = len(data.n_samples) if condition == CLEAN else len(data.test)
        return [(first, min(first + PIECE[task], n)) for first in range(0, n, PIECE[task])]

    def _signals(self, piece: Piece) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Prepared signals and lengths, a batch at a time."""
        data, left = self.tasks[piece.task], leads_left(piece.condition)
        if piece.condition != CLEAN and left is None:
            index = data.test[piece.first : piece.last]
            yield from in_chunks(piece.condition, data, index, self.settings.robustness)
            return
        stored = np.load(data.signals, mmap_mode="r")
        part = np.arange(len(data.n_samples)) if left is None else data.test
        index = part[piece.first : piece.last]
        for first in range(0, len(index), FORWARD_BATCH):
            chosen = index[first : first + FORWARD_BATCH]
            x_mv = np.array(stored[chosen], np.float32)
            yield x_mv if left is None else without_leads(x_mv, left), data.n_samples[chosen]

    def _path(self, task: str, condition: str, source: Source, first: int) -> Path:
        spec, seed = source
        chosen = self.settings
        about: list[Any] = [VERSION, version("beatray"), version("torch"), analyse.VERSION]
        about += [self.corpus, self.recordings[task], task, condition]
        about += [first, PIECE[task], self.identity(spec), seed, chosen.pooling if task == "classify" else "maps"]
        if condition != CLEAN:
            about.append([self.noise, self.tasks[task].test.tolist()])
        return self.folder / f"{digest(about)}.npy"

    def identity(self, spec: EncoderSpec) -> str:
        """What decides an encoder's numbers, apart from a seed."""
        key = spec.key()
        if key not in self._identities:
            self._identities[key] = digest(_of_weights(spec.weights) if spec.weights else key, own_code(spec))
        return self._identities[key]


def _of_weights(weights: str) -> str:
    files = encoder_files(weights)
    return hashlib.blake2b(files["model.safetensors"] + files["encoder.json"], digest_size=16).hexdigest()


def own_code(spec: EncoderSpec) -> str:
    """The text of a user's own module that a network is from: it may change while its name does not."""
    module = inspect.getmodule(encoder_class(spec.name))
    return "" if module is None or module.__name__.startswith("beatray.") else inspect.getsource(module)


def stamp_of(folder: str | None) -> list[Any]:
    """A folder and its files with size and time of change: they are too large to be read for a name."""
    if folder is None:
        return []
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    return [folder, [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]]


def digest(*content: Any) -> str:
    """A name for content that JSON can hold, 32 letters."""
    return hashlib.blake2b(json.dumps(content, default=str).encode(), digest_size=16).hexdigest()


def write_whole(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    """A whole file or none, also when several processes write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.part")
    with named(path), part.open("wb") as handle:
        save(handle)
    part.replace(path)
