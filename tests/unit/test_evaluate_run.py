"""The whole evaluation on a few real recordings: every variant runs, and the number of workers changes nothing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beatray.corpus.reader import Rows
from beatray.evaluate.classify import label_subsets
from beatray.evaluate.detail_tables import wave_rows, waves_markdown
from beatray.evaluate.encoders import EncoderSpec, build, pooled_features, prepared, spec_of
from beatray.evaluate.files import table_scores, write_tables
from beatray.evaluate.fit import batches, rate_factor
from beatray.evaluate.label_spaces import label_space, superclass_targets
from beatray.evaluate.metrics import SegmentCounts
from beatray.evaluate.probes import chosen_probe, inner_folds
from beatray.evaluate.results import VARIANTS, Evaluation
from beatray.evaluate.run import evaluate, plan
from beatray.evaluate.settings import (
    MAIN_PROTOCOL,
    PROBES,
    EvaluateSettings,
    FitSettings,
    RobustnessSettings,
    SegmentSettings,
    quick,
)
from beatray.evaluate.split import fold_subsets
from beatray.evaluate.table import make_table
from beatray.evaluate.tasks import task_data
from beatray.models.encoder_folder import export_encoder
from beatray.storage.store import Store
from evaluation_rows import read_rows

SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 14), ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 26))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("encoder")
    made = build(EncoderSpec("tiny"), seed=7)
    export_encoder(Store(str(folder)), made, {"name": "tiny", "settings": made.described_settings()})
    return spec_of(str(folder))


def split_of(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Every third patient tests."""
    patients = sorted({p or r for p, r in zip(rows.patient_id, rows.record_id, strict=True)})
    testing = set(patients[::3])
    tests = np.array([(p or r) in testing for p, r in zip(rows.patient_id, rows.record_id, strict=True)])
    return np.flatnonzero(~tests), np.flatnonzero(tests)


@pytest.fixture(scope="module")
def found(rows: Rows, encoder: EncoderSpec) -> Evaluation:
    torch.manual_seed(5)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    result = evaluate(rows, *split_of(rows), [encoder], quick())
    assert torch.equal(torch.rand(3), expected)  # the caller's generator was left alone
    return result


def test_every_arm_of_both_tasks_runs(found: Evaluation) -> None:
    seen = {(run.task, run.protocol, run.variant) for run in found.runs}
    both = {
        (t, p, a) for t, main in MAIN_PROTOCOL.items() for p in (main, "finetune") for a in ("pretrained", "random")
    }
    linear = {("segment", "linear_probe", "pretrained"), ("segment", "linear_probe", "random")}
    assert seen == both | linear | {
        ("classify", "linear_probe", variant) for variant in ("features", "encoder_features", "permuted_labels")
    }
    joined = next(row for row in make_table(found).rows if row.metric == "auroc" and row.protocol == "linear_probe")
    assert (
        joined.encoder_features is not None
        and joined.encoder_features != joined.pretrained
        and joined.encoder_features != joined.features
    )
    assert f"Both together reach {joined.encoder_features[0]:.3f}" in " ".join(make_table(found).notes)
    assert {run.fraction for run in found.runs if run.task == "segment"} == {0.1, 1.0}
    for run in found.runs:
        values = [v for name, v in run.metrics.items() if name in ("auroc", "f1", "dice")]
        assert all(0.0 <= v <= 1.0 for v in values)
    kept = [run for run in found.runs if run.predictions is not None]
    assert [(run.variant, run.protocol, run.fraction) for run in kept] == [("pretrained", "frozen_decoder", 1.0)]
    assert kept[0].predictions is not None
    assert kept[0].predictions.shape == (len(found.parts["segment"].test_ids), 5000)
    assert all(row.difference is not None for row in make_table(found).rows)


def test_workers_do_not_change_the_result(rows: Rows, encoder: EncoderSpec, found: Evaluation) -> None:
    plan_of_two = replace(quick(), workers=2)
    again = evaluate(rows, *split_of(rows), [encoder], plan_of_two)
    assert [run.metrics for run in again.runs] == [
        {name: pytest.approx(value, abs=1e-6, nan_ok=True) for name, value in run.metrics.items()} for run in found.runs
    ]
    for one, two in zip(found.runs, again.runs, strict=True):
        if one.protocol == "linear_probe" and one.task == "classify":
            assert np.array_equal(one.outcome.scores, two.outcome.scores)  # type: ignore[union-attr]


def test_a_patient_on_both_sides_is_refused(rows: Rows, encoder: EncoderSpec) -> None:
    train, test = split_of(rows)
    with pytest.raises(ValueError, match="both the training and the test part"):
        evaluate(rows, np.append(train, test[0]), test, [encoder], quick())


