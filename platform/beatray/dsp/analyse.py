"""Everything the corpus stores about a signal, in one call: beats, waves, features and quality of many recordings.

Contract: takes rows as the corpus holds them (int16 microvolts, 12 canonical leads, 500 Hz, zero-padded) and works
through them in chunks that stay in the cache. What comes out for a recording depends on that recording alone: the same
bits whether it is analysed alone or among thousands, so a corpus does not depend on how its input was cut into shards.
Never raises on content; a recording without beats has empty arrays, NaN features and `Flag.NO_BEATS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beatray.dsp.clean import WORKING_RATE_HZ, decimate
from beatray.dsp.delineate import find_waves
from beatray.dsp.features import HRV_FEATURES, RECORD_FEATURES, measure
from beatray.dsp.peaks import find_r_peaks
from beatray.dsp.quality import Flag, assess
from beatray.record import LEADS, RATE_HZ

VERSION = "dsp-4"
"""Changes whenever any number that `analyse` gives for some recording would change; part of every corpus recipe."""

Detector = Literal["beatray", "neurokit", "neurokit+dwt", "beatray+prominence", "beatray+dwt"]
DETECTORS: dict[str, tuple[str, str]] = {
    "beatray": ("beatray", "beatray"),
    "neurokit": ("neurokit", "prominence"),
    "neurokit+dwt": ("neurokit", "dwt"),
    "beatray+prominence": ("beatray", "prominence"),
    "beatray+dwt": ("beatray", "dwt"),
}
"""Who finds the R-peaks, and who the waves: this package, or NeuroKit2 by that method."""

Quality = Literal["beatray", "beatray+neurokit"]
"""Whose judgement of the signal becomes flags: this package's, or beside it NeuroKit2's of one lead."""
QUALITIES: tuple[Quality, ...] = get_args(Quality)
Hrv = Literal["none", "neurokit"]
"""Whether NeuroKit2's measures of heart rate variability are record features, too."""
HRVS: tuple[Hrv, ...] = get_args(Hrv)

NEUROKIT_VERSION = "neurokit-2"
"""Changes with the numbers that come from NeuroKit2 alone."""

