"""NeuroKit2's R-peaks, delineation, signal quality and heart rate variability behind this package's interface, to
compare with or to choose by setting.

NeuroKit2 (Makowski et al., Behav Res Methods 2021, 53:1689) reads one lead of one recording at a time and raises on
some signals; here such a recording has no beats, or beats without P and T.

Contract: as `peaks.find_r_peaks` and `delineate.find_waves`; the others state it themselves. Lead II is read, or the
next best usable one.
"""

from __future__ import annotations

import warnings

import neurokit2 as nk
import numpy as np
from numpy.typing import ArrayLike, NDArray

from beatray.dsp.clean import repair
from beatray.dsp.delineate import BEAT_WAVES, FIELDS
from beatray.dsp.features import HRV_FEATURES

LEAD_ORDER = (1, 10, 0, 11, 9, 8, 7, 6, 5, 2, 4, 3)
FLAT_MV = 0.01
LEAST_BEATS = 3

_KEYS = {
    "p_onset": "ECG_P_Onsets",
    "p_peak": "ECG_P_Peaks",
    "p_offset": "ECG_P_Offsets",
    "qrs_onset": "ECG_R_Onsets",
    "qrs_offset": "ECG_R_Offsets",
    "t_onset": "ECG_T_Onsets",
    "t_peak": "ECG_T_Peaks",
    "t_offset": "ECG_T_Offsets",
}
_FAILURES = (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, AttributeError, ArithmeticError)
"""What NeuroKit2 0.2 was seen to raise on noise, flat parts and very short signals."""


def find_r_peaks(
    x_mv_blt: NDArray[np.generic],
    rate_hz: float,
    *,
    n_samples: ArrayLike | None = None,
    lead_mask: ArrayLike | None = None,
) -> list[NDArray[np.int32]]:
    """R-peaks of every record by `ecg_clean` and `ecg_peaks` with their default method."""
    found = []
    for signal in _signals(x_mv_blt, n_samples, lead_mask):
        peaks = np.empty(0, np.int32)
        if signal is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cleaned = nk.ecg_clean(signal, sampling_rate=int(rate_hz))
                    _, info = nk.ecg_peaks(cleaned, sampling_rate=int(rate_hz))
                peaks = np.unique(np.asarray(info["ECG_R_Peaks"]).astype(np.int32))
            except _FAILURES:
                pass  # no beats is the answer for a signal the library cannot read
        found.append(peaks)
    return found


def find_waves(
    x_mv_blt: NDArray[np.generic],
    rate_hz: float,
    r_peaks: list[NDArray[np.int32]],
    *,
    n_samples: ArrayLike | None = None,
    lead_mask: ArrayLike | None = None,
    method: str = "prominence",
) -> list[NDArray[np.void]]:
    """Waves of every beat by `ecg_delineate`; `method` "prominence" (its most accurate on LUDB) or "dwt".

    A boundary out of order is left out, -1: of a QRS and its P or T wave that overlap, the QRS stays.
    """
    found = []
    for signal, r in zip(_signals(x_mv_blt, n_samples, lead_mask), r_peaks, strict=True):
        waves = np.full(len(r), -1, BEAT_WAVES)
        waves["r_peak"] = r
        if signal is not None and len(r):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cleaned = nk.ecg_clean(signal, sampling_rate=int(rate_hz))
                    _, columns = nk.ecg_delineate(cleaned, np.asarray(r), sampling_rate=int(rate_hz), method=method)
                for name, key in _KEYS.items():
                    values = np.asarray(columns.get(key, []), np.float64)
                    if values.shape == (len(r),):
                        waves[name] = np.where(np.isfinite(values), values, -1).astype(np.int32)
            except _FAILURES:
                pass  # the beats stay, without waves
        found.append(_ordered(waves))
    return found


def unacceptable(
    x_mv_blt: NDArray[np.generic],
    rate_hz: float,
    *,
    n_samples: ArrayLike | None = None,
    lead_mask: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Whether `ecg_quality` calls a record's lead "Unacceptable", or cannot judge it; (B,).

    Its method is that of Zhao and Zhang (Front Physiol 2018, 9:727): the kurtosis, the power of QRS complexes and that
    of the baseline, and how alike beats are. A record in which no lead moves is unacceptable.
    """
    found = []
    for signal in _signals(x_mv_blt, n_samples, lead_mask):
        bad = True
        if signal is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cleaned = nk.ecg_clean(signal, sampling_rate=int(rate_hz))
                    bad = nk.ecg_quality(cleaned, sampling_rate=int(rate_hz), method="zhao2018") == "Unacceptable"
            except _FAILURES:
                pass  # a signal in which the library finds no beats to judge
        found.append(bool(bad))
    return np.array(found, np.bool_)


def hrv(r_peaks: list[NDArray[np.int32]], rate_hz: float) -> NDArray[np.float32]:
    """`features.HRV_FEATURES` of every record by `hrv_time`, float32 (B, len(HRV_FEATURES)); NaN where it has none.

    All beats count as normal ones. Records of less than three beats have none.
    """
    found = np.full((len(r_peaks), len(HRV_FEATURES)), np.nan, np.float32)
    for record, r in zip(found, r_peaks, strict=True):
        if len(r) < LEAST_BEATS:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = nk.hrv_time(np.asarray(r), sampling_rate=int(rate_hz)).iloc[0]
        except _FAILURES:
            continue
        known = np.array([values.get(name, np.nan) for name in HRV_FEATURES], np.float64)
        record[:] = np.where(np.isfinite(known), known, np.nan)
    return found


def _ordered(waves: NDArray[np.void]) -> NDArray[np.void]:
    """A boundary on the wrong side of its neighbour is taken out: later code may rely on the order."""
    for left, right in (("p_onset", "p_peak"), ("p_peak", "p_offset"), ("t_onset", "t_peak"), ("t_peak", "t_offset")):
        wrong = (waves[left] >= 0) & (waves[right] >= 0) & (waves[left] > waves[right])
        waves[left if left.endswith("onset") else right][wrong] = -1
    middle = FIELDS.index("r_peak")
    for names, sign in ((FIELDS[middle - 1 :: -1], -1), (FIELDS[middle + 1 :], 1)):  # outwards, from the R-peak on
        reached = waves["r_peak"].copy()
        for name in names:
            waves[name][sign * (waves[name] - reached) < 0] = -1
            reached = np.where(waves[name] >= 0, waves[name], reached)
    return waves


def _signals(
    x_mv_blt: NDArray[np.generic], n_samples: ArrayLike | None, lead_mask: ArrayLike | None
) -> list[NDArray[np.float64] | None]:
    """The valid part of each record's best lead, repaired; None where no lead moves."""
    x_blt = np.asarray(x_mv_blt)
    n_records, n_leads, n_time = x_blt.shape
    lengths = np.broadcast_to(np.asarray(n_time if n_samples is None else n_samples, np.int64), (n_records,))
    masks = np.broadcast_to(np.asarray(-1 if lead_mask is None else lead_mask, np.int64), (n_records,))
    order = LEAD_ORDER if n_leads == len(LEAD_ORDER) else tuple(range(n_leads))
    signals: list[NDArray[np.float64] | None] = []
    for k in range(n_records):
        chosen = None
        for lead in order:
            row = x_blt[k : k + 1, lead : lead + 1, : max(0, int(lengths[k]))].astype(np.float32)
            if row.shape[-1] and masks[k] >> lead & 1 and not repair(row).any() and np.ptp(row) > FLAT_MV:
                chosen = row[0, 0].astype(np.float64)
                break
        signals.append(chosen)
    return signals
