"""Tables of predictions and annotations of waves, from files read in place; the worker is called here, without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb

import beatray
from beatray.commands.predict import settings_from
from beatray.corpus.schema import SIGNAL_BYTES
from beatray.errors import CorpusError, SettingsError
from beatray.infer.found_waves import found_waves, peak_within
from beatray.infer.model import EcgModel
from beatray.infer.predict import predict, read_listing, remove, there_already
from beatray.infer.predict_plan import PredictPlan, paths_in, prepare_plan
from beatray.infer.prediction_parts import Answered, write_part
from beatray.infer.prediction_paths import output_paths
from beatray.infer.predictor import Predictor, Work, answers_of
from beatray.infer.stream import Unit, one_each
from beatray.infer.windows import COLUMNS
from beatray.infer.worker import unpacked
from beatray.ingest.plan import SAMPLE
from beatray.record import LEADS, WAVE_KINDS
from beatray.storage.store import Store
from evaluation_rows import read_rows
from made_models import KINDS, made_model
from s3_server import S3Server
from wards import ward_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ward_folder(tmp_path_factory.mktemp("ward"))


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_model(tmp_path_factory.mktemp("waves"), "waves", seed=4)


def predicted(model: str, files: Path | str, out: Path | str, *overrides: str) -> PredictPlan:
    """The worker's answers for each unit, kept as the driver keeps them, and the table made of them."""
    plan = prepare_plan(settings_from([f"model={model}", f"files={files}", f"out={out}", *overrides]))
    worker = Predictor(Work(plan.models, plan.sha256, 1, False))
    for part in plan.parts:
        (row,) = worker(part.units[0].read()[0]).to_pylist()
        answered = Answered(unpacked(row["answers"]), json.loads(row["refused"]))
        write_part(plan.paths.store, plan.paths.parts, plan.key, part, answered)
    done = predict(plan)
    assert (done.computed, done.kept) == (0, len(plan.parts))
    return plan


def test_a_zip_gives_what_its_folder_gives(waves: str, ward: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "ward"), "zip", ward)
    predicted(waves, ward, tmp_path / "a.csv", "predict.annotations=false")
    overrides = ("format=csv", "predict.annotations=false", "predict.recordings_per_task=1")  # two tasks read nothing
    predicted(waves, tmp_path / "ward.zip", tmp_path / "b", *overrides)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b" / "predictions.csv").read_bytes()
    assert not (tmp_path / "a.annotations").exists() and not (tmp_path / "a.parts").exists()


def test_files_and_answers_may_lie_on_s3(waves: str, ward: Path, tmp_path: Path, s3: S3Server) -> None:
    bucket, copy = s3.bucket(), Path(shutil.make_archive(str(tmp_path / "ward"), "zip", ward / "ludb"))
    store = Store(s3.uri(f"{bucket}/in"))
    store.write("ward.zip", copy.read_bytes())
    paths, mark, options = store.location.partition("?")
    out = paths.removesuffix("/in") + "/day.csv" + mark + options
    plan = predicted(waves, f"{paths}/ward.zip{mark}{options}", out)
    predicted(waves, copy, tmp_path / "day.csv")
    for name in ("day.csv", "day.refused.csv", "day.annotations/files/1.waves"):
        assert plan.paths.store.read(name) == (tmp_path / name).read_bytes()
    assert not any(".parts" in key for key in s3.keys(bucket))


