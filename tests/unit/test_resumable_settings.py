"""Which settings a run may go on with that was begun with others, or by an older version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from beatray.commands.pretrain import settings_from
from beatray.errors import TrainingError
from beatray.train.run_spec import RunSpec, check_same_run, shown_settings


def run_spec_of(*overrides: str) -> RunSpec:
    settings = settings_from(["corpus=/c", "out=/o", "run=r", "encoder=tiny", *overrides])
    nothing = cast(Any, None)
    return RunSpec(settings, nothing, nothing, {}, {}, "hash", b"", 0)


def as_stored(run_spec: RunSpec) -> dict[str, Any]:
    return dict(json.loads(json.dumps(shown_settings(run_spec.settings))))


def test_what_older_runs_do_not_name_is_what_they_did() -> None:
    run_spec = run_spec_of()
    older = as_stored(run_spec)
    older["encoder"] = {key: value for key, value in older["encoder"].items() if key != "channels"}
    older["corpus"] = {key: value for key, value in older["corpus"].items() if key != "split"}
    check_same_run(run_spec, {"manifest_hash": "hash", "settings": older})
    with pytest.raises(TrainingError, match=r"encoder.channels: \[32, 32, 64\] before, \[48, 64, 128\] now"):
        check_same_run(run_spec_of("encoder.channels=[48,64,128]"), {"manifest_hash": "hash", "settings": older})


def test_a_run_of_older_test_recordings_goes_on_with_them_alone() -> None:
    mimic = "corpus.hashed_test_sources=[ludb,mimic]"
    older = as_stored(run_spec_of(mimic))
    del older["corpus"]["hashed_test_by"]
    state = {"manifest_hash": "hash", "settings": older}
    check_same_run(run_spec_of(mimic, "corpus.hashed_test_by=recording"), state)
    with pytest.raises(TrainingError, match=r"corpus.hashed_test_by: 'recording' before, 'patient' now"):
        check_same_run(run_spec_of(mimic), state)
    del (ludb := as_stored(run_spec_of()))["corpus"]["hashed_test_by"]  # of LUDB both choose the same
    check_same_run(run_spec_of(), {"manifest_hash": "hash", "settings": ludb})


def test_how_long_and_where_may_change_and_what_is_learnt_may_not() -> None:
    state = {"manifest_hash": "hash", "settings": as_stored(run_spec_of())}
    check_same_run(run_spec_of("train.epochs=7", "train.workers=5", "cluster.cpus=1"), state)
    with pytest.raises(TrainingError, match=r"train\.learning_rate"):
        check_same_run(run_spec_of("train.learning_rate=0.5"), state)


OLDER = json.loads((Path(__file__).parents[1] / "data" / "settings-0.1.json").read_text())
"""What version 0.1 wrote down of `run_spec_of()`."""


def test_a_run_that_version_0_1_began_goes_on() -> None:
    """Settings were called otherwise then, and others did not exist."""
    state = {"manifest_hash": "hash", "settings": OLDER}
    assert (
        {"pos_mass", "form", "hard_beat", "views"} <= OLDER["objective"].keys()
        and OLDER["views"]
        and "recipe" not in OLDER
    )
    check_same_run(run_spec_of(), state)
    check_same_run(
        run_spec_of("objective.pos_mass=0.5", "train.lanes=16", "train.epochs=7", "views.place=workers"), state
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.temperature=0.2", "objective.temperature: 0.1 before, 0.2 now"),
        ("objective.positive_mass=null", "objective.positive_mass: 0.5 before, None now"),
        ("objective.beat_positives=clusters", "objective.beat_positives: 'same_record' before, 'clusters' now"),
        ("objective.loss=sigmoid", "objective.loss: 'soft_cross_entropy' before, 'sigmoid' now"),
        ("objective.augment.scale=1.7", "objective.augment.scale: 1.5 before, 1.7 now"),
        ("train.max_grad_norm=2", "train.max_grad_norm: 1.0 before, 2.0 now"),
        ("train.shuffle_streams=8", "train.shuffle_streams: 16 before, 8 now"),
        ("train.schedule=constant", "train.schedule: 'cosine' before, 'constant' now"),
        ("encoder.kernel=9", "encoder.kernel: 7 before, 9 now"),
    ],
)
def test_what_is_learnt_may_not_change_in_it_either(override: str, message: str) -> None:
    with pytest.raises(TrainingError) as refused:
        check_same_run(run_spec_of(override), {"manifest_hash": "hash", "settings": OLDER})
    assert f"({message})" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "override"),
    [
        ({"form": "bce", "bce_bias": -2}, ["objective.loss=sigmoid", "objective.sigmoid_bias=-2"]),
        ({"hard_beat": "clusters"}, ["objective.beat_positives=clusters"]),
        (
            {"hard_beat": "clusters", "beat_labels": "aami", "beat_classifier": "/b"},
            ["objective.beat_positives=aami", "objective.beat_classifier=/b"],
        ),
        (
            {"beat": "soft_z", "beat_similarity": "inherit_record"},
            ["objective.beat=soft_z", "objective.beat_positives=inherit_record"],
        ),
        ({"beat_similarity": "inherit_record"}, []),
    ],
)
def test_older_values_are_those_of_today(changes: dict[str, Any], override: list[str]) -> None:
    older = {**OLDER, "objective": {**OLDER["objective"], **changes}}
    check_same_run(run_spec_of(*override), {"manifest_hash": "hash", "settings": older})
