"""Every command that a file in cluster/ names exists: its program, its options, its script, its settings."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from beatray.cli_parser import parser
from beatray.commands import embed, evaluate, ingest, pretrain
from beatray.commands.job import NOT_PATHS, PATH_KEYS
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


def unknown_in_click(program: str, overrides: list[str]) -> list[str]:
    """What a click program would refuse: a command or an option that it does not have."""
    command, rest = click_program(program), list(overrides)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return [rest[0]]
        command = command.commands[rest.pop(0)]
    known = {"--help", *(option for p in command.params for option in (*p.opts, *p.secondary_opts))}
    own = rest[: rest.index("--")] if "--" in rest else rest
    given = [override.partition("=")[0] for override in own if override.startswith("-")]
    return [option for option in given if option not in known]


SETTINGS = {
    "pretrain": pretrain.settings_from,
    "sweep": plan_from,
    "evaluate": evaluate.settings_from,
    "embed": embed.settings_from,
    "ingest": lambda overrides: ingest.settings_from(overrides, None),
}


def check_job(overrides: list[str]) -> None:
    """A job's script exists, its words compose, and its places are absolute."""
    script = ROOT / overrides[0].removeprefix(IN_IMAGE)
    assert script.is_file() and script.parent.name == "jobs", f"{overrides[0]} does not exist"
    given = [override for override in overrides[1:] if override != "..."]
    if given == overrides[1:]:
        SETTINGS[script.stem](given)
    for override in given:
        key, _, value = override.partition("=")
        if key in PATH_KEYS[script.stem] and value not in NOT_PATHS:
            assert value.startswith("/") or "://" in value, f"{override} is not absolute"


def check_command(command: list[str]) -> None:
    program, *overrides = command
    if program == "python":
        if overrides and overrides[0].startswith(("jobs/", IN_IMAGE)):
            check_job(overrides)
    elif program == "beatray":
        if overrides and overrides[0] != "...":
            parser().parse_args(overrides)
    elif overrides:
        assert unknown_in_click(program, overrides) == [], " ".join(command)


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
