"""What an object store answers when it does not do as asked: what may pass is tried again, the rest gets a remedy.

pyarrow hands every refusal of S3 on as an OSError whose message names the AWS error (`AWS Error ACCESS_DENIED during
...`), and of gs:// the status (`google::cloud::Status(UNAVAILABLE: ...`). It tries a lost connection again for about
six seconds by itself; `patiently` goes on for a minute more, so that a restarted server or a short storm of "slow down"
costs time and no run. Contract: a fault of the network or of the rights is a `StoreError`, never taken for damage of a
file; errors that are about the file itself (not there, cut short) stay as they are.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits between attempts, each cut at random by up to half, so that many tasks do not knock at once."""

PASSING = (
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "THROTTLING",
    "REQUEST_TIMEOUT",
)
REFUSED_KEYS = (
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_SIGNATURE",
    "INVALID_CLIENT_TOKEN_ID",
    "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION_TOKEN",
    "REQUEST_EXPIRED",
)
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine"
GOOGLE_KEYS = "GOOGLE_APPLICATION_CREDENTIALS, or the account of the machine"

OF_THE_FILE = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND")
OF_THE_FILE_STATUS = ("404", "416")

GOOGLE = {
    "UNAVAILABLE": "NETWORK_CONNECTION",
    "DEADLINE_EXCEEDED": "REQUEST_TIMEOUT",
    "RESOURCE_EXHAUSTED": "SLOW_DOWN",
    "INTERNAL": "INTERNAL_FAILURE",
    "PERMISSION_DENIED": "ACCESS_DENIED",
    "UNAUTHENTICATED": "MISSING_AUTHENTICATION_TOKEN",
    "NOT_FOUND": "RESOURCE_NOT_FOUND",
    "OUT_OF_RANGE": "RESOURCE_NOT_FOUND",
}
"""Codes of gs:// by the name that S3 has for the same."""

_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_GOOGLE_ERROR = re.compile(r"google::cloud::Status\((\w+)")


class StoreError(OSError):
    """A location of corpora or runs that cannot be used; the message names it and the remedy."""


def is_remote_fault(error: BaseException) -> bool:
    """True if the error speaks of the way to the file or of the right to use it, not of the file."""
    if not isinstance(error, OSError) or isinstance(error, StoreError):
        return isinstance(error, StoreError)
    code, status = _code_of(error)
    return code != "" and code not in OF_THE_FILE and status not in OF_THE_FILE_STATUS


def _code_of(error: BaseException) -> tuple[str, str]:
    """Code and HTTP status of an object store's error, or empty."""
    found = _AWS_ERROR.search(str(error))
    if found:
        return found[1], found[2] or ""
    found = _GOOGLE_ERROR.search(str(error))
    return (GOOGLE.get(found[1], found[1]), "") if found else ("", "")


def may_pass(error: BaseException) -> bool:
    """True for a lost connection, a busy or a failing server: another attempt may succeed."""
    code, status = _code_of(error) if isinstance(error, OSError) else ("", "")
    return code in PASSING or status.startswith("5")


def explain(error: OSError, where: str) -> OSError:
    """The error as a StoreError that names the location and the remedy; the error itself if it is no refusal."""
    if not is_remote_fault(error) or isinstance(error, StoreError):
        return error
    code, status = _code_of(error)
    keys = GOOGLE_KEYS if _GOOGLE_ERROR.search(str(error)) else KEYS
    if code == "NO_SUCH_BUCKET":
        reason = "there is no such bucket. Create it first (buckets have owners, regions and costs; none is made here)."
    elif code == "ACCESS_DENIED" or status == "403":
        reason = f"access denied. Give keys that may list, read and write there: {keys}."
    elif code in REFUSED_KEYS:
        reason = f"the keys are refused ({code}): wrong, expired or for another server. See {keys}."
    elif code == "REQUEST_TIME_TOO_SKEWED":
        reason = "the clock of this machine differs too much from the server's. Set it right."
    elif status in ("301", "307", "400"):
        reason = (
            "the bucket lies in another region (set AWS_DEFAULT_REGION, or write ?region=NAME behind the path), or a "
            "session token has expired."
        )
    elif may_pass(error):
        reason = (
            "it does not answer. Is the network up, and is the endpoint right (AWS_ENDPOINT_URL, or "
            "?endpoint_override=HOST:PORT&scheme=http behind the path)?"
        )
    else:
        reason = "it refuses the request."
    return StoreError(f"{where}: {reason} [{error}]")


def patiently(call: Callable[[], T], where: str) -> T:
    """The result of `call`, tried again while what fails may pass; StoreError when it does not."""
    for pause in (*PAUSES_S, None):
        try:
            return call()
        except OSError as error:
            if pause is None or not may_pass(error) or isinstance(error, StoreError):
                explained = explain(error, where)
                if explained is error:
                    raise
                raise explained from error
            log.warning("%s does not answer, trying again in %.1f s: %s", where, pause, error)
            time.sleep(pause * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: the last attempt returns or raises")
