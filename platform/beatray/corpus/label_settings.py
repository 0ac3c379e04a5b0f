"""How a table of labels is read, as the user sets it, and these overrides taken from a command line.

`labels=TABLE` names the table, and `labels.KEY=VALUE` sets what the reader would otherwise infer. A column
may be called anything (blanks, dots, brackets), so these overrides do not go through the grammar of the other settings:
what follows `labels.types.` or `labels.targets.` up to the first `=` is a literal name, and lists are those of
YAML with every entry a text.

Contract: values are checked where the dataclass is made; whether a column exists is checked where the table is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import yaml

from beatray.errors import SettingsError
from beatray.fields import check, setting
from beatray.schema import build

KINDS = ("binary", "classes", "multilabel", "numbers")
KEY_KINDS = ("auto", "recording", "patient")
UNKNOWN = ("", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null", "unknown")

_BY_NAME = ("types", "targets")
_SPAN = re.compile(r"(\d{1,6}(?:\.\d+)?)\s*(min|h|d)", re.ASCII)
_SECONDS = {"min": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """A user's own table of labels; only `table` must be set."""

    table: str = setting("", "csv, tsv or parquet, also .gz; a path or a URI", resumable=True)
    key: str = setting("", "the column that names recordings or patients; found by its name, else the first one")
    key_kind: str = setting(
        "auto", "what it names: recording (id, name or file) or patient; auto: what fits more rows", choices=KEY_KINDS
    )
    source: str = setting("", "match the corpus' recordings of this source alone")
    columns: tuple[str, ...] = setting((), "the columns that are labels; empty: all that can be")
    types: dict[str, str] = setting({}, "by column: binary, classes, multilabel or numbers, where the guess is wrong")
    separator: str = setting("", "between several labels in one cell; empty: | or ; where they occur")
    unknown: tuple[str, ...] = setting(UNKNOWN, "values of a cell that mean: not known; upper and lower case are one")
    targets: dict[str, str] = setting({}, "by name: a condition on numbers, as lvef < 40 or age >= 18 and lvef < 40")
    patient: str = setting("", "a column that names the patient, to be checked against the splits")
    time: tuple[str, ...] = setting(
        (), "with patients as keys: the column with the time of each row, or two, from and to; only recordings near it"
    )
    window: tuple[str, ...] = setting(
        (), "how near: 90min, 24h or 30d; two for a row before the recording and one after it, as [7d,30d]"
    )
    time_format: str = setting("", "how times are written, as %d.%m.%Y %H:%M; empty: 2024-02-17, or with 10:15:00")
    unmatched: str = setting(
        "refuse", "rows of the table that match nothing; ignore counts them", choices=("refuse", "ignore")
    )
    id_key_file: str | None = setting(
        None, "the secret that the patient ids of the corpus were hashed with", resumable=True
    )
    encoding: str = setting("auto", "auto: UTF-8, or UTF-16 with its mark; else a name such as cp1252")

    def __post_init__(self) -> None:
        check(self)
        for column, kind in self.types.items():
            if kind not in KINDS:
                raise SettingsError(f"types.{column} must be one of {', '.join(KINDS)}, not {kind!r}")
        if len(self.separator) > 1:
            raise SettingsError(f"separator must be one character, not {self.separator!r}")
        if len(self.time) > 2:
            raise SettingsError(f"time must name one column, or two (from and to), not {len(self.time)}")
        if len(self.window) > 2:
            raise SettingsError(f"window must have one span, or two (before and after), not {len(self.window)}")
        for text in self.window:
            if not _SPAN.fullmatch(text.strip()):
                raise SettingsError(f"window must be as 90min, 24h or 30d, not {text!r}")
        if re.search("%[zZ]", self.time_format):
            raise SettingsError(
                f"time_format must have no zone (%z, %Z), not {self.time_format!r}: recordings have none"
            )
        if self.separator.isalnum():
            raise SettingsError(f"separator must not be a letter or a digit, not {self.separator!r}")


def reach_of(settings: LabelSettings) -> tuple[float, float]:
    """How many seconds a row may lie before a recording, and after it."""
    spans = [
        float(found[1]) * _SECONDS[found[2]] for text in settings.window if (found := _SPAN.fullmatch(text.strip()))
    ]
    return (spans[0], spans[-1]) if spans else (0.0, 0.0)


def is_path(text: str) -> bool:
    """Whether the value of `labels=` is the path of a table: no name of labels has a dot or a slash."""
    return any(sign in text for sign in "./\\")


def file_name(path: str) -> str:
    """The name of a table without its folders, which may be private."""
    return PurePosixPath(path.replace("\\", "/")).name


def without_folders(table: dict[str, Any]) -> dict[str, Any]:
    """`LabelSettings` as content that may be handed to others: without the folders of this machine."""
    return {**table, "table": file_name(table["table"]), "id_key_file": None}


def split_label_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What `labels=` and `labels.KEY=` set, as content for `LabelSettings`; and the other overrides."""
    given: dict[str, Any] = {}
    others = []
    for override in overrides:
        key, sign, value = override.partition("=")
        if key == "labels" and sign:
            if not value:
                raise SettingsError("which labels? labels= is empty (an unset variable?)")
            given["table"] = value
        elif key.startswith("labels.") and sign:
            name = key.removeprefix("labels.")
            group, dot, column = name.partition(".")
            if dot and group in _BY_NAME:
                given.setdefault(group, {})[column] = value
            else:
                given[name] = _value(name, value)
        else:
            others.append(override)
    return given, others


def label_settings(given: dict[str, Any]) -> LabelSettings:
    """The settings; SettingsError names the key and the nearest right one."""
    return build(LabelSettings, given, "labels.")


def _value(name: str, text: str) -> Any:
    """The value of a key: lists (of names) are YAML, all else is literal text."""
    kinds = {item.name: str(item.type) for item in fields(LabelSettings)}
    if kinds.get(name, "").startswith("tuple"):
        try:
            found = yaml.load(text, yaml.BaseLoader) if text.startswith("[") else [text]
        except yaml.YAMLError as error:
            raise SettingsError(
                f"labels.{name}={text} is no list: write [one,two], names with commas in quotes"
            ) from error
        if not all(isinstance(each, str) for each in found):
            raise SettingsError(f"labels.{name}={text} is no list of names: write [one,two]")
        return found
    if name in _BY_NAME:
        raise SettingsError(f"set labels.{name}.NAME=..., not labels.{name}={text}")
    return None if text == "null" else text
