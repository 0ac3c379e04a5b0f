"""`beatray bench` in its parts, each at a small size: corpus, feed, steps, plain loop, operations, report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from beatray.augment.draws import record_key
from beatray.bench.corpus import JITTER_UV, write_large_corpus
from beatray.bench.feed import Fed, direct, to_time
from beatray.bench.peak import matmul_roof, step_flop
from beatray.bench.plain import Collate, PlainLoop, Recordings
from beatray.bench.run import LOOP, PLAIN, STEP, first_batch, measure, reader_counts
from beatray.bench.settings import recipe_settings
from beatray.bench.table import lines
from beatray.bench.timing import LEAST, WARM_UP, Timing, time_feed, time_steps
from beatray.cli import main
from beatray.commands.bench import settings_from
from beatray.corpus.reader import open_corpus, verify
from beatray.errors import CorpusError, SettingsError
from beatray.models.layout import channels_first, channels_last_on, wants_channels_last
from beatray.train.composed import pretrain_settings
from beatray.train.epoch_audit import names_by_row_group
from beatray.train.order import StepSequence, steps_per_epoch
from beatray.train.prepare import prepare_run
from beatray.train.ranks import Ranks
from beatray.train.run_spec import RunSpec, ViewsOnWorker
from beatray.train.step import Learner
from beatray.train.timing import first_rows

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, BATCH = 300, 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_large_corpus(tmp_path_factory.mktemp("bench") / "corpus", ROWS, bundled=8)


def spec_of(corpus: str, recipe: str = "beat_ssl_tiny", **train: Any) -> RunSpec:
    usual = {"batch_size": BATCH, "precision": "fp32", "cache_mb": 0, "workers": 1, "warmup_epochs": 0.0}
    changes = {f"train.{key}": value for key, value in {**usual, **train}.items()}
    paths = {"corpus.path": corpus, "train.device": "cpu"}
    return prepare_run(recipe_settings(recipe, {**paths, "objective.augment.crop_seconds": 1.6, **changes}))


def test_a_corpus_of_copies_is_whole_and_its_rows_are_recordings_moved(corpus: str) -> None:
    opened = open_corpus(corpus)
    assert list(verify(opened)) == []
    rows = opened.rows()
    assert len(rows) == len(set(rows.record_id)) == ROWS
    copies = [
        row for row in range(1, ROWS) if np.ptp(rows.signal_uv[row].astype(int) - rows.signal_uv[0], 1).max() == 0
    ]
    assert len(copies) == -(-ROWS // 16) - 1  # of sixteen recordings
    apart = rows.signal_uv[copies[0]].astype(int) - rows.signal_uv[0]
    assert 0 < np.abs(apart).max() <= 2 * JITTER_UV
    assert np.array_equal(rows.r_peaks[copies[0]], rows.r_peaks[0]) and len(rows.r_peaks[0]) > 3
    assert spec_of(corpus).rows == ROWS  # none is held out


@pytest.mark.parametrize(("readers", "cache_mb"), [(1, 0), (3, 0), (2, 512)])
def test_the_direct_feed_gives_the_batches_of_the_plan(corpus: str, readers: int, cache_mb: int) -> None:
    run_spec = spec_of(corpus, gradient_accumulation_steps=2, cache_mb=cache_mb)
    stream, rows = run_spec.stream, open_corpus(corpus).rows()
    names = names_by_row_group(stream)
    count = 2 * steps_per_epoch(ROWS, BATCH) + 3
    planned, units = StepSequence(stream.sizes, stream.order, 0, 1).chunk(count)
    group_of = {unit.number: unit.group for unit in units}
    fed = list(direct(run_spec, count, readers))
    assert len(fed) == count
    stored = {record_key(name): row for row, name in enumerate(rows.record_id)}
    for step, found in zip(planned, fed, strict=True):
        paths = zip(step.unit.tolist(), step.row.tolist(), strict=True)
        expected = [record_key(names[group_of[unit]][row]) for unit, row in paths]
        assert found.arrays["record_key"].tolist() == expected
        assert (found.epoch, found.parts, found.rows) == (step.epoch, step.parts, len(expected))
        assert np.array_equal(found.arrays["signal_uv"], rows.signal_uv[[stored[key] for key in expected]])
    for epoch in (0, 1):
        keys = [key for found in fed if found.epoch == epoch for key in found.arrays["record_key"].tolist()]
        assert sorted(keys) == sorted(stored)


def test_the_direct_feed_names_a_shard_that_is_damaged(tmp_path: Path) -> None:
    path = Path(write_large_corpus(tmp_path / "corpus", 64, bundled=8))
    run_spec = spec_of(str(path))
    shard = next((path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(CorpusError, match=shard.name):
        list(direct(run_spec, 2, 2))


def test_a_feed_is_timed_over_whole_epochs(corpus: str) -> None:
    run_spec = to_time(spec_of(corpus))
    timing = time_feed(direct(run_spec, 10**6, 1), 0.0)
    assert timing.rows == run_spec.rows and len(timing.step_s) == 1
    assert time_feed(direct(run_spec, 4 * steps_per_epoch(ROWS, BATCH), 1), 60.0).rows == 2 * run_spec.rows


def test_operations_of_a_step_are_those_of_its_layers(corpus: str) -> None:
    """SimCLR: convolutions and linear layers, three times each but for the gradient of a signal, and its contrast."""
    run_spec = spec_of(corpus, "simclr_tiny")
    fed = first_batch(run_spec)
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        paths = output.numel() // output.shape[1]  # of (N, C, T) or (N, C)
        counted.append(2 * weight.numel() * paths * (3 if inputs[0].requires_grad else 2))

    learner = Learner(run_spec, Ranks())
    for module in learner.objective.modules():
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            module.register_forward_hook(count)
    learner.step(0, fed.arrays, 0, fed.parts)
    rows, width = 2 * BATCH, learner.objective.settings.projector_dim
    assert step_flop(run_spec, CPU, fed) == sum(counted) + 3 * 2 * rows * rows * width


def test_the_roof_leaves_the_settings_as_they_were() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    assert matmul_roof(CPU, "fp32", 64) > 1e6 and matmul_roof(CPU, "bf16", 64) > 0
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize("overlap", ["never", "always"])
def test_steps_that_are_timed_are_those_of_the_loop(corpus: str, overlap: str) -> None:
    run_spec = spec_of(corpus, overlap=overlap)
    timed, plain = (Learner(run_spec, Ranks()) for _ in range(2))
    feds = list(islice(direct(run_spec, 5, 1), 5))

    def feed() -> Generator[Fed]:
        yield from feds

    timing = time_steps(timed, feed(), 0.0, run_spec.steps - 1, least=3)
    assert len(timing.step_s) == 3 and timing.rows == 3 * BATCH and timing.refused == 0
    assert 0.0 <= timing.data_wait < 1.0 and timing.memory_mib > 10
    for number, fed in enumerate(feds):
        plain.step(number, fed.arrays, fed.epoch, fed.parts)
    state = plain.objective.state_dict()
    assert len(feds) == WARM_UP + 3
    assert all(torch.equal(value, state[name]) for name, value in timed.objective.state_dict().items())


def test_the_plain_loop_learns_from_the_same_views_with_the_same_loss(corpus: str, tmp_path: Path) -> None:
    run_spec = spec_of(corpus)
    arrays = first_rows(run_spec, 2 * BATCH)
    loop = PlainLoop(run_spec, CPU, tmp_path, arrays, 1)
    data = Recordings(tmp_path, arrays)
    views = Collate(ViewsOnWorker.of(run_spec))([data[row] for row in range(BATCH)])
    fed = replace(first_batch(run_spec), arrays={name: values[:BATCH] for name, values in arrays.items()})
    logs, _ = Learner(run_spec, Ranks()).step(0, fed.arrays, 0, fed.parts)
    assert logs is not None and loop._step(views) == pytest.approx(logs["loss"], rel=1e-6)
    before = {name: value.clone() for name, value in loop.objective.state_dict().items()}
    timing = loop.time(0.0)
    assert len(timing.step_s) >= LEAST and timing.rows == len(timing.step_s) * BATCH and timing.refused == 0
    assert any(not torch.equal(value, before[name]) for name, value in loop.objective.state_dict().items())


def test_the_plain_loop_keeps_maps_as_torch_lays_them_out() -> None:
    x = torch.zeros(2, 3, 8)
    with channels_last_on("cpu"):
        assert wants_channels_last(x)
        with channels_first():
            assert not wants_channels_last(x)
        assert wants_channels_last(x)
    assert not wants_channels_last(x)


def test_timings_of_rounds_are_put_together() -> None:
    timing = Timing()
    timing.add(Timing(rows=20, step_s=[1.0, 1.0], waited_s=0.5, cpu_s=4.0, memory_mib=3.0))
    timing.add(Timing(rows=10, step_s=[2.0], waited_s=0.5, cpu_s=2.0, memory_mib=2.0, refused=1))
    assert (timing.records_per_s, timing.step_ms, timing.data_wait) == (7.5, 1000.0, 0.25)
    assert timing.records_per_cpu_s == 5.0
    assert (timing.rounds, timing.memory_mib, timing.refused) == ([10.0, 5.0], 3.0, 1)


def test_a_report_has_every_row_and_names_what_is_left_out(corpus: str, tmp_path: Path) -> None:
    run_spec = spec_of(corpus, readers_per_worker=1)
    report = measure(run_spec, tmp_path, 0.0, ray=False, say=lambda line: None).as_dict()
    report = json.loads(json.dumps(report))
    feeds = [name for name in report["rows"] if name.startswith("feed, direct")]
    assert list(report["rows"]) == [PLAIN, LOOP, STEP, *feeds] and feeds
    for name in (PLAIN, LOOP, STEP):
        row = report["rows"][name]
        assert (
            row["share_of_peak"] > 0
            and 0 <= row["data_wait"] < 1
            and row["records_per_cpu_s"] > 0
            and len(row["rounds_records_per_s"]) == 2
        )
    assert report["rows"][LOOP]["times_plain"] > 0 and "times_plain" not in report["rows"][PLAIN]
    assert report["head"]["corpus_rows"] == ROWS and 1e4 < report["head"]["bytes_per_row_on_disk"] < 1.2e5
    text = "\n".join(lines(report))
    assert all(name in text for name in report["rows"]) and "left out: the feed by Ray Data" in text
    assert reader_counts(2) == ([1, 2], ["feeds of 4 and 16 readers: the machine has 2 cores"])
    assert reader_counts(64) == ([1, 4, 16], [])


@pytest.mark.parametrize("recipe", ["beat_ssl", "jepa", "cpc", "swav_tiny", "s4_data2vec_tiny"])
def test_settings_without_hydra_are_those_with_it(recipe: str) -> None:
    overrides = {"train.batch_size": 32, "train.precision": "bf16"}
    given = [f"recipe={recipe}", *(f"{key}={value}" for key, value in overrides.items())]
    assert recipe_settings(recipe, overrides) == pretrain_settings(given)


def test_a_network_of_another_file_takes_the_place_of_the_recipes() -> None:
    assert recipe_settings("jepa", encoder="vit_xs") == pretrain_settings(["recipe=jepa", "encoder=vit_xs"])


def test_what_is_measured_unless_something_is_chosen() -> None:
    usual = settings_from(["train.device=cpu"])
    assert usual.recipe == "beat_ssl_tiny" and usual.train.workers == 1 and usual.train.cache_mb == 0
    chosen = settings_from(["encoder=tiny", "train.cache_mb=64", "train.readers_per_worker=3"])
    assert chosen.recipe is None and (chosen.train.cache_mb, chosen.train.readers_per_worker) == (64, 3)
    with pytest.raises(SettingsError, match="batch_size"):
        settings_from(["train.batchsize=3"])


def test_what_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, message in (
        (["train.batchsize=32"], "did you mean 'train.batch_size'?"),
        (["--json", str(tmp_path / "no" / "bench.json")], "there is no such folder"),
        (["--seconds", "0"], "--seconds must be above 0"),
    ):
        assert main(["bench", *overrides]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("beatray bench: ") and message in error


def test_the_script_for_a_gpu_needs_little_more_than_torch(tmp_path: Path) -> None:
    """A row of each kind, at a small size, where nothing else is installed."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_gpu.py"
    missing = ("ray", "mlflow", "hydra", "omegaconf", "sklearn", "neurokit2", "wfdb", "numba", "rich", "matplotlib")
    only = r"^machine|^\(a|^\(d|^plain|^channels last ag|^feed|^resumed"
    code = (
        "import runpy, sys\n"
        f"for name in {missing}:\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(script.parent)!r})\n"
        f"sys.argv = ['bench_gpu.py', '--device', 'cpu', '--smoke', '--out', {str(tmp_path)!r}, '--only', {only!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert len(found) == 7 and not any("fault" in row or "left_out" in row for row in found.values())
    compiled = found["(d) overlap, compile=encoder"]
    assert compiled["losses"]["ok"] and compiled["refused_step"]["ok"] and compiled["records_per_s"] > 0
    assert (tmp_path / "profile_before.txt").read_text().count("\n") == 16
