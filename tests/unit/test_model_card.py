"""The card of a fine-tuned model."""

from __future__ import annotations

import numpy as np

from beatray.finetune.card import _table
from beatray.finetune.scores import number_scores


def test_several_numbers_have_each_their_error() -> None:
    """In units of their own: they have no common error."""
    truth = np.array([[50.0, 4.0], [60.0, 5.0], [70.0, 6.0], [80.0, 5.5]])
    both = number_scores(truth + np.array([2.0, 0.5]), truth, ["a", "b", "c", "d"], ["lvef", "potassium"])
    lines = _table({"validation": both, "test": both}).splitlines()
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" mean absolute error ", " lvef "],
        [" ", " potassium "],
        [" R squared ", " all "],
        [" ", " lvef "],
        [" ", " potassium "],
    ]
    assert "2.000" in lines[2] and "0.500" in lines[3]
    one = number_scores(truth[:, :1] + 2.0, truth[:, :1], ["a", "b", "c", "d"], ["lvef"])
    assert [line.split("|")[2] for line in _table({"validation": one, "test": one}).splitlines()[2:]] == [" all "] * 2
