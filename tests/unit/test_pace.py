"""The time left, on a terminal and in a log: what was done before the first news is no pace."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest

from beatray.commands import console
from beatray.commands.pace import Pace, duration_text


def test_work_done_before_and_work_done_again_say_nothing_of_the_rate() -> None:
    pace = Pace()
    pace.add(0.0, 0)
    pace.add(10.0, 300)  # a run that goes on
    assert pace.seconds_left(320, 10.0) is None
    pace.add(12.0, 301)
    pace.add(14.0, 302)
    assert pace.seconds_left(320, 14.0) == pytest.approx(36.0)
    assert pace.seconds_left(320, 18.0) == pytest.approx(32.0)
    assert pace.seconds_left(320, 1000.0) == 0.0
    pace.add(20.0, 290)  # a worker died
    assert pace.seconds_left(320, 20.0) is None
    pace.add(21.0, 292)
    assert pace.seconds_left(320, 21.0) == pytest.approx(14.0)
    assert [duration_text(seconds) for seconds in (7.2, 65, 9000)] == ["7 s", "1:05 min", "2:30 h"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "log"])
def test_both_forms_of_the_progress_show_it(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("pretrain", "steps") as update:
        for at, done in ((10.0, 300), (20.0, 310), (30.0, 315)):
            clock[0] = at
            update(done, 320, "loss 1.000")
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()) + capsys.readouterr().out
    assert "315/320" in output and "7 s left, loss 1.000" in output
