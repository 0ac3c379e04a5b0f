"""The id key of a hospital: the secret that its patient ids are hashed with, and the hash.

A hashed id is 32 hex digits, the first 16 bytes of HMAC-SHA256 of the id: the same patient gives the same id under the
same key, and without the key no ids can be tried out. The times of a patient's recordings are all moved by one span of
up to ten years either way, to the second, which follows from the hashed id and the key: how they lie to each other
stays, and day, season and time of day say nothing. The key is read by a command, goes to tasks in memory and is
written nowhere; what is kept is a fingerprint that tells two keys apart.

Contract: `read_id_key` raises CorpusError; nothing here prints or raises with an id or the id key.
Source: RFC 2104 (HMAC), FIPS 180-4.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path

from beatray.errors import CorpusError

MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 4096
MOVED_AT_MOST_S = 10 * 365 * 86_400
ID_BYTES = 16
FINGERPRINT_BYTES = 4
RECIPE_KEY = "patient_salt"
"""Line of a corpus' recipe that holds the fingerprint; it does not concern the numbers in the rows."""


@dataclass(frozen=True, slots=True)
class IdKey:
    """The secret, which no message and no log shows."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that tell two id keys apart and give neither away."""
        return _digest(self.secret, b"beatray: fingerprint of a salt", FINGERPRINT_BYTES)

    def hashed(self, plain: str) -> str:
        """The id that is stored in place of a patient's own, without the source before it."""
        return _digest(self.secret, plain.encode(), ID_BYTES)

    def moved_by_s(self, hashed: str) -> int:
        """Seconds that the times of a patient are moved by, of a hashed id without the source before it."""
        number = int(_digest(self.secret, f"beatray: times of {hashed}".encode(), ID_BYTES), 16)
        return number % (2 * MOVED_AT_MOST_S + 1) - MOVED_AT_MOST_S


def read_id_key(path: str, setting: str = "--id-key-file ") -> IdKey:
    """The id key in a file: its bytes without line ends after them. Raises CorpusError that names `setting`."""
    try:
        with Path(path).expanduser().open("rb") as stream:
            secret = stream.read(MAX_KEY_BYTES + 1).rstrip(b"\r\n")
    except OSError as error:
        raise CorpusError(f"{setting}{path}: {error.strerror or 'cannot be read'}") from error
    if not MIN_KEY_BYTES <= len(secret) <= MAX_KEY_BYTES:
        raise CorpusError(
            f"{setting}{path} holds {'more than ' if len(secret) > MAX_KEY_BYTES else ''}"
            f"{min(len(secret), MAX_KEY_BYTES)} bytes; an id key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES}. Make one: "
            "head -c 32 /dev/urandom | base64 > id-key, and keep it where only you can read it"
        )
    return IdKey(secret)


def _digest(secret: bytes, message: bytes, n_bytes: int) -> str:
    return hmac.digest(secret, message, "sha256")[:n_bytes].hex()
