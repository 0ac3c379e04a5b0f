"""What an object store answers when it does not do as asked: what may pass is tried again, the rest gets a remedy.

pyarrow hands every refusal of S3 on as an OSError whose message names the AWS error (`AWS Error ACCESS_DENIED during
...`). It tries a lost connection again for about six seconds by itself; `patiently` goes on for a minute more, so that
a restarted server or a short storm of "slow down" costs time and no run. Contract: a fault of the network or of the
rights is a `StoreError`, never taken for damage of a file; errors that are about the file itself (not there, cut short)
stay as they are.
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

OF_THE_FILE = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND")
OF_THE_FILE_STATUS = ("404", "416")

_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")


class StoreError(OSError):
    """A location of corpora or runs that cannot be used; the message names it and the remedy."""


def is_remote_fault(error: BaseException) -> bool:
    """True if the error speaks of the way to the file or of the right to use it, not of the file."""
    if not isinstance(error, OSError) or isinstance(error, StoreError):
        return isinstance(error, StoreError)
    found = _AWS_ERROR.search(str(error))
    return found is not None and found[1] not in OF_THE_FILE and (found[2] or "") not in OF_THE_FILE_STATUS


def may_pass(error: BaseException) -> bool:
    """True for a lost connection, a busy or a failing server: another attempt may succeed."""
    found = _AWS_ERROR.search(str(error)) if isinstance(error, OSError) else None
    return found is not None and (found[1] in PASSING or (found[2] or "").startswith("5"))


def explain(error: OSError, where: str) -> OSError:
    """The error as a StoreError that names the location and the remedy; the error itself if it is no refusal."""
    if not is_remote_fault(error) or isinstance(error, StoreError):
        return error
    found = _AWS_ERROR.search(str(error))
    code, status = (found[1], found[2] or "") if found else ("", "")
    if code == "NO_SUCH_BUCKET":
        reason = "there is no such bucket. Create it first (buckets have owners, regions and costs; none is made here)."
    elif code == "ACCESS_DENIED" or status == "403":
        reason = f"access denied. Give keys that may list, read and write there: {KEYS}."
    elif code in REFUSED_KEYS:
        reason = f"the keys are refused ({code}): wrong, expired or for another server. See {KEYS}."
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
