"""The commands that a file names, wherever they stand in it: comments, code blocks, YAML strings, scripts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PROGRAMS = ("ray", "mlflow", "beatray", "python")
ENDS = {";", "&&", "||", "|", "&", ")", "(", ">", "<", ">>", "&;", ");", "`"}
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def commands_in(path: Path) -> list[list[str]]:
    """Every call of a known program in the file, as its words up to the end of that command."""
    return [command for text in _texts(path) for line in _logical_lines(text) for command in _split(line)]


def _texts(path: Path) -> Iterator[str]:
    content = path.read_text()
    if path.suffix == ".md":
        yield from FENCE.findall(content)
        yield from INLINE.findall(FENCE.sub("", content))
        return
    yield "\n".join(line.strip().lstrip("# ") for line in content.splitlines() if line.lstrip().startswith("#"))
    if path.suffix in (".yaml", ".yml"):
        for document in yaml.safe_load_all(content):
            yield from _strings(document)
    else:
        yield "\n".join(line for line in content.splitlines() if not line.lstrip().startswith("#"))


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for value in content.values():
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)
    elif isinstance(content, str):
        yield content


def _logical_lines(text: str) -> list[str]:
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def _split(line: str) -> Iterator[list[str]]:
    """Words from each program's name to the end of the command."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    reader.commenters = "#"
    try:
        args = list(reader)
    except ValueError:
        return  # an apostrophe: prose
    for at, arg in enumerate(args):
        if arg.rpartition("/")[2] in PROGRAMS and (at == 0 or args[at - 1] in ENDS or _may_precede(args[:at])):
            rest = args[at + 1 :]
            end = next((i for i, each in enumerate(rest) if each in ENDS), len(rest))
            yield [arg.rpartition("/")[2], *rest[:end]]


def _may_precede(args: list[str]) -> bool:
    """What may stand before a program in one command: assignments, exec, setsid, a test, a job's separator."""
    return args[-1] in ("exec", "setsid", "--", "-") or "=" in args[-1]
