"""Joins a running Ray cluster, or starts a small one on this machine.

Contract: with an address (argument or RAY_ADDRESS) the cluster is used as it is and left running; otherwise a private
small Ray is started on this machine and stopped at the end. The package itself travels to the workers, so a cluster
needs only the dependencies.

Whoever reaches the dashboard of a cluster without tokens can run commands on all its nodes (CVE-2023-48022). A cluster
whose dashboard listens beyond its own machine and asks for no token is therefore left with an `OpenDashboardError`.
The dashboard of the local Ray listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
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
QUIET = {"RAY_DEDUP_LOGS": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
LOOPBACK = "127.0.0.1"
LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""


class OpenDashboardError(ConnectionError):
    """A cluster on which anyone who reaches its dashboard can run commands."""


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

    Raises OpenDashboardError, disconnected again, where strangers could run commands on the cluster.
    """
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": _runtime_env(address)}
    if address:
        context = ray.init(address=address, **options)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            num_cpus=settings.cpus or max(len(os.sched_getaffinity(0)), 2),
            include_dashboard=settings.dashboard,
            dashboard_host=LOOPBACK,
            object_store_memory=settings.object_store_mb * 2**20,
            **options,
        )
    try:
        if address and not settings.allow_open_dashboard:
            refuse_open_dashboard(context.dashboard_url)
        yield
    finally:
        ray.shutdown()


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
    """Raise OpenDashboardError if the dashboard at `url`, as Ray tells it, is public and asks for no token."""
    if not url:
        return
    url = url if "://" in url else f"http://{url}"
    parts = urlsplit(url)
    if not is_public(parts.hostname or "", parts.port or 80) or asks_for_token(url):
        return
    raise OpenDashboardError(
        f"the cluster's dashboard ({url}) listens beyond its own machine and asks for no token: whoever reaches it can "
        "run commands on every node. Start the cluster with RAY_AUTH_MODE=token or --dashboard-host=127.0.0.1 "
        "(cluster/README.md shows how), or set cluster.allow_open_dashboard=true if a firewall guards it."
    )


def is_public(host: str, port: int) -> bool:
    """True if the dashboard that Ray names `host:port` listens beyond its machine.

    Ray names the address of the head node for every dashboard that is not bound to loopback. A head node may itself
    have a loopback address, as in a cluster on one machine; then the sockets of this machine tell.
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
    """The addresses of this machine on which some process listens at `port`; empty where /proc does not tell."""
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

    The answer itself is asked for, because this process may be set to send tokens to a cluster that wants none. Where
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
