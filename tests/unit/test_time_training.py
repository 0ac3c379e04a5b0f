"""The report's time of training: of all steps, however many of them the journal has."""

from __future__ import annotations

import pytest

from beatray.commands.report import time_training


def journal(every: int, steps: int = 100) -> list[dict[str, float]]:
    """Lines as a run leaves them: every N-th step, and the last."""
    logged = [step for step in range(steps) if step % every == 0 or step == steps - 1]
    return [{"step": step, "step_s": 1.5, "data_wait_s": 0.5} for step in logged]


@pytest.mark.parametrize("every", [7, 10, 1000])
def test_a_line_of_every_nth_step_stands_for_all_since_the_line_before(every: int) -> None:
    assert time_training(journal(every)) == "about 200 s"


def test_a_line_of_every_step_is_its_own_time() -> None:
    lines = journal(1)
    lines[0]["step_s"] += 30.0  # the first step compiles
    assert time_training(lines) == "230 s" and time_training([]) == "0 s"
