"""Whether recordings were taken at the stated rate: heartbeats and the spectrum of the QRS complexes show it.

Samples of 250 Hz that are read as 500 Hz give hearts that beat twice as fast with QRS complexes half as wide, a vector
without an error, and a wrong one. Measured are the median R-R interval and the frequency below which half of the power
lies in the slope of the mean QRS complex (over all leads): 20 Hz in most people, half or twice as much where the rate
is wrong by two. Of several recordings the medians count, since one heart can be slow or fast, one QRS wide.

Contract: `rate_doubt(windows, rate_hz)` gives a sentence, or an empty string; it never raises. Limits were set on the
125 bundled LUDB recordings and 388 of PTB-XL: of 250 Hz read as 500 Hz 9 in 10 single recordings are noticed, of 1000
Hz as many, of 64 recordings together all; of recordings at their own rate 1 in 50 is doubted when it comes alone
(extreme bradycardia, pacing, power line), of 16 together none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beatray.dsp.peaks import find_r_peaks
from beatray.record import RATE_HZ, Window

CHECKED = 64
"""Recordings of a call that are looked at: more do not change a median."""
AROUND_SMP = 64
"""Samples before and after an R-peak: 128 ms."""
N_FFT = 512
USUAL_HZ = 20.5
NARROW_HZ, FAST_BPM = 29.0, 95.0
WIDE_HZ, SLOW_BPM = 14.0, 55.0
NO_QRS_HZ = 55.0
"""No QRS complex is so narrow, whatever the heart rate: the detector finds only some of beats this fast."""


def rate_doubt(windows: Sequence[Window], rate_hz: float) -> str:
    """Why these recordings, read at `rate_hz`, can hardly be of that rate; empty where nothing speaks against it."""
    found = np.array([_measures(window) for window in windows[:CHECKED]], np.float64).reshape(-1, 2)
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        return ""
    bpm, qrs_hz = np.median(found, axis=0)
    too_fast = qrs_hz > NO_QRS_HZ or (qrs_hz > NARROW_HZ and bpm > FAST_BPM)
    too_slow = qrs_hz < WIDE_HZ and bpm < SLOW_BPM
    if not (too_fast or too_slow):
        return ""
    times = qrs_hz / USUAL_HZ
    likely = rate_hz / max(2, round(times)) if too_fast else rate_hz * max(2, round(1 / times))
    how = f"{times:.1f} times as narrow" if too_fast else f"{1 / times:.1f} times as wide"
    return (
        f"at rate_hz={rate_hz:g} the hearts beat {bpm:.0f} times a minute, with QRS complexes {how} as usual. Is that "
        f"the rate of the samples? About {likely:g} Hz would fit"
    )


def _measures(window: Window) -> tuple[float, float]:
    """Beats per minute, and the median frequency of the slope of the mean QRS complex; NaN where there are too few."""
    leads = [lead for lead in range(12) if window.lead_mask >> lead & 1]
    x_mv = window.signal_uv[:, : window.n_samples].astype(np.float32) / 1000.0
    (peaks,) = find_r_peaks(x_mv[None], float(RATE_HZ), lead_mask=[window.lead_mask])
    if len(peaks) < 3:
        return float("nan"), float("nan")
    whole = peaks[(peaks >= AROUND_SMP) & (peaks < window.n_samples - AROUND_SMP)]
    if len(whole) < 2:
        return float("nan"), float("nan")
    mean = np.mean([x_mv[leads, peak - AROUND_SMP : peak + AROUND_SMP] for peak in whole], axis=0)
    return 60.0 * RATE_HZ / float(np.median(np.diff(peaks))), _median_frequency(np.diff(mean, axis=1))


def _median_frequency(slope: NDArray[np.float32]) -> float:
    """In Hz, of the power of (leads, n), every lead counting alike."""
    power = np.abs(np.fft.rfft(slope * np.hanning(slope.shape[1]), N_FFT, axis=1)) ** 2
    each = power.sum(axis=1, keepdims=True)
    share = np.divide(power, each, out=np.zeros_like(power), where=each > 0).sum(axis=0).cumsum()
    if share[-1] <= 0:
        return float("nan")
    return float(np.fft.rfftfreq(N_FFT, 1.0 / RATE_HZ)[np.searchsorted(share, 0.5 * share[-1])])
