"""A Ray cluster of several nodes on this machine, as `ray start` makes it, whose nodes can be killed and joined."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

RAY = (sys.executable, "-m", "ray.scripts.scripts")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Nodes:
    """The head (without CPUs for work) and the worker nodes; all end with the context."""

    address: str
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        """One `ray start --block` in a process group of its own."""
        process = subprocess.Popen(
            [*RAY, "start", "--block", "--min-worker-port=0", "--max-worker-port=0", *overrides],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def join(self, cpus: int) -> subprocess.Popen[bytes]:
        """A worker node."""
        return self.start(f"--address={self.address}", f"--num-cpus={cpus}", "--object-store-memory=100000000")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL everything of a node, as a power cut does."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def run(self, *overrides: str) -> subprocess.Popen[str]:
        """A beatray command on this cluster."""
        return subprocess.Popen(
            [sys.executable, "-m", "beatray", *overrides, f"cluster.address={self.address}"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, nodes: int) -> None:
        """Until so many nodes are alive."""
        code = (
            f"import ray, time\nray.init(address={self.address!r}, logging_level='ERROR', log_to_driver=False)\n"
            f"while sum(node['Alive'] for node in ray.nodes()) < {nodes}: time.sleep(0.2)"
        )
        killed = [process for process in self.processes if process.poll() is not None]
        waiting = subprocess.Popen([sys.executable, "-c", code], env=self.environment)
        deadline = time.monotonic() + 240
        try:
            while waiting.poll() is None:
                dead = [process for process in self.processes if process.poll() is not None and process not in killed]
                assert not dead, f"a node ended by itself: {dead[0].args}"
                assert time.monotonic() < deadline, f"there are not {nodes} nodes after 4 minutes"
                time.sleep(0.1)
        finally:
            waiting.kill()
        assert waiting.wait() == 0


@contextmanager
def cluster(
    head_words: tuple[str, ...] = ("--num-cpus=0", "--include-dashboard=false"),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Nodes]:
    """A head on 127.0.0.1 with a temporary folder of its own; Ray's socket paths must stay short."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        port = free_port()
        whole = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_"))},
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": folder,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
            "HOME": folder,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **(environment or {}),
        }
        nodes = Nodes(f"127.0.0.1:{port}", whole)
        try:
            nodes.start(
                *("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--object-store-memory=200000000"),
                *(f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0", *head_words),
            )
            wait_for_port(port)
            nodes.wait_for(1)  # its port opens before others can join
            yield nodes
        finally:
            for process in nodes.processes:
                if process.poll() is None:
                    nodes.kill(process)


def wait_for_port(port: int) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on port {port}")
