"""Hand-made numbers of a heartbeat and of a recording, from the signal and its wave positions.

They are the comparison standard for learned representations, and the soft targets of the contrastive objectives. Every
name ends in its unit; units were chosen so that no feature outweighs the others when raw vectors are compared by their
cosine: seconds, millivolts, angles in half turns (degrees / 180), and the heart rate in beats per 10 s. The last makes
the largest component, so that cosines between recordings lie close below 1 (quartiles on PTB-XL 0.977 / 0.987 / 0.992);
in beats per second they would spread from 0.80 to 0.92, in beats per minute crowd above 0.999.

Conventions:
- amplitudes are measured from the lead's mean over the 20 ms before the QRS onset, beat by beat, as in clinical reading
  (CSE Working Party, Eur Heart J 1985, 6:815); so slow drift needs no filter;
- R is the largest value within the QRS, S the smallest after it, T the value at the T peak, ST the value 60 ms after
  the QRS offset (J + 60 ms);
- axes come from leads I and II by Einthoven's triangle, angle = atan2((2 II - I) / sqrt 3, I), of the mean QRS and of
  the T peak; -120..240 degrees, with the jump where hearts hardly ever point;
- QTc is QT / RR^(1/3) with RR in seconds (Fridericia 1920); SD of RR and RMSSD are over this recording only, a few
  beats, and include ectopic ones;
- a record's value is the median over its beats of what could be measured; NaN where nothing could.

Contract: `x_mv_blt` (B, 12, T) millivolts in canonical lead order, unfiltered or high-passed; float32 out; total.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beatray.dsp.clean import ABSURD_MV
from beatray.dsp.delineate import joined
from beatray.record import LEAD_INDEX, LEADS

AMPLITUDE_LEADS = ("i", "ii", "v1", "v2", "v5")
BEAT_LEADS = ("ii", "v1", "v5")

BEAT_FEATURES: tuple[str, ...] = (
    "rr_previous_s",
    "rr_next_s",
    "rr_ratio",  # previous over next: below 1 for an early beat
    "p_present",  # 0 or 1; NaN where a P wave could not be seen
    "p_s",
    "pr_s",
    "qrs_s",
    "qt_s",
    *(f"{kind}_{lead}_mv" for lead in BEAT_LEADS for kind in ("r", "s", "t")),
)

RECORD_FEATURES: tuple[str, ...] = (
    "heart_rate_per_10s",
    "rr_mean_s",
    "rr_sd_s",
    "rr_rmssd_s",
    "p_fraction",  # share with a P wave, of the beats where one could be seen
    "p_s",
    "pr_s",
    "qrs_s",
    "qt_s",
    "qtc_fridericia_s",
    "qrs_axis_half_turns",
    "t_axis_half_turns",
    *(f"{kind}_{lead}_mv" for lead in AMPLITUDE_LEADS for kind in ("r", "s", "t", "st")),
)

HRV_FEATURES: tuple[str, ...] = tuple(
    f"HRV_{name}"
    for name in (
        *("MeanNN", "SDNN", "RMSSD", "SDSD", "CVNN", "CVSD", "MedianNN", "MadNN", "MCVNN", "IQRNN", "SDRMSSD"),
        *("Prc20NN", "Prc80NN", "pNN50", "pNN20", "MinNN", "MaxNN"),
    )
)
"""Record features that NeuroKit2 measures where an ingest asks for them, by its names (milliseconds, shares and per
cent). Its measures of minutes and hours (SDANN, SDNNI, HTI, TINN, spectra) say nothing about a window of 10 s."""

BASE_S = 0.02
QRS_LIMIT_S = 0.2
ST_AFTER_S = 0.06
P_BEFORE_QRS_S = 0.25
"""More than a normal PR interval: with less of the recording before its first QRS it cannot be known whether there was
a P wave."""
AXIS_CUT_DEG = -120.0
CHUNK = 32


def measure(
    x_mv_blt: NDArray[np.generic],
    rate_hz: float,
    waves: list[NDArray[np.void]],
    *,
    n_samples: ArrayLike | None = None,
    lead_mask: ArrayLike | None = None,
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Features of every beat, float32 (n_beats, len(BEAT_FEATURES)) per record, and of every record (B, G).

    `waves` as `delineate.find_waves` gives them; `n_samples` and `lead_mask` (B,) or scalar: amplitudes after
    the end, or in leads that are not in the mask, are NaN.
    Raises ValueError unless there are twelve leads and one array of waves per record.
    """
    x_blt = np.asarray(x_mv_blt)
    if x_blt.ndim != 3 or x_blt.shape[1] != len(LEADS):
        raise ValueError(f"x_mv_blt must be (batch, 12, time), got shape {x_blt.shape}")
    if len(waves) != len(x_blt):
        raise ValueError(f"{len(x_blt)} records but {len(waves)} arrays of waves")
    masks = np.broadcast_to(np.asarray(-1 if lead_mask is None else lead_mask, np.int64), (len(x_blt),))
    ends = np.broadcast_to(np.asarray(x_blt.shape[-1] if n_samples is None else n_samples, np.int64), (len(x_blt),))
    beat_rows: list[NDArray[np.float32]] = []
    record_rows = np.full((len(x_blt), len(RECORD_FEATURES)), np.nan, np.float32)
    for start in range(0, len(x_blt), CHUNK):
        part = slice(start, start + CHUNK)
        beats, record_rows[part] = _measure(x_blt[part], rate_hz, waves[part], masks[part], ends[part])
        beat_rows.extend(beats)
    return beat_rows, record_rows


