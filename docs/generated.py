"""Pages generated from the code: commands from their parsers, settings and methods from their dataclasses.

Contract: `write_pages(folder)` writes commands.md, settings.md and methods.md and nothing else; the same code gives the
same bytes, and a page that would not change is left alone, so that a second build has nothing to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from beatray.cli_parser import parser
from beatray.commands.evaluate import EvaluateCommand
from beatray.config import config_folder
from beatray.corpus.label_settings import LabelSettings
from beatray.fields import walk
from beatray.infer.plan import EmbedCommand
from beatray.infer.predict_plan import PredictCommand
from beatray.ingest.plan import IngestSettings
from beatray.models.registry import encoder_classes
from beatray.objectives.registry import objective_classes, supervised_classes
from beatray.settings import PretrainSettings
from beatray.sweep.settings import SweepSettings

SETTINGS = {
    "pretrain": PretrainSettings,
    "ingest": IngestSettings,
    "evaluate": EvaluateCommand,
    "sweep": SweepSettings,
    "embed": EmbedCommand,
    "predict": PredictCommand,
    "labels": LabelSettings,
}
"""The settings of each command that takes overrides of its own; the others take those of pretrain."""

PREFIX = {"sweep": "sweep.", "labels": "labels."}


def write_pages(folder: Path) -> None:
    """Write all pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("commands", commands()), ("settings", settings()), ("methods", methods())):
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def commands() -> str:
    """Every command with its options, as `--help` prints them."""
    top = parser()
    subparsers = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    lines = ["# Commands", "", "The output of `beatray COMMAND --help`, on one page.", ""]
    lines += _table(
        ("command", "what it does"),
        [(f"[{action.dest}](#beatray-{action.dest})", action.help or "") for action in subparsers._choices_actions],
    )
    for name, command in subparsers.choices.items():
        lines += ["", f"## beatray {name}", "", _text(command.description or ""), ""]
        lines += _table(("argument", "what it is"), list(_options(command)))
    return "\n".join(lines) + "\n"


def _options(command: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in command._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        if not action.option_strings:
            shown = f"`{value}`"
        elif action.nargs == 0:
            shown = f"`{', '.join(action.option_strings)}`"
        else:
            shown = f"`{', '.join(action.option_strings)} {value}`"
        yield shown, action.help or ""


def settings() -> str:
    """Every dotted key of every command, with its default, its bounds and what it means."""
    lines = [
        "# Settings",
        "",
        "Every key of every command, made from the dataclasses that check them. A key is given on the command line "
        "(`train.epochs=200`) or in a YAML file of `configs/`; a wrong one is answered with the nearest right one. "
        "`objective.*` and `encoder.*` depend on the method and the network: see [Methods and networks](methods.md).",
    ]
    for name, kind in SETTINGS.items():
        lines += ["", f"## {name}", "", _first(kind), "", *_fields(kind, PREFIX.get(name, ""))]
    return "\n".join(lines) + "\n"


def methods() -> str:
    """Every method and every network with its settings, and every recipe."""
    lines = ["# Methods and networks", "", "Made from the classes; a method of your own is not on this page.", ""]
    lines += ["## Recipes", "", "`beatray pretrain recipe=NAME`; `NAME_tiny` takes minutes on two cores.", ""]
    rows = []
    for path in sorted((config_folder() / "recipe").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        chosen = {}
        for line in content.get("defaults", []):
            if isinstance(line, dict):
                chosen |= {key.removeprefix("override /"): value for key, value in line.items()}
        rows.append(
            (f"`{path.stem}`", str(chosen.get("objective", "")), str(chosen.get("encoder", "")), _comment(path))
        )
    lines += _table(("recipe", "objective", "encoder", ""), rows)
    for title, prefix, classes in (
        ("Methods", "objective.", objective_classes()),
        ("Learning from labels", "objective.", supervised_classes()),
        ("Networks", "encoder.", encoder_classes()),
    ):
        lines += ["", f"## {title}"]
        for name, kind in sorted(classes.items()):
            lines += ["", f"### {name}", "", _first(inspect.getmodule(kind)), "", *_fields(kind.Settings, prefix)]
    return "\n".join(lines) + "\n"


def _comment(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = [line.removeprefix("# ") for line in lines if line.startswith("# ") and not line.startswith("# @")]
    return re.split(r"(?<=[.]) (?=[A-Z(])", " ".join(text), maxsplit=1)[0]


def _fields(kind: type[Any], prefix: str) -> list[str]:
    rows = []
    for key, item in walk(kind, prefix):
        if not (dataclasses.is_dataclass(item.type) or _nested(kind, key, prefix)):
            rows.append((f"`{key}`", f"`{_default(item)}`", _meaning(item)))
    return _table(("key", "default", "what it is"), rows)


def _nested(kind: type[Any], key: str, prefix: str) -> bool:
    """True if the key has keys of its own below it."""
    return any(other.startswith(f"{key}.") for other, _ in walk(kind, prefix))


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default is not dataclasses.MISSING else None
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else '""'


def _meaning(item: dataclasses.Field[Any]) -> str:
    about = item.metadata
    parts = [str(about["help"])] if about.get("help") else []
    if about.get("choices"):
        parts.append("one of " + ", ".join(f"`{each}`" for each in about["choices"]))
    elif typing.get_origin(choices := _hint(item)) is typing.Literal:
        parts.append("one of " + ", ".join(f"`{each}`" for each in typing.get_args(choices)))
    for bound, relation in (("above", "above"), ("at_least", "at least"), ("below", "below"), ("at_most", "at most")):
        if about.get(bound) is not None:
            parts.append(f"{relation} {about[bound]:g}")
    return "; ".join(parts)


def _hint(item: dataclasses.Field[Any]) -> Any:
    if not isinstance(item.type, str):
        return item.type
    found = re.fullmatch(r"Literal\[(.*)\]", item.type)
    return typing.Literal[tuple(yaml.safe_load(f"[{found.group(1)}]"))] if found else None


def _first(thing: Any) -> str:
    """The first paragraph of the docstring."""
    return _text((inspect.getdoc(thing) or "").partition("\n\n")[0])


def _text(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    def cell(text: str) -> str:
        return _text(text).replace("|", "\\|")

    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]
