"""`ray job submit` from a clean clone, to a real head node whose environment has only the dependencies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import beatray
from beatray.commands.demo import SAMPLE
from beatray.storage.store import Store
from beatray.track.journal import read_lines
from beatray.train import checkpoint as checkpoints
from counts import count
from ray_nodes import RAY, cluster, free_port, wait_for_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

HIDE_PACKAGE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry not in {installed!r}]
"""
SMALL = ("encoder=tiny", "train=small", "train.batch_size=24", "train.workers=2")


@dataclass
class Head:
    """A head node with a dashboard, and a clean clone to submit from."""

    dashboard: str
    environment: dict[str, str]
    clone: Path
    folder: Path

    def ray(self, *args: str) -> str:
        """A `ray` command against the dashboard; its output."""
        done = subprocess.run(
            [*RAY, *args],
            cwd=self.clone,
            env={**self.environment, "RAY_ADDRESS": self.dashboard},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def submit_all(self, *jobs: tuple[str, ...]) -> None:
        """Several jobs side by side."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            for done in [pool.submit(self.submit, *job) for job in jobs]:
                done.result()

    def submit(self, job: str, *args: str, options: tuple[str, ...] = ()) -> str:
        """`ray job submit` of jobs/<job>.py."""
        return self.ray("job", "submit", *options, "--working-dir", ".", "--", "python", f"jobs/{job}.py", *args)

    def about(self, job_id: str) -> dict[str, Any]:
        """What Ray knows of a job."""
        code = (
            "import json, sys; from ray.job_submission import JobSubmissionClient\n"
            "info = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])\n"
            "print(json.dumps({'status': str(info.status.value), 'metadata': info.metadata}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.dashboard, job_id],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def clean_clone(target: Path) -> Path:
    """What a user gets: the tracked files and nothing else (and, while developing, the changed ones)."""
    if (ROOT / ".git").exists():
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(target)], check=True)
        changed = subprocess.run(
            ["git", "ls-files", "-mo", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in changed.stdout.split():
            if (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    else:
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".venv", "beatray-demo"))
    return target


def installed(neutral: Path) -> list[str]:
    """Where the package lies: here, and in the environment, which may be that of another checkout."""
    code = "import importlib.util as u; s = u.find_spec('beatray'); print(s.submodule_search_locations[0] if s else '')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=neutral, env=environment, capture_output=True, text=True, check=True
    )
    paths = [Path(beatray.__file__).parent, *(Path(line) for line in found.stdout.splitlines() if line)]
    return [str(path.parent) for path in paths]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("jobs")
    bare = folder / "only-dependencies"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(HIDE_PACKAGE.format(installed=installed(folder)))
    port = free_port()
    with cluster(
        head_words=("--num-cpus=3", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"),
        environment={"PYTHONPATH": str(bare), "RAY_JOB_STOP_WAIT_TIME_S": "120"},
    ) as nodes:
        missing = subprocess.run(
            [sys.executable, "-c", "import beatray.cli"],
            env=nodes.environment,
            cwd=folder,
            capture_output=True,
            check=False,
        )
        assert missing.returncode != 0, "the package must not be importable in the cluster's environment"
        wait_for_port(port)
        yield Head(f"http://127.0.0.1:{port}", nodes.environment, clean_clone(folder / "clone"), folder)


def test_every_stage_as_a_job(head: Head) -> None:
    """Ingest, pretrain, embed, fine-tune, predict, sweep, evaluate as jobs of the clone; a job names its MLflow run."""
    corpus, runs = head.folder / "corpus", head.folder / "runs"
    sources = [f"ludb={SAMPLE / 'ludb-sample.zip'}", f"ptbxl={SAMPLE / 'ptbxl-sample.zip'}"]
    head.submit("ingest", *sources, f"--out={corpus}", "limit=60", "items_per_shard=16")
    paths = (f"corpus={corpus}", f"out={runs}")
    train = ("pretrain", *paths, "run=job", *SMALL, "train.epochs=1", "train.validate_every_epochs=1")
    head.submit(*train, options=("--submission-id=train-1",))
    memory = json.loads((runs / "job" / "tracking.json").read_text())
    about = head.about("train-1")
    assert about["status"] == "SUCCEEDED"
    assert about["metadata"]["mlflow_run_id"] and about["metadata"]["mlflow_run_id"] in json.dumps(memory)
    encoder, small = f"encoder={runs / 'job'}", (*SMALL, "train.workers=1")
    embedding = ("embed", encoder, f"corpus={corpus}", f"out={head.folder / 'embeddings'}", "level=both")
    learning = (
        "finetune", encoder, *paths, "run=model", "labels=superdiagnostic", "trained=head", "train.workers=1",
        "train.epochs=1", "train.warmup_epochs=0.5", "train.batch_size=8", "corpus.validation_folds=[1,2,3]",
        "tracking.uri=null",
    )  # fmt: skip
    head.submit_all(embedding, learning)
    assert list((head.folder / "embeddings").rglob("*.parquet"))
    assert (runs / "model" / "model" / "model.json").is_file()
    if not count(0, 1):
        return  # the rest takes minutes more: it runs with BEATRAY_CHAOS=1
    answers = head.folder / "answers.csv"
    head.submit(
        "predict", f"model={runs / 'model'}", f"files={SAMPLE / 'ptbxl-sample.zip'}", f"out={answers}", "--show", "2"
    )
    assert len(answers.read_text().splitlines()) > 60
    assert answers.with_suffix(".html").read_text().count("coloured by their shares") == 2
    evaluation = (
        "evaluate", encoder, f"corpus={corpus}", f"out={head.folder / 'proof'}", "task=segment", "evaluate.seeds=[0]",
        "evaluate.protocols=[segment/linear_probe]",
        "evaluate.decoder.steps=5", "tracking.uri=null", "evaluate.workers=1",
    )  # fmt: skip
    head.submit_all(("sweep", *paths, "run=space", "sweep=small", *small, "sweep.fixed={train.epochs: 1}"), evaluation)
    assert len(list((runs / "space").glob("*/encoder/encoder.json"))) == 2
    assert (head.folder / "proof" / "results.json").is_file()


@pytest.mark.skipif(count(0, 1) == 0, reason="minutes: runs with BEATRAY_CHAOS=1")
def test_a_stopped_job_ends_with_a_checkpoint_and_goes_on_when_submitted_again(head: Head, sample_corpus: str) -> None:
    runs = head.folder / "stopped"
    args = (f"corpus={sample_corpus}", f"out={runs}", "run=long", *SMALL, "tracking.uri=null", "train.epochs=60")
    head.submit("pretrain", *args, options=("--no-wait", "--submission-id=long-1"))
    journal = runs / "long" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while len(read_lines(journal)) < 5:
        assert time.monotonic() < deadline, head.ray("job", "logs", "long-1")[-3000:]
        time.sleep(0.2)
    head.ray("job", "stop", "long-1")
    assert head.about("long-1")["status"] == "STOPPED"
    done = len(read_lines(journal))
    newest = checkpoints.latest(Store(str(runs / "long")))
    assert newest is not None and newest.state["global_step"] == done, head.ray("job", "logs", "long-1")[-3000:]
    out = head.submit("pretrain", *args)
    assert f"continued from step {done}" in out
    assert (runs / "long" / "encoder" / "encoder.json").is_file()


def test_a_relative_path_is_refused_with_the_reason(head: Head) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", "corpus=corpus", "out=/shared/runs"],
        cwd=head.clone,
        env=head.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "temporary copy of the tree that is lost" in done.stderr
