"""Ray on this machine: who holds its ports, whether a dashboard is open to strangers, and the state of its token.

Anyone who reaches a dashboard without tokens can run commands on the cluster (CVE-2023-48022). Ray 2.60 makes a
token at the first local start and from then on asks for it wherever it finds one, also from a client that was never
given it: `ray job submit` then fails with 401 in a shell where it worked before.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from beatray.doctor.finding import Finding, fail, ok, warn

PORTS = {6379: "the head node", 8265: "the dashboard and jobs", 10001: "Ray clients"}
CONNECT_S = 5.0
LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""


def holders(port: int, proc: Path = Path("/proc")) -> list[str] | None:
    """The command lines of the processes that listen at a port; empty if the port is free.

    None where a process listens that this user may not inspect.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        lines = (proc / "net" / table).read_text().splitlines()[1:] if (proc / "net" / table).exists() else []
        for cells in map(str.split, lines):
            if cells[3] == LISTENING and int(cells[1].rsplit(":", 1)[1], 16) == port:
                sockets.add(f"socket:[{cells[9]}]")
    if not sockets:
        return []
    found = []
    for process in proc.glob("[0-9]*"):
        try:
            if any(str(handle.readlink()) in sockets for handle in (process / "fd").iterdir()):
                found.append((process / "cmdline").read_text().replace("\0", " ").strip())
        except OSError:
            continue  # another user's, or gone
    return found or None


def check_port(port: int, use: str, held_by: list[str] | None) -> Finding:
    """Free for a head node to be started here, or held by Ray already."""
    if held_by == []:
        return ok(f"port {port} ({use}) is free")
    if held_by is not None and any("/ray/" in line or "ray::" in line for line in held_by):
        return ok(f"port {port} ({use}) is held by Ray")
    who = held_by[0][:60] if held_by else "a process of another user"
    return warn(
        f"port {port} ({use}) is held by {who}",
        "to start a head node here, choose another with ray start --port= --dashboard-port= --ray-client-server-port=",
    )


def check_dashboard(url: str) -> list[Finding]:
    """The dashboard at `url`, if there is one, is on loopback or asks for a token."""
    from beatray.ray_session import asks_for_token, is_public, listening_on

    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "localhost")
    if local and not listening_on(parts.port or 80):
        return []
    if not is_public(parts.hostname or "", parts.port or 80):
        return [ok(f"the dashboard {url} listens on loopback alone")]
    if asks_for_token(url):
        return [ok(f"the dashboard {url} asks for a token")]
    what = (
        f"the dashboard {url} is public and asks for no token: anyone who reaches it can run commands (CVE-2023-48022)"
    )
    return [fail(what, "start Ray with RAY_AUTH_MODE=token, or with --dashboard-host=127.0.0.1")]


def check_token(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """Mode and token fit together, and no other user can read the token."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    has_token = bool(environment.get("RAY_AUTH_TOKEN")) or (path.is_file() and path.stat().st_size > 0)
    findings = []
    if path.is_file() and path.stat().st_mode & 0o077:
        what = f"other users can read Ray's token {path} (mode {path.stat().st_mode & 0o777:04o})"
        findings.append(warn(what, f"chmod 600 {path}"))
    if mode == "token" and not has_token:
        remedy = "ray get-auth-token --generate, or the token of the cluster in RAY_AUTH_TOKEN"
        findings.append(fail("RAY_AUTH_MODE=token, but there is no token", remedy))
    elif mode == "" and has_token:
        what = (
            "Ray's token exists and RAY_AUTH_MODE is not set: a cluster started here asks for it, and `ray job submit` "
        )
        findings.append(warn(f"{what}gets 401", "export RAY_AUTH_MODE=token, for ray start and for its clients alike"))
    elif mode == "disabled":
        findings.append(ok("Ray asks for no token (RAY_AUTH_MODE=disabled): keep its dashboard on 127.0.0.1"))
    else:
        findings.append(ok("Ray's token and RAY_AUTH_MODE fit together" if has_token else "Ray has no token yet"))
    return findings


def check_cluster_address(address: str | None) -> list[Finding]:
    """A process listens where a run would join its cluster: Ray itself waits for minutes before it reports that."""
    parts = urlsplit(address if address and "://" in address else f"//{address or ''}")
    try:
        if not address or parts.port is None:
            return []  # none, or a name such as `auto`
        with socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_S):
            return [ok(f"the cluster's address {address} answers")]
    except (OSError, ValueError) as error:
        remedy = "start the cluster, or correct cluster.address= or RAY_ADDRESS"
        return [fail(f"the cluster's address {address} does not answer: {error}", remedy)]


def check(address: str | None) -> list[Finding]:
    """All checks of this file, on this machine; `address` is the cluster that a run would join."""
    findings = check_cluster_address(address)
    findings += [check_port(port, use, holders(port)) for port, use in PORTS.items()]
    urls = {"http://127.0.0.1:8265", os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"}
    for url in sorted(urls):
        findings += check_dashboard(url)
    return [*findings, *check_token(os.environ, Path.home())]
