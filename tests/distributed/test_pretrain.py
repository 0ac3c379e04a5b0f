"""Whole pretraining runs through real Ray Train: one and two workers agree, an interrupted run continues exactly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import beatray
from beatray.corpus.reader import open_corpus
from beatray.settings import PretrainSettings, SettingsError, build, compose
from beatray.track.journal import read_lines
from beatray.train import loop
from beatray.train.errors import TrainingError
from beatray.train.launch import RunResult, pretrain
from beatray.train.order import steps_per_epoch
from beatray.train.prepare import prepare_job
from beatray.train.ranks import Ranks
from beatray.train.resources import check_resources

pytestmark = pytest.mark.ray

WORDS = (
    "encoder=tiny",
    "train=small",
    "train.batch_size=24",
    "train.epochs=3",
    "train.precision=fp32",
    "train.log_ids=true",
    "train.checkpoint_every_steps=3",
    "tracking.uri=null",
    "train.warmup_epochs=0.5",
)


def start(corpus: str, out: Path, run: str, *words: str) -> RunResult:
    places = [f"corpus={corpus}", f"out={out}", f"run={run}"]
    return pretrain(prepare_job(build(PretrainSettings, compose("pretrain", [*places, *WORDS, *words]))))


def losses(out: Path, run: str) -> list[float]:
    return [line["loss"] for line in read_lines(out / run / "metrics.jsonl")]


def ids(out: Path, run: str) -> list[list[str]]:
    return [line["record_ids"] for line in read_lines(out / run / "ids.jsonl")]


@pytest.fixture(scope="module")
def runs(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one worker and on two."""
    out = tmp_path_factory.mktemp("runs")
    for workers in (1, 2):
        result = start(sample_corpus, out, f"w{workers}", f"train.workers={workers}")
        assert result.finished
    return out


def test_two_workers_train_on_the_same_global_batches(runs: Path, sample_corpus: str) -> None:
    one, two = ids(runs, "w1"), ids(runs, "w2")
    assert one == two
    n = len({name for step in one for name in step})
    assert sum(map(len, one)) == 3 * n
    assert len(one) == 3 * steps_per_epoch(n, 24)


def test_two_workers_have_the_loss_of_one(runs: Path) -> None:
    one, two = torch.tensor(losses(runs, "w1")), torch.tensor(losses(runs, "w2"))
    # Sums over ranks round differently; AdamW turns the rounding of near-zero gradients into steps of the full rate.
    assert torch.allclose(one[:2], two[:2], rtol=0, atol=1e-5), (one - two)[:2]
    assert torch.allclose(one, two, rtol=5e-3), (one - two).abs().max()
    assert one[-1] < one[0]


def test_the_run_folder_holds_what_it_promises(runs: Path) -> None:
    line = read_lines(runs / "w2" / "metrics.jsonl")[-1]
    for name in (
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "gradient_norm",
        "records_per_s",
        "data_wait_s",
        "rhythm_target_entropy",
        "rhythm_own_pair_mass",
        "rhythm_spread",
        "beats",
    ):
        assert name in line, sorted(line)
    assert (runs / "w2" / "settings.yaml").is_file()
    encoder = beatray.load_encoder(str(runs / "w2"))
    assert encoder(torch.zeros(1, 12, 5000)).shape == (1, encoder.embed_dim)


