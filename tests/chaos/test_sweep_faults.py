"""Sweeps that lose their driver, a trial's process or a node, are asked to stop, or hold a trial that cannot work."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from beatray.storage.store import Store
from beatray.sweep.ranking import ranked
from beatray.sweep.record import SweepRecord, read
from beatray.track.journal import read_lines
from counts import count
from ray_nodes import cluster
from s3_server import S3Server

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not os.environ.get("BEATRAY_CHAOS"), reason="minutes of whole sweeps: set BEATRAY_CHAOS=1"),
]

PATIENCE_S = 900.0
OVERRIDES = (
    "encoder=tiny",
    "train=small",
    "train.workers=1",
    "train.batch_size=24",
    "train.precision=fp32",
    "train.epochs=12",
    "train.warmup_epochs=1",
    "train.checkpoint_every_steps=4",
    "train.validate_every_epochs=4",
    "cluster.object_store_mb=150",
    "tracking.flush_seconds=1",
)
ONE_AT_A_TIME = "cluster.cpus=1"  # and no more: a place that stays reserved stops everything
SPACE = "sweep.space.objective.temperature=[0.1,0.2,0.4]"
TRIALS = ("temperature-0.1", "temperature-0.2", "temperature-0.4")


@dataclass
class Sweep:
    """`beatray sweep` as a process of its own."""

    folder: Path
    overrides: tuple[str, ...]
    output: Path
    process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_", "MLFLOW_"))}
        with self.output.open("w") as output:  # no pipe: whoever outlives a killed driver would hold it open
            self.process = subprocess.Popen(
                [sys.executable, "-m", "beatray", "sweep", *self.overrides],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        RUNNING.append(self.process)
        return self.process

    def finish(self) -> tuple[int, str]:
        """(exit code, what it said) of the running process, or of a new one."""
        process = self.process or self.start()
        self.process = None
        if process.stdout is not None:  # of a cluster's command
            output, error = process.communicate(timeout=PATIENCE_S)
            return process.returncode, output + error
        return process.wait(PATIENCE_S), self.output.read_text()

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait while the process runs."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"the sweep ended too early: {self.finish()}")
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL of the driver alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def record(self) -> SweepRecord:
        record = read(Store(str(self.folder)))
        assert record is not None
        return record

    def steps(self, trial: str) -> int:
        """Steps that the trial's journal holds."""
        return len(read_lines(self.folder / trial / "metrics.jsonl"))

    def table(self) -> list[tuple[Any, ...]]:
        """The ranking without what depends on time."""
        return [
            (row.rank, row.value, row.trial.name, row.trial.status, row.trial.steps) for row in ranked(self.record())
        ]

    def statuses(self) -> dict[str, str]:
        """MLflow's status of every run, by name; the sweep's own under its name."""
        client = MlflowClient(f"sqlite:///{self.folder.parent / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "beatray"]
        runs = client.search_runs([experiment.experiment_id])
        assert len({run.info.run_name for run in runs}) == len(runs), "a run was tracked twice"
        return {run.info.run_name: run.info.status for run in runs}


RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """A test that fails leaves no sweep behind."""
    yield
    for process in RUNNING:
        if process.poll() is None:
            process.kill()
    RUNNING.clear()


def sweep_of(corpus: str, out: Path, *overrides: str) -> Sweep:
    overrides = (f"corpus={corpus}", f"out={out}", "run=first", *OVERRIDES, *overrides)
    return Sweep(out / "first", overrides, out / "said.txt")


@pytest.fixture(scope="module")
def whole(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The sweep that nothing happened to."""
    sweep = sweep_of(sample_corpus, tmp_path_factory.mktemp("whole"), SPACE, ONE_AT_A_TIME)
    code, output = sweep.finish()
    assert code == 0, (code, output[-3000:])
    assert sweep.statuses() == dict.fromkeys((*TRIALS, "first"), "FINISHED")
    return sweep


def test_a_sweep_whose_driver_is_killed_ends_with_the_same_table(
    whole: Sweep, sample_corpus: str, tmp_path: Path
) -> None:
    """SIGKILL at seeded random moments, then the same command: nothing that had ended is done again."""
    sweep = sweep_of(sample_corpus, tmp_path, SPACE, ONE_AT_A_TIME)
    total = whole.record().trials[0].steps
    moments = random.Random(5)
    kills = [(trial, moments.randrange(2, total - 8)) for trial in TRIALS for _ in range(count(1, 2))]
    ended: dict[str, int] = {}
    for trial, step in sorted(kills):
        before = attempts(sweep).get(trial, 0)
        sweep.start()
        sweep.until(  # at work again, and not only its journal of the last time
            lambda trial=trial, step=step, before=before: (  # type: ignore[misc]
                sweep.steps(trial) > step and attempts(sweep)[trial] > before
            )
        )
        sweep.kill()
        for name, changed in ended.items():
            assert (sweep.folder / name / "metrics.jsonl").stat().st_mtime_ns == changed, f"{name} was done again"
        ended = {
            each.name: (sweep.folder / each.name / "metrics.jsonl").stat().st_mtime_ns
            for each in sweep.record().trials
            if each.status == "finished"
        }
    assert ended  # the last kills came when some had finished
    code, output = sweep.finish()
    assert code == 0, (code, output[-3000:])
    print(f"killed the driver {len(kills)} times: {sorted(kills)}; attempts {attempts(sweep)}")
    assert sweep.table() == whole.table()
    assert sum(attempts(sweep).values()) == len(TRIALS) + len(kills)
    assert sweep.statuses() == dict.fromkeys((*TRIALS, "first"), "FINISHED")
    assert not list(sweep.folder.glob(".tune"))
    assert "nothing to do" in sweep.finish()[1]


def attempts(sweep: Sweep) -> dict[str, int]:
    record = read(Store(str(sweep.folder)))
    return {trial.name: trial.attempts for trial in record.trials} if record else {}


def test_a_sweep_that_is_asked_to_stop_says_so_and_goes_on_later(
    whole: Sweep, sample_corpus: str, tmp_path: Path
) -> None:
    """SIGTERM: exit code 75, a checkpoint in the trial that ran, nothing lost and nothing started after it."""
    sweep = sweep_of(sample_corpus, tmp_path, SPACE, ONE_AT_A_TIME)
    sweep.start()
    sweep.until(lambda: sweep.steps(TRIALS[1]) > 5)
    assert sweep.process is not None
    sweep.process.send_signal(signal.SIGTERM)
    code, output = sweep.finish()
    assert code == 75, (code, output[-3000:])
    assert [trial.status for trial in sweep.record().trials] == ["finished", "interrupted", "waiting"]
    written = max(int(path.name[5:]) for path in (sweep.folder / TRIALS[1] / "checkpoints").glob("step-*"))
    assert written == sweep.steps(TRIALS[1])  # a checkpoint of its last step: nothing is done again
    assert sweep.statuses() == {"first": "KILLED", TRIALS[0]: "FINISHED", TRIALS[1]: "KILLED"}
    assert not (sweep.folder / TRIALS[2]).exists()
    code, output = sweep.finish()
    assert code == 0, (code, output[-3000:])
    assert sweep.table() == whole.table()
    assert sweep.statuses() == dict.fromkeys((*TRIALS, "first"), "FINISHED")


def test_a_trial_whose_process_is_killed_goes_on_in_a_new_one(whole: Sweep, sample_corpus: str, tmp_path: Path) -> None:
    """Its controller dies with it, and the reserved places of its ranks are all the CPUs there are."""
    sweep = sweep_of(sample_corpus, tmp_path, SPACE, ONE_AT_A_TIME)
    process = sweep.start()
    sweep.until(lambda: sweep.steps(TRIALS[1]) > 9)
    (victim,) = [pid for pid in descendants(process.pid) if re.search(rb"trial_main|ImplicitFunc", title(pid))]
    os.kill(victim, signal.SIGKILL)
    code, output = sweep.finish()
    assert code == 0, (code, output[-3000:])
    assert "failed and is tried again" in output
    assert attempts(sweep) == dict(zip(TRIALS, (1, 2, 1), strict=True))
    assert sweep.table() == whole.table()
    assert sweep.statuses() == dict.fromkeys((*TRIALS, "first"), "FINISHED")


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                child = int(path.parent.name)
                found += [child, *descendants(child)]
        except (OSError, IndexError):
            continue
    return found


def title(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_trial_that_cannot_work_is_reported_and_the_others_finish(sample_corpus: str, tmp_path: Path) -> None:
    space = ("sweep.space.train.learning_rate=[0.001,1.0e+30,0.002]", "train.max_nonfinite=1")
    sweep = sweep_of(sample_corpus, tmp_path, *space, "train.epochs=4", "cluster.cpus=3")
    code, output = sweep.finish()
    assert code == 1, (code, output[-3000:])
    assert "learning_rate-1e30 failed and is tried again" in output and "some trials failed" in output
    by_name = {trial.name: trial for trial in sweep.record().trials}
    failed = by_name["learning_rate-1e30"]
    assert failed.status == "failed" and failed.attempts == 2
    assert "not finite" in str(failed.error) and "lower train.learning_rate" in str(failed.error)
    assert [row.trial.status for row in ranked(sweep.record())] == ["finished", "finished", "failed"]
    assert sweep.statuses() == {
        "first": "FAILED",
        "learning_rate-0.001": "FINISHED",
        "learning_rate-1e30": "FAILED",
        "learning_rate-0.002": "FINISHED",
    }
    columns, rows = (json.loads((sweep.folder / "ranking.json").read_text())[key] for key in ("columns", "data"))
    assert "not finite" in rows[2][columns.index("error")]
    code, output = sweep.finish()  # the failed one is tried again, and only that
    assert code == 1 and "1 of 3 trials to run" in output, output[-3000:]
    again = {trial.name: trial.attempts for trial in sweep.record().trials}
    assert again == {"learning_rate-0.001": 1, "learning_rate-1e30": 4, "learning_rate-0.002": 1}


def test_early_stopping_stops_some_and_leaves_nothing_behind(sample_corpus: str, tmp_path: Path) -> None:
    """One trial fits at a time: a stopped one that kept its places would stop the sweep."""
    search = ("sweep=asha", "sweep.num_samples=4", "sweep.grace_period=2", "sweep.reduction_factor=2")
    space = ("sweep.space.train.learning_rate=[1.0e-06,1.0e-05,0.002,0.001]", "sweep.space.train.weight_decay=null")
    sweep = sweep_of(sample_corpus, tmp_path, *search, *space, "train.validate_every_epochs=1", ONE_AT_A_TIME)
    code, output = sweep.finish()
    assert code == 0, (code, output[-3000:])
    statuses = [trial.status for trial in sweep.record().trials]
    assert set(statuses) == {"finished", "stopped"}, statuses
    best = ranked(sweep.record())[0]
    assert best.trial.changes["train.learning_rate"] in (0.001, 0.002)
    mlflow_status = {"finished": "FINISHED", "stopped": "KILLED"}
    expected = {trial.name: mlflow_status[trial.status] for trial in sweep.record().trials}
    assert sweep.statuses() == {**expected, "first": "FINISHED"}
    for trial in sweep.record().trials:
        assert (sweep.folder / trial.name / "encoder").exists() == (trial.status == "finished")
        assert trial.status == "finished" or 0 < trial.steps < best.trial.steps
    assert "nothing to do" in sweep.finish()[1]  # what was stopped stays stopped


def test_a_sweep_survives_the_loss_of_a_node(whole: Sweep, sample_corpus: str, tmp_path: Path) -> None:
    """Two nodes, two trials at a time; one node goes with all that runs on it, later another comes."""
    with cluster() as nodes:
        doomed = nodes.join(1)
        nodes.wait_for(2)
        nodes.join(1)
        nodes.wait_for(3)
        sweep = sweep_of(sample_corpus, tmp_path, SPACE, "sweep.retries=3", "train.max_failures=8")
        sweep.process = nodes.run("sweep", *sweep.overrides)
        RUNNING.append(sweep.process)
        sweep.until(lambda: sweep.steps(TRIALS[0]) > 5 and sweep.steps(TRIALS[1]) > 5)
        nodes.kill(doomed)
        nodes.join(1)
        code, output = sweep.finish()
    assert code == 0, (code, output[-3000:])
    print(f"a node was lost; attempts {attempts(sweep)}")
    assert sweep.table() == whole.table()
    assert sweep.statuses() == dict.fromkeys((*TRIALS, "first"), "FINISHED")


def test_a_sweep_into_an_object_store_goes_on_there(sample_corpus: str, s3: S3Server, tmp_path: Path) -> None:
    """SIGKILL of the driver, with everything but the corpus on S3: record, runs and ranking."""
    out = s3.uri(f"{s3.bucket()}/runs")
    overrides = (
        f"corpus={sample_corpus}",
        f"out={out}",
        "run=first",
        *OVERRIDES,
        SPACE,
        ONE_AT_A_TIME,
        "tracking.uri=null",
    )
    folder = Store(out).child("first")
    sweep = Sweep(tmp_path, overrides, tmp_path / "said.txt")

    def statuses() -> list[str]:
        record = read(folder)
        return [trial.status for trial in record.trials] if record else []

    sweep.start()
    sweep.until(lambda: statuses()[:2] == ["finished", "running"])
    sweep.kill()
    code, output = sweep.finish()
    assert code == 0 and "2 of 3 trials to run" in output, output[-3000:]
    assert statuses() == ["finished"] * 3
    assert folder.size("ranking.csv") is not None and not folder.exists(".tune")
    assert "nothing to do" in sweep.finish()[1]


def test_a_killed_ablation_ends_with_the_same_table(sample_corpus: str, tmp_path: Path) -> None:
    """Rows trained and evaluated on both tasks, the driver killed in the training and in the evaluation of a trial."""
    rows = "sweep.only=[01-hard,07-soft_1-50,09-soft_1-hard-50]"
    short = (
        "sweep=ablation", rows, "sweep.space.seed=[0]", "train.epochs=4", "corpus.test_folds=[8,9]",
        "corpus.validation_folds=[7]", "evaluate.seeds=[0]", "evaluate.decoder.steps=8", "evaluate.permutations=1",
        "evaluate.bootstraps=20", "evaluate.workers=1", "cluster.cpus=2",
        "sweep.max_concurrent_trials=1", "tracking.uri=null",
    )  # fmt: skip
    whole, killed = (sweep_of(sample_corpus, tmp_path / name, *short) for name in ("whole", "killed"))
    for sweep in (whole, killed):
        sweep.output.parent.mkdir()
    code, output = whole.finish()
    assert code == 0, (code, output[-3000:])
    names = [trial.name for trial in whole.record().trials]
    for name, moment in ((names[0], "metrics.jsonl"), (names[1], "encoder/files.json"), (names[2], "settings.yaml")):
        killed.start()
        killed.until(lambda name=name, moment=moment: (killed.folder / name / moment).exists())  # type: ignore[misc]
        killed.kill()
    code, output = killed.finish()
    assert code == 0, (code, output[-3000:])
    for sweep in (whole, killed):
        done = subprocess.run([sys.executable, "-m", "beatray", "report", str(sweep.folder)], check=False)
        assert done.returncode == 0
    for table in ("table.csv", "table.tex", "table.md", "scores.csv"):
        assert (killed.folder / "report" / table).read_bytes() == (whole.folder / "report" / table).read_bytes()