@pytest.mark.filterwarnings("ignore:at rate_hz=500 the hearts beat")  # these are random walks
def test_numbers_of_long_recordings_are_means_of_their_windows(tmp_path: Path) -> None:
    model, paths = made_model(tmp_path / "model", "numbers"), tmp_path / "files"
    paths.mkdir()
    for number, x_mv in enumerate(np.random.default_rng(0).normal(0, 0.006, (2, 12, 12500))):
        smooth = np.cumsum(x_mv, axis=1)
        wfdb.wrsamp(
            f"r{number}", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=smooth.T - smooth.T.mean(0),
            fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(paths),
        )  # fmt: skip
    predicted(model, paths, tmp_path / "n.parquet")
    table = pq.read_table(tmp_path / "n.parquet").to_pandas()
    assert table["windows"].tolist() == [3, 3] and table["record_id"].tolist() == ["files/r0", "files/r1"]
    read = [wfdb.rdrecord(str(paths / f"r{number}")).p_signal.T for number in range(2)]
    found = beatray.load_model(model).predict(read)
    assert found.numbers is not None
    np.testing.assert_allclose(table[["value_lvef", "value_age"]].to_numpy(), found.numbers, rtol=1e-4)


def test_waves_come_as_a_table_and_as_annotations(waves: str, ward: Path, tmp_path: Path) -> None:
    plan = predicted(waves, ward, tmp_path / "w.csv")
    table, listing = pd.read_csv(tmp_path / "w.csv"), read_listing(plan.paths)
    known = table.dropna(subset="wave")
    assert listing is not None and listing["recordings"] == table["record_id"].nunique() == 18
    assert listing["annotated"] == known["record_id"].nunique() > 10
    assert (known["onset_s"] <= known["peak_s"]).all() and (known["peak_s"] <= known["offset_s"]).all()
    assert set(known["wave"]) <= set(WAVE_KINDS) and known["lead"].isna().all()
    record_id = known["record_id"].iloc[0]
    own = known[known["record_id"] == record_id]
    read = wfdb.rdann(str(tmp_path / "w.annotations" / record_id), "waves")
    assert read.fs == 500 and len(read.sample) == 3 * len(own)
    marked: dict[str, Any] = {symbol: read.sample[np.array(read.symbol) == symbol] for symbol in "(pNt)"}
    assert sorted(marked["("]) == sorted((own["onset_s"] * 500).round().astype(int))
    assert sorted(marked[")"]) == sorted((own["offset_s"] * 500).round().astype(int))
    for symbol, wave in (("p", "P"), ("N", "QRS"), ("t", "T")):
        assert sorted(marked[symbol]) == sorted((own["peak_s"][own["wave"] == wave] * 500).round().astype(int))


def test_waves_of_each_lead_keep_their_lead(ward: Path, tmp_path: Path) -> None:
    model = made_model(tmp_path / "model", "waves", leads="per_lead")
    predicted(model, ward / "ludb", tmp_path / "w.parquet")
    known = pq.read_table(tmp_path / "w.parquet").to_pandas().dropna(subset="wave")
    assert known["lead"].notna().all() and known["lead"].nunique() > 6
    own = known[known["record_id"] == known["record_id"].iloc[0]]
    read = wfdb.rdann(str(tmp_path / "w.annotations" / own["record_id"].iloc[0]), "waves")
    found = sorted((LEADS[lead], sample) for lead, sample in zip(read.chan, read.sample, strict=True))
    rows = own.melt(["lead"], ["onset_s", "peak_s", "offset_s"])
    assert found == sorted(zip(rows["lead"], (rows["value"] * 500).round().astype(int), strict=True))
    x_mv = wfdb.rdrecord(str(ward / "ludb" / Path(own["record_id"].iloc[0]).name)).p_signal.T
    (in_memory,) = beatray.load_model(model).predict(x_mv).waves or ((),)
    assert [(w.kind, w.lead, w.onset_s, w.peak_s, w.offset_s) for w in in_memory] == list(
        own[["wave", "lead", "onset_s", "peak_s", "offset_s"]].itertuples(index=False, name=None)
    )
    x_mv[11] = np.nan
    with pytest.warns(UserWarning, match="V6 in 1 of 1"):
        (without,) = beatray.load_model(Path(model)).predict(x_mv).waves or ((),)
    assert {wave.lead for wave in without} == {wave.lead for wave in in_memory} - {"V6"} != set()


