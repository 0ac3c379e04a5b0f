"""Beat annotations of WFDB recordings as the five classes of ANSI/AAMI EC57, and their windows.

N: any beat that is none of the others (normal, bundle branch block, escape); S: supraventricular ectopic; V:
ventricular ectopic; F: fusion of ventricular and normal; Q: paced, fusion of paced and normal, or not classifiable. The
table below is that of ANSI/AAMI EC57 as it is used with MIT-BIH (de Chazal, O'Dwyer and Reilly, IEEE TBME 51:1196-1206,
2004), with the four symbols that MIT-BIH does not use placed by their meaning: B and n with N, r with V, ? with Q.
Flutter waves and all marks that are no beats are left out.

Contract: `read_beats(tree, path, leads)` gives one recording's windows, or raises RecordError; a recording without the
leads or without an annotation file is None. Lead MLII, a modified lead II of Holter recorders, counts as II.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.beat_classifier.network import CLASSES, WINDOW, cut_windows, rr_ratios
from beatray.ingest.canonical import rate_ratio, scale_samples
from beatray.ingest.formats.channels import MV_PER_UNIT
from beatray.ingest.formats.wfdb_annotation import MAX_ANNOTATION_BYTES, parse_annotations
from beatray.ingest.formats.wfdb_record import read_counts
from beatray.ingest.formats.wfdb_signal import to_physical
from beatray.ingest.pieces import resample
from beatray.ingest.spelling import as_spelt
from beatray.ingest.tree import Tree
from beatray.preprocess import prepare
from beatray.record import RATE_HZ, WINDOW_SAMPLES, Reason, RecordError

SYMBOLS_OF = {
    "N": ("N", "L", "R", "B", "e", "j", "n"),
    "S": ("A", "a", "J", "S"),
    "V": ("V", "E", "r"),
    "F": ("F",),
    "Q": ("/", "f", "Q", "?"),
}
CLASS_OF = {symbol: CLASSES.index(name) for name, symbols in SYMBOLS_OF.items() for symbol in symbols}
ALIASES = {"MLII": "II", "ML2": "II"}
JITTER = 10  # samples by which a window may be moved: annotations and detected peaks differ


@dataclass(frozen=True, slots=True)
class AnnotatedBeats:
    """The beats of one recording, in time order: windows with JITTER more samples on each side, RR ratios, classes."""

    name: str
    windows: NDArray[np.float32]  # (n, leads, WINDOW + 2 * JITTER) mV
    rr: NDArray[np.float32]  # (n, 2)
    kind: NDArray[np.int64]  # (n,)


def read_beats(tree: Tree, path: str, leads: tuple[str, ...]) -> AnnotatedBeats | None:
    """The annotated beats of the recording whose header lies at `path`; see the module's contract."""
    annotation = as_spelt(tree, path[: -len(".hea")] + ".atr")
    if annotation not in tree:
        return None
    header, signals = read_counts(tree, path)
    names = [ALIASES.get(line.name, line.name) for line in header.signals]
    if any(lead not in names for lead in leads):
        return None
    lines = [header.signals[names.index(lead)] for lead in leads]
    if any(line.gain is None or line.units.lower() not in MV_PER_UNIT for line in lines):
        raise RecordError(Reason.BAD_GAIN, f"{path}: a lead is not calibrated in volts")
    gain = np.array([line.gain for line in lines], np.float64) / [MV_PER_UNIT[line.units.lower()] for line in lines]
    columns = [names.index(lead) for lead in leads]
    signal = to_physical(signals.adc[:, columns], gain, np.array([line.baseline for line in lines], np.float64))
    if signals.invalid is not None:
        signal[signals.invalid[:, columns].T] = 0.0
    ratio = rate_ratio(header.rate_hz)
    marks = parse_annotations(tree.read(annotation, MAX_ANNOTATION_BYTES, too_long=Reason.ANNOTATION))
    if marks.rate_hz not in (None, header.rate_hz):
        raise RecordError(Reason.ANNOTATION, f"{annotation} counts at {marks.rate_hz:g} Hz, its record at another rate")
    kinds = np.array([CLASS_OF.get(symbol, -1) for symbol in marks.symbols], np.int64)
    samples = scale_samples(marks.samples, ratio)
    resampled = resample(signal, ratio)
    inside = (samples >= 0) & (samples < resampled.shape[1])
    chosen = (kinds >= 0) & inside
    windows, rr = _windows(resampled, samples[chosen])
    return AnnotatedBeats(path[: -len(".hea")], windows, rr, kinds[chosen])


def _windows(
    signal_mv: NDArray[np.float64], peaks: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Windows and RR ratios of a long recording (leads, n), cut into the 10-s pieces that a corpus has."""
    pieces = -(-signal_mv.shape[1] // WINDOW_SAMPLES)
    padded = np.zeros((signal_mv.shape[0], pieces * WINDOW_SAMPLES))
    padded[:, : signal_mv.shape[1]] = signal_mv
    x_uv = torch.from_numpy(padded * 1000.0).float().view(len(signal_mv), pieces, WINDOW_SAMPLES).transpose(0, 1)
    valid = torch.full((pieces,), WINDOW_SAMPLES)
    valid[-1] = signal_mv.shape[1] - (pieces - 1) * WINDOW_SAMPLES
    x_mv = prepare(x_uv.contiguous(), rate_hz=RATE_HZ, n_samples=valid)
    piece, position = np.divmod(peaks, WINDOW_SAMPLES)
    windows, ratios = [np.empty((0, len(signal_mv), WINDOW + 2 * JITTER), np.float32)], [np.empty((0, 2), np.float32)]
    for number in np.unique(piece):
        here = torch.from_numpy(position[piece == number])
        one = torch.nn.functional.pad(x_mv[number : number + 1], (JITTER, JITTER))
        owner = torch.zeros(len(here), dtype=torch.int64)
        wide = [cut_windows(one, owner, here + shift) for shift in (0, JITTER, 2 * JITTER)]
        # three windows overlap to one that is wider by JITTER on each side
        windows.append(torch.cat([wide[0][..., :JITTER], wide[1], wide[2][..., -JITTER:]], dim=-1).numpy())
        ratios.append(rr_ratios(here[None])[0].numpy())
    return np.concatenate(windows), np.concatenate(ratios)
