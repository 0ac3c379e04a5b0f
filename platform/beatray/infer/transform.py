"""`beatray.EcgEncoder`: recordings in, vectors out, as a scikit-learn transformer.

A recording is prepared as by `beatray ingest`: gaps of up to 20 ms are interpolated, leads with longer ones are left
out (NaN in a whole lead means: not recorded; in a recording of 15 s or more only of the windows that the gap touches),
missing limb leads are computed, another rate is resampled with the ingest's own filter, voltages become whole
microvolts and the signal is cut into windows of 10 s. So its vector is that of `beatray embed` on the same recording;
of one longer than 10 s it is the mean over the windows. Contract: row i depends on recording i alone; a recording that
the ingest would refuse raises ValueError that names it and the cause.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from beatray.infer.vectors import embed_rows
from beatray.ingest import long_record
from beatray.ingest.formats.leads import (
    CHEST_MASK,
    LONG_S,
    MAX_GAP_S,
    close_gaps,
    compute_limb_leads,
    gaps_of_twelve,
    mark_gaps,
)
from beatray.ingest.rate_check import CHECKED, rate_doubt
from beatray.models.encoder_folder import load_encoder
from beatray.record import ALL_LEADS_MASK, LEADS, RATE_HZ, Reason, Record, RecordError, Window

SMALL_MV = 0.1
"""Hardly any ECG spans less in all leads: who gives volts gives a thousandth of his millivolts."""


class EcgEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """An exported encoder as a scikit-learn transformer; nothing is fitted.

    path: a run folder, or its encoder/ folder, local or a URI. rate_hz: of the recordings, 50 to 10,000. device: cpu or
    cuda. Recordings are 12 leads (I II III aVR aVL aVF V1 to V6) in millivolts, at least 5 s.

        vectors = beatray.EcgEncoder("runs/first").transform(x_mv, rate_hz=250)
        make_pipeline(beatray.EcgEncoder("runs/first"), LogisticRegression()).fit(x_mv, labels)
    """

    def __init__(self, path: str, rate_hz: float = float(RATE_HZ), batch_size: int = 64, device: str = "cpu") -> None:
        self.path = path
        self.rate_hz = rate_hz
        self.batch_size = batch_size
        self.device = device

    def fit(self, x_mv: object = None, y: object = None) -> EcgEncoder:
        """Load the encoder; nothing is learnt from the arguments."""
        self._load()
        return self

    def transform(self, x_mv: ArrayLike, rate_hz: float | None = None) -> NDArray[np.float32]:
        """Vectors (B, D) of recordings: (12, T) for one, (B, 12, T), or a list of (12, T) of any lengths.

        rate_hz overrides that of the constructor. Raises ValueError that names the recording and what is wrong with it,
        and warns of a rate that can hardly be right and of leads that are missing from the vectors.
        """
        encoder = self._load()
        rate = float(self.rate_hz if rate_hz is None else rate_hz)
        counts: list[int] = []
        vectors = [np.empty((0, encoder.embed_dim), np.float32)]
        waiting: list[Window] = []
        firsts: list[Window] = []
        missing: Counter[int] = Counter()
        for number, recording in enumerate(recordings_of(x_mv)):
            windows = windows_of(recording, rate, f"recording {number}")
            counts.append(len(windows))
            firsts += windows[:1] if len(firsts) < CHECKED else []
            missing.update(missing_leads(windows[0]))
            waiting += windows
            while len(waiting) >= self.batch_size:
                vectors.append(self._embedded(encoder, waiting[: self.batch_size]))
                waiting = waiting[self.batch_size :]
        if waiting:
            vectors.append(self._embedded(encoder, waiting))
        warn_of_doubts(firsts, rate, missing, len(counts))
        each = np.concatenate(vectors)
        if not counts or max(counts) == 1:
            return each
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        sums = np.add.reduceat(each.astype(np.float64), starts, axis=0)
        means: NDArray[np.float32] = (sums / np.asarray(counts)[:, None]).astype(np.float32)
        return means

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """Names of the columns: ecg0, ecg1, ..."""
        return np.array([f"ecg{number}" for number in range(self._load().embed_dim)], dtype=object)

    def _load(self) -> Any:
        key = (str(self.path), str(self.device))
        if getattr(self, "_loaded", (None, None))[0] != key:
            self._loaded: tuple[Any, Any] = (key, load_encoder(str(self.path)).to(torch.device(self.device)))
        return self._loaded[1]

    def _embedded(self, encoder: Any, windows: list[Window]) -> NDArray[np.float32]:
        signals = np.stack([window.signal_uv for window in windows])
        lengths = np.array([window.n_samples for window in windows], np.int64)
        return embed_rows(encoder, signals, lengths, batch_size=self.batch_size).recording

    def __getstate__(self) -> dict[str, Any]:
        """Only the settings travel to other processes and into files; the weights are loaded again from `path`."""
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        return tags


def windows_of(signal_mv: NDArray[np.float64], rate_hz: float, name: str) -> list[Window]:
    """The corpus windows of one recording (12, T) in mV; ValueError begins with `name`."""
    try:
        signal, mask, gaps = _without_gaps(signal_mv, rate_hz)
        windows = long_record.windows_of(Record(f"array/{name}", "array", signal, rate_hz, mask, gaps=gaps))
    except RecordError as error:
        raise ValueError(f"{name}: {error.detail}{_hint(error.reason, signal_mv)}") from error
    spread = float(np.ptp(signal[[lead for lead in range(12) if mask >> lead & 1]], axis=1).max())
    if spread < SMALL_MV:
        warnings.warn(
            f"{name} spans only {spread:.3g} mV. Are these volts? Then multiply by 1000.", UserWarning, stacklevel=3
        )
    return windows


def window_number(window: Window) -> int:
    """Which 10 s of its recording: windows that cannot be used are left out, and the others keep their numbers."""
    return int(window.record_id.rpartition("#")[2]) if "#" in window.record_id else 0


def missing_leads(window: Window) -> list[int]:
    """The leads that a window does not have."""
    return [lead for lead in range(len(LEADS)) if not window.lead_mask >> lead & 1]


def warn_of_doubts(firsts: Sequence[Window], rate_hz: float, missing: Counter[int], recordings: int) -> None:
    """Warn the caller's caller of a rate that can hardly be right, and of leads that are missing.

    `firsts` are first windows of recordings; `missing` counts leads.
    """
    for doubt in (rate_doubt(firsts, rate_hz), _missing_leads(missing, recordings)):
        if doubt:
            warnings.warn(doubt, UserWarning, stacklevel=3)


def _missing_leads(missing: Counter[int], recordings: int) -> str:
    """Which leads the network read as zero, and in how many of the recordings."""
    if not missing:
        return ""
    leads = ", ".join(f"{LEADS[lead]} in {missing[lead]:,}" for lead in sorted(missing))
    return (
        f"leads are NaN, or have gaps of more than 20 ms, and were read as zero: {leads} of {recordings:,} recordings"
    )


def _without_gaps(
    signal_mv: NDArray[np.float64], rate_hz: float
) -> tuple[NDArray[np.float64], int, NDArray[np.bool_] | None]:
    """A copy without NaN, the mask of the leads that are left, and long gaps, by the ingest's own rules.

    A recording of several windows is judged window by window: gaps (12, T), or None where there are none.
    """
    invalid = ~np.isfinite(signal_mv)
    if not invalid.any():
        return signal_mv, ALL_LEADS_MASK, None
    if bool(invalid.all()):
        raise RecordError(Reason.NOT_FINITE, "it holds nothing but NaN")
    there = np.flatnonzero(~invalid.all(axis=1))  # NaN throughout is no gap, but a lead that was not recorded
    recorded, notes = signal_mv[there], list[str]()
    most = int(MAX_GAP_S * rate_hz)
    signal = np.zeros_like(signal_mv)
    if signal_mv.shape[1] >= LONG_S * rate_hz:
        marked = mark_gaps(recorded, invalid[there], most, notes)
        signal[there] = recorded
        mask = compute_limb_leads(signal, sum(1 << lead for lead in there.tolist()), notes)
        return signal, mask, None if marked is None else gaps_of_twelve(marked, there.tolist())
    dropped = close_gaps(recorded, invalid[there], most, notes)
    signal[there] = recorded
    mask = sum(1 << lead for lead in np.delete(there, dropped).tolist())
    if not mask & CHEST_MASK:
        raise RecordError(Reason.NOT_FINITE, "every chest lead has a gap of more than 20 ms")
    return signal, compute_limb_leads(signal, mask, notes), None


def _hint(reason: Reason, signal_mv: NDArray[np.float64]) -> str:
    if reason == Reason.AMPLITUDE:
        return ". Are these microvolts? Then divide by 1000; ADC counts must be divided by their gain first"
    if reason == Reason.FLAT and float(np.nanmax(signal_mv) - np.nanmin(signal_mv)) > 0.0:
        return ". Are these volts? Then multiply by 1000"
    if reason == Reason.TOO_SHORT:
        return ". Is rate_hz right?"
    return ""


def recordings_of(x_mv: Any) -> Iterator[NDArray[np.float64]]:
    """The recordings (12, T) of what the user gave, one after another."""
    ragged = isinstance(x_mv, (list, tuple)) or (isinstance(x_mv, np.ndarray) and x_mv.dtype == object)
    if ragged and (len(x_mv) == 0 or np.ndim(x_mv[0]) >= 2):
        for number, recording in enumerate(x_mv):
            yield _checked(_as_floats(recording, f"recording {number}"), f"recording {number}")
        return
    array = _as_floats(x_mv, "x_mv")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise ValueError(f"x_mv must be (12, T), (B, 12, T) or a list of (12, T), not of shape {np.shape(x_mv)}")
    for number, recording in enumerate(array):
        yield _checked(recording, f"recording {number}")


def _as_floats(values: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error})") from error


def _checked(recording: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if recording.ndim != 2:
        raise ValueError(f"{name} must be (12, T), not of shape {recording.shape}")
    leads, samples = recording.shape
    if leads != 12 and samples == 12:
        raise ValueError(f"{name} is {recording.shape}: the leads must come first. Give its transpose")
    if leads != 12:
        raise ValueError(
            f"{name} has {leads} leads; twelve are needed, in the order {' '.join(LEADS)} (NaN for a lead that was not "
            "recorded: missing limb leads are computed from I and II)"
        )
    return recording
