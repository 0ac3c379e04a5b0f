"""What counts once: copies of one signal where models are chosen, windows of one recording where classes are made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from beatray.corpus.splits import tied_groups
from beatray.evaluate.held_out import one_owner
from beatray.evaluate.probes import inner_folds
from beatray.finetune.targets import targets_of
from beatray.objectives.segmentation import SegmentationSettings
from beatray.objectives.supervised import SupervisedSettings


def test_copies_of_a_signal_are_in_one_inner_fold() -> None:
    patients = [f"ptbxl/p{k}" for k in range(20)] + [None] * 20
    names = [f"ptbxl/{k}" for k in range(20)] + [f"cinc/X{k}" for k in range(20)]
    hashes = [f"signal {k}" for k in range(40)]
    hashes[25] = hashes[3]  # one recording under two names
    index = pd.DataFrame({"record_id": names, "patient_id": patients, "content_hash": hashes})
    owners = one_owner(patients, names, tied_groups(index))
    assert owners[25] == owners[3] == "ptbxl/p3"
    assert [owner for k, owner in enumerate(owners) if k != 25] == [p for k, p in enumerate(patients) if k != 25]
    for seed in range(10):
        for fit_on, held in inner_folds([o or n for o, n in zip(owners, names, strict=True)], np.arange(40), 5, seed):
            assert not {3, 25} & set(fit_on.tolist()) or not {3, 25} & set(held.tolist())


def test_a_corpus_without_marked_waves_has_no_targets() -> None:
    corpus: Any = SimpleNamespace(
        index=pd.DataFrame({"record_id": ["ptbxl/1", "ptbxl/2"]}),
        manifest=SimpleNamespace(shards=[0]),
        columns=lambda shard, wanted: {"waves": pa.array([None, []], pa.list_(pa.int8()))},
    )
    for leads in ("shared", "per_lead"):
        found = targets_of(corpus, SegmentationSettings(leads=leads), np.arange(2))  # type: ignore[arg-type]
        assert len(found.rows) == len(found.values) == 0


def test_a_class_needs_so_many_recordings_not_windows() -> None:
    """A recording of an hour has hundreds of windows."""
    names = [f"cinc/a#{k}" for k in range(25)] + [f"cinc/b{k}" for k in range(25)]
    codes = [["270492004"]] * 25 + [["426783006"]] * 25
    corpus: Any = SimpleNamespace(
        index=pd.DataFrame({"record_id": names}),
        manifest=SimpleNamespace(shards=[0]),
        columns=lambda shard, wanted: {"labels": pa.array(codes)},
    )
    settings = SupervisedSettings(labels="snomed", min_positives=20)
    found = targets_of(corpus, settings, np.arange(50))
    assert len(found.names) == 1
    assert set(found.rows.tolist()) == set(range(25, 50))
