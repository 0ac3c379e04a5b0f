"""Scores by group and code, against scikit-learn on the same recordings; hard recordings and their neighbours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from beatray.corpus.reader import Rows
from beatray.dsp.quality import Flag
from beatray.evaluate.groups import code_rows, codes_markdown, group_rows, groups_markdown, groups_of
from beatray.evaluate.metrics import IGNORE, SegmentCounts
from beatray.evaluate.results import Decisions, Evaluation, Run, TaskPart, evaluation_of, score, write_results
from beatray.evaluate.settings import EvaluateSettings
from beatray.evaluate.table import make_table
from beatray.record import WAVE_DTYPE
from beatray.report.group_scores import group_sections
from beatray.report.hard_recordings import Hard, Strip, hard_section, hardest, nearest

N, TRAINED = 120, 20
CLASSES = ("CD", "HYP", "MI", "NORM", "STTC")
CODES = {"CD": ("IRBBB", "LAFB"), "HYP": ("LVH",), "MI": ("IMI", "ASMI"), "NORM": ("NORM",), "STTC": ("NDT",)}


@pytest.fixture(scope="module")
def rows() -> Rows:
    draw = np.random.default_rng(5)
    labels = [tuple(draw.choice(CODES[name]) for name in CLASSES if draw.random() < 0.4) for _ in range(N)]
    return Rows(
        record_id=[f"ptbxl/{n}" for n in range(N)],
        patient_id=[f"ptbxl/{n // 2}" for n in range(N)],
        source=["ptbxl"] * N,
        fold=np.ones(N, np.int8),
        signal_uv=draw.integers(-800, 800, (N, 12, 5000)).astype(np.int16),
        n_samples=np.full(N, 5000, np.int32),
        lead_mask=np.full(N, 0xFFF, np.int16),
        flags=np.where(np.arange(N) % 4 == 0, int(Flag.NOISY), 0).astype(np.int32),
        r_peaks=[np.arange(400, 5000, 400, dtype=np.int32)] * N,
        beat_features=[np.zeros((12, 1), np.float32)] * N,
        record_features=np.zeros((N, 1), np.float32),
        labels=labels,
        waves=[np.empty(0, WAVE_DTYPE)] * N,
        age=np.where(np.arange(N) % 5 == 0, np.nan, np.arange(N)).astype(np.float32),
        sex=[("female", "male", None)[n % 3] for n in range(N)],
    )


@pytest.fixture(scope="module")
def evaluation(rows: Rows) -> Evaluation:
    draw = np.random.default_rng(6)
    has = [{name for name in CLASSES if set(CODES[name]) & set(codes)} for codes in rows.labels]
    truth = np.array([[name in each for name in CLASSES] for each in has[TRAINED:]])
    ids = tuple(rows.record_id)
    patients = tuple(str(each) for each in rows.patient_id[TRAINED:])
    part = TaskPart("classify", ids[:TRAINED], ids[TRAINED:], patients, truth, "superclasses", CLASSES, (8,) * 5)
    counts = draw.integers(1, 500, (N - TRAINED, 3))
    waves = TaskPart("segment", ids[:TRAINED], ids[TRAINED:], patients)
    runs = []
    for variant in ("pretrained", "random"):
        for seed in (0, 1):
            outcome = Decisions(np.clip(0.3 * truth + 0.7 * draw.random(truth.shape), 0, 1), np.full(5, 0.5))
            runs.append(_run("classify", "linear_probe", variant, seed, outcome, score(outcome, truth)))
            found = SegmentCounts(counts // draw.integers(1, 4), counts, counts)
            runs.append(_run("segment", "frozen_decoder", variant, seed, found, score(found, None)))
    runs.append(replace(runs[0], fraction=0.1))
    runs = [replace(run, architecture="tiny") for run in runs]
    settings = EvaluateSettings(bootstraps=30)
    return Evaluation(settings, {"classify": part, "segment": waves}, tuple(runs), encoders=("pretrained",))


def _run(task: str, protocol: str, variant: str, seed: int, outcome: object, metrics: dict[str, float]) -> Run:
    return Run(task, protocol, variant, variant, "", 1.0, TRAINED, seed, 1.0, outcome, metrics)  # type: ignore[arg-type]


def test_groups_of_a_recording(rows: Rows) -> None:
    assert groups_of(rows, 0) == ["all", "age unknown", "sex female", "flag noisy"]
    assert groups_of(rows, 17) == ["all", "age under 18", "sex unknown", "flag none"]
    assert [groups_of(rows, n)[1] for n in (18, 39, 41, 79, 81)] == [
        "age 18 to 39", "age 18 to 39", "age 40 to 59", "age 60 to 79", "age 80 and over",
    ]  # fmt: skip
    both = replace(rows, flags=np.full(N, int(Flag.NOISY | Flag.SHORT), np.int32))
    assert groups_of(both, 1)[3:] == ["flag noisy", "flag short"]


def test_a_group_is_scored_on_its_own_recordings(rows: Rows, evaluation: Evaluation) -> None:
    found = group_rows(evaluation, rows)
    assert {row.fraction for row in found} == {1.0}  # with all labels
    part = evaluation.parts["classify"]
    assert part.truth is not None
    women = np.array([rows.sex[n] == "female" for n in range(TRAINED, N)])
    outcomes = [run.outcome for run in evaluation.runs if run.variant == "random" and run.task == "classify"]
    expected = np.mean(
        [[roc_auc_score(part.truth[women, k], o.scores[women, k]) for k in range(5)] for o in outcomes], 0
    )
    (row,) = (r for r in found if (r.task, r.variant, r.group) == ("classify", "random", "sex female"))
    assert row.recordings == women.sum()
    assert list(row.parts) == list(CLASSES) and np.allclose(list(row.parts.values()), expected, atol=1e-12)
    assert row.macro.value == pytest.approx(expected.mean()) and row.macro.low < row.macro.value < row.macro.high
    everybody = next(r for r in found if (r.task, r.variant, r.group) == ("segment", "pretrained", "all"))
    runs = [run for run in evaluation.runs if run.task == "segment" and run.variant == "pretrained"]
    assert everybody.macro.value == pytest.approx(np.mean([run.metrics["f1"] for run in runs]))
    names = list(dict.fromkeys(row.group for row in found))
    assert names[0] == "all" and names[-1] == "flag none" and "age under 18" not in names  # too few: no row
    assert "| sex male |" in groups_markdown(found)


def test_a_code_is_scored_against_those_without_its_class(rows: Rows, evaluation: Evaluation) -> None:
    found = code_rows(evaluation, rows)
    assert [row.code for row in found if row.variant == "pretrained"] == ["IRBBB", "LAFB", "LVH", "ASMI", "IMI", "NDT"]
    part = evaluation.parts["classify"]
    assert part.truth is not None
    has = np.array(["IMI" in rows.labels[n] for n in range(TRAINED, N)])
    among = has | ~part.truth[:, 2]
    outcomes = [
        run.outcome for run in evaluation.runs if (run.variant, run.task, run.fraction) == ("pretrained", "classify", 1)
    ]
    row = next(r for r in found if r.code == "IMI")
    assert row.recordings == has.sum()
    assert row.auroc.value == pytest.approx(np.mean([roc_auc_score(has[among], o.scores[among, 2]) for o in outcomes]))
    assert row.found == pytest.approx(np.mean([(o.scores[has, 2] >= 0.5).mean() for o in outcomes]))
    assert "| MI | IMI |" in codes_markdown(found)


def test_an_evaluation_comes_back_from_its_file(evaluation: Evaluation, rows: Rows, tmp_path: Path) -> None:
    part = evaluation.parts["classify"]
    assert part.truth is not None
    holes = part.truth.astype(np.int8)
    holes[::7, 3] = IGNORE
    for truth in (part.truth, holes):
        given = replace(evaluation, parts={**evaluation.parts, "classify": replace(part, truth=truth)})
        back = evaluation_of(json.loads(write_results(given, tmp_path).read_text()))
        assert back.settings == given.settings
        assert np.array_equal(back.parts["classify"].truth, truth) and back.parts["classify"].truth.dtype == truth.dtype
        assert back.parts["segment"] == given.parts["segment"]
        for one, other in zip(given.runs, back.runs, strict=True):
            same = ("task", "protocol", "variant", "seed", "architecture")
            assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]
            assert one.metrics == other.metrics and one.train_positives == other.train_positives
            for name in one.outcome.__dataclass_fields__:
                assert np.array_equal(getattr(one.outcome, name), getattr(other.outcome, name))
        assert group_rows(given, rows) == group_rows(back, rows)


def test_each_encoder_stands_beside_random_weights_of_its_own_architecture(
    rows: Rows, evaluation: Evaluation, tmp_path: Path
) -> None:
    """In the tables and by group, also when read back; of results without architectures all are taken as one."""
    other = [
        replace(run, architecture="wide", encoder=run.encoder.replace("pretrained", "mine"), outcome=worse(run))
        for run in evaluation.runs
    ]
    truth = evaluation.parts["classify"].truth
    other = [replace(run, metrics=score(run.outcome, None if run.task == "segment" else truth)) for run in other]
    given = replace(evaluation, runs=(*evaluation.runs, *other))
    document = json.loads(write_results(given, tmp_path).read_text())
    back = evaluation_of(document)
    table = [(row.encoder, row.metric, row.random) for row in make_table(back).rows]
    assert table == [(row.encoder, row.metric, row.random) for row in make_table(given).rows]
    assert len({cell for _, metric, cell in table if metric == "auroc"}) == 3  # two encoders; none at 10 % of labels
    found = group_rows(back, rows)
    named = {row.encoder for row in found}
    assert named == {"pretrained", "mine", "random (pretrained)", "random (mine)"} and found == group_rows(given, rows)
    alone = {(row.task, row.group): row.macro for row in group_rows(evaluation, rows) if row.variant == "random"}
    assert {(row.task, row.group): row.macro for row in found if row.encoder == "random (pretrained)"} == alone
    for run in document["runs"]:
        del run["architecture"]  # as it was before
    older = evaluation_of(document)
    assert {run.architecture for run in older.runs} == {""} and len(make_table(older).rows) == len(table)
    before = replace(evaluation, runs=tuple(replace(run, architecture="") for run in evaluation.runs[:4]))
    mixed = replace(before, runs=(*before.runs, *(run for run in evaluation.runs if run.variant == "random")))
    assert all(row.random for row in make_table(mixed).rows)  # scores of before, controls of today


def worse(run: Run) -> Decisions | SegmentCounts:
    """The outcome of a run with some of what it found lost."""
    if isinstance(run.outcome, SegmentCounts):
        return replace(run.outcome, both=run.outcome.both // 2)
    return replace(run.outcome, scores=run.outcome.scores[:, ::-1])


def test_the_sections_name_every_group_and_code(rows: Rows, evaluation: Evaluation) -> None:
    titles = {"classify": "superclasses", "segment": "waves"}
    people, codes = group_sections(group_rows(evaluation, rows), code_rows(evaluation, rows), titles)
    assert "sex female" in people.html and "flag noisy" in people.html and people.pictures[0].image.startswith(b"<?xml")
    assert "IMI" in codes.html and "IRBBB" in codes.html
    assert group_sections([], [], titles) == []


def test_the_hardest_are_those_with_the_largest_cross_entropy() -> None:
    truth = np.array([[1, 0], [0, 1], [1, IGNORE], [IGNORE, IGNORE]], np.int8)
    scores = np.array([[0.9, 0.2], [0.6, 0.3], [0.01, 0.99], [0.5, 0.5]])
    loss = [-np.log([0.9, 0.8]).mean(), -np.log([0.4, 0.3]).mean(), -np.log(0.01), 0.0]
    assert hardest(truth, scores).tolist() == np.argsort(loss)[::-1].tolist() == [2, 1, 0, 3]
    assert hardest(truth, scores, 2).tolist() == [2, 1]


def test_neighbours_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(3)
    features = (draw.normal(size=(40, 7)) * 10.0 ** np.arange(7)).astype(np.float32)
    features[:, 6] = 4.0  # a feature that says nothing
    train, tested = np.arange(30), np.array([33, 38])
    found, cosines = nearest(features, train, tested, 3)
    scaled = StandardScaler().fit(features[train]).transform(features)
    distance, position = NearestNeighbors(n_neighbors=3, metric="cosine").fit(scaled[train]).kneighbors(scaled[tested])
    assert np.array_equal(found, train[position]) and np.allclose(1 - cosines, distance, atol=1e-6)
    without_beat = np.concatenate([features, features[:1]])  # one more training recording, without a median heartbeat
    without_beat[-1, 3:5] = np.nan
    near, alike = nearest(without_beat, np.append(train, 40), tested, 3)
    filled = without_beat.copy()
    filled[-1, 3:5] = np.median(features[train, 3:5], axis=0)
    assert np.isfinite(alike).all()
    assert np.array_equal(near, nearest(filled, np.append(train, 40), tested, 3)[0])


def test_a_picture_of_each_hard_recording(rows: Rows) -> None:
    x_mv = rows.signal_uv[0].astype(np.float32) / 1000
    one = Strip("ptbxl/1: MI", "codes: IMI\nfound: NORM 0.93", x_mv)
    section = hard_section([Hard(one, [one, one]), Hard(one, [])], "the pretrained encoder")
    assert section is not None and len(section.pictures) == 2
    assert section.pictures[0].image.startswith(b"\x89PNG") and "ptbxl/1: MI" in section.pictures[0].alt
    assert hard_section([], "any") is None


def test_windows_of_one_recording_are_no_group(rows: Rows, evaluation: Evaluation) -> None:
    """Ten windows of one recording have no row, and what one patient alone has no width is given as unknown."""
    part = evaluation.parts["classify"]
    ids = tuple(f"ptbxl/1#{n}" for n in range(N))
    windows = replace(rows, record_id=list(ids))
    one = replace(part, train_ids=ids[:TRAINED], test_ids=ids[TRAINED:], test_patients=("ptbxl/1",) * (N - TRAINED))
    assert group_rows(replace(evaluation, parts={"classify": one}), windows) == []
    alone = replace(part, test_patients=("ptbxl/1",) * (N - TRAINED))
    for row in group_rows(replace(evaluation, parts={"classify": alone}), rows):
        assert np.isfinite(row.macro.value) and np.isnan(row.macro.low) and np.isnan(row.macro.high)
