"""train.keep_patients_together on a real corpus: the same batches on one and two workers, and when interrupted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from beatray.commands.demo import SAMPLE
from beatray.corpus.reader import open_corpus
from beatray.ingest.convert import ingest
from beatray.ingest.plan import IngestSettings
from counts import count
from pretraining import ids, losses, run_spec_of, start, train_here

pytestmark = pytest.mark.ray

OVERRIDES = (
    "train.keep_patients_together=true",
    "train.epochs=2",
    "train.batch_size=16",
    "corpus.test_folds=[]",
    "corpus.validation_folds=[]",
    "objective=simclr",
    "objective.augment.crop_seconds=1",
)


@pytest.fixture(scope="module")
def corpus(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All bundled recordings of PTB-XL, of which some patients have several."""
    out = str(tmp_path_factory.mktemp("patients") / "corpus")
    ingest(IngestSettings({"ptbxl": str(SAMPLE / "ptbxl-sample.zip")}, out, items_per_shard=64))
    return out


def test_recordings_of_a_patient_meet_in_one_batch_however_the_run_goes(corpus: str, tmp_path: Path) -> None:
    index = open_corpus(corpus).index
    patient_of = dict(zip(index["record_id"], index["patient_id"], strict=True))
    assert train_here(corpus, tmp_path, "whole", *OVERRIDES)
    batches = ids(tmp_path, "whole")
    per_epoch = len(batches) // 2
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert Counter(name for batch in epoch for name in batch) == Counter(list(patient_of))
        seen = [{patient_of[name] for name in batch} for batch in epoch]
        meetings = Counter(patient for batch in seen for patient in batch)
        several = [p for p, times in Counter(patient_of.values()).items() if times > 1]
        assert several, "the sample has no patient with several recordings"
        assert all(meetings[patient] == 1 for patient in several)  # one window holds the whole sample
    assert batches[:per_epoch] != batches[per_epoch:]
    if not count(0, 1):
        return  # two workers and an interrupted run are another minute
    assert start(corpus, tmp_path, "two", *OVERRIDES, "train.workers=2").finished
    assert ids(tmp_path, "two") == batches
    assert not train_here(corpus, tmp_path, "cut", *OVERRIDES, f"train.stop_after_steps={per_epoch - 2}")
    assert train_here(corpus, tmp_path, "cut", *OVERRIDES)
    assert ids(tmp_path, "cut") == batches and losses(tmp_path, "cut") == losses(tmp_path, "whole")


def test_without_it_nothing_is_read_of_patients(corpus: str, tmp_path: Path) -> None:
    run_spec = run_spec_of(corpus, tmp_path, "plain", "objective=simclr")
    assert run_spec.stream.order.patients is None and "patient_key" not in run_spec.stream.arrays