def test_a_finished_run_is_left_alone(runs: Path, sample_corpus: str) -> None:
    before = (runs / "w1" / "metrics.jsonl").read_bytes()
    assert start(sample_corpus, runs, "w1", "train.workers=1").finished
    assert (runs / "w1" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(TrainingError, match=r"objective\.name"):
        start(sample_corpus, runs, "w1", "objective=simclr")
    with pytest.raises(TrainingError, match="already done"):
        start(sample_corpus, runs, "w1", "train.workers=1", "train.epochs=2")
    shutil.copytree(runs / "w1", runs / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(TrainingError, match="another objective or corpus"):
        start(sample_corpus, runs, "bare", "objective=simclr")


def test_an_interrupted_run_continues_to_the_bit(runs: Path, sample_corpus: str) -> None:
    result = start(sample_corpus, runs, "cut", "train.workers=1", "train.stop_after_steps=4")
    assert not result.finished and result.steps == 4
    with pytest.raises(TrainingError, match=r"objective\.temperature"):
        start(sample_corpus, runs, "cut", "train.workers=1", "objective.temperature=0.2")
    result = start(sample_corpus, runs, "cut", "train.workers=1")
    assert result.finished and result.continued_from == 4
    assert losses(runs, "cut") == losses(runs, "w1")  # to the last bit
    assert len(losses(runs, "cut")) - 4 >= 5
    assert ids(runs, "cut") == ids(runs, "w1")
    a, b = (beatray.load_encoder(str(runs / name)).state_dict() for name in ("cut", "w1"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_objectives_and_settings_go_through_the_same_loop(sample_corpus: str, tmp_path: Path) -> None:
    variants = {
        "simclr": ["objective=simclr"],
        "views": ["objective=three_kg", "views.place=workers", "train.precision=bf16"],
        "clusters": ["objective.hard_beat=clusters", "objective.rhythm=soft_2", "encoder.norm=group"],
    }
    for run, words in variants.items():
        assert start(sample_corpus, tmp_path, run, "train.workers=1", "train.epochs=1", *words).finished
        assert all(loss is not None for loss in losses(tmp_path, run))


def test_a_killed_worker_changes_nothing(runs: Path, sample_corpus: str) -> None:
    """SIGKILL one of two ranks in the middle: the group restarts from the newest checkpoint and ends the same."""
    killed: list[int] = []

    def strike() -> None:
        journal = runs / "killed" / "metrics.jsonl"
        while not killed:
            if len(read_lines(journal)) >= 5:
                pids = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_rank(path)]
                if pids:
                    killed.append(max(pids))
                    os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    hunter = threading.Thread(target=strike, daemon=True)
    hunter.start()
    result = start(sample_corpus, runs, "killed", "train.workers=2", "train.epochs=6", "train.max_failures=3")
    hunter.join(1)
    start(sample_corpus, runs, "whole", "train.workers=2", "train.epochs=6")
    assert killed and result.finished
    assert ids(runs, "killed") == ids(runs, "whole")
    assert losses(runs, "killed") == losses(runs, "whole")
    a, b = (beatray.load_encoder(str(runs / name)).state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def is_rank(cmdline: Path) -> bool:
    """A Ray Train worker of this session, by the name that Ray gives the process."""
    try:
        return b"RayTrainWorker" in cmdline.read_bytes() and b"IDLE" not in cmdline.read_bytes()
    except OSError:
        return False


def test_a_step_that_is_not_finite_is_refused_and_leaves_no_trace(sample_corpus: str, tmp_path: Path) -> None:
    places = [f"corpus={sample_corpus}", f"out={tmp_path}", "run=nan"]
    job = prepare_job(build(PretrainSettings, compose("pretrain", [*places, *WORDS, "train.workers=1"])))
    poisoned = Poison(job.settings.objective, at_call=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", poisoned)
        loop.train(job, Ranks())
    values = losses(tmp_path, "nan")
    assert values[2] is None and all(value is not None for n, value in enumerate(values) if n != 2)
    (refused,) = [json.loads(text) for text in (tmp_path / "nan" / "refused_steps.jsonl").read_text().splitlines()]
    assert refused["step"] == 2 and refused["record_ids"] == ids(tmp_path, "nan")[2]
    encoder = beatray.load_encoder(str(tmp_path / "nan"))
    assert all(torch.isfinite(value).all() for value in encoder.state_dict().values())


class Poison:
    """Builds the real objective and lets one of its batches hold a NaN, as a broken recording would."""

    def __init__(self, objective: dict[str, object], at_call: int) -> None:
        self.at_call, self.calls, self.real = at_call, 0, loop.build_model

    def __call__(self, *arguments: object) -> torch.nn.Module:
        built = self.real(*arguments)  # type: ignore[arg-type]
        make_views = built.views

        def views(*batch: object) -> dict[str, torch.Tensor]:
            made = make_views(*batch)
            if self.calls == self.at_call:
                made["view_1"][0, 0, 0] = float("nan")
            self.calls += 1
            return made

        built.views = views
        return built


def test_micro_batches_train_alike_on_one_and_two_workers(sample_corpus: str, tmp_path: Path) -> None:
    for workers in (1, 2):
        words = ("train.accumulate=2", "train.epochs=1", f"train.workers={workers}")
        start(sample_corpus, tmp_path, f"w{workers}", *words)
    one, two = torch.tensor(losses(tmp_path, "w1")), torch.tensor(losses(tmp_path, "w2"))
    assert torch.allclose(one[:1], two[:1], rtol=0, atol=1e-5)
    assert torch.allclose(one[:2], two[:2], rtol=1e-3)  # rounding may flip a rectifier at zero (in float64 none does)


def test_views_made_on_workers_train_the_same_model(runs: Path, sample_corpus: str) -> None:
    start(sample_corpus, runs, "on_workers", "train.workers=1", "views.place=workers")
    assert losses(runs, "on_workers") == losses(runs, "w1")


def test_a_plan_that_could_only_hang_is_refused_with_the_arithmetic(sample_corpus: str) -> None:
    settings = build(PretrainSettings, compose("pretrain", ["train.workers=8", "train.batch_size=256"]))
    with pytest.raises(SettingsError, match=r"8 workers need 4 CPUs and their readers at least 2.*Ray has 4"):
        check_resources(settings, {"CPU": 4.0})
    with pytest.raises(SettingsError, match="as many GPUs"):
        check_resources(build(PretrainSettings, compose("pretrain", ["train.device=cuda"])), {"CPU": 64.0})


def test_a_model_keeps_the_recipe_it_was_made_for(runs: Path, sample_corpus: str) -> None:
    description = json.loads((runs / "w1" / "encoder" / "encoder.json").read_text())
    assert description["recipe"] == open_corpus(sample_corpus).recipe
