"""The classes by which a sweep's report colours recordings: those that the evaluation had, whatever said them."""

from __future__ import annotations

from beatray.commands.sweep_report import classes_tested


def test_classes_are_those_that_were_tested() -> None:
    part = {
        "classes": ["AF", "LBBB"],
        "test_ids": ["a", "b", "c", "d"],
        "truth": [[1, 0], [1, 1], [0, 0], [None, 1]],  # a table of labels leaves some unknown
    }
    found = classes_tested({"tasks": {"classify": part}}, ["d", "c", "b", "a", "elsewhere"])
    assert found == ["LBBB", "", "several", "AF", ""]
    assert classes_tested({"tasks": {}}, ["a"]) == [""]
