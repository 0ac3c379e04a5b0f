"""An evaluation that is killed leaves no process behind, and what it had finished is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import numpy as np

from beatray.evaluate.kept_runs import KeptRuns
from beatray.evaluate.results import Evaluation, Run, as_document
from beatray.evaluate.worker import Worker

SCRIPT = """
import json, os, sys
from pathlib import Path
from dataclasses import replace
from evaluation_rows import read_rows
from beatray.evaluate.encoders import EncoderSpec
from beatray.evaluate.run import evaluate
from beatray.evaluate.settings import quick

SAMPLE = Path({sample!r})

def evaluated(workers, folder, progress=None):
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 9), ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 24))
    owners = [p or r for p, r in zip(rows.patient_id, rows.record_id, strict=True)]
    tested = [owner in sorted(set(owners))[::3] for owner in owners]
    train, test = ([n for n, t in enumerate(tested) if t == there] for there in (False, True))
    asked = replace(quick(), workers=workers, protocols=("linear_probe", "frozen_decoder"), seeds=(0, 1))
    return evaluate(rows, train, test, [EncoderSpec("tiny")], asked, progress, folder=folder, corpus="c")

def print_progress(done, units, name):
    print(json.dumps([done, units, name]), flush=True)

if __name__ == "__main__":
    evaluated(2, Path(sys.argv[1]), print_progress)
"""
ROOT = Path(__file__).parents[2]


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(folder.name))
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_evaluation_leaves_no_worker_and_keeps_what_was_done(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "killed_evaluation_script.py"
    script.write_text(dedent(SCRIPT.format(sample=str(ROOT / "platform" / "beatray" / "sample"))))
    folder = tmp_path / "kept"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    for line in process.stdout:
        done, units, _ = json.loads(line)
        if done == 3:
            break
    workers = [pid for pid in children_of(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))

    monkeypatch.syspath_prepend(str(tmp_path))
    from killed_evaluation_script import evaluated  # type: ignore[import-not-found]

    kept = len(list(folder.glob("*.npz")))
    assert 3 <= kept < units
    ran: list[str] = []
    plain = Worker.run

    def counted(self: Worker, unit):  # type: ignore[no-untyped-def]
        ran.append(unit.name())
        return plain(self, unit)

    monkeypatch.setattr(Worker, "run", counted)
    resumed = evaluated(1, folder)
    assert len(ran) == units - kept and len(list(folder.glob("*.npz"))) == units
    ran.clear()
    whole = evaluated(1, None)
    assert len(ran) == units
    assert figures(resumed) == figures(whole)


def test_runs_come_back_to_the_bit(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """What is kept is what was found: written and read again, every array and number the same."""
    script = tmp_path / "kept_runs_script.py"
    script.write_text(dedent(SCRIPT.format(sample=str(ROOT / "platform" / "beatray" / "sample"))))
    monkeypatch.syspath_prepend(str(tmp_path))
    from kept_runs_script import evaluated  # type: ignore[import-not-found]

    seen: list[tuple[list[Run], list[Run]]] = []
    write = KeptRuns.write

    def compared(self: KeptRuns, unit, runs):  # type: ignore[no-untyped-def]
        write(self, unit, runs)
        seen.append((runs, self.read(unit) or []))

    monkeypatch.setattr(KeptRuns, "write", compared)
    evaluated(1, tmp_path / "kept")
    assert seen
    for before, after in seen:
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert repr(one) == repr(other)
            for name in ("outcome", "waves"):
                held = getattr(one, name)
                for key in () if held is None else held.__dataclass_fields__:
                    assert np.array_equal(getattr(held, key), getattr(getattr(other, name), key), equal_nan=True)
            assert (one.predictions is None) == (other.predictions is None)
            assert one.predictions is None or np.array_equal(one.predictions, other.predictions)


def figures(evaluation: Evaluation) -> str:
    document = as_document(evaluation)
    return repr([{key: value for key, value in run.items() if key != "seconds"} for run in document["runs"]])
