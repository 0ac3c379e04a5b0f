"""Every check of `beatray doctor`, brought to warn or fail by the real condition that it is there for."""

from __future__ import annotations

import errno
import http.server
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beatray import cli
from beatray.corpus.manifest import Manifest, Shard, write_manifest
from beatray.doctor import checks, machine, ray_state, storage, tracking, versions
from beatray.doctor.finding import Finding, Level, fail
from beatray.settings import PretrainSettings
from beatray.storage.store import Store
from beatray.train.composed import pretrain_settings

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def settings(*overrides: str) -> PretrainSettings:
    return pretrain_settings(list(overrides))


def level(findings: list[Finding] | Finding) -> str:
    """The gravest level."""
    listed = [findings] if isinstance(findings, Finding) else findings
    return max((finding.level for finding in listed), key=list(Level).index).value


def text_of(findings: list[Finding] | Finding) -> str:
    listed = [findings] if isinstance(findings, Finding) else findings
    return "\n".join(f"{f.what} -> {f.remedy}" for f in listed)


def test_whatever_is_not_ok_has_a_remedy() -> None:
    with pytest.raises(ValueError, match="remedy"):
        fail("broken", "")


# Versions


def test_the_installed_packages_are_within_the_bounds_of_pyproject() -> None:
    python, requirements = versions.declared()
    assert set(python.split(",")) == {">=3.11", "<3.13"}
    assert any(text.startswith("ray[") for text in requirements)
    assert level(versions.check()) == "ok", text_of(versions.check())


def test_versions_out_of_bounds_and_missing_packages() -> None:
    findings = versions.check_packages(["pytest>=999", "no-such-package>=1", "numpy>=2.0,<3", 'colorama; extra == "x"'])
    assert [f.level for f in findings] == [Level.FAIL, Level.FAIL, Level.OK]
    assert "pip install 'pytest>=999'" in text_of(findings) and "1 packages" in text_of(findings)
    assert level(versions.check_python(">=3.14")) == "fail"
    assert level(versions.check_python(">=3.11,<3.13")) == "ok"
    cpu_build = versions.check_packages(["torch>=2.6,<2.14"], {"torch": "2.13.0+cpu"}.get)
    assert level(cpu_build) == "ok"


def test_combinations_that_are_known_to_break() -> None:
    here = {
        "mlflow": "3.18.0",
        "mlflow-skinny": "3.17.2",
        "pandas": "3.1.0",
        "neurokit2": "0.2.13",
        "pyarrow": "14.0.0",
    }
    findings = versions.check_combinations(here.get)
    assert [f.what.split()[0] for f in findings] == ["mlflow", "pandas", "pyarrow"]
    assert "CVE-2023-47248" in text_of(findings)
    assert (
        versions.check_combinations({**here, "mlflow-skinny": "3.18.0", "pandas": "2.3.3", "pyarrow": "25.0.1"}.get)
        == []
    )
    assert versions.check_combinations() == []
    assert level(versions.check_ray_parts(lambda name: name != "aiohttp_cors")) == "warn"


# Machine


def test_a_plan_that_does_not_fit_the_cpus() -> None:
    assert level(machine.check_plan(settings("train.workers=8"), 2, 0)) == "fail"
    assert "together 6" in text_of(machine.check_plan(settings("train.workers=8"), 2, 0))
    assert level(machine.check_plan(settings("train.workers=8", "cluster.cpus=8"), 2, 0)) == "warn"
    assert level(machine.check_plan(settings("train.workers=2"), 2, 0)) == "ok"
    assert level(machine.check_plan(settings("train.device=cuda", "train.workers=2"), 8, 1)) == "fail"


