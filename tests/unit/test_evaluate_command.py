"""Which rows of a corpus the evaluation takes, for each label space: on real recordings behind a corpus's face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beatray.commands import evaluate as command
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import CheckpointError, SettingsError
from beatray.evaluate.encoders import EncoderSpec, spec_of
from beatray.evaluate.held_out import evaluate_encoder, refuse_seen
from beatray.evaluate.settings import EvaluateSettings, SegmentSettings, quick
from beatray.models.encoder_folder import export_encoder
from beatray.models.registry import build_encoder
from beatray.settings import CorpusSettings
from beatray.storage.store import Store
from corpus_of_rows import RowsOfCorpus
from evaluation_rows import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"


@pytest.fixture(scope="module")
def corpus() -> RowsOfCorpus:
    return RowsOfCorpus(
        read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 10), ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 90))
    )


def plan(**changes: Any) -> EvaluateSettings:
    return replace(quick(), protocols=("classify/linear_probe", "frozen_decoder"), permutations=0, **changes)


def evaluated(corpus: RowsOfCorpus, policy: CorpusSettings, settings: EvaluateSettings) -> Any:
    return evaluate_encoder(corpus, policy, EncoderSpec("tiny"), settings)[0]  # type: ignore[arg-type]


def test_the_validation_folds_choose_and_are_neither_trained_on_nor_tested(corpus: RowsOfCorpus) -> None:
    policy = CorpusSettings(validation_folds=(8,), test_folds=(9,))
    part = evaluated(corpus, policy, plan(tasks=("classify",))).parts["classify"]
    fold = dict(zip(corpus.index["record_id"], corpus.index["fold"], strict=True))
    assert {fold[i] for i in part.validation_ids} == {8} and {fold[i] for i in part.test_ids} == {9}
    assert {fold[i] for i in part.train_ids} <= set(range(1, 8)) and len(part.train_ids) > 30
    inner = plan(tasks=("classify",), classify=replace(quick().classify, validation="inner"))
    without = evaluated(corpus, policy, inner).parts["classify"]
    assert without.validation_ids == () and without.train_ids == part.train_ids and without.test_ids == part.test_ids


def test_challenge_recordings_are_split_by_name_and_tested_on_snomed_classes(data_dir: Path) -> None:
    corpus = RowsOfCorpus(read_rows(cinc=(str(data_dir / "misc" / "cinc2021_samples"), 20)))
    policy = CorpusSettings(hashed_test_sources=("ludb", "cinc"))
    settings = plan(tasks=("classify",), classify=replace(quick().classify, labels="snomed", min_positives=1))
    found = evaluated(corpus, policy, settings)
    roles = assign_roles(corpus.index, policy_of(policy))
    part = found.parts["classify"]
    assert {corpus.index["record_id"][i] for i in np.flatnonzero(roles == Role.TEST)} >= set(part.test_ids)
    assert part.title == "CinC SNOMED codes" and part.too_few and "NSR" in part.classes
    assert not set(part.train_ids) & set(part.test_ids) and all(i.startswith("cinc/") for i in part.test_ids)
    assert (assign_roles(corpus.index, policy_of(CorpusSettings())) == Role.TEST).sum() == 1  # the copy of PTB-XL


def test_folds_over_records_that_pretraining_saw_are_refused(corpus: RowsOfCorpus, tmp_path: Path) -> None:
    """By a real exported encoder, which says what it was trained on."""
    policy = CorpusSettings(validation_folds=(), test_folds=(9,))
    roles = assign_roles(corpus.index, policy_of(policy))
    seen = corpus.index[(roles == Role.TRAIN)]
    hashes = np.sort(np.frombuffer(b"".join(h[:8] for h in seen["content_hash"]), "<u8"))
    description = {"name": "tiny", "settings": {}, "recipe": corpus.recipe}
    export_encoder(Store(str(tmp_path)), build_encoder("tiny"), description, hashes.tobytes())
    weights = str(tmp_path)
    refuse_seen(weights, corpus.index[roles == Role.TEST])
    over_all = plan(tasks=("segment",), segment=SegmentSettings(folds=2, fold_over="all"))
    with pytest.raises(CheckpointError, match=r"test recordings .*fold_over=held_out"):
        evaluate_encoder(corpus, policy, spec_of(weights), over_all)  # type: ignore[arg-type]
    settings = plan(tasks=("segment",), bootstraps=20)
    assert evaluate_encoder(corpus, policy, spec_of(weights), settings)[0].runs  # type: ignore[arg-type]


def test_the_tasks_that_are_set_are_those_that_are_evaluated() -> None:
    words = ["encoder=random", "corpus=/c", "out=/o"]
    assert command.settings_from([*words, "evaluate.tasks=[segment]"]).evaluate.tasks == ("segment",)
    with pytest.raises(SettingsError, match=r"task=classify is not among evaluate\.tasks"):
        command.settings_from([*words, "evaluate.tasks=[segment]", "task=classify"])
