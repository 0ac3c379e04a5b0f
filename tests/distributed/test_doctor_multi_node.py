"""`beatray doctor --multi-node` on a real Ray of two nodes, and a job there whose metadata carries its MLflow run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from beatray.corpus.reader import open_corpus
from beatray.doctor import machine, ray_state, storage
from beatray.doctor.collective import check_bandwidth, check_versions
from beatray.doctor.finding import Level
from counts import count
from mlflow_server import free_port
from s3_server import S3Server

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    """Two nodes on this machine; the second one has a folder of its own where the first has `hidden`."""

    address: str
    dashboard: str
    environment: dict[str, str]
    temporary: str
    hidden: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    temporary = tempfile.mkdtemp(prefix="ray")  # a short name: sockets lie in it
    hidden = tmp_path_factory.mktemp("hidden")
    port, dashboard, client = free_port(), free_port(), free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_", "MLFLOW_"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'platform'}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": temporary,
        "RAY_worker_niceness": "0",
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    start += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--min-worker-port=0"]
    start += ["--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    head = [*start, "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    head += [f"--ray-client-server-port={client}"]
    worker = [*start, f"--address=127.0.0.1:{port}"]
    if _may_mount():
        worker = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh", *worker]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (tmp_path_factory.mktemp("cluster") / "log").open("wb") as log:
            for overrides in (head, worker):
                processes.append(
                    subprocess.Popen(overrides, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
                _wait_for(f"http://127.0.0.1:{dashboard}", len(processes), environment)
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment, temporary, hidden)
    finally:
        for process in processes:  # SIGTERM would take a head node half a minute
            for pid in [*_descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    """The processes below one, the deepest first."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return [deeper for child in children for deeper in (*_descendants(child), child)]


def _may_mount() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def _wait_for(dashboard: str, nodes: int, environment: dict[str, str]) -> None:
    import urllib.request

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{dashboard}/api/v0/nodes", timeout=5) as answer:
                alive = [n for n in json.load(answer)["data"]["result"]["result"] if n["state"] == "ALIVE"]
                if len(alive) == nodes:
                    return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.3)
    raise AssertionError(f"node {nodes} did not come up")