def test_a_task_without_labels_is_left_out_with_a_note(rows: Rows) -> None:
    ludb = np.flatnonzero(np.array(rows.source) == "ludb")
    few = rows.take(ludb[:8])
    result = evaluate(
        few, np.arange(5), np.arange(5, 8), [EncoderSpec("tiny")], replace(quick(), protocols=("linear_probe",))
    )
    assert set(result.parts) == {"segment"} and "classify: left out" in result.notes[0]
    assert {run.variant for run in result.runs} == {"random"}  # nothing pretrained was given
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(few, np.arange(5), np.arange(5, 8), [EncoderSpec("tiny")], replace(quick(), tasks=("classify",)))


def test_all_probes_choose_on_held_out_records(rows: Rows, encoder: EncoderSpec) -> None:
    train, test = split_of(rows)
    validation, train = train[::4], np.setdiff1d(train, train[::4])
    owners = [p or r for p, r in zip(rows.patient_id, rows.record_id, strict=True)]
    train = np.array([i for i in train if owners[i] not in {owners[j] for j in validation}])
    short = FitSettings(steps=3, batch_size=8)
    chosen = replace(quick().classify, mlp=short, mlp_weight_decays=(0.1,), lr_factors=(0.3, 1.0))
    plan_of_all = replace(
        quick(),
        tasks=("classify",),
        protocols=("linear_probe", "mlp", "knn", "finetune"),
        classify=chosen,
        permutations=1,
    )
    found = evaluate(rows, train, test, [encoder], plan_of_all, None, validation)
    assert len(found.parts["classify"].validation_ids) == len(
        [i for i in validation if rows.source[i] == "ptbxl" and superclass_targets([rows.labels[i]]).any()]
    )
    probes = {(p, a) for p in PROBES for a in VARIANTS}
    assert {(run.protocol, run.variant) for run in found.runs} == probes | {
        ("finetune", "pretrained"), ("finetune", "random"),
    }  # fmt: skip
    assert "recordings of the validation folds" in " ".join(make_table(found).notes)
    scores = table_scores(found)
    for protocol in (*PROBES, "finetune"):
        assert 0.0 <= scores["pretrained"][f"eval/classify/{protocol}/100pct/validation_auroc"] <= 1.0
    with pytest.raises(ValueError, match="both the validation and the test part"):
        evaluate(rows, train, test, [encoder], plan_of_all, None, np.append(validation, test[0]))
    with pytest.raises(ValueError, match="held_out needs"):
        asked = replace(plan_of_all, classify=replace(chosen, validation="held_out"))
        evaluate(rows, train, test, [encoder], asked)


def test_probes_read_stages_and_heartbeats_also_of_one_lead(rows: Rows, encoder: EncoderSpec) -> None:
    plan_of_beats = replace(
        quick(),
        tasks=("classify",),
        protocols=("linear_probe", "knn"),
        pooling="stages_beat",
        robustness=RobustnessSettings(leads=(1,)),
        permutations=0,
    )
    found = evaluate(rows, *split_of(rows), [encoder], plan_of_beats)
    reached = {(run.protocol, run.variant, run.condition): run.metrics["auroc"] for run in found.runs}
    usual = evaluate(rows, *split_of(rows), [encoder], replace(plan_of_beats, pooling="mean_std"))
    for protocol in ("linear_probe", "knn"):
        for variant in ("pretrained", "random"):
            assert 0.0 <= reached[protocol, variant, "1 lead"] <= 1.0
            assert reached[protocol, variant, "1 lead"] != reached[protocol, variant, "clean"]
        assert 0.0 <= reached[protocol, "encoder_features", "clean"] <= 1.0
    assert [run.metrics["auroc"] for run in usual.runs] != list(reached.values())


def test_what_chose_has_not_seen_a_test_label(rows: Rows, encoder: EncoderSpec) -> None:
    train, test = split_of(rows)
    plan_of_one = replace(quick(), tasks=("classify",), protocols=("linear_probe",), permutations=0)
    others = list(rows.labels)
    for i in test:
        others[i] = ("NORM",) if "NORM" not in rows.labels[i] else ("IMI", "NDT")
    found, changed = (
        evaluate(each, train, test, [encoder], plan_of_one) for each in (rows, replace(rows, labels=others))
    )
    tested, chose = ([run.metrics[name] for run in found.runs] for name in ("auroc", "validation_auroc"))
    assert chose == [run.metrics["validation_auroc"] for run in changed.runs]
    assert tested != [run.metrics["auroc"] for run in changed.runs]
    data, _ = task_data(rows, train, test, test[:0], "classify", plan_of_one, Path(tempfile.mkdtemp())) or pytest.fail()
    (features,) = [run for run in found.runs if run.variant == "features"]
    (part,) = label_subsets(data.patients, data.train, plan_of_one.classify_subsample, (1.0,), 0, 2).values()
    folds = inner_folds(data.patients, part, plan_of_one.inner_folds, 0)
    alone = chosen_probe("linear_probe", data.features, data.truth, part, folds, plan_of_one, 0)
    assert features.metrics["validation_auroc"] == alone.validation_auroc


