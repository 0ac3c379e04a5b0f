"""With `static_shapes` no forward pass makes the host wait for a device, and every number is the one without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from beatray.objectives.objective import Progress, StepResult
from beatray.train.blocks import Arrays
from every_method import RECIPES, batch_of, model_of, rows_of, settings_of, views_of
from watched_tensors import Waited, no_waits

pytestmark = pytest.mark.usefixtures("one_thread")

CASES: list[tuple[str, ...]] = [
    *((recipe,) for recipe in RECIPES),
    *(
        ("beat_ssl_tiny", f"objective.rhythm={kind}", f"objective.beat={kind}", f"objective.loss={loss}")
        for kind in ("hard", "soft_1", "soft_2", "soft_z")
        for loss in ("soft_cross_entropy", "softclt", "sigmoid")
    ),
    ("beat_ssl_tiny", "objective.beat=soft_z", "objective.positive_mass=null"),
    ("beat_ssl_tiny", "objective.beat=soft_1", "objective.positive_mass=0", "objective.feature_weight=0.5"),
    ("beat_ssl_tiny", "objective.beat=soft_1", "objective.beat_positives=inherit_record"),
    ("beat_ssl_tiny", "objective.beat_positives=clusters"),
    ("cpc_tiny", "objective.batch_negatives=3"),
    ("cpc_tiny", "objective.negatives=all"),
    ("dense_beats_tiny", "objective.prediction.signal=views", "objective.rhythm=soft_1"),
    ("dense_beats_conv_tiny", "objective.prediction.signal=views", "objective.prediction.batch_negatives=3"),
    ("physio_contrast_tiny", "objective.ratio=true"),
    ("crema_tiny", "objective.contrast_weight=0"),
    ("swav_tiny", "objective.queue_rows=0"),
    ("jepa_tiny", "objective.keep_min=0.02", "objective.keep_max=0.9", "objective.crop_seconds=1.0"),
]

ROWS = 6


def rows() -> tuple[Arrays, dict[str, Any]]:
    """Real recordings: one is short, one has no beat, one has a single one, two are of one patient."""
    arrays, statistics = copy.deepcopy(rows_of(ROWS))
    arrays["n_samples"][2] = 700
    arrays["signal_uv"][2, :, 700:] = 0
    arrays["r_peaks"][3] = -1
    arrays["r_peaks"][4, 1:] = -1
    arrays["patient_key"][4] = arrays["patient_key"][0]
    return arrays, statistics


def id_of(case: tuple[str, ...]) -> str:
    return " ".join(case)


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_no_step_waits_for_the_device(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, statistics = rows()
    objective = model_of(settings_of(*case), statistics)
    views = {name: value.to("meta") for name, value in views_of(objective, batch_of(objective, arrays)).items()}
    objective.to("meta").static_shapes = True
    with no_waits(monkeypatch):
        objective(views, Progress(1, 10)).loss.backward()


WAYS_TO_WAIT: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: float(x.sum()),
    "a decision": lambda x: bool((x > 0).all()),
    "a list": lambda x: x.tolist(),
    "a boolean index": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "bincount": lambda x: torch.bincount(x.long(), minlength=5),
    "a copy to the host": lambda x: x.cpu(),
    "a copy to the device": lambda x: torch.arange(3).to(x.device),
    "a list of places": lambda x: x[[0, 2]],
    "numbers of the host": lambda x: torch.tensor([1.0], device=x.device),
    "one number of the host": lambda x: x.new_tensor(1.0),
}


@pytest.mark.parametrize("way", WAYS_TO_WAIT)
def test_every_way_to_wait_is_seen(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Waited), no_waits(monkeypatch):
        WAYS_TO_WAIT[way](torch.ones(3, device="meta"))


def both_ways(
    case: tuple[str, ...], arrays: Arrays, statistics: dict[str, Any], exact: bool
) -> list[tuple[StepResult, dict[str, Tensor]]]:
    """A step's result and gradients without and with static shapes."""
    found = []
    for static in (False, True):
        objective = model_of(settings_of(*case), statistics, exact=exact)
        objective.static_shapes = static
        torch.manual_seed(0)
        result = objective(views_of(objective, batch_of(objective, arrays), exact=exact), Progress(1, 10))
        result.loss.backward()
        found.append((result, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}))
    return found


def assert_same(found: list[tuple[StepResult, dict[str, Tensor]]], exact: bool) -> None:
    (one, of_one), (other, of_other) = found
    tight = {"rtol": 1e-12, "atol": 1e-12} if exact else {"rtol": 1e-5, "atol": 2e-6}
    torch.testing.assert_close(other.loss, one.loss, **tight)
    torch.testing.assert_close(of_other, of_one, **tight)
    torch.testing.assert_close(other.means, one.means, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(other.counts, one.counts, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_every_number_is_the_one_without(case: tuple[str, ...]) -> None:
    assert_same(both_ways(case, *rows(), exact=True), exact=True)


@pytest.mark.parametrize("recipe", ["beat_ssl_tiny", "cpc_tiny", "ts2vec_tiny"])
def test_every_number_is_the_one_without_in_float32(recipe: str) -> None:
    assert_same(both_ways((recipe,), *rows(), exact=False), exact=False)


BEATS = [
    case
    for case in CASES
    if case[0] == "beat_ssl_tiny" and not any("softclt" in setting or "cross_entropy" in setting for setting in case)
]


@pytest.mark.parametrize("what", ["no beat", "one beat", "no record", "one class"])
@pytest.mark.parametrize("case", BEATS, ids=id_of)
def test_few_beats_are_no_error(case: tuple[str, ...], what: str) -> None:
    arrays, statistics = rows()
    if what == "no beat":
        arrays["r_peaks"][:] = -1
    elif what == "one beat":
        arrays["r_peaks"][1:] = -1
        arrays["r_peaks"][0, 1:] = -1
    elif what == "no record":
        arrays = {name: values[:0] for name, values in arrays.items()}
    else:  # slots without a beat have class -1, and are not a second class
        arrays["beat_class"][arrays["r_peaks"] >= 0] = 2
    found = both_ways(case, arrays, statistics, exact=True)
    assert_same(found, exact=True)
    result, gradients = found[1]
    assert torch.isfinite(result.loss) and all(torch.isfinite(gradient).all() for gradient in gradients.values())
    if what == "no beat":
        assert result.counts["beats"] == result.counts["beat/skipped"] == 0


def test_all_slots_take_part() -> None:
    arrays, statistics = rows()
    objective = model_of(settings_of("beat_ssl_tiny"), statistics)
    views = views_of(objective, batch_of(objective, arrays))
    shapes = []
    for static in (False, True):
        objective.static_shapes = static
        objective.beat_head.register_forward_hook(lambda _, given, out: shapes.append(len(out)))
        objective(views, Progress())
        objective.beat_head._forward_hooks.clear()
    there = int((views["beat_index"] >= 0).sum())
    assert there < views["beat_index"].numel()
    assert shapes == [2 * there, 2 * views["beat_index"].numel()]
