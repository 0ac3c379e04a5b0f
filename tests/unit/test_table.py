"""The table from hand-made runs: right numbers in the right cells, and lines that fit a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beatray.evaluate.detail_tables import class_rows, classes_markdown
from beatray.evaluate.metrics import SegmentCounts
from beatray.evaluate.recordings import positives
from beatray.evaluate.results import Decisions, Evaluation, Run, TaskPart, score, write_results
from beatray.evaluate.settings import MAIN_PROTOCOL, EvaluateSettings
from beatray.evaluate.table import as_html, as_markdown, as_rows, as_text, make_table

N_TEST = 40


def counts(generator: np.random.Generator, quality: float) -> SegmentCounts:
    """Counts of recordings of which about a share `quality` is found."""
    truth = generator.integers(200, 400, (N_TEST, 3))
    both = (truth * np.clip(quality + generator.normal(0, 0.03, truth.shape), 0, 1)).astype(np.int64)
    return SegmentCounts(both, truth, truth)


def evaluation(encoders: tuple[str, ...] = ("beat_ssl",), train_records: int = 17418) -> Evaluation:
    """Two seeds of every variant; pretrained is better on waves and no different on diagnoses."""
    truth = np.random.default_rng(1).random((N_TEST, 5)) < 0.4
    patients = tuple(f"p{i // 2}" for i in range(N_TEST))
    ids = tuple(f"source/{i}" for i in range(N_TEST))
    parts = {
        "segment": TaskPart("segment", ("a",), ids, patients),
        "classify": TaskPart("classify", ("a", "b"), ids, patients, truth),
    }
    variants = [("pretrained", e, "tiny", 0.9) for e in encoders] + [
        ("random", "random", "tiny", 0.8),
        ("random", "random", "other", 0.3),
        ("features", "features", "", 0.0),
        ("permuted_labels", "permuted_labels", "", 0.0),
    ]
    runs = []
    for task in ("segment", "classify"):
        for protocol in (MAIN_PROTOCOL[task], "finetune"):
            for variant, label, architecture, quality in variants:
                measured = variant in ("features", "permuted_labels")
                if measured and (task, protocol) != ("classify", "linear_probe"):
                    continue
                for seed in (0, 1):
                    generator = np.random.default_rng([seed, len(runs)])
                    outcome = counts(generator, quality) if task == "segment" else Decisions(
                        0.6 * truth + generator.random(truth.shape) * (5 if label == "permuted_labels" else 1),
                        np.full(5, 0.7),
                    )  # fmt: skip
                    known = truth if task == "classify" else None
                    runs.append(
                        Run(task, protocol, variant, label, architecture, 1.0, train_records, seed, 1.0, outcome,
                            score(outcome, known))
                    )  # fmt: skip
    return Evaluation(EvaluateSettings(seeds=(0, 1), bootstraps=200), parts, tuple(runs), ("a note",), 1.0, encoders)


def test_cells_hold_mean_and_sd_over_seeds_and_the_difference() -> None:
    found = evaluation()
    row = next(
        r for r in make_table(found).rows if (r.task, r.protocol, r.metric) == ("segment", "frozen_decoder", "f1")
    )
    values = {
        variant: [
            r.metrics["f1"]
            for r in found.runs
            if (r.task, r.protocol, r.variant) == ("segment", "frozen_decoder", variant)
        ]
        for variant in ("pretrained", "random")
    }
    assert row.pretrained == pytest.approx((np.mean(values["pretrained"]), np.std(values["pretrained"], ddof=1)))
    assert row.random is not None and row.random[0] == pytest.approx(np.mean(values["random"][:2]))  # its own control
    assert row.difference is not None
    assert row.difference.value == pytest.approx(row.pretrained[0] - row.random[0])
    assert row.difference.low > 0.05 and row.difference.high < 0.15
    assert row.features is None


def test_shuffled_and_measured_stand_only_in_the_probe_rows() -> None:
    for row in make_table(evaluation()).rows:
        in_probe = (row.task, row.protocol) == ("classify", "linear_probe")
        assert (row.features is not None) == in_probe and (row.permuted_labels is not None) == in_probe


@pytest.mark.parametrize("encoders", [("beat_ssl",), ("beat_ssl", "a-rather-long-name-of-an-encoder"), ()])
def test_text_fits_120_columns_and_holds_every_row(encoders: tuple[str, ...]) -> None:
    table = make_table(evaluation(encoders))
    text = as_text(table)
    assert max(len(line) for line in text.splitlines()) <= 120
    assert len(table.rows) == 10 * max(1, len(encoders))
    assert text.count("macro F1") == sum(row.metric == "f1" for row in table.rows)
    assert "a note" in text and "random: the same" in text


def test_the_reading_counts_what_the_intervals_say() -> None:
    table = make_table(evaluation())
    main = [r.difference for r in table.rows if r.metric == ("f1" if r.task == "segment" else "auroc")]
    better = sum(gap is not None and gap.low > 0 for gap in main)
    assert better == 2
    assert f"of 4 comparisons with random weights, pretraining is better in {better}" in table.notes[0]


def test_markdown_and_html_hold_the_same_cells() -> None:
    table = make_table(evaluation(("<b>&", "two")))
    markdown, html = as_markdown(table), as_html(table)
    assert markdown.count("\n| ") == len(table.rows)
    assert "&lt;b&gt;&amp;" in html and "<b>&" not in html
    for row in table.rows:
        assert row.pretrained is not None
        assert f"{row.pretrained[0]:.3f}" in markdown and f"{row.pretrained[0]:.3f}" in html


def test_results_json_is_plain_json_that_rebuilds_the_scores(tmp_path: Path) -> None:
    found = evaluation()
    text = write_results(found, tmp_path).read_text()
    stored = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(stored["runs"]) == len(found.runs)
    truth = np.array(stored["tasks"]["classify"]["truth"], bool)
    run = next(r for r in stored["runs"] if r["task"] == "classify" and r["variant"] == "pretrained")
    again = score(Decisions(np.array(run["test"]["scores"]), np.array(run["test"]["thresholds"])), truth)
    assert {name: again[name] for name in ("auroc", "auprc", "f1")} == {
        name: run["metrics"][name] for name in ("auroc", "auprc", "f1")
    }
    assert len(as_rows(make_table(found))) == 10


def test_scores_that_differ_in_the_ninth_digit_keep_their_order_in_results_json(tmp_path: Path) -> None:
    """A confident network's probabilities lie close together: rounded, they would tie."""
    found = evaluation()
    part, generator = found.parts["classify"], np.random.default_rng(5)
    assert part.truth is not None
    close = Decisions(1e-9 * generator.random(part.truth.shape), np.full(5, 0.5))
    runs = tuple(
        replace(run, outcome=close, metrics=score(close, part.truth)) if run.task == "classify" else run
        for run in found.runs
    )
    stored = json.loads(write_results(replace(found, runs=runs), tmp_path).read_text())
    run = next(r for r in stored["runs"] if r["task"] == "classify")
    again = Decisions(np.array(run["test"]["scores"]), np.array(run["test"]["thresholds"]))
    assert score(again, part.truth)["auroc"] == run["metrics"]["auroc"]


