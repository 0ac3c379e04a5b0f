"""What stands at the root says the same: one version, and continuous integration that runs what developers run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    newest = re.search(r"^## (\S+?)(?:,|$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest.group(1) == version


def test_workflows_run_what_the_project_runs_on_each_python_it_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == named
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert all(
        step["run"].removeprefix("make ") in targets for step in jobs["docs"]["steps"] if "make" in step.get("run", "")
    )


def test_hooks_are_tools_of_the_environment_of_developers() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    dev = {re.split(r"[>=<\[]", name)[0] for name in PROJECT["optional-dependencies"]["dev"]}
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]} <= dev


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "platform" / "beatray" / "py.typed").exists()