def doctor(cluster: Cluster, *overrides: str) -> tuple[int, list[dict[str, str]], str]:
    """Exit code, findings about the cluster, and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "beatray", "doctor", "--multi-node", "--json", *overrides],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.startswith("["), done.stdout + done.stderr
    found = json.loads(done.stdout)
    return done.returncode, [item for item in found if item["subject"] == "cluster"], done.stdout + done.stderr


def test_two_nodes_that_work(cluster: Cluster, sample_files: str, tmp_path: Path) -> None:
    paths = [f"out={tmp_path}", f"corpus={sample_files}", "train.device=cpu"]
    code, found, printed = doctor(cluster, *paths, "--seconds", "0.5")
    findings = [item["what"] for item in found]
    assert code == 0, printed
    assert {item["level"] for item in found} == {"ok"}, found
    assert findings[0].startswith("2 nodes")
    assert any("all-reduce over 2 ranks (gloo), sums checked" in what and "16 MB at" in what for what in findings)
    assert any("every node sees what the others write" in what for what in findings)
    assert any(what.startswith("every node reads the corpus") for what in findings)
    rows = open_corpus(sample_files).manifest.rows
    assert any(what.startswith(f"Ray Data reads the corpus: {rows} rows, on 2 of 2 nodes") for what in findings), (
        findings
    )
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.skipif(count(0, 1) == 0, reason="a minute: runs with BEATRAY_CHAOS=1")
def test_a_folder_that_the_nodes_do_not_share(cluster: Cluster) -> None:
    if not _may_mount():
        pytest.skip("this user may not mount, so that two nodes on one machine see the same files")
    code, found, printed = doctor(cluster, f"out={cluster.hidden}", "--seconds", "0")
    failed = [item for item in found if item["level"] == "fail"]
    assert code == 1 and len(failed) == 2, printed
    for item in failed:
        assert "does not see what" in item["what"] and str(cluster.hidden) in item["what"]
        assert "all nodes share" in item["remedy"]
    assert any(item["what"].startswith("Ray Data works") for item in found)


def test_paths_on_s3(s3: S3Server, sample_files: str) -> None:
    bucket = s3.bucket()
    uri = s3.uri(f"{bucket}/corpus")
    assert storage.check_writable("out", uri).level is Level.OK and s3.keys(bucket) == []
    assert [f.level for f in storage.check_corpus(uri)] == [Level.WARN, Level.OK], "not there yet, but can be made"
    for path in Path(sample_files).rglob("*"):
        if path.is_file():
            s3.client.upload_file(str(path), bucket, f"corpus/{path.relative_to(sample_files)}")
    assert [f.level for f in storage.check_corpus(uri)] == [Level.OK]
    absent = storage.check_writable("out", s3.uri("nobodys-bucket/x"))
    assert absent.level is Level.FAIL and "nobodys-bucket" in absent.what


JOB = """
import ray
from beatray.ray_job import job_tags, note_mlflow_run
ray.init(logging_level="ERROR")
assert note_mlflow_run("0123abcd")
print("TAGS", job_tags())
"""


def test_a_job_carries_the_id_of_its_mlflow_run(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    code = (
        "import json, sys, time\n"
        "from ray.job_submission import JobSubmissionClient\n"
        f"client = JobSubmissionClient({cluster.dashboard!r})\n"
        f"job = client.submit_job(entrypoint='python {tmp_path / 'job.py'}', metadata={{'who': 'test'}})\n"
        "while not client.get_job_status(job).is_terminal(): time.sleep(0.2)\n"
        "about = client.get_job_info(job)\n"
        "print(json.dumps([job, str(about.status), about.metadata, client.get_job_logs(job)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=cluster.environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    job, status, metadata, logs = json.loads(done.stdout.splitlines()[-1])
    assert status == "SUCCEEDED", logs
    assert metadata == {"who": "test", "mlflow_run_id": "0123abcd"}
    assert f"TAGS {{'beatray.ray_job': '{job}'}}" in logs


def test_the_sockets_of_ray_are_as_long_as_the_doctor_thinks(cluster: Cluster) -> None:
    sockets = [str(path) for path in Path(cluster.temporary).rglob("sockets/*")]
    longest = max(len(path.removeprefix(cluster.temporary)) for path in sockets)
    digits = 7 - len(re.search(r"_(\d+)/sockets", sockets[0])[1])  # of the process number in the session's name
    assert longest + digits == machine.SOCKET_ROOM, sockets


def test_ports_of_ray_and_its_dashboard_are_known_as_such(cluster: Cluster) -> None:
    for address in (cluster.address, cluster.dashboard):
        held_by = ray_state.holders(int(address.rpartition(":")[2]))
        found = ray_state.check_port(1, "a test", held_by)
        assert held_by and found.level is Level.OK and "held by Ray" in found.what, held_by
    assert [f.level for f in ray_state.check_dashboard(cluster.dashboard)] == [Level.OK]
    assert ray_state.check_cluster_address(cluster.address)[0].level is Level.OK


def test_outside_a_job_nothing_is_noted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from beatray.ray_job import job_tags, note_mlflow_run

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert job_tags() == {} and not note_mlflow_run("0123abcd")
    assert caplog.text == ""


def test_nodes_that_differ_and_slow_networks_are_told() -> None:
    same: dict[str, Any] = {
        "python": "3.11.7",
        "ray": "2.60.0",
        "torch": "2.13.0",
        "numpy": "2.4.6",
        "pyarrow": "25.0.1",
    }
    assert [f.level for f in check_versions({"a": same, "b": same})] == [Level.OK]
    differing = check_versions({"a": same, "b": {**same, "torch": "2.12.0"}})
    assert [f.level for f in differing] == [Level.FAIL] and "2.12.0 on b" in differing[0].what
    assert check_bandwidth(2, "gloo", {1: 500.0, 16: 20.0}).level is Level.WARN
