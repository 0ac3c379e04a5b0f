"""`beatray labels check TABLE corpus=CORPUS`: what is understood of a table of labels, and what is odd about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from beatray.commands.console import print_table, say
from beatray.config import compose
from beatray.corpus.label_settings import LabelSettings, label_settings, split_label_overrides
from beatray.corpus.label_summary import summary
from beatray.corpus.label_table import read_labels
from beatray.corpus.reader import open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import SettingsError
from beatray.schema import build
from beatray.settings import CorpusSettings

CLASSES_SHOWN = 30
FINDINGS_SHOWN = 30
SPLITS = tuple(role.name.lower() for role in Role)


def settings_from(overrides: list[str]) -> tuple[LabelSettings, CorpusSettings]:
    """The table and the corpus that the arguments name; one that sets nothing is the table."""
    plain = [arg for arg in overrides if "=" not in arg or "://" in arg.partition("=")[0]]  # a URI may have options
    given, others = split_label_overrides([arg for arg in overrides if arg not in plain])
    if len(plain) > 1 or (plain and "table" in given):
        raise SettingsError(f"one table at a time, not {', '.join([*plain, given.get('table', '')]).rstrip(', ')}")
    if plain:
        given["table"] = plain[0]
    if not given.get("table"):
        raise SettingsError("which table? use beatray labels check TABLE corpus=PATH")
    corpus = build(CorpusSettings, compose("labels", others)["corpus"], "corpus.")
    if not corpus.path:
        raise SettingsError("for which corpus? set corpus=PATH (make one with `beatray ingest`)")
    return label_settings(given), corpus


def check(overrides: list[str], json_file: str | None = None) -> int:
    """Read the table, print what was understood and what is odd."""
    settings, policy = settings_from(overrides)
    corpus = open_corpus(policy.path)
    labels = read_labels(settings, corpus.index, corpus.recipe, corpus.acquired)
    found = summary(labels, corpus.index, assign_roles(corpus.index, policy_of(policy)))
    print_summary(found)
    if json_file is not None:
        path = Path(json_file).expanduser()
        path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        say(f"  wrote {path}")
    return 0


def print_summary(found: dict[str, Any]) -> None:
    """The summary for people."""
    say(f"{found['table']}: {found['rows']:,} rows, read as labels of {found['key_kind']}s by column {found['key']!r}")
    others = [f"{found[key]:,} {what}" for key, what in _OTHER_ROWS if found[key]]
    say(f"  {found['rows_matched']:,} rows match{''.join(f', {each}' for each in others)}")
    if found["times"] is not None:
        for line in _times_lines(found["times"]):
            say(f"  {line}")
    there, recordings = found["recordings_in_table"], found["recordings"]
    say(f"  {there:,} of the corpus' {recordings:,} recordings are in it; the others are unknown")
    table = Table(*("column", "type", "class, or quartiles", "known", *SPLITS))
    for column in found["columns"]:
        for cells in _lines(column):
            table.add_row(*(escape(cell) for cell in cells))
    print_table(table)
    say("  of each class: recordings with it / known, in all and by split")
    for name, why in found["left_out"].items():
        say(f"  left out: {name} ({why})")
    kinds = [each["kind"] for each in found["findings"]]
    for each in found["findings"][:FINDINGS_SHOWN]:
        say(f"  look: {each['text']}")
    if len(kinds) > FINDINGS_SHOWN:
        say(f"  and {len(kinds) - FINDINGS_SHOWN:,} more; --json FILE has all")
    if not kinds:
        say("  nothing odd was found")


_OTHER_ROWS = (("rows_unmatched", "match nothing"), ("rows_repeated", "repeat another one"))


def _times_lines(times: dict[str, Any]) -> list[str]:
    """How rows were chosen by time."""
    when = " to ".join(repr(name) for name in times["columns"])
    reach = [f"{times[side] / 3600:g} h {words}" for side, words in (("before_s", "before"), ("after_s", "after"))]
    lines = [f"by time, {when}: the nearest row with a value, at most {' and '.join(reach)} a recording"]
    lines.append(
        f"{times['recordings_labelled']:,} of these patients' {times['recordings']:,} recordings have such a row; "
        f"{times['recordings_without_time']:,} have no time in the corpus"
    )
    lines.append(
        f"{times['rows_near_none']:,} rows are the nearest of none, {times['rows_without_time']:,} have no time"
    )
    return lines


def _lines(column: dict[str, Any]) -> list[tuple[str, ...]]:
    known, by_split = column["known"], column["known_by_split"]
    kind = f"{column['type']}: {column['condition']}" if "condition" in column else column["type"]
    if column["type"] == "numbers":
        quartiles = " ".join(f"{value:g}" for value in column["quartiles"])
        return [(column["name"], kind, quartiles, f"{known:,}", *(f"{by_split[split]:,}" for split in SPLITS))]
    lines = []
    for number, each in enumerate(column["classes"][:CLASSES_SHOWN]):
        cells = [f"{each['count']:,}/{known:,}", *(f"{each['by_split'][s]:,}/{by_split[s]:,}" for s in SPLITS)]
        lines.append((*((column["name"], kind) if not number else ("", "")), each["name"], *cells))
    if len(column["classes"]) > CLASSES_SHOWN:
        lines.append(("", "", f"and {len(column['classes']) - CLASSES_SHOWN} more", "", *("" for _ in SPLITS)))
    return lines
