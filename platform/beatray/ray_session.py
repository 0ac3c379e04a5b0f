"""Joins a running Ray cluster, or starts a small one on this machine.

Contract: with an address (argument or RAY_ADDRESS) the cluster is used as it is and left running; otherwise a private
small Ray is started on this machine and stopped at the end. The package itself travels to the workers, so a cluster
needs only the dependencies.

Anyone who reaches the dashboard of a cluster without tokens can run commands on all its nodes (CVE-2023-48022). A
cluster whose dashboard listens beyond its own machine and asks for no token is therefore left with an
`OpenDashboardError`. The dashboard of the local Ray listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

PACKAGE = Path(__file__).parent
BACKEND_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    BACKEND_LOG_LEVEL: "error",  # of its C++ processes; set it to debug to see what they do
}
LOOPBACK = "127.0.0.1"
LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""


RAY_PORT = 6379
ANSWER_S = 10.0
"""How long an address may take to answer before Ray, which would go on for a quarter of an hour, is asked."""
STARTS = 2
"""Times that a local Ray is started: on a busy machine its first processes may not be up within Ray's patience."""


class OpenDashboardError(ConnectionError):
    """A cluster on which anyone who reaches its dashboard can run commands."""


class UnreachableRayError(ConnectionError):
    """No Ray at an address, or none that can be started here; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """How Ray is reached or started; `cpus` counts scheduling slots, not cores, and is for the local Ray only.

    `dashboard` gives the local Ray one on 127.0.0.1; Ray Tune needs it to stop trials early. `allow_open_dashboard`
    joins a cluster whose dashboard is public and asks for no token.
    """

    address: str | None = None
    cpus: int | None = None
    object_store_mb: int = 512
    dashboard: bool = False
    allow_open_dashboard: bool = False


@contextmanager
def session(settings: RaySettings) -> Iterator[None]:
    """Be connected to Ray inside the block; inside an open session it is used as it is.

    Raises OpenDashboardError, disconnected again, where strangers could run commands on the cluster, and
    UnreachableRayError where there is none at the address or none could be started.
    """
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": _runtime_env(address)}
    for name, value in QUIET.items():
        if name not in os.environ:
            os.environ[name] = value
            if name == BACKEND_LOG_LEVEL:
                os.unsetenv(name)  # what is started inherits it; this process' own C++ would print that it has read it
    if address:
        setting = "cluster.address" if settings.address else "RAY_ADDRESS"
        refuse_silent_address(address, setting)
        context = ray.init(address=address, **options)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _start_local(settings, options)
    try:
        if address and not settings.allow_open_dashboard:
            refuse_open_dashboard(context.dashboard_url)
        yield
    finally:
        ray.shutdown()


def refuse_silent_address(address: str, setting: str, patience_s: float = ANSWER_S) -> None:
    """Raise UnreachableRayError if nothing listens at an address that names a host; `setting` names its source."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if address in ("auto", "local") or parts.hostname is None:
        return
    try:
        port = parts.port or (10001 if "://" in address else RAY_PORT)
        socket.create_connection((parts.hostname, port), timeout=patience_s).close()
    except (OSError, ValueError) as error:
        raise UnreachableRayError(
            f"no Ray answers at {setting}={address} ({error}): is the cluster up, and may this machine reach it? "
            f"Without {setting} a small Ray is started here"
        ) from error


def _start_local(settings: RaySettings, options: dict[str, Any]) -> None:
    """Start a small Ray on this machine, once more if its first start was too slow."""
    for start in range(1, STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=settings.cpus or max(len(os.sched_getaffinity(0)), 2),
                include_dashboard=settings.dashboard,
                dashboard_host=LOOPBACK,
                object_store_memory=settings.object_store_mb * 2**20,
                **options,
            )
        except Exception as error:  # Ray raises a plain Exception when its first processes are too slow
            ray.shutdown()
            if "AF_UNIX" in str(error):
                raise UnreachableRayError(
                    f"the temporary folder {tempfile.gettempdir()} has too long a name for Ray's sockets: export "
                    "RAY_TMPDIR= to a shorter one, such as /tmp"
                ) from error
            if start == STARTS:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise UnreachableRayError(
                    f"Ray did not start on this machine, {STARTS} times: {first}. Is it very busy, or short of memory? "
                    "Try again, or `beatray doctor`"
                ) from error
        else:
            return


def _runtime_env(address: str | None) -> dict[str, Any]:
    """How workers find this package: shipped to a cluster; on this machine by its installation or its path."""
    if address:
        return {"py_modules": [str(PACKAGE)], "excludes": ["**/__pycache__"]}
    try:
        distribution("beatray")
    except PackageNotFoundError:
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        return {"env_vars": {"PYTHONPATH": path}}
    return {}


def refuse_open_dashboard(url: str | None) -> None:
    """Raise OpenDashboardError if the dashboard at `url`, as Ray names it, is public and asks for no token."""
    if not url:
        return
    url = url if "://" in url else f"http://{url}"
    parts = urlsplit(url)
    if not is_public(parts.hostname or "", parts.port or 80) or asks_for_token(url):
        return
    raise OpenDashboardError(
        f"the cluster's dashboard ({url}) listens beyond its own machine and asks for no token: anyone who reaches it "
        "can run commands on every node. Start the cluster with RAY_AUTH_MODE=token or --dashboard-host=127.0.0.1 "
        "(cluster/README.md shows how), or set cluster.allow_open_dashboard=true if a firewall guards it."
    )


def is_public(host: str, port: int) -> bool:
    """True if the dashboard that Ray names `host:port` listens beyond its machine.

    Ray names the address of the head node for every dashboard that is not bound to loopback. A head node may itself
    have a loopback address, as in a cluster on one machine; then the sockets of this machine decide.
    """
    if host != "localhost" and not _is_loopback(host):
        return True
    bound = listening_on(port)
    return bool(bound) and not any(address.is_loopback for address in bound)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name


def listening_on(port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of this machine on which some process listens at `port`; empty where /proc does not show them."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == LISTENING and int(number, 16) == port:
                found.append(_from_kernel(address))
    return found


def _from_kernel(digits: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as /proc writes it: 32-bit words in the byte order of the machine (little endian)."""
    raw = bytes.fromhex(digits)
    raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    address = ipaddress.ip_address(raw)
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def asks_for_token(url: str) -> bool:
    """True if the dashboard refuses a request without a token.

    The answer itself is asked for, because this process may be set to send tokens to a cluster that takes none. Where
    the dashboard cannot be reached from here, the mode of this process is all there is to go by.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy of the environment
    try:
        with direct.open(f"{url.rstrip('/')}/api/version", timeout=10):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, http.client.HTTPException):
        return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
