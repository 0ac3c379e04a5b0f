"""`cluster/local.sh`: a head and two workers come up, keep to loopback, ask for the token, and go without a trace."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from beatray.ray_session import listening_on

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "local.sh"
MARK = "BEATRAY_CLUSTER="

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="several Ray nodes on one machine work on Linux only"),
]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(frozen=True)
class LocalCluster:
    """The script with its own state folder and ports."""

    state: Path
    ports: tuple[int, int, int]
    environment: dict[str, str]

    def run(self, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *args],
            env={**self.environment, **changes},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    ports = free_ports(3)
    names = ("BEATRAY_PORT", "BEATRAY_DASHBOARD_PORT", "BEATRAY_CLIENT_PORT")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_", "BEATRAY_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "BEATRAY_CLUSTER_STATE": str(tmp_path / "state"),
        "BEATRAY_OBJECT_STORE_MB": "100",
        **{name: str(port) for name, port in zip(names, ports, strict=True)},
    }
    return LocalCluster(tmp_path / "state", (ports[0], ports[1], ports[2]), environment)


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of another cluster: same script, other state folder."""
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, "BEATRAY_CLUSTER": str(tmp_path / "another")})
    yield process
    process.kill()
    process.wait()


def processes_of(state: Path) -> list[int]:
    """Every process that carries the mark of this state folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if f"{MARK}{state.resolve()}".encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def get(url: str, token: str | None = None) -> tuple[int, bytes]:
    """HTTP status and body of a request to the dashboard."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_start_and_stop(cluster: LocalCluster, bystander: subprocess.Popen[bytes]) -> None:
    gcs, dashboard, client = cluster.ports
    try:
        started = cluster.run("start", "2", "1")
        assert started.returncode == 0, started.stdout[-3000:] + started.stderr[-3000:]
        exports = dict(
            line.removeprefix("export ").split("=", 1)
            for line in started.stdout.splitlines()
            if line.startswith("export ")
        )
        token_file = cluster.state / "token"
        assert exports == {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_ADDRESS": f"127.0.0.2:{gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        assert "ray job submit --working-dir . -- python jobs/pretrain.py" in started.stdout
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        token = token_file.read_text()
        assert len(token) == 64

        for port in (dashboard, client):
            bound = listening_on(port)
            assert bound and all(address.is_loopback for address in bound), f"port {port} is bound to {bound}"
        url = exports["RAY_API_SERVER_ADDRESS"]
        assert get(f"{url}/api/jobs/")[0] == 401
        assert get(f"{url}/api/jobs/", "0" * 64)[0] == 403
        assert get(f"{url}/api/jobs/", token) == (200, b"[]")

        status, body = get(f"{url}/api/v0/nodes", token)
        nodes = json.loads(body)["data"]["result"]["result"]
        assert status == 200
        work = {node["node_ip"]: node["resources_total"].get("CPU", 0) for node in nodes if node["state"] == "ALIVE"}
        assert work == {"127.0.0.2": 0, "127.0.0.3": 1, "127.0.0.4": 1}

        again = cluster.run("start")
        assert again.returncode == 1 and "runs already" in again.stderr
        assert processes_of(cluster.state)
        temporary = Path((cluster.state / "temporary").read_text().strip())
    finally:
        stopped = cluster.run("stop")
    assert "stopped 3 nodes" in stopped.stdout, stopped.stdout + stopped.stderr
    assert processes_of(cluster.state) == []
    assert not temporary.exists()
    assert token_file.exists(), "the token outlives the cluster: shells that read it go on working"
    assert bystander.poll() is None, "stop ended a process of another cluster"
    assert not any(listening_on(port) for port in cluster.ports)
    status_after = cluster.run("status")
    assert status_after.returncode == 3 and "no cluster runs" in status_after.stdout


def test_unsafe_or_wrong_starts_are_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    readable = tmp_path / "readable-token"
    readable.write_text("f" * 64)
    readable.chmod(0o644)
    empty = tmp_path / "empty-token"
    empty.touch(0o600)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases: list[tuple[list[str], dict[str, str], str]] = [
            (["start"], {"BEATRAY_DASHBOARD_HOST": "0.0.0.0", "RAY_AUTH_MODE": "disabled"}, "without a token"),
            (["start"], {"BEATRAY_DASHBOARD_HOST": "192.0.2.9", "RAY_AUTH_MODE": "disabled"}, "without a token"),
            (["start"], {"RAY_AUTH_MODE": "off"}, "must be token or disabled"),
            (["start", "two"], {}, "WORKERS must be a whole number, not 'two'"),
            (["start", "0"], {}, "WORKERS must be at least 1"),
            (["start", "251"], {}, "at most 250"),
            (["start", "2", "0.5"], {}, "CPUS_PER_WORKER must be a whole number"),
            (["start"], {"BEATRAY_PORT": str(taken.getsockname()[1])}, "in use; choose another one with BEATRAY_PORT"),
            (["start"], {"RAY_AUTH_TOKEN_PATH": str(readable)}, f"chmod 600 {readable}"),
            (["start"], {"RAY_AUTH_TOKEN_PATH": str(empty)}, "is empty"),
            (["start"], {"PATH": str(_without_ray(tmp_path))}, "no 'ray' on the PATH"),
        ]
        for args, changes, message in cases:
            done = cluster.run(*args, **changes)
            assert done.returncode == 1 and message in done.stderr, (args, changes, done.stdout, done.stderr)
            assert processes_of(cluster.state) == [], (args, changes)
    assert cluster.run("restart").returncode == 2
    assert cluster.run("stop").stdout == "stopped 0 nodes\n"


def _without_ray(tmp_path: Path) -> Path:
    """A PATH with the tools that the script uses before it looks for Ray."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "uname", "nproc", "grep", "mkdir", "sed"):
        where = shutil.which(tool)
        assert where, tool
        (folder / tool).symlink_to(where)
    return folder
