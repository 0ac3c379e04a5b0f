"""Who may be joined: a dashboard that others reach must ask for a token. Tried on real clusters in a network of their
own, so that the unsafe ones are never open to anyone."""

from __future__ import annotations

import http.server
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from beatray.ray_session import (
    OpenDashboardError,
    RaySettings,
    UnreachableRayError,
    asks_for_token,
    is_public,
    listening_on,
    refuse_open_dashboard,
    refuse_silent_address,
    session,
)
from counts import count

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def listening(host: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError as error:
            pytest.skip(f"cannot bind {host} here: {error}")
        server.listen()
        yield int(server.getsockname()[1])


@linux
@pytest.mark.parametrize(
    ("bound", "public"), [("127.0.0.1", False), ("127.0.0.9", False), ("0.0.0.0", True), ("::1", False), ("::", True)]
)
def test_sockets_show_who_is_public(bound: str, public: bool) -> None:
    with listening(bound) as port:
        assert listening_on(port) == [ipaddress.ip_address(bound)]
        assert is_public("127.0.0.1", port) is public
        assert is_public("localhost", port) is public
    assert listening_on(port) == []


@linux
def test_a_socket_for_both_families_is_given_by_its_ipv4_address() -> None:
    with listening("::ffff:127.0.0.1") as port:
        assert listening_on(port) == [ipaddress.ip_address("127.0.0.1")]
        assert not is_public("127.0.0.1", port)


def test_other_machines_are_public() -> None:
    assert is_public("192.0.2.7", 8265)
    assert is_public("head.example.org", 8265)
    assert is_public("2001:db8::1", 8265)


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_only_a_refusal_counts_as_asking_for_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy of the environment must not be asked
    server = http.server.HTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        answers = {code: asks_for_token(f"{base}/{code}") for code in (200, 401, 403, 404, 500)}
    finally:
        server.shutdown()
        server.server_close()
    assert answers == {200: False, 401: True, 403: True, 404: False, 500: False}


def test_out_of_reach_the_mode_of_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("127.0.0.1") as port:
        pass  # nothing listens there any more
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert asks_for_token(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert not asks_for_token(f"http://127.0.0.1:{port}")
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert not asks_for_token(f"http://127.0.0.1:{port}")


@linux
def test_the_refusal_names_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # Ray sets it in a process that has started one
    refuse_open_dashboard(None)  # no dashboard at all
    with listening("127.0.0.1") as port:
        refuse_open_dashboard(f"127.0.0.1:{port}")
    with pytest.raises(OpenDashboardError, match=r"RAY_AUTH_MODE=token.*cluster\.allow_open_dashboard=true") as caught:
        refuse_open_dashboard("localhost.invalid:8265")
    assert "http://localhost.invalid:8265" in str(caught.value)


# Two heads whose dashboards listen on every address of this closed network: one asks for a token, one does not. The
# second has a loopback address, so that Ray names its dashboard 127.0.0.2. Then a local Ray with a dashboard.
SCENE = """
import json, os, subprocess, sys, time, socket
heads = {
    "token": (["--node-ip-address=192.0.2.7", "--port=6379", "--dashboard-port=18265",
              "--ray-client-server-port=10001"], "192.0.2.7:6379"),
    "disabled": (["--node-ip-address=127.0.0.2", "--port=6380", "--dashboard-port=18266",
                 "--ray-client-server-port=10002"], "127.0.0.2:6380"),
}
JOIN = '''
import json, sys
import ray
from beatray.ray_session import OpenDashboardError, RaySettings, session
try:
    with session(RaySettings(**json.loads(sys.argv[1]))):
        print("joined", ray.get(ray.remote(num_cpus=0)(lambda: "and worked").remote()))
except OpenDashboardError as error:
    print("refused", error)
assert not ray.is_initialized()
'''
LOCAL = '''
from beatray.ray_session import RaySettings, listening_on, session
import ray
with session(RaySettings(cpus=1, object_store_mb=100, dashboard=True)):
    url = ray._private.worker._global_node.webui_url
    host, port = url.rsplit(":", 1)
    print("bound", host, [str(address) for address in listening_on(int(port))])
'''
def python(code, *words, **more):
    done = subprocess.run([sys.executable, "-c", code, *words], env={**os.environ, **more}, capture_output=True,
                          text=True, timeout=100)
    return done.stdout.strip() or done.stderr[-2000:]
running, answers = {}, {}
try:
    for mode, (words, _) in heads.items():
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1", *words,
                   "--dashboard-host=0.0.0.0", "--object-store-memory=100000000",
                   "--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0",
                   "--temp-dir=" + os.environ["SHORT"] + "/" + mode]
        running[mode] = subprocess.Popen(command, env={**os.environ, "RAY_AUTH_MODE": mode},
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    local = subprocess.Popen([sys.executable, "-c", LOCAL], env={**os.environ, "RAY_TMPDIR": os.environ["SHORT"]},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for port, head in zip((18265, 18266), running.values()):
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            assert head.poll() is None, "a head node died"
            time.sleep(0.2)
    for mode, (_, address) in heads.items():
        answers[mode] = python(JOIN, json.dumps({"address": address}), RAY_AUTH_MODE=mode)
    allowed = {"address": heads["disabled"][1], "allow_open_dashboard": True}
    answers["allowed"] = python(JOIN, json.dumps(allowed), RAY_AUTH_MODE="disabled")
    answers["local"] = local.communicate(timeout=120)[0].splitlines()[-1]
finally:
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait(60)
print(json.dumps(answers))
"""


@linux
@pytest.mark.ray
@pytest.mark.skipif(count(0, 1) == 0, reason="half a minute: runs with BEATRAY_CHAOS=1")
def test_real_clusters_are_joined_or_refused(tmp_path: Path) -> None:
    # Processes of their own as well: they end with this one, whatever happens.
    own_network = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    prepare = "ip link set lo up && ip addr add 192.0.2.7/32 dev lo"
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs the commands unshare and ip for a network of its own")
    if subprocess.run([*own_network, "sh", "-c", prepare], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let users make a network of their own")
    token = tmp_path / "token"
    token.write_text("5" * 64)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))},
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(tmp_path),
            "SHORT": short,
        }
        done = subprocess.run(
            [*own_network, "sh", "-c", f'{prepare} && exec "$@"', "sh", sys.executable, "-c", SCENE],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["token"] == "joined and worked"
    assert answers["disabled"].startswith("refused the cluster's dashboard"), answers["disabled"]
    assert answers["allowed"] == "joined and worked"
    assert answers["local"] == "bound 127.0.0.1 ['127.0.0.1']"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has no Ray yet, whatever other tests have started in this one; theirs stays as it is."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return monkeypatch


def test_an_address_where_nothing_listens_is_refused_at_once(no_ray: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            no_ray.setenv("RAY_ADDRESS", address)
            no_ray.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for a quarter of an hour"))
            message = f"no Ray answers at RAY_ADDRESS={address} "
            with pytest.raises(UnreachableRayError, match=message), session(RaySettings()):
                pass
    with listening("127.0.0.1") as port:
        refuse_silent_address(f"127.0.0.1:{port}", "cluster.address")
    refuse_silent_address("auto", "cluster.address")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/xxx"), r"too long a name .* export RAY_TMPDIR="),
        (
            Exception("The current node timed out during startup.\nmore"),
            r"did not start .* 2 times: The current node",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(no_ray: pytest.MonkeyPatch, failure: Exception, message: str) -> None:
    calls = []

    def fails(**kwargs: object) -> None:
        calls.append(kwargs)
        raise failure

    no_ray.setattr(ray, "init", fails)
    with pytest.raises(UnreachableRayError, match=message) as caught, session(RaySettings()):
        pass
    assert "\n" not in str(caught.value) and len(calls) == (1 if "AF_UNIX" in str(failure) else 2)


def test_a_slow_first_start_is_tried_again(no_ray: pytest.MonkeyPatch) -> None:
    calls = []

    def slow(**kwargs: object) -> None:
        calls.append(kwargs)
        if len(calls) == 1:
            raise RuntimeError("The current node timed out during startup.")

    no_ray.setattr(ray, "init", slow)
    with session(RaySettings()):
        pass
    assert len(calls) == 2
