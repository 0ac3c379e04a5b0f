"""What becomes of patient ids: hashed with an id key that only the hospital has, or dropped where they are private.

A hashed id is `<source>/<32 hex digits>`, the first 16 bytes of HMAC-SHA256 of the id: the same patient gives the same
id, in this corpus and in others of the same key, and nobody without the key can try ids out. The key is read once by
the command, goes to the tasks in memory and is written nowhere; the recipe holds a fingerprint of it, so that a corpus
never mixes two keys. Without a key the ids of public data sets stay as published and private ones become None.

Contract: `read_id_key` raises CorpusError; nothing here prints or raises with an id or the id key.
Source: RFC 2104 (HMAC), FIPS 180-4.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from pathlib import Path

from beatray.errors import CorpusError
from beatray.record import Record

MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 4096
ID_BYTES = 16
FINGERPRINT_BYTES = 4
RECIPE_KEY = "patient_salt"
"""Line of the recipe that holds the fingerprint; it says nothing about the numbers in the rows."""


@dataclass(frozen=True, slots=True)
class IdKey:
    """The secret, which no message and no log shows."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that tell two id keys apart and give neither away."""
        return _digest(self.secret, b"beatray: fingerprint of a salt", FINGERPRINT_BYTES)


def read_id_key(path: str) -> IdKey:
    """The id key in a file: its bytes without line ends after them. Raises CorpusError."""
    try:
        with Path(path).open("rb") as stream:
            secret = stream.read(MAX_KEY_BYTES + 1).rstrip(b"\r\n")
    except OSError as error:
        raise CorpusError(f"--id-key-file {path}: {error.strerror or 'cannot be read'}") from error
    if not MIN_KEY_BYTES <= len(secret) <= MAX_KEY_BYTES:
        raise CorpusError(
            f"--id-key-file {path} holds {'more than ' if len(secret) > MAX_KEY_BYTES else ''}"
            f"{min(len(secret), MAX_KEY_BYTES)} bytes; an id key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES}. Make one: "
            "head -c 32 /dev/urandom | base64 > id-key, and keep it where only you can read it"
        )
    return IdKey(secret)


def other_id_key(out: str, made_with: str | None, id_key: IdKey | None) -> str:
    """Why a corpus made with one id key's fingerprint is not continued with another id key, and what to do."""
    made = f"with the id key of fingerprint {made_with}" if made_with else "without an id key"
    now = f"this one has fingerprint {id_key.fingerprint}" if id_key else "now none is given"
    return (
        f"the corpus at {out} was made {made}, {now}: one patient would get two ids. Give --id-key-file as when the "
        "corpus was made, choose another --out, or pass --overwrite to make it anew."
    )


def protect(record: Record, id_key: IdKey | None) -> tuple[Record, bool]:
    """The record with an id that may be stored, and whether an id had to be dropped."""
    if record.patient_id is None:
        return record, False
    if id_key is not None:
        plain = record.patient_id.removeprefix(f"{record.source}/")
        hashed = _digest(id_key.secret, plain.encode(), ID_BYTES)
        return replace(record, signal_mv=record.given_mv, patient_id=f"{record.source}/{hashed}"), False
    if record.patient_is_private:
        return replace(record, signal_mv=record.given_mv, patient_id=None), True
    return record, False


def _digest(secret: bytes, message: bytes, n_bytes: int) -> str:
    return hmac.digest(secret, message, "sha256")[:n_bytes].hex()
