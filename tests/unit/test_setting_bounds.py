"""Every number of every settings group is checked when the words are read: no slip comes out as a traceback later."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from beatray.errors import SettingsError
from beatray.evaluate.settings import EvaluateSettings
from beatray.models.registry import encoder_classes
from beatray.objectives.registry import objective_classes
from beatray.schema import build
from beatray.settings import PretrainSettings
from beatray.sweep.settings import SweepSettings

GROUPS: dict[str, type[Any]] = {
    "evaluate": EvaluateSettings,
    "sweep": SweepSettings,
    "pretrain": PretrainSettings,
    **{f"objective {name}": kind.Settings for name, kind in objective_classes().items()},
    **{f"encoder {name}": kind.Settings for name, kind in encoder_classes().items()},
}
BEYOND = 99999999999999999999


def kinds_in(hint: Any) -> set[Any]:
    """The plain types of a hint: int, float, tuple."""
    origin = typing.get_origin(hint)
    return {origin or hint}.union(*(kinds_in(inner) for inner in typing.get_args(hint)))


def numbers_of(kind: type[Any], where: str = "") -> Iterator[tuple[type[Any], str, set[Any]]]:
    """(dataclass, field, plain types) of every field that holds numbers, those inside included."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        kinds = kinds_in(hints[item.name])
        if dataclasses.is_dataclass(hints[item.name]):
            yield from numbers_of(typing.cast("type[Any]", hints[item.name]), f"{where}{item.name}.")
        elif kinds & {int, float}:
            yield kind, item.name, kinds


@pytest.mark.parametrize("group", GROUPS)
def test_what_no_number_can_be_is_refused_by_name(group: str) -> None:
    found = list(numbers_of(GROUPS[group]))
    assert found or group.startswith("encoder")
    for kind, name, kinds in found:
        wrong = ["abc", float("nan"), float("inf"), -float("inf"), 1e30, BEYOND, -BEYOND, {"a": 1}]
        wrong += [[each] for each in wrong[:7]] if tuple in kinds else [[]]
        for value in wrong:
            with pytest.raises(SettingsError, match=re.escape(name)):
                build(kind, {name: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"min_leads": 13}, "min_leads must be at most 12, not 13"),
        ({"segment_fractions": [2.0]}, "segment_fractions must be at most 1, not 2.0"),
        ({"segment_fractions": []}, "segment_fractions is empty"),
        ({"seeds": [-1]}, "seeds must be at least 0, not -1"),
        ({"seeds": [BEYOND]}, "seeds must be between -2.14748e+09 and 2.14748e+09"),
        ({"bootstraps": 0}, "bootstraps must be at least 1, not 0"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:NUMBER, not 'gpu'"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        build(EvaluateSettings, content)


def test_folds_that_nobody_published_hold_nothing_out_and_are_refused() -> None:
    for name in ("validation_folds", "test_folds"):
        for fold in (-1, 0, 11):
            with pytest.raises(SettingsError, match=f"{name} must be at"):
                build(PretrainSettings, {"corpus": {name: [fold]}})
        assert build(PretrainSettings, {"corpus": {name: []}})
