"""Which rows of a corpus the keys of a table mean: by recording, or by patient.

A recording may be written as its id (`ptbxl/00001`), as the name after the source, or as the file it came from, with
or without folders and suffix, also with backslashes. A patient may be written with or without the source before the
id; where a corpus has hashed ids, those of the table are hashed in the same way. Whole numbers are one key however a
spreadsheet writes them (1234, 1234.0, 01234), unless the corpus has two such names; zeros in front of an id that is
hashed are a part of it, since nobody could see the other id behind the hashes. A key that could mean two is not
guessed. Windows of a long recording (`name#0`, `name#1`) share the key `name`.

Contract: `match` gives for every distinct key the number of its recording or patient in the corpus, `NOTHING` or
`SEVERAL`, and raises LabelError for files of folders that the corpus does not know apart; no message shows the id of a
patient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.corpus.id_key import IdKey
from beatray.corpus.label_columns import whole_number
from beatray.errors import LabelError

NOTHING, SEVERAL = -1, -2

SUFFIX = re.compile(
    r"(\.(xml|dcm|dicom|hea|dat|mat|edf|bdf|scp|ecg|aecg|h5|hdf5|npy|npz|csv|txt|json|zip|bin))?(\.gz)?$", re.IGNORECASE
)
"""Of files of recordings. Any other end behind a dot is a part of the name: 12.7, smith.2024, 1.2.840.1.17."""

_DECIMAL = re.compile(r"^(\d+)\.0+$", re.ASCII)

RECORDING_NAMES = (
    *("record_id", "recording_id", "record", "recording", "ecg_id", "exam_id", "ecg"),
    *("file_name", "filename", "file", "path"),
)
PATIENT_NAMES = ("patient_id", "patient", "subject_id", "subject", "mrn", "pid")
"""What columns of keys are called, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Units:
    """What keys may mean in a corpus: recordings, or patients. `of_row` (n,) is the number of each row, -1 for none."""

    kind: str
    names: tuple[str, ...]
    of_row: NDArray[np.int64]


def recordings_of(index: pd.DataFrame) -> Units:
    """The recordings of a corpus' rows, with all their windows."""
    numbers, names = pd.factorize(index["record_id"].str.partition("#")[0])
    return Units("recording", tuple(names), np.asarray(numbers, np.int64))


def patients_of(index: pd.DataFrame) -> Units:
    """The patients of a corpus' rows."""
    numbers, names = pd.factorize(index["patient_id"])
    return Units("patient", tuple(names), np.asarray(numbers, np.int64))


def key_column(names: Sequence[str]) -> str:
    """The column that is called like a key; else the first one."""
    by_name = {_plain_name(name): name for name in reversed(names)}
    return next(
        (by_name[name] for name in (*RECORDING_NAMES, "key", "id", *PATIENT_NAMES) if name in by_name), names[0]
    )


def owner_column(names: Sequence[str]) -> str | None:
    """The column that is called like the id of a patient."""
    return next((name for name in names if _plain_name(name) in PATIENT_NAMES), None)


def is_id_name(name: str) -> bool:
    """Whether a column is called like one of ids."""
    return _plain_name(name) in (*RECORDING_NAMES, *PATIENT_NAMES, "id", "key")


def kind_by_name(name: str) -> str:
    """What a column of keys holds, recording or patient; empty where its name does not show it."""
    plain = _plain_name(name)
    return "recording" if plain in RECORDING_NAMES else "patient" if plain in PATIENT_NAMES else ""


def _plain_name(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.lower())


