"""`beatray corpus` on a corpus with labels as users write them: tables, JSON, and options that do not go together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from beatray.bench.corpus import write_large_corpus
from beatray.cli import main
from beatray.corpus.manifest import write_manifest
from beatray.corpus.reader import open_corpus
from beatray.storage.store import Store


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings, whose labels look like markup."""
    path = write_large_corpus(tmp_path_factory.mktemp("corpus") / "c", 4, bundled=2)
    manifest = open_corpus(path).manifest
    sources = {**manifest.statistics["sources"]}
    sources["ludb"] = {**sources["ludb"], "labels": {"[old] MI": 2, "AF [/]": 1}}
    statistics = {**manifest.statistics, "sources": sources, "quarantined": 0, "quarantine_reasons": {}}
    write_manifest(Store(path), replace(manifest, number=1, statistics=statistics))
    return Path(path)


def test_labels_are_shown_as_they_are_written(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "show", str(corpus)]) == 0
    shown = capsys.readouterr().out
    assert "[old] MI" in shown and "AF [/]" in shown


def test_what_is_whole_and_what_is_not_as_json(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corpus", "verify", str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"manifest": 1, "shards": 1, "rows": 4, "faults": []}
    copy = write_large_corpus(tmp_path / "c", 4, bundled=2)
    (shard,) = (tmp_path / "c" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-9])
    assert main(["corpus", "verify", copy, "--json"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert shard.name in fault


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("refused --html", "--html is for corpus show"),
        ("verify --html", "--html is for corpus show"),
        ("splits --html", "--html is for corpus show"),
        ("show --json --html", "give one of the two"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: str, named: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    action, *options = words.split()
    assert main(["corpus", action, str(corpus), *options, str(tmp_path / "page.html")]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_splits_are_those_of_the_policy_that_is_given(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        assert main(["corpus", "splits", str(corpus), *words]) == 0
        return capsys.readouterr().out

    assert "train 4, validation 0, test 0" in shown()
    held_out = shown("corpus.hashed_test_sources=[large]", "corpus.hashed_test_by=recording")
    assert "train 4," not in held_out and held_out == shown(
        "corpus.hashed_test_by=recording", "corpus.hashed_test_sources=[large]"
    )
    assert main(["corpus", "splits", str(corpus), "train.epochs=3"]) == 2
    assert "takes settings of the corpus policy" in capsys.readouterr().err


def test_a_corpus_on_which_nothing_can_be_evaluated_is_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "encoder=random", f"corpus={corpus}", f"out={tmp_path / 'out'}"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("beatray evaluate: nothing to evaluate: segment:") and error.count("\n") == 1
    assert "labels=TABLE takes your own" in error
