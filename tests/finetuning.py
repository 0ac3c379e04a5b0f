"""Small runs that learn from labels, for tests."""

from __future__ import annotations

from pathlib import Path

from beatray.finetune.prepare import Assignment, prepared
from beatray.finetune.settings import finetune_settings
from beatray.train.run_spec import RunSpec

SPLIT = ("corpus.test_folds=[8,9]", "corpus.validation_folds=[6,7]")
SMALL = (
    "train.batch_size=16",
    "train.epochs=6",
    "train.warmup_epochs=1",
    "train.shuffle_streams=4",
    "tracking.uri=null",
)
VARIED = ("augment.noise_mv=0.01",)


def spec_of(corpus: str, out: Path, run: str, *overrides: str) -> RunSpec:
    """A small job on the superclasses, unless the words say otherwise; later words win."""
    return prepared_of(corpus, out, run, *overrides)[0]


def prepared_of(corpus: str, out: Path, run: str, *overrides: str) -> tuple[RunSpec, Assignment]:
    """The same, with what its model is made of, as the commands hand it on."""
    paths = [f"corpus={corpus}", f"out={out}", f"run={run}", *SPLIT, *SMALL, "train.readers_per_worker=1"]
    encoder = [] if any(override.startswith("encoder=") for override in overrides) else ["encoder=random"]
    run_spec, found = prepared(finetune_settings([*paths, *encoder, "labels=superdiagnostic", *overrides]))
    assert found is not None
    return run_spec, found
