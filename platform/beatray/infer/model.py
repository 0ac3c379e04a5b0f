"""`beatray.load_model(PATH)`: recordings in; probabilities and decisions, numbers, or waves out.

A recording goes the way it goes through `beatray ingest` (see transform.py), so that what a model says of an array is
what it says of the same recording in a corpus. Probabilities and numbers of a recording longer than 10 s are means over
its windows; its waves are those of all windows, in time order. Contract: row i depends on recording i alone; ValueError
says which recording cannot be read and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from beatray.evaluate.waves import runs_of
from beatray.infer.transform import recordings_of, windows_of
from beatray.models.calibration import Calibration
from beatray.models.labelled_heads import LabelledModel
from beatray.models.model_folder import read_model
from beatray.models.segmentation import CLASSES
from beatray.preprocess import prepare
from beatray.record import LEADS, RATE_HZ, WINDOW_SAMPLES, Window

WINDOWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class FoundWave:
    """One wave: its kind (P, QRS, T), both ends in seconds from the start, its lead where leads have their own."""

    kind: str
    onset_s: float
    offset_s: float
    lead: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of B recordings; what it says nothing of is None.

    `names` are the C outputs. Yes-or-no targets: `probabilities` and `decisions` (B, C), by the thresholds that were
    chosen on validation. One of several classes: `probabilities` (B, C), `decisions` (B, C) with one True a row.
    `numbers` (B, C) in the units of the labels; `waves`, a list for each recording.
    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float64] | None = None
    decisions: NDArray[np.bool_] | None = None
    numbers: NDArray[np.float64] | None = None
    waves: tuple[tuple[FoundWave, ...], ...] | None = None


class EcgModel:
    """A fine-tuned model. `description` is model.json: names, thresholds, calibration, recipe, scores."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        loaded = read_model(path)
        self.device = torch.device(device)
        self.network: LabelledModel = loaded.network.to(self.device)
        self.description: dict[str, Any] = loaded.description
        self.kind: str = loaded.description["kind"]
        self.names: tuple[str, ...] = tuple(loaded.description["names"])

    def predict(self, x_mv: ArrayLike, rate_hz: float = float(RATE_HZ)) -> Prediction:
        """Of recordings in millivolts: (12, T) for one, (B, 12, T), or a list of (12, T) of any lengths."""
        windows, counts = [], []
        for number, recording in enumerate(recordings_of(x_mv)):
            found = windows_of(recording, float(rate_hz), f"recording {number}")
            counts.append(len(found))
            windows += found
        logits = self.logits_of(windows)
        if self.kind == "waves":
            return Prediction(self.names, waves=self._waves(logits, windows, counts))
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) if counts else np.empty(0, np.int64)

        def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
            if not counts:
                return values
            summed: NDArray[np.float64] = np.add.reduceat(values, starts, axis=0) / np.array(counts)[:, None]
            return summed

        values = logits.double().numpy()
        if self.kind == "numbers":
            mean, sd = (np.array(self.description[name]) for name in ("mean", "sd"))
            return Prediction(self.names, numbers=means(values * sd + mean))
        chance = means(Calibration.from_dict(self.description["calibration"]).probabilities(values))
        if self.kind == "classes":
            decided = chance.argmax(1)[:, None] == np.arange(chance.shape[1])
        else:
            decided = chance >= np.array(self.description["thresholds"])
        return Prediction(self.names, chance, decided)

    def logits_of(self, windows: list[Window]) -> Tensor:
        """What the network gives of corpus windows: (n, C) of recordings, (n, 4 M, 5000) of samples; float32."""
        outputs = int(self.description["head"]["outputs"])
        shape = (0, outputs, WINDOW_SAMPLES) if self.network.of_samples else (0, outputs)
        parts = [torch.empty(shape)]
        for first in range(0, len(windows), WINDOWS_AT_ONCE):
            some = windows[first : first + WINDOWS_AT_ONCE]
            signal = torch.from_numpy(np.stack([window.signal_uv for window in some])).to(self.device)
            valid = torch.tensor([window.n_samples for window in some], device=self.device)
            with torch.inference_mode():
                parts.append(self.network(prepare(signal, RATE_HZ, valid), valid).float().cpu())
        return torch.cat(parts)

    def _waves(self, logits: Tensor, windows: list[Window], counts: list[int]) -> tuple[tuple[FoundWave, ...], ...]:
        """Runs of one class that are long enough (evaluate/waves.py), window after window."""
        masks = logits.unflatten(1, (-1, len(CLASSES))).argmax(2).to(torch.int8).numpy()
        found, place = [], 0
        for count in counts:
            waves: list[FoundWave] = []
            for number in range(count):
                own = masks[place + number][:, : windows[place + number].n_samples]
                begin = number * WINDOW_SAMPLES
                for row, mask in enumerate(own):
                    lead = LEADS[row] if len(own) > 1 else None
                    for value, kind in enumerate(self.names, 1):
                        waves += [
                            FoundWave(kind, float(begin + on) / RATE_HZ, float(begin + off) / RATE_HZ, lead)
                            for on, off in runs_of(mask, value).tolist()
                        ]
            place += count
            found.append(tuple(sorted(waves, key=lambda wave: (wave.onset_s, wave.lead or ""))))
        return tuple(found)
