"""A user's own table as targets of a model: the targets of each column, what is unknown, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from beatray.commands.job import main as job
from beatray.corpus.label_settings import label_settings, split_label_overrides
from beatray.corpus.splits import Role
from beatray.errors import LabelError, SettingsError
from beatray.finetune.settings import finetune_settings
from beatray.finetune.table_targets import targets_of_table
from beatray.finetune.targets import Targets
from beatray.objectives.supervised import SupervisedSettings
from beatray.sweep.plan import plan_from
from label_tables import many, written

ROLES = np.array([Role.TRAIN, Role.TRAIN, Role.TRAIN, Role.VALIDATION, Role.TEST, Role.TEST], np.int8)
ROWS = (
    "record;lvef;ill;rhythm;findings;who",
    "1;35,5;1;AF;LBBB|MI;p1",
    "2;;0;SR;|;p1",
    "3;61,0;;AF;MI;p2",
    "4;48,25;1;;;p3",
    "6;20,0;0;SR;LBBB;p4",
)


def targets_from(
    folder: Path, *overrides: str, rows: tuple[str, ...] = ROWS, index: pd.DataFrame | None = None
) -> Targets:
    given, others = split_label_overrides([f"labels={written(folder, chr(10).join(rows))}", *overrides])
    changes: dict[str, Any] = dict(override.split("=") for override in others)
    settings = SupervisedSettings(labels="table", table=label_settings(given), **changes)
    corpus: Any = SimpleNamespace(index=many(6) if index is None else index, recipe={}, acquired=None)
    return targets_of_table(corpus, settings, ROLES)


def test_columns_become_what_one_head_can_learn(tmp_path: Path) -> None:
    ill = targets_from(tmp_path, "labels.columns=[ill]")
    assert (ill.kind, ill.names, ill.rows.tolist()) == ("multilabel", ("ill",), [0, 1, 3, 5])
    assert ill.values.tolist() == [[1], [0], [1], [0]] and ill.nothing == -1
    rhythm = targets_from(tmp_path, "labels.columns=[rhythm]")
    assert (rhythm.kind, rhythm.names, rhythm.rows.tolist()) == ("classes", ("AF", "SR"), [0, 1, 2, 5])
    assert rhythm.values.tolist() == [0, 1, 0, 1]
    several = targets_from(tmp_path, "labels.columns=[findings]")
    assert (several.kind, several.names) == ("multilabel", ("LBBB", "MI"))
    assert several.rows.tolist() == [0, 1, 2, 5] and several.values.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    one = targets_from(tmp_path, "labels.columns=[findings]", "one_class=yes")
    assert (one.kind, one.rows.tolist(), one.values.tolist()) == ("classes", [2, 5], [1, 0])
    lvef = targets_from(tmp_path, "task=regress")
    assert (lvef.kind, lvef.names, lvef.rows.tolist()) == ("numbers", ("lvef",), [0, 2, 3, 5])
    assert lvef.values[:, 0].tolist() == [35.5, 61.0, 48.25, 20.0] and np.isnan(lvef.nothing)
    assert "ill: not of this task" in lvef.left_out


def test_mixed_columns_are_yes_or_no_by_class_and_unknown_where_they_are_empty(tmp_path: Path) -> None:
    found = targets_from(tmp_path, "labels.columns=[ill,rhythm]", "labels.targets.low=lvef < 40")
    assert found.names == ("ill", "rhythm=AF", "rhythm=SR", "low") and found.kind == "multilabel"
    assert found.rows.tolist() == [0, 1, 2, 3, 5]
    assert found.values.tolist() == [[1, 1, 0, 1], [0, 0, 1, -1], [-1, 1, 0, 0], [1, -1, -1, 0], [0, 0, 1, 1]]
    assert found.table is not None and found.table["conditions"] == {"low": "lvef < 40"}
    assert found.title == found.table["table"] == "labels.csv"


def test_the_patients_of_the_table_stand_in_where_the_corpus_knows_none(tmp_path: Path) -> None:
    index = many(6)
    index["patient_id"] = pd.Series(["mine/p1", None, None, None, None, None], dtype=object)
    owners = targets_from(tmp_path, "labels.patient=who", index=index).owners
    assert owners is not None and owners[0] == "mine/p1" and owners[4] is None
    assert owners[1] is not None and len({owners[1], owners[2], owners[3], owners[5]}) == 4
    with pytest.raises(LabelError, match="1 patients of column 'who' have recordings in two splits"):
        targets_from(tmp_path, "labels.patient=who", rows=(*ROWS[:5], ROWS[5].replace("p4", "p1")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("labels.columns=[lvef]",),
            r"numbers alone \(lvef\): set task=regress, or .*'labels\.targets\.low=lvef < 40'",
        ),
        (("labels.columns=[ill]", "task=regress"), r"no column of numbers \(ill\): set task=classify"),
        (("one_class=yes",), "has 3: set labels.columns"),
        (("labels.columns=[ill]", "one_class=yes"), "has none"),
        (("labels.columns=[il]",), "did you mean 'ill'"),
    ],
)
def test_what_no_head_can_learn_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        targets_from(tmp_path, *overrides)


def test_a_path_is_distinguished_from_a_name() -> None:
    usual = ["encoder=random", "corpus=/c"]
    own = finetune_settings(
        [*usual, "labels=t.csv", "labels.targets.low=lvef < 40", "labels.types.a b=classes"]
    ).objective
    assert own["labels"] == "table" and own["table"]["table"] == "t.csv"
    assert own["table"]["targets"] == {"low": "lvef < 40"} and own["table"]["types"] == {"a b": "classes"}
    for path in ("./labels", "/data/labels", "s3://bucket/t", "C:\\t.csv", "a.parquet"):
        assert finetune_settings([*usual, f"labels={path}"]).objective["table"]["table"] == path
    assert finetune_settings([*usual, "labels=rhythm"]).objective["labels"] == "rhythm"
    for overrides, message in (
        (["labels=rhythm", "labels.key=a"], r"labels=rhythm is no table"),
        (["labels=table"], r"set labels=PATH \(\./table\)"),
        (["labels.key=a"], r"labels\.key= is about a table: set labels=PATH"),
        (["labels=t.csv", "labels.kye=a"], r"'labels\.kye'; did you mean 'key'"),
        (["labels=t.csv", "task=segment"], r"task=segment learns labels=waves, not labels=t\.csv"),
        (["objective.labels=table"], r"labels=table needs a table"),
    ):
        with pytest.raises(SettingsError, match=message):
            finetune_settings([*usual, *overrides])


def test_a_table_in_a_sweep_and_in_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["objective=supervised", "objective.labels=table", "objective.table.table=/shared/own labels.csv"]
    overrides += ["objective.table.targets.low='lvef < 40'", "train=finetune", "sweep.metric=validation_auroc"]
    plan = plan_from([*overrides, "sweep.mode=max", "sweep.space.seed=[0,1]", "corpus=/c", f"out={tmp_path}"])
    for trial in plan.trials:
        assert trial.settings.objective["table"]["table"] == "/shared/own labels.csv"
        assert trial.settings.objective["table"]["targets"] == {"low": "lvef < 40"}
    for command, override in (
        ("finetune", "labels=mine.csv"),
        ("finetune", "labels.id_key_file=key"),
        ("sweep", "objective.table.table=mine.csv"),
        ("sweep", "evaluate.labels.table=mine.csv"),
        ("sweep", "encoder.weights=runs/first"),
    ):
        assert job(command, ["corpus=/c", "out=/o", override]) == 2
        assert f"{override} is relative" in capsys.readouterr().err
    assert job("finetune", ["corpus=/c", "out=/o", "labels=rhythm", "encoder=random", "fracton=1"]) == 2
    assert "did you mean" in capsys.readouterr().err  # a name of labels is no place
