"""What a rank writes when no step ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from beatray.storage.store import Store
from beatray.train import watchdog
from beatray.train.watchdog import STALLS, Watchdog


def test_a_dump_holds_one_stall_and_goes_if_a_step_ends_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 0.5)
    dump = tmp_path / STALLS / "alone-rank-0.txt"
    with Watchdog(Store(str(tmp_path)), None, 0, minutes=60) as dog:  # the hour is not over: a step has ended
        for waited in (11.0, 22.0):
            bark = threading.Thread(target=dog._bark, args=(waited,))
            bark.start()
            while not dump.exists():
                time.sleep(0.01)
            text = dump.read_text()
            bark.join()
            assert text.count("no step ended for") == 1 and f"for {waited:.0f} s" in text and "test_watchdog.py" in text
            assert not dump.exists()
