"""Commands that write to a local disk refuse the URI of an object store, and take file:// for the path it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatray.cli import main
from beatray.commands.local import local_folder
from beatray.errors import SettingsError


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("evaluate encoder=random corpus=/c out=s3://bucket/eval", "out=s3://bucket/eval is not on a local disk"),
        ("evaluate run=s3://bucket/runs/a corpus=/c out=e", "run=s3://bucket/runs/a is not on a local disk: encoder="),
        ("export beatray-small --out s3://bucket/e", "--out s3://bucket/e is not on a local disk"),
        ("beats train nowhere --out gs://bucket/b", "--out gs://bucket/b is not on a local disk"),
        ("demo --out s3://bucket/demo", "--out s3://bucket/demo is not on a local disk"),
    ],
)
def test_an_object_store_is_refused_by_name(
    command: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert named in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_file_uri_is_a_path_and_options_are_not_shown() -> None:
    assert local_folder("out=", "file:///shared/my%20runs") == Path("/shared/my runs")
    assert local_folder("out=", "runs") == Path.cwd() / "runs"
    with pytest.raises(SettingsError, match=r"^out=s3://b/x is not on a local disk: give a folder"):
        local_folder("out=", "s3://b/x?endpoint_override=127.0.0.1")
