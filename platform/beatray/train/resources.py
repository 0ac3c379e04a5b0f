"""Does the plan fit the cluster? A run that cannot start is refused with the arithmetic; Ray alone would wait for ever.

Ray Train takes CPUs for the ranks first; the readers of Ray Data get what is left. With nothing left a run hangs
silently, so the sum is made here, before anything starts.
"""

from __future__ import annotations

from beatray.errors import SettingsError, TrainingError
from beatray.settings import PretrainSettings


def check_resources(settings: PretrainSettings, total: dict[str, float]) -> None:
    """Refuse a run that could only hang. `total` are the resources of all nodes, as `ray.cluster_resources()` has them.

    Raises SettingsError with the arithmetic. An elastic run needs room for its least number of workers.
    """
    train = settings.train
    workers = train.least_workers
    for_ranks = workers * train.cpus_per_worker
    for_readers = workers * train.cpus_per_reader
    have = total.get("CPU", 0.0)
    if for_ranks + for_readers > have:
        raise SettingsError(
            f"{workers} workers need {for_ranks:g} CPUs and their readers at least {for_readers:g}, "
            f"together {for_ranks + for_readers:g}; Ray has {have:g}. Lower train.workers, train.cpus_per_worker or "
            "train.cpus_per_reader, or add nodes."
        )
    if use_gpu(settings, total) and total.get("GPU", 0.0) < workers:
        raise SettingsError(
            f"{workers} workers need as many GPUs; Ray has {total.get('GPU', 0):g}. "
            "Lower train.workers or set train.device=cpu."
        )


def check_readers_fit(settings: PretrainSettings, workers: int, total: dict[str, float]) -> None:
    """For a group that runs already: TrainingError if it has left its readers no CPUs, as an elastic one can."""
    train = settings.train
    need = workers * (train.cpus_per_worker + train.cpus_per_reader)
    have = total.get("CPU", 0.0)
    if need > have:
        raise TrainingError(
            f"{workers} workers and their readers need {need:g} CPUs; Ray has {have:g}, and the workers would wait for "
            "data for ever. Raise train.cpus_per_worker, so that fewer of them are started on the CPUs there are."
        )


def missing_now(settings: PretrainSettings, free: dict[str, float], total: dict[str, float]) -> str | None:
    """A message on what others use at the moment and this run must wait for; None if it can start at once."""
    train = settings.train
    need = train.least_workers * (train.cpus_per_worker + train.cpus_per_reader)
    if need > free.get("CPU", 0.0):
        return f"{need:g} CPUs are needed and {free.get('CPU', 0.0):g} are free"
    if use_gpu(settings, total) and free.get("GPU", 0.0) < train.least_workers:
        return f"{train.least_workers} GPUs are needed and {free.get('GPU', 0.0):g} are free"
    return None


def use_gpu(settings: PretrainSettings, resources: dict[str, float]) -> bool:
    """True if the ranks train on GPUs."""
    if settings.train.device == "auto":
        return resources.get("GPU", 0.0) > 0
    return settings.train.device == "cuda"
