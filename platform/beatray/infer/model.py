"""`beatray.load_model(PATH)`: recordings in; probabilities and decisions, numbers, or waves out.

A recording is prepared as by `beatray ingest` (see transform.py), so that a model predicts the same for an
array as for the same recording in a corpus. Probabilities and numbers of a recording longer than 10 s are means over
its windows; its waves are those of all windows, in time order.

Several paths make an ensemble: its probabilities, numbers and thresholds are the means of those of its members, and
its spread is their standard deviation (n - 1). Contract: row i depends on recording i alone; ValueError names the
recording cannot be read and why, CheckpointError which model does not fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from beatray.corpus.id_key import RECIPE_KEY
from beatray.errors import CheckpointError
from beatray.infer.found_waves import Waves, found_waves
from beatray.infer.transform import missing_leads, recordings_of, warn_of_doubts, window_number, windows_of
from beatray.models.calibration import Calibration, window_means
from beatray.models.model_folder import LoadedModel, read_model
from beatray.models.segmentation import CLASSES
from beatray.preprocess import prepare
from beatray.record import LEADS, RATE_HZ, WAVE_KINDS, WINDOW_SAMPLES, Window

WINDOWS_AT_ONCE = 32

StrPath = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class FoundWave:
    """One wave: its kind (P, QRS, T), ends and peak in seconds from the start, its lead where leads have their own."""

    kind: str
    onset_s: float
    peak_s: float
    offset_s: float
    lead: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outputs of a model for B recordings; what it does not predict is None.

    `names` are the C outputs. Yes-or-no targets: `probabilities` and `decisions` (B, C), by the thresholds that were
    chosen on validation. One of several classes: `probabilities` (B, C), `decisions` (B, C) with one True a row.
    `numbers` (B, C) in the units of the labels; `spread` (B, C) over the members of an ensemble, of probabilities or
    numbers; `waves`, a list for each recording.
    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float64] | None = None
    decisions: NDArray[np.bool_] | None = None
    numbers: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None
    waves: tuple[tuple[FoundWave, ...], ...] | None = None


class EcgModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A fine-tuned model, or an ensemble of several, as the last step of a scikit-learn pipeline, too.

    path: a run folder of `beatray finetune`, or its model/ folder, local or a URI; or several. rate_hz: of the
    recordings. device: cpu or cuda. `description` is model.json of the first: thresholds, calibration, recipe, scores.
    """

    def __init__(self, path: StrPath | Sequence[StrPath], rate_hz: float = float(RATE_HZ), device: str = "cpu") -> None:
        self.path = path
        self.rate_hz = rate_hz
        self.device = device

    def fit(self, x_mv: object = None, y: object = None) -> EcgModel:
        """Load the networks; nothing is learnt from the arguments."""
        self.load()
        return self

    @property
    def description(self) -> dict[str, Any]:
        """model.json of the first member."""
        return self.load()[0].description

    @property
    def kind(self) -> str:
        """multilabel, classes, numbers or waves."""
        return str(self.description["kind"])

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs."""
        return tuple(self.description["names"])

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Of yes-or-no targets, (C,)."""
        found: NDArray[np.float64] = np.mean([each.description["thresholds"] for each in self.load()], axis=0)
        return found

    def predict(self, x_mv: ArrayLike, rate_hz: float | None = None) -> Prediction:
        """Of recordings in millivolts: (12, T) for one, (B, 12, T), or a list of (12, T) of any lengths.

        rate_hz overrides that of the constructor. Warns of a rate that can hardly be right and of missing leads.
        """
        rate = float(self.rate_hz if rate_hz is None else rate_hz)
        windows: list[Window] = []
        firsts: list[Window] = []
        counts: list[int] = []
        for number, recording in enumerate(recordings_of(x_mv)):
            found = windows_of(recording, rate, f"recording {number}")
            counts.append(len(found))
            firsts.append(found[0])
            windows += found
        warn_of_doubts(firsts, rate, Counter(lead for window in firsts for lead in missing_leads(window)), len(firsts))
        signal_uv = np.stack([window.signal_uv for window in windows]) if windows else np.empty((0, 12, WINDOW_SAMPLES))
        n_samples = np.array([window.n_samples for window in windows], np.int64)
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if self.kind == "waves":
            each = self.waves(signal_uv, n_samples)
            numbers = np.array([window_number(window) for window in windows], np.int64)
            several = [seconds_of(each[a:b], numbers[a:b]) for a, b in pairwise(starts.tolist())]
            return Prediction(self.names, waves=tuple(several))
        return self.prediction_of(window_means(self.values(signal_uv, n_samples), starts[:-1]))

    def predict_proba(self, x_mv: ArrayLike, rate_hz: float | None = None) -> NDArray[np.float64]:
        """The probabilities (B, C) of `predict`. ValueError for a model of numbers or waves."""
        if self.kind not in ("multilabel", "classes"):
            raise ValueError(f"a model of {self.kind} has no probabilities of classes; predict gives what it has")
        probabilities = self.predict(x_mv, rate_hz).probabilities
        assert probabilities is not None
        return probabilities

    def prediction_of(self, values_knc: NDArray[np.float64]) -> Prediction:
        """The outputs of K members for B recordings, as one answer."""
        mean = values_knc.mean(0)
        spread = values_knc.std(0, ddof=1) if len(values_knc) > 1 else None
        if self.kind == "numbers":
            return Prediction(self.names, numbers=mean, spread=spread)
        if self.kind == "classes":
            decided = mean.argmax(1)[:, None] == np.arange(mean.shape[1])
        else:
            decided = mean >= self.thresholds
        return Prediction(self.names, mean, decided, spread=spread)

    def values(self, signal_uv: NDArray[Any], n_samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of windows (n, 12, 5000) in microvolts: calibrated probabilities, or numbers, of each member, (K, n, C)."""
        found = []
        for member, logits in zip(self.load(), self._logits(signal_uv, n_samples), strict=True):
            about, values = member.description, logits.astype(np.float64)
            if about["kind"] == "numbers":
                found.append(values * np.array(about["sd"]) + np.array(about["mean"]))
            else:
                found.append(Calibration.from_dict(about["calibration"]).probabilities(values))
        return np.stack(found)

    def waves(self, signal_uv: NDArray[Any], n_samples: NDArray[np.int64]) -> list[Waves]:
        """The waves of each window, from the mean chances of the members."""
        found: list[Waves] = []
        for first in range(0, len(signal_uv), WINDOWS_AT_ONCE):
            part = slice(first, first + WINDOWS_AT_ONCE)
            chances: Any = 0.0
            for logits in self._logits(signal_uv[part], n_samples[part]):
                by_class = torch.from_numpy(logits).unflatten(1, (-1, len(CLASSES)))
                chances = chances + by_class.softmax(2)
            masks = chances.argmax(2).to(torch.int8).numpy()
            for mask, signal, valid in zip(masks, signal_uv[part], n_samples[part].tolist(), strict=True):
                found.append(found_waves(mask[:, :valid], signal[:, :valid]))
        return found

    def load(self) -> list[LoadedModel]:
        """The members, read once for this path and device. CheckpointError for what cannot be an ensemble."""
        one = isinstance(self.path, (str, PathLike))
        paths = [str(self.path)] if one else [str(path) for path in self.path]  # type: ignore[union-attr]
        key = (tuple(paths), str(self.device))
        if getattr(self, "_loaded", (None, []))[0] != key:
            if not paths:
                raise CheckpointError("no model is named: give the path of at least one")
            members = [read_model(path) for path in paths]
            for path, member in zip(paths, members, strict=True):
                refuse_other_kind(paths[0], members[0].description, path, member.description)
                member.network.to(torch.device(self.device))
            self._loaded: tuple[Any, list[LoadedModel]] = (key, members)
        return self._loaded[1]

    def _logits(self, signal_uv: NDArray[Any], n_samples: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """What each network gives of the windows: (n, C) of recordings, (n, 4 M, 5000) of samples."""
        members = self.load()
        found: list[list[NDArray[np.float32]]] = [[] for _ in members]
        for first in range(0, max(1, len(signal_uv)), WINDOWS_AT_ONCE):
            part = slice(first, first + WINDOWS_AT_ONCE)
            signal = torch.from_numpy(np.array(signal_uv[part], np.int16)).to(self.device)
            valid = torch.from_numpy(np.asarray(n_samples[part], np.int64)).to(self.device)
            x_mv = prepare(signal, RATE_HZ, valid)
            for member, parts in zip(members, found, strict=True):
                if not len(signal):
                    shape = (0, int(member.description["head"]["outputs"]))
                    parts.append(np.empty((*shape, WINDOW_SAMPLES) if member.network.of_samples else shape, np.float32))
                    continue
                with torch.inference_mode():
                    parts.append(member.network(x_mv, valid).float().cpu().numpy())
        return [np.concatenate(parts) for parts in found]

    def __getstate__(self) -> dict[str, Any]:
        """Only the settings travel to other processes and into files; the weights are read again from `path`."""
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}

    def __sklearn_is_fitted__(self) -> bool:
        return True


def refuse_other_kind(path: str, first: dict[str, Any], other: str, description: dict[str, Any]) -> None:
    """Raise CheckpointError where two models do not answer the same question."""
    for what, read in (
        ("outputs", lambda d: list(d["names"])),
        ("kind", lambda d: d["kind"]),
        ("leads", lambda d: d.get("leads")),
        ("recipe", lambda d: {key: value for key, value in d["recipe"].items() if key != RECIPE_KEY}),
    ):
        if read(first) != read(description):
            raise CheckpointError(
                f"{path} and {other} are no ensemble: they differ in {what} ({read(first)} and {read(description)})"
            )


def seconds_of(windows: Sequence[Waves], numbers: NDArray[np.int64]) -> tuple[FoundWave, ...]:
    """The waves of a recording's windows, in time order; the k-th window begins at 10 s times `numbers[k]`."""
    found = []
    for waves, number in zip(windows, numbers.tolist(), strict=True):
        begin = number * WINDOW_SAMPLES
        found += [
            FoundWave(
                WAVE_KINDS[wave["kind"]],
                float(begin + wave["onset"]) / RATE_HZ,
                float(begin + wave["peak"]) / RATE_HZ,
                float(begin + wave["offset"]) / RATE_HZ,
                LEADS[wave["lead"]] if wave["lead"] >= 0 else None,
            )
            for wave in waves
        ]
    return tuple(found)
