"""Who trains, validates and tests a model: by patient, never what its encoder was pretrained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beatray.corpus.reader import open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import CheckpointError, LabelError, SettingsError, TrainingError
from beatray.evaluate.label_spaces import superclass_targets
from beatray.finetune.finish import is_made, make_model, refuse_changed
from beatray.finetune.prepare import assignment, doubts
from beatray.models.encoder_folder import trained_on
from beatray.models.model_folder import describe_model
from beatray.train.loop import train
from beatray.train.prepare import hashes_of
from beatray.train.ranks import Ranks
from beatray.train.run_spec import build_model
from finetuning import spec_of
from label_tables import written
from pretraining import train_here

pytestmark = pytest.mark.ray


def test_no_test_recording_is_trained_or_validated_on(sample_corpus: str, tmp_path: Path, pretrained: Path) -> None:
    spec = spec_of(sample_corpus, tmp_path, "r", f"encoder={pretrained}")
    corpus = open_corpus(sample_corpus)
    roles = assign_roles(corpus.index, policy_of(spec.settings.corpus))
    parts = assignment(spec.settings).parts
    assert (roles[parts.train] == Role.TRAIN).all() and (roles[parts.validation] == Role.VALIDATION).all()
    assert len(parts.test) and (roles[parts.test] == Role.TEST).all()
    assert spec.stream.targets is not None
    assert len(spec.stream.targets.keys) == len(parts.train) + len(parts.validation)
    assert spec.rows == len(parts.train)
    hashes = np.frombuffer(spec.trained_on, "<u8")
    mine = np.frombuffer(hashes_of(corpus.index.iloc[parts.train]), "<u8")
    assert set(hashes.tolist()) == {*mine.tolist(), *trained_on(str(pretrained)).tolist()}


def test_fractions_are_nested_and_by_patient(sample_corpus: str, tmp_path: Path) -> None:
    index = open_corpus(sample_corpus).index
    for overrides in ((), ("corpus.validation_folds=[]",)):
        found = [
            assignment(spec_of(sample_corpus, tmp_path, "r", f"fraction={share}", *overrides).settings).parts
            for share in (0.2, 0.5, 1.0)
        ]
        for part in ("train", "validation"):
            few, half, whole = (set(getattr(parts, part).tolist()) for parts in found)
            assert few <= half <= whole and few
        assert len(found[0].train) < len(found[1].train) < len(found[2].train)
        patients = [
            set(index["patient_id"].iloc[rows]) for rows in (found[2].train, found[2].validation, found[2].test)
        ]
        assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    few = assignment(spec_of(sample_corpus, tmp_path, "r", *overrides, "corpus.most_recordings=12").settings).parts
    assert 8 < len(few.train) <= 12 and set(few.train.tolist()) <= set(found[2].train.tolist())


def test_what_an_encoder_was_pretrained_on_is_no_clean_test(sample_corpus: str, tmp_path: Path) -> None:
    assert train_here(
        sample_corpus, tmp_path, "sees", "objective=simclr", "train.epochs=1", "corpus.pretrain_sees_test=true"
    )
    overrides = (f"encoder={tmp_path / 'sees'}", "trained=head", "train.epochs=1")
    with pytest.raises(CheckpointError, match=r"pretrained on (\d+) of the \1 labelled test .*seen_tests=leave_out"):
        spec_of(sample_corpus, tmp_path, "tuned", *overrides)
    spec = spec_of(sample_corpus, tmp_path, "tuned", *overrides, "seen_tests=leave_out")
    assert train(spec, Ranks())
    assert make_model(spec) == {}
    description = describe_model(spec.run.location)
    assert description["started_from"] == spec.settings.encoder_weights_sha256
    assert description["records"]["test"] == 0 and description["records"]["test_seen"] > 0
    assert "left out" in (tmp_path / "tuned" / "model" / "README.md").read_text()

    scratch = spec_of(sample_corpus, tmp_path, "scratch", *overrides, "seen_tests=leave_out", "from_scratch=true")
    fresh, pretrained = (
        build_model(one.settings.objective, one.settings.encoder, 0, one.statistics, one.settings.first_weights)
        for one in (scratch, spec)
    )
    drawn = build_model(spec.settings.objective, spec.settings.encoder, 0, spec.statistics)
    for name, matrix in fresh.encoder.state_dict().items():
        assert torch.equal(matrix, drawn.encoder.state_dict()[name]), name
    there = pretrained.encoder.state_dict()
    assert not all(torch.equal(matrix, there[name]) for name, matrix in fresh.encoder.state_dict().items())
    assert (scratch.settings.objective["encoder_lr"], spec.settings.objective["encoder_lr"]) == (1.0, 0.1)
    assert len(scratch.trained_on) < len(spec.trained_on)  # it has seen what it is trained on, and nothing else
    assert train(scratch, Ranks())
    assert make_model(scratch) == {}
    description = describe_model(scratch.run.location)  # tested on the same recordings: none
    assert description["records"]["test"] == 0 and description["records"]["test_seen"] > 0
    assert description["started_from"] is None
    with pytest.raises(SettingsError, match="name it"):
        spec_of(sample_corpus, tmp_path, "nobody", "from_scratch=true")


def superclasses(corpus: str, folder: Path, owner: str = "") -> str:
    """PTB-XL's superclasses as a table of one's own; `owner` is what a column of patients says of each row."""
    rows = open_corpus(corpus).rows()
    truth = superclass_targets(rows.labels)
    lines = ["record_id,CD,HYP,MI,NORM,STTC" + (",patient_id" if owner else "")]
    for number, (name, marks) in enumerate(zip(rows.record_id, truth.astype(int).tolist(), strict=True)):
        cells = ",".join(map(str, marks)) if any(marks) else ",,,,"
        lines.append(f"{name},{cells}" + (f",{owner.format(number)}" if owner else ""))
    return str(written(folder, "\n".join(lines), f"own{owner[:1]}.csv"))


def test_a_table_of_ones_own_teaches_what_the_same_labels_of_the_corpus_teach(
    sample_corpus: str, tmp_path: Path
) -> None:
    table = superclasses(sample_corpus, tmp_path)
    spec = spec_of(sample_corpus, tmp_path, "r", f"labels={table}", "class_weights=balanced")
    theirs = spec_of(sample_corpus, tmp_path, "r", "class_weights=balanced")
    for key in ("names", "weights", "kind", "targets_sha256"):
        assert spec.settings.objective[key] == theirs.settings.objective[key]
    assert spec.stream.groups == theirs.stream.groups and spec.validation.groups == theirs.validation.groups
    assert spec.stream.targets is not None and theirs.stream.targets is not None
    assert np.array_equal(spec.stream.targets.values, theirs.stream.targets.values)
    found = assignment(spec.settings)
    assert found.owners(found.parts.test) == assignment(theirs.settings).owners(found.parts.test)


def test_the_patients_of_a_table_are_held_against_the_splits(sample_corpus: str, tmp_path: Path) -> None:
    one_patient = superclasses(sample_corpus, tmp_path, "p")
    with pytest.raises(LabelError, match="1 patients of column 'patient_id' have recordings in two splits"):
        spec_of(sample_corpus, tmp_path, "r", f"labels={one_patient}", "labels.key=record_id")
    each_one = superclasses(sample_corpus, tmp_path, "{}")
    spec = spec_of(sample_corpus, tmp_path, "r", f"labels={each_one}", "labels.key=record_id")
    found = assignment(spec.settings)
    index = found.corpus.index.iloc[found.parts.train]
    assert found.owners(found.parts.train) == index["patient_id"].tolist()  # the corpus knows better


def test_numbers_and_conditions_of_a_table_become_models(sample_corpus: str, tmp_path: Path) -> None:
    index = open_corpus(sample_corpus).index
    ages = [column for shard in open_corpus(sample_corpus).manifest.shards
            for column in open_corpus(sample_corpus).columns(shard, ["age"])["age"].to_pylist()]  # fmt: skip
    lines = [
        f"{name};{'' if age is None else age};{'' if number % 7 == 3 else 'abc'[number % 3]}"
        for number, (name, age) in enumerate(zip(index["record_id"], ages, strict=True))
    ]
    content = "record;years;kind\n" + "\n".join(lines)
    for run, overrides, kind, names in (
        ("numbers", ("task=regress",), "numbers", ("years",)),
        ("both", ("labels.targets.old=years >= 65",), "multilabel", ("kind=a", "kind=b", "kind=c", "old")),
    ):
        table = written(tmp_path, content)
        overrides = (f"labels={table}", "train.epochs=1", *overrides)
        spec = spec_of(sample_corpus, tmp_path, run, *overrides)
        assert train(spec, Ranks())
        found = assignment(spec.settings)
        for part, what in ((found.parts.train, "targets trained or validated on"), (found.parts.test, "test targets")):
            others = [f"{line.partition(';')[0]};33;b" if k in part else line for k, line in enumerate(lines)]
            written(tmp_path, "\n".join(["record;years;kind", *others]))
            with pytest.raises(TrainingError, match=rf"changed since it began \(different: {what}\).*another run="):
                make_model(spec)
        scores = make_model(spec, found)  # of the labels that it was prepared with
        assert is_made(spec) and not is_made(spec_of(sample_corpus, tmp_path, run, *overrides))
        with pytest.raises(TrainingError, match="snapshot of the corpus"):
            refuse_changed(replace(spec, manifest_hash="another"), found)
        description = describe_model(spec.run.location)
        assert (description["kind"], tuple(description["names"])) == (kind, names) and scores
        about = description["labels"]
        assert about["table"] == "labels.csv" and about["key"] == "record" and len(about["sha256"]) == 64
        assert description["objective"]["table"]["table"] == "labels.csv"  # no folder of this machine
        card = (tmp_path / run / "model" / "README.md").read_text()
        assert "Labels: `labels.csv`" in card and str(tmp_path) not in card
        assert ("`old` is `years >= 65`" in card) == ("old" in names)


def test_a_model_that_nothing_will_test_is_warned_of(sample_corpus: str, tmp_path: Path) -> None:
    tested = assignment(spec_of(sample_corpus, tmp_path, "r").settings)
    assert doubts(tested) == []
    overrides = ("corpus.test_folds=[]", "corpus.hashed_test_sources=[]")
    (warning,) = doubts(assignment(spec_of(sample_corpus, tmp_path, "r", *overrides).settings))
    assert "corpus.hashed_test_sources=[ptbxl] holds out" in warning


def test_an_absolute_rate_in_place_of_a_part_is_warned_of(sample_corpus: str, tmp_path: Path) -> None:
    overrides = ("train.learning_rate=0.004", "objective.encoder_lr=0.001")
    (warning,) = doubts(assignment(spec_of(sample_corpus, tmp_path, "r", *overrides).settings))
    assert "is a part of train.learning_rate=0.004, so the encoder learns at 4e-06" in warning
    assert warning.endswith("set objective.encoder_lr=0.25")
    for part in ("0.01", "1"):
        assert doubts(assignment(spec_of(sample_corpus, tmp_path, "r", f"objective.encoder_lr={part}").settings)) == []
