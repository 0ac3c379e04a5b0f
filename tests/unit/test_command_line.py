"""Words of the command line as people write them: texts with odd letters, places below home, pipes, poor terminals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from beatray.cli import READER_GONE, main
from beatray.commands.compare import methods
from beatray.config import quoted
from beatray.errors import SettingsError
from beatray.train.composed import pretrain_settings

TEXTS = [
    "1e3",
    "v2 (new)",
    "true",
    "null and void",
    "a,b",
    "[x",
    "it's",
    'a "b"',
    "${home}",
    "a\\",
    "läufe",
    "=",
    "# 1",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_is(text: str) -> None:
    found = pretrain_settings(["corpus=/c", f"tracking.experiment={text}", f"out=/runs/{text}/x"])
    assert found.tracking.experiment == text
    assert found.out == f"/runs/{text}/x"


def test_quotes_that_a_shell_left_are_not_part_of_it() -> None:
    assert pretrain_settings(["corpus='/c d'", "tracking.experiment='v 2'"]).tracking.experiment == "v 2"
    assert quoted("a\\b") == r"'a\b'" and quoted("a\\'") == r"'a\\\''"


def test_null_stays_null_and_home_is_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = pretrain_settings(["corpus=~/corpus", "out=~", "tracking.uri=null", "cluster.address=null"])
    assert found.corpus.path == f"{tmp_path}/corpus" and found.out == str(tmp_path)
    assert found.tracking.uri is None and found.cluster.address is None
    assert pretrain_settings(["corpus=/c", "out=~nobody-is-called-so/x"]).out == "~nobody-is-called-so/x"
    assert pretrain_settings(["corpus=/c", "out=s3://a/~/b"]).out == "s3://a/~/b"


@pytest.mark.parametrize(
    ("group", "meant"), [("encodr=tiny", "encoder"), ("objectve=byol", "objective"), ("copus=/c", "corpus")]
)
def test_a_misspelt_group_is_refused_by_its_name(group: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{meant}'"):
        pretrain_settings(["corpus=/c", group])


def test_a_printed_configuration_keeps_logins_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "corpus=/c", "tracking.uri=http://me:hush-hush@host:5000", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "hush-hush" not in printed and yaml.safe_load(printed)["tracking"]["uri"] == "http://host:5000"


def test_a_folder_with_an_equals_sign_is_a_place(tmp_path: Path) -> None:
    folders = [tmp_path / "lr=1", tmp_path / "lr=2"]
    for folder in folders:
        folder.mkdir()
    assert methods([str(folder) for folder in folders]) == {"lr=1": [folders[0]], "lr=2": [folders[1]]}
    assert list(methods([f"one={folders[0]}", f"two={folders[1]}"])) == ["one", "two"]


def beatray(*args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "beatray", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_terminal_that_lacks_letters_shows_their_numbers(tmp_path: Path) -> None:
    process = beatray("corpus", "show", str(tmp_path / "läufe"), PYTHONIOENCODING="ascii")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "l\\xe4ufe: there is no manifest" in error and "Traceback" not in error


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    process = beatray("pretrain", "corpus=/c", "--print-config")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == READER_GONE and process.stderr.read() == ""


def test_the_help_of_ingest_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    from beatray.ingest.sources.registry import SOURCES

    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    printed = capsys.readouterr().out
    assert [name for name in SOURCES if not re.search(rf"\b{name}\b", printed)] == []


def test_a_pipe_of_somebody_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: list[str] | None) -> int:
        raise BrokenPipeError(32, "Broken pipe", "/runs/fifo")

    monkeypatch.setattr("beatray.cli._run", broken)
    assert main(["doctor"]) == 1
    assert "Broken pipe: /runs/fifo" in capsys.readouterr().err
