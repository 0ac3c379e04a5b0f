"""Keeps passwords and tokens out of everything that is written down: params, tags, files, printed lines, warnings.

Two kinds are known: what a URI carries (`http://user:password@host`, `?password=...`) and the values of environment
variables that are secret by their name. Contract: `without_secrets` is idempotent and leaves other text as it is; a
URI cleaned by it can still be opened when the login is given through the environment.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote, urlsplit

ENDS = r"\s'\"<>"
USERINFO = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^:/?#\[@{ENDS}]*:(?!\d+[/?#,;])[^@{ENDS}]*@|[^/?#@{ENDS}]*@)+")
"""A password may hold `/`, as keys of object stores do; digits before one are a port."""
DATABASE = re.compile(
    rf"((?:postgres(?:ql)?|mysql|mariadb|mssql|oracle)(?:\+\w+)?://)(?:[^:/@{ENDS}]*:[^@{ENDS}]*@|[^/?#@{ENDS}]*@)+",
    re.IGNORECASE,
)
"""SQLAlchemy takes whatever stands between `:` and the first `@` for the password, digits and `/` as well."""
QUERY = re.compile(
    r"([?&](?:[\w.-]*(?:password|passwd|secret|token|signature|key)[\w.-]*|sig)=)[^&\s'\"]+", re.IGNORECASE
)
"""`sig` is the signature of a shared access signature (Azure)."""
NAMES = re.compile(r"(PASSWORD|PASSWD|TOKEN|API_?KEY|CREDENTIALS?)$|SECRET", re.IGNORECASE)
SHORTEST = 6
"""Shorter values of the environment are left alone: `1` or `true` is a switch, and hiding it would garble lines."""
HIDDEN = "***"


def without_secrets(text: str) -> str:
    """The text without logins in URIs and without secret values of the environment."""
    for login in (DATABASE, USERINFO):
        text = login.sub(r"\1", text)
    text = QUERY.sub(rf"\1{HIDDEN}", text)
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    return text


def scrubbed(content: Any) -> Any:
    """Nested dicts and lists with `without_secrets` applied to every string in them."""
    if isinstance(content, str):
        return without_secrets(content)
    if isinstance(content, dict):
        return {key: scrubbed(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(scrubbed(value) for value in content)
    return content


def login_of(uri: str) -> tuple[str, str] | None:
    """The (user, password) that an http URI carries, decoded."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")


def _secret_values() -> list[str]:
    found = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)  # a secret that contains another goes first
