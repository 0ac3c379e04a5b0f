"""The CPUs that a run and a trial need: what is counted is what Ray is asked for."""

from __future__ import annotations

import pytest

from beatray.errors import SettingsError
from beatray.settings import PretrainSettings
from beatray.sweep.resources import at_a_time, cpus_of
from beatray.train.composed import pretrain_settings
from beatray.train.resources import check_readers_fit, check_resources, missing_now


def placed(place: str) -> PretrainSettings:
    cpus = ["train.workers=1", "train.device=cpu", "train.cpus_per_worker=0.5", "train.cpus_per_reader=0.5"]
    return pretrain_settings(["train=small", f"train.augment_on={place}", *cpus])


def test_views_that_readers_make_take_no_more_readers() -> None:
    """They are made in the task that reads."""
    device, workers = (placed(place) for place in ("device", "workers"))
    full = {"CPU": cpus_of(device)}
    assert at_a_time([workers], full, None) == 1 and cpus_of(workers) == cpus_of(device)
    check_resources(workers, {"CPU": 1.0})
    check_readers_fit(workers, 1, {"CPU": 1.0})
    assert missing_now(workers, {"CPU": 1.0}, {"CPU": 1.0}) is None
    with pytest.raises(SettingsError, match=r"together 1; Ray has 0\.9"):
        check_resources(workers, {"CPU": 0.9})