CHUNK = 32
"""Records per pass: fewer pay more for starting each operation than they gain in the cache."""
BLOCK = 4
"""Records that are thinned out while their millivolts are still in the cache."""
STEP = round(RATE_HZ / WORKING_RATE_HZ)
ALL = tuple(range(len(LEADS)))


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """Who measures what: see `DETECTORS`, `Quality` and `Hrv`; NeuroKit2 reads one lead, and is slow.

    Raises ValueError for a name that is not known.
    """

    detector: Detector = "beatray"
    quality: Quality = "beatray"
    hrv: Hrv = "none"

    def __post_init__(self) -> None:
        for name, known in (("detector", tuple(DETECTORS)), ("quality", QUALITIES), ("hrv", HRVS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def version(self) -> str:
        """What an analysis with these settings is called in a corpus recipe."""
        return VERSION if self == DEFAULT else f"{VERSION}, {NEUROKIT_VERSION}"

    def record_features(self) -> tuple[str, ...]:
        """Names of the columns of `Analysis.record_features`."""
        return RECORD_FEATURES if self.hrv == "none" else (*RECORD_FEATURES, *HRV_FEATURES)


DEFAULT = AnalysisSettings()


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was measured, one entry per recording; ragged columns are lists.

    `r_peaks` int32 (n_beats,) samples at 500 Hz; `waves` `delineate.BEAT_WAVES` (n_beats,); `beat_features` float32
    (n_beats, len(BEAT_FEATURES)); `record_features` float32 (B, G), named by `record_feature_names`; `flags` int32 (B,)
    bits of `quality.Flag`; `lead_mask` int16 (B,) leads fit to be read.
    """

    r_peaks: list[NDArray[np.int32]]
    waves: list[NDArray[np.void]]
    beat_features: list[NDArray[np.float32]]
    record_features: NDArray[np.float32]
    flags: NDArray[np.int32]
    lead_mask: NDArray[np.int16]
    record_feature_names: tuple[str, ...] = RECORD_FEATURES


def analyse(
    signal_uv_blt: NDArray[np.int16],
    n_samples: ArrayLike,
    lead_mask: ArrayLike,
    settings: AnalysisSettings = DEFAULT,
) -> Analysis:
    """Analyses (B, 12, T) recordings of `n_samples` (B,) valid samples with the leads of `lead_mask` (B,).

    Raises ValueError for a wrong shape.
    """
    x_blt = np.asarray(signal_uv_blt)
    if x_blt.ndim != 3 or x_blt.shape[1] != len(LEADS):
        raise ValueError(f"signal_uv_blt must be (batch, 12, time), got shape {x_blt.shape}")
    n_records = len(x_blt)
    lengths = np.broadcast_to(np.asarray(n_samples, np.int64), (n_records,))
    masks = np.broadcast_to(np.asarray(lead_mask, np.int64), (n_records,))
    r_peaks: list[NDArray[np.int32]] = []
    waves: list[NDArray[np.void]] = []
    beat_features: list[NDArray[np.float32]] = []
    names = settings.record_features()
    record_features = np.full((n_records, len(names)), np.nan, np.float32)
    flags = np.zeros(n_records, np.int32)
    usable = np.zeros(n_records, np.int16)
    buffer = np.empty((min(CHUNK, n_records), *x_blt.shape[1:]), np.float32)  # fresh pages cost more than the product
    for start in range(0, n_records, CHUNK):
        part = slice(start, start + CHUNK)
        x_mv, low_mv = _in_mv(x_blt[part], buffer[: n_records - start])
        some_r, some_waves = _beats(x_mv, low_mv, lengths[part], masks[part], settings.detector)
        flags[part], usable[part] = assess(
            x_mv, lengths[part], masks[part], r_peaks=some_r, waves=some_waves, low_mv_blt=low_mv
        )
        some_beats, record_features[part, : len(RECORD_FEATURES)] = measure(
            x_mv, RATE_HZ, some_waves, n_samples=lengths[part], lead_mask=usable[part]
        )
        if settings.quality != "beatray":
            from beatray.dsp import neurokit  # imports NeuroKit2, which takes seconds

            bad = neurokit.unacceptable(x_mv, RATE_HZ, n_samples=lengths[part], lead_mask=masks[part])
            flags[part] |= np.where(bad, np.int32(Flag.NEUROKIT_UNACCEPTABLE), np.int32(0))
        if settings.hrv != "none":
            from beatray.dsp import neurokit

            record_features[part, len(RECORD_FEATURES) :] = neurokit.hrv(some_r, RATE_HZ)
        r_peaks.extend(some_r)
        waves.extend(some_waves)
        beat_features.extend(some_beats)
    return Analysis(r_peaks, waves, beat_features, record_features, flags, usable, names)


def _in_mv(x_blt: NDArray[np.int16], x_mv: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The recordings in millivolts, written to `x_mv`, and thinned out: R-peaks and quality both start with that."""
    low_mv = np.empty((*x_blt.shape[:2], x_blt.shape[2] // STEP), np.float32)
    for start in range(0, len(x_blt), BLOCK):
        part = slice(start, start + BLOCK)
        np.multiply(x_blt[part], np.float32(1e-3), out=x_mv[part])
        decimate(x_mv[part], STEP, ALL, low_mv[part])
    return x_mv, low_mv


def _beats(
    x_mv: NDArray[np.float32],
    low_mv: NDArray[np.float32],
    lengths: NDArray[np.int64],
    masks: NDArray[np.int64],
    detector: Detector,
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.void]]]:
    of_r_peaks, of_waves = DETECTORS[detector]
    if of_r_peaks == "beatray":
        r_peaks = find_r_peaks(x_mv, RATE_HZ, n_samples=lengths, lead_mask=masks, low_mv_blt=low_mv)
        if of_waves == "beatray":
            return r_peaks, find_waves(x_mv, RATE_HZ, r_peaks, n_samples=lengths, lead_mask=masks)
    from beatray.dsp import neurokit  # imports NeuroKit2, which takes seconds

    if of_r_peaks == "neurokit":
        r_peaks = neurokit.find_r_peaks(x_mv, RATE_HZ, n_samples=lengths, lead_mask=masks)
    return r_peaks, neurokit.find_waves(x_mv, RATE_HZ, r_peaks, n_samples=lengths, lead_mask=masks, method=of_waves)
