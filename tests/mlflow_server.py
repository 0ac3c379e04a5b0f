"""A real `mlflow server` on loopback for the tests: sqlite behind it, artifacts through it, killed and restarted."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.tracking import MlflowClient

LOGIN = ("admin", "correct-horse-battery")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class MlflowServer:
    """One server with its own database and artifact folder; `start` after `kill` serves the same data on the port."""

    folder: Path
    login: tuple[str, str] | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> MlflowServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        overrides = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        overrides += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        overrides += ["--artifacts-destination", str(self.folder / "artifacts")]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment = {**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a third of the memory
        if self.login is not None:
            overrides += ["--app-name", "basic-auth"]
            config = self.folder / "auth.ini"
            config.write_text(
                f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{self.folder / 'auth.db'}\n"
                f"admin_username = {self.login[0]}\nadmin_password = {self.login[1]}\n"
            )
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-tests"}
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                overrides, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the MLflow server did not come up: " + (self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """End it with all its workers, at once, as a power cut does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def rows(self, run_id: str) -> dict[str, list[int]]:
        """The steps stored of every metric, one entry a row, read from the database file itself."""
        with sqlite3.connect(self.folder / "server.db") as database:
            found = database.execute("select key, step from metrics where run_uuid = ? order by key, step", (run_id,))
            stored: dict[str, list[int]] = {}
            for key, step in found:
                stored.setdefault(key, []).append(step)
        return stored

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)


class Proxy:
    """Stands between a tracker and its server, and can swallow answers: the request arrives, the answer does not."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.swallow: bytes | None = None  # answers to requests that contain this
        self.swallowed = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(caller,), daemon=True).start()

    def _carry(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            while request := _message(caller):
                server.sendall(request)
                answer = _message(server)
                if self.swallow is not None and self.swallow in request:
                    self.swallowed += 1
                    return
                caller.sendall(answer)

    def close(self) -> None:
        self._listener.close()


def _message(stream: socket.socket) -> bytes:
    """One HTTP message with a Content-Length body; empty when the peer has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += stream.recv(65536)
    return head + b"\r\n\r\n" + body