def test_peaks_lie_where_cardiologists_put_them() -> None:
    """LUDB's own ends of waves in their leads: half of the peaks of each kind within 6 ms."""
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 20))
    errors: dict[str, list[float]] = {kind: [] for kind in WAVE_KINDS}
    for signal, waves in zip(rows.signal_uv, rows.waves, strict=True):
        for wave in waves:
            if min(wave["onset"], wave["peak"], wave["offset"]) < 0:
                continue
            found = peak_within(signal[wave["lead"] : wave["lead"] + 1, wave["onset"] : wave["offset"] + 1])
            errors[WAVE_KINDS[wave["kind"]]].append(2.0 * abs(wave["onset"] + found - wave["peak"]))
    for kind, each in errors.items():
        print(
            f"{kind}: {len(each)} peaks, median error {np.median(each):g} ms, 90 % within {np.quantile(each, 0.9):g} ms"
        )
        assert len(each) > 1000 and np.median(each) <= 6
    mask = np.zeros((1, 100), np.int8)
    mask[0, 10:40], mask[0, 50:55] = 2, 1  # the second is shorter than 20 ms
    signal = np.zeros((12, 100), np.int16)
    signal[3, 25] = -500
    assert found_waves(mask, signal).tolist() == [(-1, 1, 10, 25, 39)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_whose_recordings_are_all_refused_has_no_answers(kind: str, tmp_path: Path) -> None:
    model = EcgModel([made_model(tmp_path / str(seed), kind, seed=seed) for seed in range(2)])
    row = {"record_id": "a", "source": "files", "n_samples": 5000, "signal": bytes(SIGNAL_BYTES)}
    none, one = (answers_of(model, pa.Table.from_pylist([row] * count, schema=COLUMNS)) for count in (0, 1))
    assert len(none) == 0 and len(one) == 1 and pa.concat_tables([none, one]).equals(one)


def test_files_of_the_users_own_are_neither_replaced_nor_deleted(waves: str, ward: Path, tmp_path: Path) -> None:
    def again(out: str, *overrides: str) -> None:
        predicted(waves, ward / "ludb", tmp_path / out, *overrides)

    for name in ("a.csv", "a.refused.csv", "a.html", "a.annotations/1.waves", "a.parts/mine.txt"):
        own = tmp_path / name
        own.parent.mkdir(exist_ok=True)
        own.write_text("mine")
        plan = prepare_plan(settings_from([f"model={waves}", f"files={ward}", f"out={tmp_path / 'a.csv'}"]))
        with pytest.raises(SettingsError, match=rf"{name.split('/')[0]}.* is there, and a\.json .*overwrite=true"):
            there_already(plan)
        assert own.read_text() == "mine"
        remove(plan.paths)  # as overwrite=true does
        assert there_already(plan) is None
    again("b.csv", "predict.annotations=false")
    (tmp_path / "b.annotations").mkdir()
    plan = prepare_plan(settings_from([f"model={waves}", f"files={ward / 'ludb'}", f"out={tmp_path / 'b.csv'}"]))
    with pytest.raises(SettingsError, match=r"b\.annotations/ is there"):
        predict(plan)
    with pytest.raises(SettingsError, match=r"b\.parquet was made otherwise \(different: format\)"):
        again("b.parquet", "predict.annotations=false")  # b.json is that of b.csv
    (tmp_path / "b.annotations").rmdir()
    again("b.csv")
    again("b.csv")  # what beatray wrote, it replaces


def test_a_table_is_made_again_unless_all_that_belongs_to_it_is_there(waves: str, ward: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted((ward / "ludb").iterdir())[:4]:  # two recordings
        shutil.copy(path, folder)
    (folder / "notes.txt").write_text("nothing to read")
    plan = predicted(waves, folder, tmp_path / "w.csv")
    files = {path: path.read_bytes() for path in sorted(tmp_path.glob("w.*")) if path.is_file()}
    (tmp_path / "w.parts").mkdir()  # as a kill between the listing and the end leaves it
    assert predict(plan).computed == 0 and not (tmp_path / "w.parts").exists()  # and no Ray is needed
    (tmp_path / "w.html").write_text("a page of these answers")
    one_of_many = next(path for path in tmp_path.rglob("*.waves"))
    for lost in (tmp_path / "w.refused.csv", one_of_many):
        lost.unlink()
        predicted(waves, folder, tmp_path / "w.csv")
        assert lost.is_file() and all(path.read_bytes() == content for path, content in files.items())
    (folder / "more.txt").write_text("nothing to read either")
    predicted(waves, folder, tmp_path / "w.csv")
    assert not (tmp_path / "w.html").exists()
    (detail,) = pd.read_csv(tmp_path / "w.refused.csv")["detail"]
    assert detail.startswith("2 files are of no known format")


def test_a_unit_is_answered_once_and_in_its_turn_or_the_fault_is_told() -> None:
    units = [Unit(f"shard-{number // 2}", 1, {"unit": number}, list) for number in range(4)]
    whole: list[dict[str, Any]] = [{"unit": number, "answers": number} for number in range(4)]
    assert list(one_each(units, whole)) == whole and list(one_each([], [])) == []
    for rows, message, before in (
        ([whole[0], whole[1], whole[1], whole[2], whole[3]], r"more than one answer for shard-0 \(unit 1\)", 1),
        ([*whole, whole[3]], r"more than one answer for shard-1 \(unit 3\)", 3),
        ([whole[0], whole[2], whole[3]], r"no answer, or one out of turn, for shard-0 \(unit 1\)", 1),
        (whole[:3], r"for shard-1 \(unit 3\)", 3),
        ([whole[1], whole[0], *whole[2:]], r"for shard-0 \(unit 0\)", 0),
    ):
        kept = []
        with pytest.raises(CorpusError, match=message):
            for row in one_each(units, rows):
                kept.append(row)
        assert kept == whole[:before]


def test_names_of_what_belongs_to_a_table(tmp_path: Path) -> None:
    paths = output_paths("/data/day.csv")
    assert (paths.store.location, paths.table, paths.refused) == ("/data", "day.csv", "day.refused.csv")
    assert (
        output_paths("/data/out", "csv").table == "predictions.csv"
        and output_paths("/data/out").table[-7:] == "parquet"
    )
    remote = output_paths("s3://bucket/a/day.parquet?region=x")
    assert (remote.store.location, remote.listing) == ("s3://bucket/a?region=x", "day.json")
    for out, form in (("/d/x.tsv", "auto"), ("/d/x.csv", "parquet"), ("/d/x", "xml")):
        with pytest.raises(SettingsError):
            output_paths(out, form)
    assert paths_in("a,b") == paths_in("[a, 'b']") == ["a", "b"] and paths_in("") == []


def test_changed_files_are_answered_anew_and_others_in_their_place_are_refused(
    waves: str, ward: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ward / "ludb", tmp_path / "ludb"))
    plan = predicted(waves, folder, tmp_path / "w.csv")
    before = read_listing(plan.paths)
    shutil.copytree(ward / "ptbxl", folder / "more")
    after = read_listing(predicted(waves, folder, tmp_path / "w.csv").paths)
    assert before is not None and after is not None and after["recordings"] > before["recordings"]
    other = prepare_plan(settings_from([f"model={waves}", f"files={ward}", f"out={tmp_path / 'w.csv'}"]))
    with pytest.raises(SettingsError, match=r"made otherwise \(different: recordings\)"):
        predict(other)
    with pytest.raises(SettingsError, match="lies inside the files"):
        prepare_plan(settings_from([f"model={waves}", f"files={ward}", f"out={ward / 'w.csv'}"]))
    (tmp_path / "w.json").write_text("{}")
    with pytest.raises(SettingsError, match="is no list of predictions, or damaged"):
        read_listing(plan.paths)
    (tmp_path / "w.notes").write_text("mine")
    remove(plan.paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ludb", "w.notes"]