def test_cpus_and_memory_within_the_limits_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.usable_cpus(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 4}\n")
    free, who = machine.usable_memory(cgroup=tmp_path)
    assert (free, who) == (GIB * 3 // 4, "the container's limit")
    assert level(machine.check_memory(free, who, 1, 512)) == "fail"
    (tmp_path / "memory.stat").write_text(f"anon {GIB // 8}\ninactive_file {GIB // 8}\n")  # the kernel gives these back
    assert machine.usable_memory(cgroup=tmp_path) == (GIB * 7 // 8, "the container's limit")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.usable_memory(cgroup=tmp_path)[1] == "the machine"
    assert level(machine.check_memory(int(2.2 * GIB), who, 1, 512)) == "warn"
    assert level(machine.check_memory(8 * GIB, who, 1, 512)) == "ok"


def test_shared_memory_open_files_and_the_temporary_folder() -> None:
    assert level(machine.check_shared_memory(64 * 2**20, 512)) == "warn"  # what docker gives by itself
    assert level(machine.check_shared_memory(None, 512)) == "warn"
    assert level(machine.check_shared_memory(GIB, 512)) == "ok"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert "open-file limit 512" in text_of(machine.check(settings()))
        assert level(machine.check(settings())) == "fail"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert level(machine.check_open_files(2048, resource.RLIM_INFINITY)) == "warn"
    assert [level(machine.check_temporary(Path("/tmp"), free)) for free in (0.5, 0.08, 0.01)] == ["ok", "warn", "fail"]
    assert level(machine.check_temporary(Path("/tmp") / ("long-" * 9), 0.5)) == "fail"


def test_the_room_for_sockets_is_that_of_ray() -> None:
    """A folder of the longest name that is called fine can hold the socket of a session, one longer cannot."""
    import socket

    room = machine.LONGEST_SOCKET - machine.SOCKET_ROOM
    tail = machine.SOCKET_ROOM * "s"
    with socket.socket(socket.AF_UNIX) as fits:
        with pytest.raises(OSError) as no_folder:
            fits.bind("/" + "x" * (room - 1) + "/" + tail[1:])
        assert no_folder.value.errno == errno.ENOENT
        with pytest.raises(OSError, match="too long"):
            fits.bind("/" + "x" * room + "/" + tail[1:])


def test_a_missing_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere/at/all")
    assert "does not exist" in text_of(machine.check(settings()))


def test_devices_against_driver_and_settings() -> None:
    old, new = machine.Gpu("Tesla T4", 15, (7, 5)), machine.Gpu("H200", 139, (9, 0))
    check = machine.check_devices
    assert level(check(settings(), [], [], None)) == "ok"
    assert level(check(settings("train.device=cuda"), [], [], None)) == "fail"
    assert "CPU build" in text_of(check(settings(), [], ["H200, 141 GiB, 570.1"], None))
    assert "cannot use the driver" in text_of(check(settings(), [], ["H200, 141 GiB, 570.1"], "13.0"))
    assert level(check(settings("train.precision=bf16"), [old], [], "12.8")) == "warn"
    assert level(check(settings("train.precision=bf16"), [new], [], "12.8")) == "ok"


# Ray


def test_a_port_held_by_something_else() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    port = server.server_address[1]
    held_by = ray_state.holders(port)
    title = Path("/proc/self/cmdline").read_text().split("\0")[0]
    assert held_by and any(title in line for line in held_by)
    assert level(ray_state.check_port(port, "a test", held_by)) == "warn"
    server.server_close()
    assert ray_state.holders(port) == []
    assert level(ray_state.check_port(port, "a test", [])) == "ok"
    assert level(ray_state.check_port(port, "a test", None)) == "warn"
    assert level(ray_state.check_port(port, "a test", ["/x/ray/core/src/ray/gcs/gcs_server --log"])) == "ok"


def test_an_open_dashboard() -> None:
    """A real server on all interfaces, first answering everybody, then asking for a token."""
    with answering({"/api/version": (200, "{}")}, host="0.0.0.0") as url:
        assert level(ray_state.check_dashboard(url)) == "fail"
        assert "CVE-2023-48022" in text_of(ray_state.check_dashboard(url))
    with answering({"/api/version": (401, "no token")}, host="0.0.0.0") as url:
        assert level(ray_state.check_dashboard(url)) == "ok"
    with answering({"/api/version": (200, "{}")}) as url:
        assert level(ray_state.check_dashboard(url)) == "ok"
    assert ray_state.check_dashboard(url) == []


def test_a_cluster_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with answering({}) as url:
        address = url.removeprefix("http://")
        for form in (address, f"ray://{address}"):
            assert level(ray_state.check_cluster_address(form)) == "ok"
    for form in (address, f"ray://{address}"):
        assert "does not answer" in text_of(ray_state.check_cluster_address(form))
    assert ray_state.check_cluster_address("auto") == ray_state.check_cluster_address(None) == []
    overrides = [f"cluster.address={address}", f"out={tmp_path}", "tracking.uri=null"]
    assert cli.main(["doctor", "--multi-node", *overrides]) == 1  # Ray is not even asked
    assert "1 failures" in capsys.readouterr().out


def test_token_and_mode(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    assert level(ray_state.check_token({}, tmp_path)) == "ok"
    assert level(ray_state.check_token({"RAY_AUTH_MODE": "token"}, tmp_path)) == "fail"
    assert level(ray_state.check_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc"}, tmp_path)) == "ok"
    token.parent.mkdir()
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    assert f"chmod 600 {token}" in text_of(ray_state.check_token({"RAY_AUTH_MODE": "token"}, tmp_path))
    token.chmod(0o600)
    assert level(ray_state.check_token({"RAY_AUTH_MODE": "token"}, tmp_path)) == "ok"
    trap = ray_state.check_token({}, tmp_path)
    assert level(trap) == "warn" and "401" in text_of(trap) and "export RAY_AUTH_MODE=token" in text_of(trap)
    assert level(ray_state.check_token({"RAY_AUTH_MODE": "disabled"}, tmp_path)) == "ok"
    assert "0123456789abcdef" not in text_of(trap)


# Storage


def test_paths_that_can_and_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert level(storage.check_writable("out", str(tmp_path / "new" / "runs"))) == "ok"
    assert sorted(tmp_path.rglob("*")) == before, "trying a place leaves nothing behind"
    assert level(storage.check_writable("out", "/proc/runs")) == "fail"  # no file can be made there, even by root
    monkeypatch.setattr(storage, "PATIENCE_S", 0.5)
    assert (
        level(storage.check_writable("out", "s3://no-such-host/x?endpoint_override=127.0.0.1:9&scheme=http")) == "fail"
    )
    keys = storage.check_writable("out", "s3://AKIA:geheim@bucket/x")
    assert level(keys) == "fail" and "geheim" not in text_of(keys)
    assert [level(storage.check_disk("out", free)) for free in (1e8, 1e9, 1e11)] == ["fail", "warn", "ok"]
    assert level(storage.check_travels("out", "runs", True)) == "fail"
    assert storage.check_travels("out", "/runs", True) == storage.check_travels("out", "runs", False) == []


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Path:
    store = Store(str(tmp_path / "corpus"))
    shard = Shard(
        name="a.parquet",
        source="ludb",
        rows=3,
        row_groups=(3,),
        bytes=5,
        sha256="0" * 64,
        footer_bytes=1,
        footer_sha256="",
        chunk_crc32="",
    )
    store.write("shards/a.parquet", b"12345")
    write_manifest(store, Manifest(1, {}, (shard,), {}, {}))
    return tmp_path / "corpus"


def test_a_corpus_that_is_whole_damaged_cut_or_absent(tiny_corpus: Path) -> None:
    assert level(storage.check_corpus(str(tiny_corpus))) == "ok"
    (tiny_corpus / "shards" / "a.parquet").write_bytes(b"1234")
    assert "1 of 1 shards are missing or cut (a.parquet)" in text_of(storage.check_corpus(str(tiny_corpus)))
    manifest = tiny_corpus / "manifest-1.json"
    manifest.write_text(manifest.read_text().replace('"rows": 3', '"rows": 4'))
    assert level(storage.check_corpus(str(tiny_corpus))) == "fail"
    manifest.unlink()
    absent = storage.check_corpus(str(tiny_corpus))
    assert level(absent) == "warn" and "beatray ingest" in text_of(absent)


# Tracking


@contextmanager
def answering(answers: dict[str, tuple[int, str]], host: str = "127.0.0.1") -> Iterator[str]:
    """A real HTTP server with these answers by path; a path with `!` at its end is for strange Host headers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            strange = not str(self.headers["Host"]).startswith("127.")
            status, text = answers.get(f"{path}!" if strange else path, (404, "nothing here"))
            if status == 401 and self.headers["Authorization"] == "Basic dTpw":  # u:p
                status, text = 200, "3.17.2"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"MLFLOW_TRACKING_{part}" for part in ("URI", "USERNAME", "PASSWORD", "TOKEN")), "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


SEARCH = "/api/2.0/mlflow/experiments/search"


def test_tracking_servers_old_open_locked_dead_and_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"/version": (200, "3.17.2"), f"{SEARCH}!": (403, "Invalid Host header")}) as uri:
        assert level(tracking.check_server(uri)) == "ok", text_of(tracking.check_server(uri))
    with answering({"/version": (200, "3.9.0"), f"{SEARCH}!": (403, "")}) as uri:
        assert "CVE-2026-2614" in text_of(tracking.check_server(uri)) and level(tracking.check_server(uri)) == "fail"
    with answering({"/version": (200, "3.17.2"), f"{SEARCH}!": (200, "{}")}) as uri:
        assert level(tracking.check_server(uri)) == "warn" and "--allowed-hosts" in text_of(tracking.check_server(uri))
    with answering({"/version": (200, "3.17.2"), f"{SEARCH}!": (404, "no such host")}) as uri:  # a proxy's refusal
        assert level(tracking.check_server(uri)) == "ok"
    with answering({"/version": (401, "who?"), f"{SEARCH}!": (403, "")}) as uri:
        assert (
            "MLFLOW_TRACKING_USERNAME" in text_of(tracking.check_server(uri))
            and level(tracking.check_server(uri)) == "fail"
        )
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "u")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-horse")
        assert "refuses the login given" in text_of(tracking.check_server(uri))
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p")
        assert level(tracking.check_server(uri)) == "ok"
        assert level(tracking.check_server(uri.replace("//", "//u:p@"))) == "ok"
    with answering({}) as uri:
        assert level(tracking.check_server(uri)) == "fail"
    with answering({"/version": (200, "<html>hello")}) as uri:
        assert "not a version" in text_of(tracking.check_server(uri))
    dead = tracking.check_server(uri.replace("//", "//u:geheim99@"))
    assert level(dead) == "fail" and "Connection refused" in text_of(dead) and "geheim99" not in text_of(dead)
    assert level(tracking.check_in_the_clear("http://mlflow.lab:5000", ("u", "p"))) == "warn"
    assert tracking.check_in_the_clear("https://mlflow.lab", ("u", "p")) == []
    assert level(tracking.check(settings("tracking.uri=file:///data/mlruns"))) == "fail"
    assert level(tracking.check(settings("tracking.uri=null"))) == "ok"


# The command


def test_the_command_reports_all_and_exits_by_the_gravest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"out={tmp_path}", "train.workers=1"]
    assert cli.main(["doctor", *overrides, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["subject"] for item in found} == set(checks.CHECKS)
    assert set(found[0]) == {"subject", "level", "what", "remedy"}
    assert cli.main(["doctor", "finetune", "encoder=random", "labels=rhythm", *overrides, "--json"]) == 0
    assert {item["subject"] for item in json.loads(capsys.readouterr().out)} == set(checks.CHECKS)
    with answering({"/version": (200, "2.9.0")}) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("//", "//user:geheim99@"))
        assert cli.main(["doctor", *overrides]) == 1
    printed = capsys.readouterr().out
    assert "fail  tracking  the tracking server" in printed and "1 failures" in printed
    assert "geheim99" not in printed


def test_a_check_that_breaks_is_a_finding_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(of: PretrainSettings) -> list[Finding]:
        raise RuntimeError("http://user:geheim99@host fell over")

    monkeypatch.setitem(checks.CHECKS, "ray", breaks)
    found = list(checks.examine(settings()))
    assert [subject for subject, f in found if f.level is Level.FAIL] == ["ray"]
    assert "geheim99" not in text_of([f for _, f in found])
    assert "tracking" in {subject for subject, _ in found}


def test_on_a_terminal_it_draws_a_table_and_starts_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    """Through a real pseudo-terminal."""
    import pty

    primary, secondary = pty.openpty()
    code = (
        "import sys, beatray.cli\n"
        f"assert beatray.cli.main(['doctor', 'out={tmp_path}', 'train.device=cuda']) == 1\n"
        "import ray\n"
        "assert not ray.is_initialized() and not {'mlflow', 'ray.data'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=secondary, env=environment) as process:
        os.close(secondary)
        shown = b""
        while True:
            try:
                more = os.read(primary, 65536)
            except OSError:  # the other end is closed
                break
            shown += more
            if not more:
                break
        assert process.wait() == 0
    os.close(primary)
    text = shown.decode()
    assert "\x1b[31mfail" in text and "\x1b[32mok" in text and "→" in text
