"""`beatray bench` as a user runs it: a table on the terminal and all of it as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_a_short_bench_reports_step_feed_loop_and_the_plain_loop(sample_corpus: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    given = [f"corpus={sample_corpus}", "train.device=cpu", "train.batch_size=8"]
    overrides = [*given, "--seconds", "4", "--json", str(file)]
    command = [sys.executable, "-m", "beatray.cli", "bench", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    rows = report["rows"]
    assert report["head"]["recipe"] == "beat_ssl_tiny" and report["head"]["ray"]
    assert report["overrides"] == given
    assert {"plain PyTorch loop", "beatray loop", "step alone", "feed, Ray Data, 1 reader"} <= rows.keys()
    assert all(row["records_per_s"] > 0 for row in rows.values())
    assert all(name in done.stdout for name in rows) and "of peak" in done.stdout and "Dataset" not in done.stderr
