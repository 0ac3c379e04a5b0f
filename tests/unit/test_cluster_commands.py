"""Every command that a file in cluster/ names exists: its program, its options, its script, its settings."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from beatray.cli_parser import parser
from beatray.commands import embed, evaluate, ingest, pretrain
from beatray.commands.job import NOT_PLACES, PLACES
from beatray.errors import SettingsError
from beatray.sweep.plan import plan_from
from cluster_commands import commands_in

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path.name for path in CLUSTER.iterdir() if path.name != "Dockerfile.dockerignore")
IN_IMAGE = "/opt/beatray/"


COMMANDS = [(name, command) for name in FILES for command in commands_in(CLUSTER / name)]


@functools.cache
def click_program(name: str) -> Any:
    if name == "ray":
        from ray.scripts.scripts import cli

        return cli
    from mlflow.cli import cli as mlflow_cli

    return mlflow_cli


def unknown_in_click(program: str, words: list[str]) -> list[str]:
    """What a click program would refuse: a command or an option that it does not have."""
    command, rest = click_program(program), list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return [rest[0]]
        command = command.commands[rest.pop(0)]
    known = {"--help", *(option for p in command.params for option in (*p.opts, *p.secondary_opts))}
    own = rest[: rest.index("--")] if "--" in rest else rest
    given = [word.partition("=")[0] for word in own if word.startswith("-")]
    return [option for option in given if option not in known]


SETTINGS = {
    "pretrain": pretrain.settings_from,
    "sweep": plan_from,
    "evaluate": evaluate.settings_from,
    "embed": embed.settings_from,
    "ingest": lambda words: ingest.settings_from(words, None),
}


def check_job(words: list[str]) -> None:
    """A job's script exists, its words compose, and its places are absolute."""
    script = ROOT / words[0].removeprefix(IN_IMAGE)
    assert script.is_file() and script.parent.name == "jobs", f"{words[0]} does not exist"
    given = [word for word in words[1:] if word != "..."]
    if given == words[1:]:
        SETTINGS[script.stem](given)
    for word in given:
        key, _, value = word.partition("=")
        if key in PLACES[script.stem] and value not in NOT_PLACES:
            assert value.startswith("/") or "://" in value, f"{word} is not absolute"


def check_command(command: list[str]) -> None:
    program, *words = command
    if program == "python":
        if words and words[0].startswith(("jobs/", IN_IMAGE)):
            check_job(words)
    elif program == "beatray":
        if words and words[0] != "...":
            parser().parse_args(words)
    elif words:
        assert unknown_in_click(program, words) == [], " ".join(command)


def test_the_commands_are_found() -> None:
    seen = {" ".join(command[:2]) for _, command in COMMANDS}
    assert {"ray start", "ray job", "ray up", "ray down", "ray dashboard", "ray stop", "mlflow server"} <= seen
    assert {"ray get-auth-token", "python jobs/pretrain.py", "python /opt/beatray/jobs/sweep.py"} <= seen
    assert sum(command[:2] == ["ray", "start"] for _, command in COMMANDS) >= 5


@pytest.mark.parametrize("name", FILES)
def test_every_command_exists(name: str) -> None:
    for command in commands_in(CLUSTER / name):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "ray strat --head",
        "ray start --heads",
        "ray job submit --workingdir . -- python jobs/pretrain.py",
        "mlflow server --app basic-auth",
        "python jobs/pretrian.py corpus=/c out=/o",
        "python jobs/pretrain.py corpus=/c out=/o train.wokers=2",
        "python jobs/pretrain.py corpus=c out=/o",
        "python /opt/beatray/jobs/sweep.py sweep=ashes corpus=/c out=/o",
        "beatray pretrian",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, SettingsError, SystemExit)):
        check_command(command.split())
