"""`beatray bench` as a user runs it: a table on the terminal and all of it as JSON, a readable line for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "beatray.cli", "bench", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_short_bench_tells_step_feed_loop_and_the_plain_loop(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("train.device=cpu", "train.batch_size=32", "--seconds", "8", "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    rows = report["rows"]
    assert report["head"]["recipe"] == "beat_ssl_tiny" and report["head"]["ray"]
    assert report["overrides"] == ["train.device=cpu", "train.batch_size=32"]
    assert {"plain PyTorch loop", "beatray loop", "step alone", "feed, Ray Data, 1 reader"} <= rows.keys()
    assert all(row["records_per_s"] > 0 for row in rows.values())
    assert all(name in done.stdout for name in rows) and "of peak" in done.stdout and "Dataset" not in done.stderr


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    done = bench("train.batchsize=32")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "batch_size" in done.stderr
    done = bench("--json", str(tmp_path / "no" / "bench.json"))
    assert done.returncode == 2 and "there is no such folder" in done.stderr
