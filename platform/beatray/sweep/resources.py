"""How many trials fit: the arithmetic of CPUs and GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from beatray.errors import SettingsError
from beatray.settings import PretrainSettings
from beatray.train.resources import check_resources, use_gpu

DRIVER_CPUS = 0.05
"""Of a trial's own driver, which only waits; Tune needs more than 0."""


def cpus_of(settings: PretrainSettings) -> float:
    """CPUs of one trial with all its readers at work: then no trial waits for another's."""
    train = settings.train
    readers = train.readers_per_worker * train.cpus_per_reader
    return train.least_workers * (train.cpus_per_worker + readers) + DRIVER_CPUS


def check_trial(settings: PretrainSettings, available: Mapping[str, float]) -> None:
    """Refuse a trial that could only hang, with the arithmetic."""
    left = {**available, "CPU": round(available.get("CPU", 0.0) - DRIVER_CPUS, 6)}
    try:
        check_resources(settings, left)
    except SettingsError as error:
        raise SettingsError(f"{error} ({DRIVER_CPUS:g} CPUs are kept for the trial's own driver.)") from error


def at_a_time(trials: Sequence[PretrainSettings], available: Mapping[str, float], asked: int | None) -> int:
    """How many trials run at a time: what the CPUs and GPUs hold, or fewer if asked for; SettingsError for more.

    Every one of `trials` must fit alone (`check_trial`).
    """
    need, have = max(map(cpus_of, trials)), available.get("CPU", 0.0)
    fits, because = max(math.floor(have / need + 1e-9), 1), f"a trial needs {need:g} CPUs and Ray has {have:g}"
    gpus = max((s.train.least_workers for s in trials if use_gpu(s, dict(available))), default=0)
    have_gpus = available.get("GPU", 0.0)
    if gpus and math.floor(have_gpus / gpus) < fits:
        fits, because = math.floor(have_gpus / gpus), f"a trial needs {gpus} GPUs and Ray has {have_gpus:g}"
    if asked is not None and asked > fits:
        raise SettingsError(f"sweep.max_concurrent_trials={asked} do not fit: {because}, room for {fits}.")
    return min(fits, len(trials), asked or fits)
