"""Runs that several files of tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from beatray.train.loop import train
from beatray.train.ranks import Ranks
from finetuning import SPLIT, VARIED, spec_of
from pretraining import train_here


@pytest.fixture(scope="session")
def pretrained(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder after one epoch of contrast."""
    out = tmp_path_factory.mktemp("pretrained")
    assert train_here(sample_corpus, out, "encoder", "objective=simclr", "train.epochs=1", *SPLIT)
    return out / "encoder"


@pytest.fixture(scope="session")
def tuned(sample_corpus: str, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen and a whole fine-tune, each to its end: folders `frozen` and `all`."""
    out = tmp_path_factory.mktemp("tuned")
    for run, overrides in {"frozen": ("trained=head",), "all": VARIED}.items():
        assert train(spec_of(sample_corpus, out, run, f"encoder={pretrained}", *overrides), Ranks())
    return out
