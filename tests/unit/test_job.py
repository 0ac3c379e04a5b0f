"""A cluster job refuses places that would be lost with its temporary folder."""

from __future__ import annotations

import pytest

from beatray.commands.job import main


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        ("pretrain", ["corpus=corpus/", "out=/shared/runs"], "corpus=corpus/ is relative"),
        ("pretrain", ["corpus=/shared/corpus"], "out= is not said"),
        ("ingest", ["ludb=/data/ludb", "--out", "corpus"], "out=corpus is relative"),
        ("ingest", ["ludb=data/ludb.zip", "--out=/shared/corpus"], "ludb=data/ludb.zip is relative"),
        ("evaluate", ["encoder=runs/a", "corpus=s3://bucket/corpus", "out=/shared/e"], "encoder=runs/a is relative"),
        ("embed", ["encoder=/runs/a", "corpus=corpus", "out=s3://bucket/e"], "corpus=corpus is relative"),
    ],
)
def test_relative_places_are_refused_by_name(
    command: str, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, words) == 2
    said = capsys.readouterr().err
    assert named in said and "absolute path" in said
