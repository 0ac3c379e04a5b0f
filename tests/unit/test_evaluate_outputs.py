"""What encoders give is computed once, kept whole, and is what every probe would have computed by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beatray.corpus.reader import Rows
from beatray.evaluate import outputs as module
from beatray.evaluate.encoders import EncoderSpec, build, feature_maps, pooled_features, prepared, spec_of
from beatray.evaluate.kept_runs import RUNS_SUFFIX
from beatray.evaluate.outputs import Outputs, remove_kept, source_of
from beatray.evaluate.robustness import under
from beatray.evaluate.run import evaluate, plan
from beatray.evaluate.settings import EvaluateSettings, FitSettings, RobustnessSettings, quick
from beatray.evaluate.tasks import TaskData, task_data
from beatray.evaluate.worker import read_by
from beatray.models.encoder_folder import export_encoder
from beatray.storage.store import Store
from evaluation_rows import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[2] / "platform" / "beatray" / "sample"
ASKED = replace(
    quick(),
    protocols=("linear_probe", "knn"),
    pooling="stages_beat",
    robustness=RobustnessSettings(noise_levels=(3,), leads=(2,)),
    permutations=2,
)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 9), ptbxl=(str(SAMPLE / "ptbxl-sample.zip"), 24))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("encoder")
    made = build(EncoderSpec("tiny"), seed=7)
    export_encoder(Store(str(folder)), made, {"name": "tiny", "settings": made.described_settings()})
    return spec_of(str(folder))


def split_of(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    owners = [p or r for p, r in zip(rows.patient_id, rows.record_id, strict=True)]
    tests = np.isin(owners, sorted(set(owners))[::3])
    return np.flatnonzero(~tests), np.flatnonzero(tests)


def parts(rows: Rows, settings: EvaluateSettings, folder: Path) -> dict[str, TaskData]:
    train, test = split_of(rows)
    found = {name: task_data(rows, train, test, test[:0], name, settings, folder) for name in settings.tasks}
    return {name: each[0] for name, each in found.items() if each is not None}


def test_a_reader_finds_what_it_would_have_computed(
    rows: Rows, encoder: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", {"classify": 8, "segment": 8})  # several files for each
    tasks = parts(rows, ASKED, tmp_path)
    outputs = Outputs(tmp_path / "kept", "corpus", tasks, ASKED)
    sources = [source_of(encoder, 3), source_of(encoder.random(), 3)]
    needed = [(t, c, s) for t in tasks for c in ("clean", "noise 3", "2 leads") for s in sources]
    for piece in outputs.missing(needed):
        outputs.compute(piece)
    assert outputs.missing(needed) == []
    positions = {name: i for i, name in enumerate(rows.record_id)}
    for task, condition, source in needed:
        data = tasks[task]
        chosen = np.array(
            [
                positions[data.record_ids[i]]
                for i in (data.test if condition != "clean" else range(len(data.record_ids)))
            ]
        )
        lengths = rows.n_samples[chosen].astype(np.int64)
        if condition == "clean":
            x_mv = prepared(rows.signal_uv[chosen], rows.n_samples[chosen])
        else:
            ids, peaks = [rows.record_id[i] for i in chosen], [rows.r_peaks[i] for i in chosen]
            x_mv = under(
                condition, rows.signal_uv[chosen], lengths, rows.lead_mask[chosen], peaks, ids, ASKED.robustness
            )
        made = build(source[0], 3)
        found = outputs.read(task, condition, source)
        assert found.dtype == np.float32
        if task == "classify":
            expected = pooled_features(made, x_mv, lengths, "stages_beat")
        else:
            expected = feature_maps(made, x_mv).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_r_peaks_are_found_once_for_all_encoders_and_probes(
    rows: Rows, encoder: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    peaks = module.find_r_peaks

    def counted(x_mv, *rest, **named):  # type: ignore[no-untyped-def]
        searched.append(len(x_mv))
        return peaks(x_mv, *rest, **named)

    monkeypatch.setattr(module, "find_r_peaks", counted)
    monkeypatch.setattr("beatray.evaluate.pooling.find_r_peaks", lambda *_, **__: pytest.fail("found again"))
    asked = replace(ASKED, tasks=("classify",))
    reports: list[tuple[int, str]] = []
    evaluate(rows, *split_of(rows), [encoder], asked, lambda done, _, name: reports.append((done, name)))
    assert reports[0][0] == 0 and reports[0][1].startswith("classify encoders read clean recordings 1 to")
    data = parts(rows, asked, tmp_path)["classify"]
    assert sum(searched) == len(data.record_ids) + 2 * len(data.test)


def test_a_killed_evaluation_goes_on_and_a_finished_one_leaves_nothing(
    rows: Rows, encoder: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "outputs"
    short = FitSettings(steps=2, batch_size=4)
    asked = replace(ASKED, protocols=("linear_probe",), permutations=0, decoder=short, segment_fractions=(1.0,))
    computed: list[object] = []
    compute = Outputs.compute

    def dies(self: Outputs, piece: object) -> None:
        if len(computed) == 3:
            (folder / f"{'0a' * 16}-{'b1' * 16}.part").write_bytes(b"what a kill leaves")
            raise KeyboardInterrupt
        computed.append(piece)
        compute(self, piece)  # type: ignore[arg-type]

    monkeypatch.setattr(Outputs, "compute", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(rows, *split_of(rows), [encoder], asked, folder=folder, corpus="c")
    done = len(list(folder.glob("*.npy")))
    assert done >= 3
    again: list[object] = []
    monkeypatch.setattr(Outputs, "compute", lambda self, piece: (again.append(piece), compute(self, piece)))
    found = evaluate(rows, *split_of(rows), [encoder], asked, folder=folder, corpus="c")
    total = len(computed) + len(again)
    assert list(folder.glob(f"*{RUNS_SUFFIX}"))  # until its caller has written the results down
    remove_kept(folder)
    assert not folder.exists()  # also what the kill left
    again.clear()
    kept = evaluate(rows, *split_of(rows), [encoder], replace(asked, keep_outputs=True), folder=folder, corpus="c")
    assert len(again) == total and len(list(folder.glob("*.npy"))) > done
    assert [run.metrics for run in kept.runs] == [
        {name: pytest.approx(value, nan_ok=True) for name, value in run.metrics.items()} for run in found.runs
    ]
    remove_kept(folder, RUNS_SUFFIX)
    again.clear()
    evaluate(rows, *split_of(rows), [encoder], replace(asked, keep_outputs=True, seeds=(0,)), folder=folder, corpus="c")
    assert again == []
    evaluate(rows, *split_of(rows), [encoder], replace(asked, keep_outputs=True), folder=folder, corpus="another")
    assert len(again) == total  # the same names in another corpus are other recordings
    (folder / "notes.txt").write_text("a user's own")
    remove_kept(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_other_weights_and_versions_have_files_of_their_own(
    rows: Rows, encoder: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Outputs(tmp_path / "kept", "corpus", parts(rows, ASKED, tmp_path), ASKED)
    other = build(EncoderSpec("tiny"), seed=8)
    export_encoder(Store(str(tmp_path / "b")), other, {"name": "tiny", "settings": other.described_settings()})
    specs = [(encoder, -1), (spec_of(str(tmp_path / "b")), -1), (encoder.random(), 0), (encoder.random(), 1)]
    names = {outputs._path("classify", condition, spec, 0) for condition in ("clean", "1 lead") for spec in specs}
    assert len(names) == 8
    again = Outputs(tmp_path / "kept", "corpus", parts(rows, ASKED, tmp_path), replace(ASKED, pooling="mean_std"))
    assert again._path("classify", "clean", specs[0], 0) not in names
    newer = build(EncoderSpec("tiny"), seed=9)
    export_encoder(Store(str(tmp_path / "b")), newer, {"name": "tiny", "settings": newer.described_settings()})
    fresh = Outputs(tmp_path / "kept", "corpus", outputs.tasks, ASKED)  # trained again into the same folder
    assert fresh._path("classify", "clean", specs[1], 0) not in names
    assert fresh._path("classify", "clean", specs[0], 0) in names
    with monkeypatch.context() as patch:
        patch.setattr("beatray.evaluate.outputs.version", lambda name: "99" if name == "torch" else "0")
        assert fresh._path("classify", "clean", specs[0], 0) not in names
    (tmp_path / "noise").mkdir()
    asked = replace(ASKED, robustness=replace(ASKED.robustness, noise_folder=str(tmp_path / "noise")))
    by_noise = [Outputs(tmp_path / "kept", "corpus", outputs.tasks, asked)._path("classify", "1 lead", specs[0], 0)]
    (tmp_path / "noise" / "em.dat").write_bytes(b"x")
    by_noise.append(Outputs(tmp_path / "kept", "corpus", outputs.tasks, asked)._path("classify", "1 lead", specs[0], 0))
    assert by_noise[0] != by_noise[1]


def test_measured_features_and_fine_tuning_read_no_outputs(encoder: EncoderSpec) -> None:
    units = plan(("segment", "classify"), [encoder], replace(ASKED, protocols=("linear_probe", "finetune")))
    for unit in units:
        needed = read_by(unit, ASKED)
        assert bool(needed) == (unit.spec is not None and unit.protocol != "finetune")
        assert len(needed) in (0, 3 if unit.variant in ("pretrained", "random") else 1)
