"""How a run that ended is called: in MLflow, and by the exit code of its command."""

from __future__ import annotations

import pytest

from beatray.train.launch import RunResult


@pytest.mark.parametrize(
    ("finished", "by_signal", "as_asked", "status", "code"),
    [
        (True, False, False, "FINISHED", 0),
        (False, False, True, "FINISHED", 1),  # train.stop_after_steps: nothing went wrong, the run is not at its end
        (False, True, False, "KILLED", 75),
        (False, False, False, "KILLED", 1),
    ],
)
def test_statuses(finished: bool, by_signal: bool, as_asked: bool, status: str, code: int) -> None:
    result = RunResult("runs/a", 4, finished, 0, stopped_on_request=by_signal, as_asked=as_asked)
    assert (result.mlflow_status, result.exit_code) == (status, code)
