"""What becomes of patient ids: hashed with an id key that only the hospital has, or dropped where they are private.

A hashed id is `<source>/<32 hex digits>` (`corpus.id_key`): the same patient gives the same id, in this corpus and in
others of the same key. The key goes to the tasks in memory and is written nowhere; the recipe holds a fingerprint of
it, so that a corpus never mixes two keys. Without a key the ids of public data sets stay as published and private ones
become None.

Contract: nothing here prints or raises with an id or the id key.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from beatray.corpus.id_key import IdKey
from beatray.record import Record


def other_id_key(out: str, made_with: str | None, id_key: IdKey | None) -> str:
    """Why a corpus made with one id key's fingerprint is not continued with another id key, and what to do."""
    made = f"with the id key of fingerprint {made_with}" if made_with else "without an id key"
    now = f"this one has fingerprint {id_key.fingerprint}" if id_key else "now none is given"
    return (
        f"the corpus at {out} was made {made}, {now}: one patient would get two ids. Give --id-key-file as when the "
        "corpus was made, choose another --out, or pass --overwrite to make it anew."
    )


def protect(record: Record, id_key: IdKey | None) -> tuple[Record, bool]:
    """The record with an id and a time that may be stored, and whether an id had to be dropped.

    A time is kept beside an id alone; with an id key it is moved by the patient's own span.
    """
    if record.patient_id is None:
        return (record if record.acquired is None else _with(record, None, None)), False
    if id_key is not None:
        hashed = id_key.hashed(record.patient_id.removeprefix(f"{record.source}/"))
        acquired = None if record.acquired is None else record.acquired + timedelta(seconds=id_key.moved_by_s(hashed))
        return _with(record, f"{record.source}/{hashed}", acquired), False
    if record.patient_is_private:
        return _with(record, None, None), True
    return record, False


def _with(record: Record, patient_id: str | None, acquired: datetime | None) -> Record:
    return replace(record, signal_mv=record.given_mv, patient_id=patient_id, acquired=acquired)