@pytest.mark.parametrize("encoders", [("pretrained",), ("simclr", "byol")])
def test_tables_of_classes_and_waves_say_what_a_head_read(encoders: tuple[str, ...]) -> None:
    found = evaluation(encoders)
    both = [
        replace(run, variant="encoder_features")
        for run in found.runs
        if (run.task, run.protocol, run.variant) == ("classify", "linear_probe", "pretrained")
    ]
    part = replace(found.parts["classify"], classes=tuple("ABCDE"), train_positives=(1, 1, 1, 1, 1))
    found = replace(found, parts={**found.parts, "classify": part}, runs=(*found.runs, *both))
    shown = {line.split(" | ")[2] for line in classes_markdown(class_rows(found)).splitlines()[2:] if line[:1] == "|"}
    of = [f" ({name})" for name in encoders] if len(encoders) > 1 else [""]
    assert shown == {f"{what}{name}" for what in ("pretrained", "encoder+features") for name in of} | {
        "random",
        "features",
    }


def test_windows_of_one_recording_are_one_recording() -> None:
    found = evaluation()
    ids = tuple(f"source/{i // 4}#{i % 4}" for i in range(N_TEST))
    part = replace(found.parts["classify"], test_ids=ids, classes=tuple("ABCDE"), train_positives=(1, 1, 1, 1, 1))
    assert part.truth is not None
    changed = replace(found, parts={**found.parts, "classify": part})
    notes = " ".join(make_table(changed).notes)
    assert "10 test recordings (in 40 windows of up to 10 s) of 20 patients, 2 recordings to train on" in notes
    expected = part.truth.reshape(10, 4, 5).any(axis=1).sum(axis=0)
    assert {row.name: row.test_positives for row in class_rows(changed)} == dict(zip("ABCDE", expected, strict=True))
    assert positives(("a#0", "b", "a#1"), np.array([[1, 0], [-1, 0], [1, 1]], np.int8)) == (1, 1)
    assert positives((), np.zeros((0, 2), bool)) == (0, 0)


def test_classes_without_positives_are_named_and_keep_their_row() -> None:
    found = evaluation()
    part = found.parts["classify"]
    assert part.truth is not None
    truth = part.truth.copy()
    truth[:, 2] = False
    named = replace(
        part, truth=truth, classes=tuple("ABCDE"), train_positives=(9, 8, 7, 0, 6), too_few=("F",), title="a space"
    )
    runs = tuple(replace(r, metrics=score(r.outcome, truth)) if r.task == "classify" else r for r in found.runs)
    changed = replace(found, parts={**found.parts, "classify": named}, runs=runs)
    notes = " ".join(make_table(changed).notes)
    assert "means over 4 of 5 classes" in notes and "no positive in the test part, so in no mean: C." in notes
    assert "not learned: D." in notes and "to be a class: F." in notes and "a space" in notes
    rows = class_rows(changed)
    of_c = [row for row in rows if row.name == "C"]
    assert of_c and all(np.isnan(row.scores["auroc"].value) and row.test_positives == 0 for row in of_c)
    macro = next(r for r in runs if r.task == "classify" and r.variant == "pretrained").metrics
    mine = [row for row in rows if row.variant == "pretrained" and row.protocol == "linear_probe"]
    assert {row.name: row.train_positives for row in mine} == dict(zip("ABCDE", (9, 8, 7, 0, 6), strict=True))
    known = [row.scores["auprc"].value for row in mine if row.name != "C"]
    seeds = [
        r.metrics["auprc"]
        for r in runs
        if (r.task, r.protocol, r.variant) == ("classify", "linear_probe", "pretrained")
    ]
    assert np.mean(known) == pytest.approx(np.mean(seeds)) and macro["classes"] == 4
    assert classes_markdown(rows).count("\n| ") == len(rows)