@pytest.mark.parametrize(("target", "fold_over"), [("shared", "held_out"), ("per_lead", "all")])
def test_in_folds_every_record_is_tested_once_by_a_model_that_has_not_seen_it(
    rows: Rows, encoder: EncoderSpec, target: str, fold_over: str, tmp_path: Path
) -> None:
    asked = replace(
        quick(),
        tasks=("segment",),
        protocols=("linear_probe", "frozen_decoder") if target == "shared" else ("frozen_decoder", "finetune"),
        segment=SegmentSettings(target=target, folds=3, repeats=2, fold_over=fold_over),
        segment_fractions=(1.0,),
        finetune_decoder="unet",
    )
    train, test = split_of(rows)
    found = evaluate(rows, train, test, [encoder], asked)
    marked = [rows.record_id[i] for i in (test if fold_over == "held_out" else range(len(rows))) if len(rows.waves[i])]
    part = found.parts["segment"]
    assert sorted(part.test_ids) == sorted(marked) and len(set(part.test_ids)) == len(marked)
    assert {run.seed for run in found.runs} == {0, 1}
    masks = 12 if target == "per_lead" else 1
    data, _ = task_data(rows, train, test, np.empty(0, np.int64), "segment", asked, tmp_path) or (None, None)
    assert data is not None
    for run in found.runs:
        assert isinstance(run.outcome, SegmentCounts) and len(run.outcome.both) == masks * len(marked)
        assert len(run.fold_scores) == 3 and run.waves is not None and len(run.waves.hits) == masks * len(marked)
        truth = data.truth[data.test].reshape(-1, 5000)
        assert np.array_equal(run.outcome.truth[:, 1], (truth == 2).sum(axis=1))  # the rows are in the part's order
    for folds in fold_subsets(data.patients, data.train, data.test, (1.0,), 3, seed=1).values():
        tested = np.concatenate([held for _, held in folds])
        assert np.array_equal(np.sort(tested), data.test)
        for fit_on, held in folds:
            assert not {data.patients[i] for i in fit_on} & {data.patients[i] for i in held}
            assert len(fit_on) + len(held) == len(data.patients)
    text = " ".join(make_table(found).notes)
    assert "F1 over 6 paired folds: " in text and "dealt into 3 folds" in text
    rows_of_waves = wave_rows(found)
    assert {row.wave for row in rows_of_waves} == {"P", "QRS", "T"} and "| QRS |" in waves_markdown(rows_of_waves)


