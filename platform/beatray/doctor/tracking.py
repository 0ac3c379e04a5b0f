"""The tracking server: reachable, with a login that it takes, new enough, and not open to every web page.

Asked over plain HTTP, without MLflow. Versions and their faults: MLflow before 3.10 lets anyone who reaches it read
files of the server (CVE-2026-2614) and, older ones, run code on it (CVE-2025-11201); without a check of the Host header
a web page can talk to a server on the visitor's machine (CVE-2025-14279).
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

from beatray.doctor.finding import Finding, fail, ok, warn
from beatray.errors import SettingsError
from beatray.settings import PretrainSettings
from beatray.track.database import database_in
from beatray.track.secrets import login_of, without_secrets

OLDEST = "3.10"
TIMEOUT_S = 10.0
STRANGER = "page.example"
"""A Host header that no server can know as its own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and text of an HTTP answer."""

    status: int
    text: str


def ask(uri: str, path: str, login: tuple[str, str] | None = None, host: str | None = None) -> Answer:
    """GET; OSError if there is no answer. Never through a proxy of the environment for loopback."""
    headers = {} if host is None else {"Host": host}
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{without_secrets(uri).rstrip('/')}{path}", headers=headers)
    proxies: dict[str, str] | None = {} if is_loopback(uri) else None
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler(proxies)).open(request, timeout=TIMEOUT_S) as got:
            return Answer(got.status, got.read(10_000).decode(errors="replace").strip())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(10_000).decode(errors="replace").strip())
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {error!r}") from error


def is_loopback(uri: str) -> bool:
    """True for an address of this machine alone."""
    host = urlsplit(uri).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def login_for(uri: str) -> tuple[str, str] | None:
    """The login in the URI, or the one that MLflow's variables give."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return login_of(uri) or ((user, password) if user and password else None)


def check_server(uri: str) -> list[Finding]:
    """Reachable, and its own description."""
    shown, login = without_secrets(uri), login_for(uri)
    try:
        answer = ask(uri, "/version", login)
    except (OSError, ValueError) as error:
        why = without_secrets(str(getattr(error, "reason", error)))
        remedy = "start it, or correct MLFLOW_TRACKING_URI; a run goes on without it and sends its figures later"
        return [fail(f"the tracking server {shown} does not answer: {why}", remedy)]
    if answer.status == 401:
        what = "refuses the login given" if login else "asks for a login"
        remedy = "export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return [fail(f"the tracking server {shown} {what}", remedy)]
    if answer.status != 200:
        what = f"{shown}/version answers {answer.status} ({answer.text[:80]})"
        return [fail(what, "check that MLFLOW_TRACKING_URI names an MLflow server, and its --allowed-hosts")]
    return [check_version(shown, answer.text), *check_hosts(uri, login), *check_in_the_clear(uri, login)]


def check_version(shown: str, text: str) -> Finding:
    """New enough for the faults named above."""
    try:
        found = Version(text)
    except InvalidVersion:
        what = f"{shown}/version is not a version: {text[:60]!r}"
        return fail(what, "check that MLFLOW_TRACKING_URI names an MLflow server")
    if found < Version(OLDEST):
        what = f"the tracking server {shown} runs MLflow {found}, open to CVE-2026-2614 and older faults"
        return fail(what, f"upgrade it to {OLDEST} or newer, or shut it off from the network")
    return ok(f"tracking server {shown}, MLflow {found}")


def check_hosts(uri: str, login: tuple[str, str] | None) -> list[Finding]:
    """A request under a strange name is refused."""
    try:
        answer = ask(uri, "/api/2.0/mlflow/experiments/search?max_results=1", login, host=STRANGER)
    except (OSError, ValueError):
        return []
    if answer.status != 200:  # MLflow answers 403; a proxy that knows servers by their names, 404 or 421
        return [ok("the tracking server refuses strange Host headers")]
    what = "the tracking server takes any Host header: web pages can reach it through a browser (CVE-2025-14279)"
    return [warn(what, "start it with --allowed-hosts naming it, not '*'")]


def check_in_the_clear(uri: str, login: tuple[str, str] | None) -> list[Finding]:
    """A password is not sent over a network unencrypted."""
    if login is None or urlsplit(uri).scheme == "https" or is_loopback(uri):
        return []
    what = f"the login for {without_secrets(uri)} travels in the clear"
    return [warn(what, "put the server behind https, or reach it through an ssh tunnel")]


def check(settings: PretrainSettings) -> list[Finding]:
    """All checks of this file."""
    uri = settings.tracking.uri
    if uri == "auto":
        if not (named := os.environ.get("MLFLOW_TRACKING_URI")) and "://" in settings.out:
            what = f"out={settings.out} is an object store, which cannot hold MLflow's database"
            return [fail(what, "set tracking.uri=, or set MLFLOW_TRACKING_URI")]
        try:
            uri = named or database_in(Path(settings.out))
        except SettingsError as error:
            return [fail(str(error), "set another out= or tracking.uri=")]
    if uri is None:
        return [ok("tracking is off (tracking.uri=null)")]
    if urlsplit(uri).scheme in ("http", "https"):
        return check_server(uri)
    if uri.startswith("file:") or "://" not in uri:
        what = f"tracking.uri={without_secrets(uri)} is a folder, which MLflow no longer writes to"
        return [fail(what, "give sqlite:///PATH.db or the address of a server")]
    return [ok(f"tracking into {without_secrets(uri)}")]
