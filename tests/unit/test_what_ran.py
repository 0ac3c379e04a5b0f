"""What a report says of how a sweep was run, and that its figures name every line they draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from beatray.commands.what_ran import NOT_KEPT, what_ran
from beatray.report.canvas import to_svg
from beatray.report.pictures import training_curves
from beatray.report.sweep_figures import Curve, boxes, curves
from beatray.storage.store import Store
from beatray.sweep.starts import NAME, note_start, read_starts, version_here

SETTINGS = {"corpus": {"path": "s3://bucket/sets/ptbxl?region=eu", "test_folds": [9, 10], "validation_folds": [8]}}


def test_the_facts_of_a_sweep(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    found = what_ran(store, SETTINGS, None, None)
    assert found["command"] == found["started"] == NOT_KEPT
    assert found["corpus"] == "ptbxl (s3://bucket/sets/ptbxl?region=eu), manifest unknown"
    note_start(store, ["sweep=small", "tracking.uri=https://me:secret@host/x"])
    note_start(store, ["sweep=small", "train.epochs=3"])
    found = what_ran(store, SETTINGS, "0123456789abcdef" * 4, 21_799, 17_000)
    assert found["command"] == "beatray sweep sweep=small train.epochs=3" and "2 starts" in str(found["started"])
    assert str(found["corpus"]).endswith("manifest 0123456789abcdef, 21,799 recordings, pretrained on 17,000")
    assert found["folds"] == "tested on 9, 10, validated on 8"
    corpus = {**SETTINGS["corpus"], "fold_rotation": 3}
    assert what_ran(store, {"corpus": corpus}, None, None)["folds"] == "tested on 2, 3, validated on 1"
    rotated = what_ran(store, {"corpus": corpus}, None, None, rotations={0, 3})["folds"]
    assert rotated == "tested on 9, 10, validated on 8 of the folds in 2 rotations (corpus.fold_rotation)"
    assert str(found["beatray"]).startswith(version_here()) and str(found["report of"]).endswith(" UTC")
    assert "secret" not in store.read(NAME).decode()
    assert read_starts(store)[0].command.startswith("beatray sweep sweep=small tracking.uri=https://")
    store.write(NAME, b"[{")
    assert read_starts(store) == []


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("reference", ["", "the paper's figures"])
def test_a_line_that_only_a_later_panel_has_is_in_the_legend(reference: str) -> None:
    one = Curve({0.1: np.array([0.5]), 1.0: np.array([0.6])})
    drawn = curves({"first": {"a": one}, "second": {"a": one, "measured features": one}}, "x", reference)
    assert legend_of(drawn) == ["a", "measured features", *([reference] if reference else [])]
    assert {axes.get_xscale() for axes in drawn.axes} == {"log"}


def test_a_setting_that_may_be_nought_is_drawn_where_it_is() -> None:
    values = np.array([0.5])
    (axes,) = curves({"first": {"a": Curve({0.0: values, 0.25: values, 0.5: values})}}, "mass").axes
    assert axes.get_xscale() == "linear" and axes.get_xticks().tolist() == [0.0, 0.25, 0.5]


def test_names_may_hold_dollars() -> None:
    drawn = curves({"a$_$": {"cost $x^$": Curve({1.0: np.array([0.5]), 2.0: np.array([0.6])})}}, "x")
    assert to_svg(drawn).startswith(b"<?xml")


def test_levels_and_the_parts_of_a_training_curve_are_in_the_legend() -> None:
    values = {"a": np.array([0.5, 0.6])}
    drawn = boxes({"first": values, "second": values}, levels={"second": {"random weights": 0.4}})
    assert legend_of(drawn) == ["random weights"]
    steps = np.arange(5.0)
    alone = training_curves(steps, {"loss": steps})
    assert legend_of(alone) == ["as measured", "running median"]
    beside = training_curves(steps, {"loss": steps}, others={"loss": [(steps, steps)]})
    assert sorted(legend_of(beside)) == ["as measured", "other trials", "running median"]