def match(
    keys: Sequence[str], units: Units, id_key: IdKey | None = None, hidden: Callable[[int], str] | None = None
) -> NDArray[np.int64]:
    """The unit that each key means; `hidden` names a key by its position in the table, if none may be shown."""
    forms = _forms(units)
    sources = {name.partition("/")[0] for name in units.names}
    if units.kind == "patient":
        if id_key is None:
            return _looked_up((_written(key) for key in keys), forms)
        plain = ((key, _DECIMAL.sub(r"\1", key)) for key in keys)
        return _looked_up((tuple(_hashed(each, sources, id_key) for each in some) for some in plain), forms)
    by_last: dict[str, list[int]] = {}
    folders: dict[str, tuple[str, int]] = {}  # by source: what stood in front of the first file, and its position
    found = np.empty(len(keys), np.int64)
    for position, key in enumerate(keys):
        number = forms.get(key)
        if number is None:
            number = forms.get(whole_number(key), NOTHING)
        if number == NOTHING and key:
            if not by_last:
                by_last = _by_last_part(units)
            number, front = _by_path(key, units, by_last, sources)
            if number >= 0:
                source = units.names[number].partition("/")[0]
                other, first = folders.setdefault(source, (front, position))
                if front != other:
                    two = [hidden(at) if hidden else keys[at] for at in (first, position)]
                    which = "" if hidden else f" ({other or '.'} and {front or '.'})"
                    raise LabelError(
                        f"the files {' and '.join(two)} lie in folders that the corpus does not know apart{which}: "
                        "make a table for each, or ingest their parent folder"
                    )
        found[position] = number
    return found


def examples(units: Units, count: int = 3) -> str:
    """How the corpus' own ids look."""
    return ", ".join(units.names[:count])


def _written(key: str) -> tuple[str, ...]:
    """The ways to write a key, the given one first."""
    number = whole_number(key)
    return (key,) if number == key else (key, number)


def _hashed(key: str, sources: set[str], id_key: IdKey) -> str:
    """A patient's key as the corpus has it; a source that stands in front stays there."""
    source, _, rest = key.partition("/")
    return f"{source}/{id_key.hashed(rest)}" if rest and source in sources else id_key.hashed(key)


def _looked_up(candidates: Iterable[Sequence[str]], forms: dict[str, int]) -> NDArray[np.int64]:
    found = [next((forms[each] for each in some if each in forms), NOTHING) for some in candidates]
    return np.array(found, np.int64)


def _forms(units: Units) -> dict[str, int]:
    """Every short way to write a unit; SEVERAL where two share it. The whole id always means its own."""
    forms: dict[str, int] = {}

    def add(form: str, number: int) -> None:
        forms[form] = number if forms.get(form, number) == number else SEVERAL

    for number, name in enumerate(units.names):
        short = name.partition("/")[2] or name
        add(short, number)
        if (plain := whole_number(short)) != short:
            add(plain, number)
    forms.update({name: number for number, name in enumerate(units.names)})
    return forms


def _by_last_part(units: Units) -> dict[str, list[int]]:
    """Recordings by the last part of their names, in both spellings of a number."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(units.names):
        last = name.rpartition("/")[2]
        found.setdefault(last, []).append(number)
        if (plain := whole_number(last)) != last:
            found.setdefault(plain, []).append(number)
    return found


def _by_path(key: str, units: Units, by_last: dict[str, list[int]], sources: set[str]) -> tuple[int, str]:
    """The recording whose name agrees with the most parts at the end of a path, and the folder in front of these; a
    source in front must be its own."""
    parts = [part for part in key.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts:
        return NOTHING, ""
    for last in dict.fromkeys((parts[-1], SUFFIX.sub("", parts[-1]))):
        best, found = 0, NOTHING
        for number in dict.fromkeys(n for form in _written(last) for n in by_last.get(form, ())):
            agree = _agreement([*parts[:-1], last], units.names[number].split("/"), sources)
            if agree > best:
                best, found = agree, number
            elif agree == best and agree:
                found = SEVERAL
        if found != NOTHING:
            return found, "/".join(parts[: len(parts) - best])
    return NOTHING, ""


def _agreement(parts: Sequence[str], name: Sequence[str], sources: set[str]) -> int:
    """How many parts at the end are the same; 0 where both go on and differ before the shorter one ends."""
    own = name[1:] if len(name) > 1 else name
    if len(parts) > 1 and parts[0] in sources and parts[0] != name[0]:
        return 0
    same = 0
    for one, other in zip(reversed(parts), reversed(name), strict=False):
        if one != other and whole_number(one) != whole_number(other):
            break
        same += 1
    return same if same >= min(len(parts), len(own)) else 0