def test_all_tables_are_written_and_hold_plain_numbers(found: Evaluation, rows: Rows, tmp_path: Path) -> None:
    text = write_tables(found, tmp_path, rows)
    assert (tmp_path / "table.txt").read_text() == text
    written = {path.name for path in tmp_path.iterdir()}
    assert {"results.json", "table.md", "table.json", "classes.md", "waves.md"} <= written
    content = json.loads((tmp_path / "table.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert len(content["rows"]) == len(make_table(found).rows)
    assert {row["name"] for row in content["classes"]} == {"CD", "HYP", "MI", "NORM", "STTC"}
    own = [row["pretrained_interval"] for row in content["rows"] if row["metric"] == "auroc"]
    assert own and all(each["low"] <= each["value"] <= each["high"] for each in own)
    variants = {(r.protocol, r.fraction, r.variant) for r in found.runs if r.task == "segment"}
    assert len(content["waves"]) == 3 * len(variants)
    stored = json.loads((tmp_path / "results.json").read_text())["tasks"]["classify"]
    assert stored["classes"] == ["CD", "HYP", "MI", "NORM", "STTC"]
    assert stored["test_positives"] == np.sum(stored["truth"], axis=0).tolist()


def test_label_fractions_are_nested_and_even_the_smallest_is_run(rows: Rows, encoder: EncoderSpec) -> None:
    fractions = (0.01, 0.05, 0.1, 0.5, 1.0)
    asked = replace(
        quick(),
        tasks=("classify",),
        protocols=("linear_probe", "knn", "finetune"),
        classify_fractions=fractions,
        seeds=(0, 1),
    )
    found = evaluate(rows, *split_of(rows), [encoder], asked)
    assert {run.fraction for run in found.runs} == set(fractions)
    for seed in (0, 1):
        records = [
            {run.train_records for run in found.runs if (run.fraction, run.seed) == (f, seed)} for f in fractions
        ]
        assert all(len(each) == 1 for each in records)  # the same labels for every variant
        sizes = [each.pop() for each in records]
        assert sizes == sorted(sizes) and sizes[0] >= 2
    assert "At 1 % of the labels some seed had no positive to learn of: " in " ".join(make_table(found).notes)


def test_permuted_labels_are_permuted_where_the_choice_is_made_too(
    rows: Rows, encoder: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = split_of(rows)
    owners = [p or r for p, r in zip(rows.patient_id, rows.record_id, strict=True)]
    validation = train[::3]
    train = np.array([i for i in train if owners[i] not in {owners[j] for j in validation}])
    given: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def spy(protocol, features, truth, fit_on, folds, *rest):  # type: ignore[no-untyped-def]
        given.append((truth, fit_on, folds[0][1]))
        return chosen_probe(protocol, features, truth, fit_on, folds, *rest)

    monkeypatch.setattr("beatray.evaluate.worker.chosen_probe", spy)
    asked = replace(quick(), tasks=("classify",), protocols=("linear_probe",), permutations=1)
    evaluate(rows, train, test, [encoder], asked, None, validation)
    true, permuted = given[0][0], given[-1][0]
    for part in given[-1][1:]:  # training and validation records
        assert not np.array_equal(permuted[part], true[part])
        assert np.array_equal(permuted[part].sum(axis=0), true[part].sum(axis=0))


def test_another_label_space_is_evaluated_under_its_own_name(rows: Rows, encoder: EncoderSpec) -> None:
    asked = replace(
        quick(), tasks=("classify",), protocols=("knn",), classify=replace(quick().classify, labels="rhythm")
    )
    found = evaluate(rows, *split_of(rows), [encoder], asked)
    part = found.parts["classify"]
    assert part.title == "PTB-XL rhythm codes" and part.classes == label_space("rhythm").classes
    assert part.truth is not None and part.truth.shape[1] == 12
    absent = [name for k, name in enumerate(part.classes) if not part.truth[:, k].any()]
    assert absent and f"no positive in the test part, so in no mean: {', '.join(absent)}." in " ".join(
        make_table(found).notes
    )


def test_arms_share_seeds_and_one_control_serves_encoders_of_one_architecture() -> None:
    specs = [EncoderSpec("tiny", {}, "a", "one"), EncoderSpec("tiny", {}, "b", "two")]
    units = plan(("segment", "classify"), specs, EvaluateSettings(permutations=2, finetune_seeds=(0,)))
    frozen = [
        (unit.variant, unit.seed) for unit in units if (unit.task, unit.protocol) == ("segment", "frozen_decoder")
    ]
    assert sorted(frozen) == sorted([("pretrained", s) for s in (0, 1, 2)] * 2 + [("random", s) for s in (0, 1, 2)])
    assert {unit.seed for unit in units if unit.protocol == "finetune"} == {0}
    assert sum(unit.variant == "permuted_labels" for unit in units) == 2


def test_random_weights_depend_on_the_seed_alone(rows: Rows) -> None:
    x_mv = prepared(rows.signal_uv[:3], rows.n_samples[:3])
    lengths = rows.n_samples[:3].astype(np.int64)
    first, again, other = (pooled_features(build(EncoderSpec("tiny"), s), x_mv, lengths) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_batches_walk_through_every_record_and_the_rate_rises_and_falls() -> None:
    drawn = list(batches(50, 16, 9, seed=0))
    assert len(drawn) == 9 and sorted(np.concatenate(drawn[:3])) == list(range(50))
    assert [len(b) for b in batches(5, 16, 2, seed=0)] == [5, 5]
    factors = [rate_factor(step, 100) for step in range(100)]
    assert factors[0] == 0.1 and max(factors) == factors[9] == 1.0 and factors[-1] < 0.01
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_unknown_names_in_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="tasks must be one of segment, classify, not 'wrong'"):
        EvaluateSettings(tasks=("wrong",))
    with pytest.raises(ValueError, match="protocols must be one of"):
        EvaluateSettings(protocols=("loose",))
    with pytest.raises(ValueError, match="seeds"):
        EvaluateSettings(seeds=())
    assert FitSettings().steps > 0


def test_without_controls_the_encoder_is_evaluated_alone(rows: Rows, encoder: EncoderSpec) -> None:
    alone = replace(quick(), baselines=False, tasks=("classify",), protocols=("linear_probe",))
    found = evaluate(rows, *split_of(rows), [encoder], alone)
    assert {run.variant for run in found.runs} == {"pretrained", "encoder_features"}
    whole = evaluate(rows, *split_of(rows), [encoder], replace(alone, baselines=True, permutations=0))
    of_encoder = [run.metrics for run in whole.runs if run.variant == "pretrained"]
    assert of_encoder == [run.metrics for run in found.runs if run.variant == "pretrained"]