def _measure(
    x_blt: NDArray[np.generic],
    rate_hz: float,
    waves: list[NDArray[np.void]],
    masks: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    counts = np.array([len(w) for w in waves])
    ends = np.cumsum(counts)
    if ends[-1] == 0 or x_blt.shape[-1] == 0:
        empty = np.full((len(waves), len(RECORD_FEATURES)), np.nan, np.float32)
        return [np.full((n, len(BEAT_FEATURES)), np.nan, np.float32) for n in counts], empty
    owner = np.repeat(np.arange(len(waves)), counts)
    flat = joined(waves)
    columns = _intervals(flat, owner, rate_hz)
    columns |= _amplitudes(x_blt.astype(np.float32, copy=False), rate_hz, flat, owner, masks, lengths)
    beat_table = np.stack([columns[name] for name in BEAT_FEATURES], axis=1).astype(np.float32)
    pieces = [beat_table[end - n : end] for n, end in zip(counts, ends, strict=True)]
    return pieces, _record_features(columns, owner, counts)


def _intervals(flat: NDArray[np.void], owner: NDArray[np.int64], rate_hz: float) -> dict[str, NDArray[np.floating]]:
    """Durations in seconds per beat; NaN where a boundary is missing."""

    def between(start: str, end: str) -> NDArray[np.float64]:
        known = (flat[start] >= 0) & (flat[end] >= 0)
        return np.where(known, (flat[end] - flat[start]) / rate_hz, np.nan)

    new_record = owner[1:] != owner[:-1]
    rr = np.where(new_record, np.nan, np.diff(flat["r_peak"]) / rate_hz)
    previous, following = np.append(np.nan, rr), np.append(rr, np.nan)
    ratio = np.divide(previous, following, out=np.full_like(previous, np.nan), where=following > 0)
    has_p, of_first = flat["p_peak"] >= 0, np.append(True, new_record)
    unseen = (flat["qrs_onset"] < 0) | (of_first & (flat["qrs_onset"] < P_BEFORE_QRS_S * rate_hz))
    return {
        "rr_previous_s": previous,
        "rr_next_s": following,
        "rr_ratio": ratio,
        "p_present": np.where(has_p | ~unseen, has_p.astype(np.float64), np.nan),
        "p_s": between("p_onset", "p_offset"),
        "pr_s": between("p_onset", "qrs_onset"),
        "qrs_s": between("qrs_onset", "qrs_offset"),
        "qt_s": between("qrs_onset", "t_offset"),
    }


def _amplitudes(
    x_blt: NDArray[np.float32],
    rate_hz: float,
    flat: NDArray[np.void],
    owner: NDArray[np.int64],
    masks: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> dict[str, NDArray[np.floating]]:
    """R, S, T, ST and mean QRS deflection per beat in `AMPLITUDE_LEADS`, millivolts."""
    n_leads, n_time = x_blt.shape[1:]
    x_blt = np.ascontiguousarray(x_blt)
    samples = x_blt.reshape(-1)
    base_width = max(1, round(BASE_S * rate_hz))
    width = base_width + max(2, round(QRS_LIMIT_S * rate_hz))
    end = np.minimum(lengths[owner], n_time)
    has_qrs = (flat["qrs_onset"] >= 0) & (flat["qrs_offset"] < end)
    has_t = (flat["qrs_onset"] >= 0) & (flat["t_peak"] >= 0) & (flat["t_peak"] < end)
    row_start = owner * (n_leads * n_time)
    at_first = flat["qrs_onset"].astype(np.int64) - base_width
    at = np.clip(at_first[:, None] + np.arange(width), 0, n_time - 1)
    at += row_start[:, None]
    start = np.clip(at_first, 0, max(n_time - width, 0))
    at_edge = np.flatnonzero(start != at_first)  # there the first or the last sample is held
    column = np.arange(width - base_width)
    inside = column <= (flat["qrs_offset"] - flat["qrs_onset"])[:, None]
    n_inside = np.maximum(inside.sum(axis=1), 1).astype(np.float32)
    # Masks as numbers and as bits, and a table of them by place, spare each lead two passes of `where`.
    outside = np.where(inside, np.float32(0), np.float32(np.inf))
    before = np.where(column < column[:, None], np.float32(np.inf), np.float32(0))
    kept_bits = -inside.astype(np.int32)
    t_at = np.clip(flat["t_peak"].astype(np.int64), 0, n_time - 1) + row_start
    st_at = flat["qrs_offset"].astype(np.int64) + round(ST_AFTER_S * rate_hz)
    has_st = has_qrs & (st_at < end)
    st_at = np.clip(st_at, 0, n_time - 1) + row_start
    row = np.arange(len(flat))
    columns: dict[str, NDArray[np.floating]] = {}
    if n_time >= width:
        x_blt_runs = np.lib.stride_tricks.sliding_window_view(x_blt, width, axis=2)  # a window is one run of memory
    for name in AMPLITUDE_LEADS:
        lead = LEAD_INDEX[name]
        shift = lead * n_time
        usable = (masks[owner] >> lead) & 1 != 0
        window = x_blt_runs[owner, lead, start] if n_time >= width else samples.take(at + shift)
        window[at_edge] = samples.take(at[at_edge] + shift)
        with np.errstate(invalid="ignore", over="ignore"):
            base = window[:, :base_width].sum(axis=1) / np.float32(base_width)
            qrs = window[:, base_width:] - base[:, None]
            top = (qrs - outside).argmax(axis=1)
            values = {
                "r": (qrs[row, top], has_qrs),
                "s": ((qrs + (before.take(top, axis=0) + outside)).min(axis=1), has_qrs),
                "t": (samples.take(t_at + shift) - base, has_t),
                "st": (samples.take(st_at + shift) - base, has_st),
                "qrs": ((qrs.view(np.int32) & kept_bits).view(np.float32).sum(axis=1) / n_inside, has_qrs),
            }
            for kind, (value, known) in values.items():
                columns[f"{kind}_{name}_mv"] = np.where(known & usable & (np.abs(value) < ABSURD_MV), value, np.nan)
    return columns


def _record_features(
    columns: dict[str, NDArray[np.floating]], owner: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    n_records = len(counts)
    rows = {name: np.full(n_records, np.nan) for name in RECORD_FEATURES}
    slot = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    names = [name for name in columns if name not in ("rr_previous_s", "rr_ratio", "p_present")]
    table = np.full((len(names), n_records, max(1, int(counts.max()))), np.nan)
    for k, name in enumerate(names):
        table[k, owner, slot] = columns[name]
    medians = dict(zip(names, _medians(table), strict=True))
    for name in RECORD_FEATURES:
        if name in medians:
            rows[name] = medians[name]
    rows["rr_mean_s"], rows["rr_sd_s"], rows["rr_rmssd_s"] = _rr_statistics(columns["rr_next_s"], owner, n_records)
    rows["heart_rate_per_10s"] = 10 / rows["rr_mean_s"]
    rows["qtc_fridericia_s"] = rows["qt_s"] / np.cbrt(rows["rr_mean_s"])
    rows["p_fraction"] = _mean_of_known(columns["p_present"], owner, n_records)[0]
    rows["qrs_axis_half_turns"] = _axis(medians["qrs_i_mv"], medians["qrs_ii_mv"])
    rows["t_axis_half_turns"] = _axis(medians["t_i_mv"], medians["t_ii_mv"])
    features = np.stack([rows[name] for name in RECORD_FEATURES], axis=1)
    return np.where(np.isfinite(features), features, np.nan).astype(np.float32)


def _rr_statistics(
    rr: NDArray[np.floating], owner: NDArray[np.int64], n_records: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, SD and RMSSD of each record's RR intervals; NaN where there are too few: one has no SD."""
    average, count = _mean_of_known(rr, owner, n_records)
    variance, _ = _mean_of_known((rr - average[owner]) ** 2, owner, n_records)
    change = np.append(np.diff(rr), np.nan)  # across two records it is NaN: the last RR of a record is
    squared_change, _ = _mean_of_known(change**2, owner, n_records)
    return average, np.sqrt(np.where(count > 1, variance, np.nan)), np.sqrt(squared_change)


def _mean_of_known(
    values: NDArray[np.floating], owner: NDArray[np.int64], n_records: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean over each record's finite values, NaN where there is none, and their count.

    Summed one by one in order (`bincount`), so that the last bit does not depend on other records.
    """
    known = np.isfinite(values)
    count = np.bincount(owner[known], minlength=n_records)
    total = np.bincount(owner[known], weights=values[known], minlength=n_records)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


def _medians(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median along the last axis without the NaN; NaN where nothing is left."""
    known = np.isfinite(table).sum(axis=-1)
    ranked = np.sort(np.where(np.isfinite(table), table, np.inf), axis=-1)
    low = np.take_along_axis(ranked, np.maximum(known - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    high = np.take_along_axis(ranked, np.minimum(known // 2, table.shape[-1] - 1)[..., None], axis=-1)[..., 0]
    return np.where(known > 0, (low + high) / 2, np.nan)


def _axis(lead_i_mv: NDArray[np.float64], lead_ii_mv: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frontal axis in half turns from -120/180 up to 240/180; NaN where both leads are silent."""
    upright = (2 * lead_ii_mv - lead_i_mv) / np.sqrt(3)
    degrees = np.degrees(np.arctan2(upright, lead_i_mv))
    degrees = np.where(degrees < AXIS_CUT_DEG, degrees + 360, degrees)
    return np.where(np.hypot(upright, lead_i_mv) > 0, degrees / 180, np.nan)
