"""`recordings.yaml`: what the arrays of a plain folder mean. Read strictly: a slip is reported, not guessed at.

    files: ["signals/*.npy"]        # one pattern or several, relative to this file; .npy, .npz or .parquet
    rate_hz: 500
    leads: [I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6]   # in the order of the array
    units: mV                       # nV, uV, mV, V, or millivolts per unit as a number
    axes: [leads, samples]          # or [samples, leads]; with `recordings` first for a stack
    array: ecg                      # the key in an .npz, the column in a .parquet
    dtype: int16                    # only for a .parquet column of bytes
    table: people.csv               # optional: a line per recording (.npy, .npz); a .parquet is its own table
    columns: {file: name, row: index, id: exam, patient: mrn, age: age, sex: sex, labels: codes, fold: fold,
              time: taken}
    separator: ";"                  # between labels

Of `columns`, all are optional but `file`, which names the array that a line of the table belongs to (its path, or its
name with or without suffix), where there are several arrays; `row` is the position in a stack, from 0. `time` is when
the recording began by the clock where it was made, as 2024-02-17 10:15:00; one with a zone is left out.

Contract: `read_plan(bytes)` gives an `ArraysPlan` or raises RecordError(METADATA) whose message names the key and, for
one that does not exist, the nearest right one. YAML is read by `safe_load`, at most 64 KiB, without aliases.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

import yaml

from beatray.ingest.formats.channels import MV_PER_UNIT
from beatray.ingest.formats.leads import check_enough, columns_of_leads
from beatray.ingest.formats.wfdb_header import MAX_SIGNALS, RATE_LIMITS_HZ
from beatray.ingest.member_checks import is_one_line, is_plain_path
from beatray.record import Reason, RecordError

FILE_NAME = "recordings.yaml"
MAX_BYTES = 64 * 1024
DEEPEST = 16
SUFFIXES = (".npy", ".npz", ".parquet")
KEYS = ("files", "rate_hz", "leads", "units", "axes", "array", "dtype", "table", "columns", "separator")
COLUMNS = ("file", "row", "id", "patient", "age", "sex", "labels", "fold", "time")
DTYPES = ("int8", "int16", "int32", "float16", "float32", "float64")
_AXES = ("recordings", "leads", "samples")


@dataclass(frozen=True, slots=True)
class ArraysPlan:
    """A checked `recordings.yaml`."""

    files: tuple[str, ...]
    rate_hz: float
    leads: tuple[str, ...]
    mv_per_unit: float
    axes: tuple[str, ...]
    array: str | None
    dtype: str | None
    table: str | None
    columns: dict[str, str]
    separator: str

    @property
    def stacked(self) -> bool:
        return "recordings" in self.axes


def read_plan(data: bytes) -> ArraysPlan:
    """Parse and check; see the module's contract."""
    content = _load(data)
    for key in content:
        if key not in KEYS:
            raise _error(f"unknown key {str(key)[:40]!r}{_nearest(key, KEYS)}")
    for key in ("files", "rate_hz", "leads", "units"):
        if key not in content:
            raise _error(f"{key} is missing")
    files = _texts("files", content["files"])
    for pattern in files:
        if not is_plain_path(pattern) or not pattern.lower().endswith(SUFFIXES):
            raise _error(f"files: {pattern!r} is not a relative path that ends in {', '.join(SUFFIXES)}")
    array = _text("array", content.get("array"))
    if array is None and any(not pattern.lower().endswith(".npy") for pattern in files):
        raise _error("array is missing: the key in the .npz, or the column in the .parquet")
    dtype = _text("dtype", content.get("dtype"))
    if dtype is not None and dtype not in DTYPES:
        raise _error(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    table = _text("table", content.get("table"))
    if table is not None and not (is_plain_path(table) and table.lower().endswith(".csv")):
        raise _error(f"table: {table!r} is not a relative path that ends in .csv")
    columns = _columns(content.get("columns"))
    if columns and table is None and not all(pattern.lower().endswith(".parquet") for pattern in files):
        raise _error("columns need a table, unless all files are .parquet")
    separator = _text("separator", content.get("separator", ";"))
    return ArraysPlan(
        files=files,
        rate_hz=_rate(content["rate_hz"]),
        leads=_leads(content["leads"]),
        mv_per_unit=_units(content["units"]),
        axes=_axis_order(content.get("axes", ["leads", "samples"])),
        array=array,
        dtype=dtype,
        table=table,
        columns=columns,
        separator=separator or ";",
    )


def _load(data: bytes) -> dict[Any, Any]:
    if len(data) > MAX_BYTES:
        raise _error(f"{len(data)} bytes, limit {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise _error("an alias (*name) is not allowed")  # a few of them can stand for gigabytes
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # the parser's time grows with the square of the depth
                raise _error(f"it is nested more than {DEEPEST} deep")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        if isinstance(error, RecordError):
            raise
        raise _error(f"it is not YAML: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(content, dict):
        raise _error("it must be a list of keys and values")
    return content


def _axis_order(value: object) -> tuple[str, ...]:
    axes = _texts("axes", value)
    for axis in axes:
        if axis not in _AXES:
            raise _error(f"axes: unknown axis {axis!r}{_nearest(axis, _AXES)}")
    if sorted(axes[-2:]) != ["leads", "samples"] or axes[:-2] not in ((), ("recordings",)):
        raise _error(f"axes: {list(axes)} are not [leads, samples] in some order, with recordings first for a stack")
    return axes


def _leads(value: object) -> tuple[str, ...]:
    leads = _texts("leads", value)
    if len(leads) > MAX_SIGNALS:
        raise _error(f"leads: {len(leads)} of them, limit {MAX_SIGNALS}")
    try:
        check_enough(columns_of_leads(leads), leads)
    except RecordError as error:
        raise _error(f"leads: {error.detail}") from error
    return leads


def _units(value: object) -> float:
    if isinstance(value, str) and value.strip().lower() in MV_PER_UNIT:
        return MV_PER_UNIT[value.strip().lower()]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    raise _error(f"units: {str(value)[:40]!r} is none of nV, uV, mV, V, nor a number of millivolts per unit")


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(f"rate_hz: {str(value)[:40]!r} is not a number")
    if not RATE_LIMITS_HZ[0] <= value <= RATE_LIMITS_HZ[1]:
        raise _error(f"rate_hz: {value} is not within {RATE_LIMITS_HZ[0]:g} to {RATE_LIMITS_HZ[1]:g}")
    return float(value)


def _columns(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _error("columns: it must name columns of the table, for example {patient: subject}")
    columns: dict[str, str] = {}
    for key, name in value.items():
        if key not in COLUMNS:
            raise _error(f"columns: unknown key {str(key)[:40]!r}{_nearest(key, COLUMNS)}")
        columns[str(key)] = _text(f"columns.{key}", name) or ""
    return columns


def _text(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or len(value) > 200 or not is_one_line(value):
        raise _error(f"{key}: {str(value)[:40]!r} is not a text")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not 0 < len(values) <= 1000:
        raise _error(f"{key}: it must be a text or a list of texts")
    texts = tuple(_text(key, part) or "" for part in values)
    if "" in texts:
        raise _error(f"{key}: an entry is empty")
    return texts


def _nearest(key: object, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(key)[:40].lower(), known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _error(detail: str) -> RecordError:
    return RecordError(Reason.METADATA, f"{FILE_NAME}: {detail}")
