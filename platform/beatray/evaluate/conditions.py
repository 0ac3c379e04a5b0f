"""What is done to test recordings to see how much a trained model takes: noise, and leads that are missing.

A condition has a name, which is its row in the tables: `noise 3` (modelled, level 3), `EM 6 dB` (real electrode
motion), `3 leads`. Training never sees one. Noise is added in millivolts to the stored signal, before the filter that
every signal passes; leads are set to zero after it. The same recording has the same noise in every arm and seed.

Missing leads: 8 keeps the independent ones, 6 the limb leads, 3 keeps I, II and V2, 2 keeps I and II, 1 keeps I (12, 6,
3 and 2 as in the PhysioNet/CinC Challenge 2021). Of 8, nothing is lost that could not be computed back; whether a model
does so is the question.

Contract: `signal_uv` (n, 12, 5000) int16; the result is what `encoders.prepared` gives, (n, 12, 5000) float32 mV.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beatray.evaluate.encoders import prepared
from beatray.evaluate.noise import modelled_noise, read_noise, real_noise
from beatray.evaluate.settings import RobustnessSettings
from beatray.record import LEADS

if TYPE_CHECKING:
    from beatray.evaluate.tasks import TaskData

CLEAN = "clean"
CHUNK = 64
LEADS_KEPT = {
    12: LEADS,
    8: ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    6: ("I", "II", "III", "aVR", "aVL", "aVF"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
    1: ("I",),
}


def condition_names(settings: RobustnessSettings) -> tuple[str, ...]:
    """All conditions that the settings ask for, without `clean`; reads the noise folder once, so as to fail early."""
    names = [f"noise {level}" for level in settings.noise_levels]
    if settings.noise_folder is not None:
        for kind in settings.noise_kinds:
            read_noise(settings.noise_folder, kind)
            names += [f"{kind} {snr_db:g} dB" for snr_db in settings.snr_db]
    return (*names, *(f"{count} leads" if count > 1 else "1 lead" for count in settings.leads))


def under(
    condition: str,
    signal_uv: NDArray[np.int16],
    n_samples: NDArray[np.int64],
    lead_mask: NDArray[np.int16],
    r_peaks: Sequence[NDArray[np.int32]],
    record_ids: Sequence[str],
    settings: RobustnessSettings,
) -> NDArray[np.float32]:
    """The recordings under `condition`, prepared. Leads that a recording does not have stay empty."""
    first, second, *_ = condition.split()
    if second.startswith("lead"):
        x_mv = prepared(signal_uv, n_samples.astype(np.int32))
        x_mv[:, [k for k, lead in enumerate(LEADS) if lead not in LEADS_KEPT[int(first)]]] = 0.0
        return x_mv
    noisy_uv = signal_uv.astype(np.float32)
    for row, record_id in enumerate(record_ids):
        key = hashlib.blake2b(f"{condition}/{record_id}".encode(), digest_size=8).digest()
        chance = np.random.default_rng(int.from_bytes(key, "little"))
        length = int(n_samples[row])
        if first == "noise":
            added = modelled_noise(int(second), length, chance)
        else:
            signal_mv = signal_uv[row, :, :length].astype(np.float64) / 1000.0
            noise = read_noise(str(settings.noise_folder), first)
            added = real_noise(signal_mv, r_peaks[row], noise, float(second), chance)
        present = (int(lead_mask[row]) >> np.arange(len(LEADS)) & 1).astype(bool)
        noisy_uv[row, present, :length] += (1000.0 * added[present]).astype(np.float32)
    return prepared(noisy_uv, n_samples.astype(np.int32))


def in_chunks(
    condition: str, data: TaskData, index: NDArray[np.int64], settings: RobustnessSettings
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Signals and lengths of the test records `index` of a task under a condition, some at a time."""
    tested = data.tested
    if tested is None:
        raise ValueError(f"the signals for condition {condition} were not kept")
    stored = np.load(tested.signals, mmap_mode="r")
    for first in range(0, len(index), CHUNK):
        part = index[first : first + CHUNK]
        rows = np.searchsorted(data.test, part)
        peaks, ids = [tested.r_peaks[row] for row in rows], [tested.record_ids[row] for row in rows]
        n_samples = data.n_samples[part]
        yield under(condition, stored[rows], n_samples, tested.lead_mask[rows], peaks, ids, settings), n_samples
