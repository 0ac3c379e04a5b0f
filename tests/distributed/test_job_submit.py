"""`ray job submit` from a clean clone, to a real head node whose environment has only the dependencies."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import beatray

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.ray

HIDE_PACKAGE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry != {installed!r}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def short_tmp() -> Iterator[str]:
    """A folder with a short name: Ray keeps sockets in it, whose paths may not exceed 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a user gets: the tracked files and nothing else."""
    target = tmp_path / "clone"
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


def test_pretrain_as_a_job(sample_corpus: str, clone: Path, tmp_path: Path, short_tmp: str) -> None:
    bare = tmp_path / "only-dependencies"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(HIDE_PACKAGE.format(installed=str(Path(beatray.__file__).parents[1])))
    port, dashboard = free_port(), free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(bare),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": short_tmp,
        "HOME": str(tmp_path),
    }
    missing = subprocess.run(
        [sys.executable, "-c", "import beatray.cli"], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert missing.returncode != 0, "the package must not be importable in the cluster's environment"
    head = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=3"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            *("--node-ip-address=127.0.0.1", "--object-store-memory=200000000", "--min-worker-port=0"),
            *("--max-worker-port=0", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"),
        ],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for(dashboard, head)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
                *("--address", f"http://127.0.0.1:{dashboard}", "--working-dir", ".", "--"),
                *("python", "jobs/pretrain.py", f"corpus={sample_corpus}", f"out={tmp_path / 'runs'}", "run=job"),
                *(
                    "encoder=tiny",
                    "train=small",
                    "train.workers=2",
                    "train.epochs=1",
                    "train.batch_size=24",
                    "tracking.uri=null",
                ),
            ],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert (tmp_path / "runs" / "job" / "encoder" / "encoder.json").is_file()
        assert beatray.load_encoder(str(tmp_path / "runs" / "job")).embed_dim > 0
    finally:
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()


def _wait_for(dashboard: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert head.poll() is None, head.stderr.read().decode() if head.stderr else "the head node died"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the head node's dashboard did not come up")
