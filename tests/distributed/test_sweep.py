"""A small grid through real Ray Tune, Ray Train and MLflow: ranked, tracked as parent and children, run once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import ray
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import beatray
from beatray.cli import main
from beatray.errors import SettingsError
from beatray.sweep.callback import free_leftovers
from beatray.sweep.plan import plan_from
from beatray.sweep.progress import alone, is_finished, prepare
from beatray.sweep.ranking import figures_of
from beatray.train.run_spec import RunSpec

pytestmark = pytest.mark.ray

OVERRIDES = (
    "run=first",
    "sweep=small",
    "encoder=tiny",
    "train=small",
    "train.workers=1",
    "train.batch_size=24",
    "train.epochs=2",
    "train.warmup_epochs=0.5",
)
TRIALS = ("temperature-0.1", "temperature-0.2")


@pytest.fixture(scope="module")
def swept(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a sweep that has been run, its folder out/first among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        overrides = [*OVERRIDES, f"corpus={sample_corpus}", f"out={tmp_path_factory.mktemp('sweep')}"]
        assert main(["sweep", *overrides]) == 0
    return overrides


def out_of(overrides: list[str]) -> Path:
    return Path(next(override.removeprefix("out=") for override in overrides if override.startswith("out=")))


def run_spec_of_trial(overrides: list[str], name: str) -> RunSpec:
    return prepare(plan_from(overrides)).run_specs[name]


def mlflow_runs(out: Path) -> tuple[Run, dict[str, Run]]:
    """(parent, child by trial name), asked of the real store."""
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "beatray"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) + 1 == len(runs)
    return parent, {run.data.tags["beatray.trial"]: run for run in children}


def test_every_trial_ends_with_an_encoder_and_a_place(swept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = out_of(swept) / "first"
    assert main(["sweep", "show", str(folder), "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert [trial["rank"] for trial in listing["trials"]] == [1, 2]
    assert {trial["trial"] for trial in listing["trials"]} == set(TRIALS)
    assert all(trial["status"] == "finished" and trial["attempts"] == 1 for trial in listing["trials"])
    losses = [trial["validation_loss"] for trial in listing["trials"]]
    assert losses == sorted(losses)
    for trial in listing["trials"]:
        run_spec = run_spec_of_trial(swept, trial["trial"])
        assert is_finished(run_spec) and trial["steps"] == run_spec.steps > 0
        assert trial["figures"] == figures_of(run_spec)
        assert run_spec.settings.objective["temperature"] == trial["changes"]["objective.temperature"]
        made = json.loads((folder / trial["trial"] / "encoder" / "encoder.json").read_text())
        assert made["objective"]["temperature"] == trial["changes"]["objective.temperature"]
        assert beatray.load_encoder(str(folder / trial["trial"])).embed_dim > 0
    assert not (folder / ".tune").exists() and not (folder / "stop_requested.txt").exists()
    assert main(["sweep", "show", str(folder)]) == 0
    assert "validation_loss" in capsys.readouterr().out.splitlines()[0]


def test_mlflow_has_the_sweep_as_parent_and_each_trial_as_child(swept: list[str]) -> None:
    parent, children = mlflow_runs(out_of(swept))
    assert parent.info.run_name == "first" and parent.info.status == "FINISHED"
    assert set(children) == set(TRIALS)
    assert all(run.info.status == "FINISHED" and run.info.run_name == name for name, run in children.items())
    one, two = (children[name].data.params for name in TRIALS)
    assert {key for key in one if one[key] != two[key]} == {"objective.temperature"}
    for name, run in children.items():
        steps = run_spec_of_trial(swept, name).steps
        client = MlflowClient(f"sqlite:///{out_of(swept) / 'mlflow.db'}")
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(metric.step for metric in history) == list(range(steps))
        assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"settings.yaml", "encoder"}
    assert parent.data.params["space.objective.temperature"] == "[0.1, 0.2]"
    assert "fixed.train.epochs" not in parent.data.params  # a word has overridden it
    assert parent.data.metrics["trials_finished"] == 2
    best = min(run.data.metrics["train/validation_loss"] for run in children.values())
    assert parent.data.metrics["best/train/validation_loss"] == pytest.approx(best)
    table = json.loads((out_of(swept) / "first" / "ranking.json").read_text())
    assert len(table["data"]) == 2 and table["columns"][0] == "rank"
    client = MlflowClient(f"sqlite:///{out_of(swept) / 'mlflow.db'}")
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"ranking.csv", "ranking.json"}


def test_the_same_command_again_does_nothing(swept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[str, object]:
        files = [path for path in sorted((out_of(swept) / "first").rglob("*")) if path.is_file()]
        parent, children = mlflow_runs(out_of(swept))
        ends = {name: run.info.end_time for name, run in {**children, "parent": parent}.items()}
        return {**{str(path): path.stat().st_mtime_ns for path in files if path.parent.name in TRIALS}, **ends}

    before = state()
    for resume in ([], ["--resume"]):
        assert main(["sweep", *swept, *resume]) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert state() == before
    assert main(["sweep", *swept, "run=frist", "--resume"]) == 2
    assert "frist holds no sweep to go on with" in capsys.readouterr().err
    assert not (out_of(swept) / "frist").exists()


def test_another_sweep_in_the_same_folder_is_refused(swept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    others = {
        "trials that are not in this space (temperature-0.1": ["sweep.space.objective.temperature=[0.2,0.4]"],
        "started with other settings (train.learning_rate": ["train.learning_rate=0.1"],
        "nothing to validate on": ["train.validate_every_epochs=0"],
        "has nothing to validate on": ["corpus.validation_folds=[]"],
    }
    for message, overrides in others.items():
        assert main(["sweep", *swept, *overrides]) == 2
        assert message in capsys.readouterr().err
    with alone(plan_from(swept)), pytest.raises(SettingsError, match="is running already"), alone(plan_from(swept)):
        pass


def test_a_sweep_that_does_not_fit_is_refused_before_it_starts(sample_corpus: str, tmp_path: Path) -> None:
    overrides = [f"corpus={sample_corpus}", f"out={tmp_path}", *OVERRIDES]
    assert main(["sweep", *overrides, "train.workers=12"]) == 2
    assert main(["sweep", *overrides, "sweep.max_concurrent_trials=64"]) == 2
    assert (
        main(["sweep", *overrides, "sweep.space.objective.rhythm=[hard,none]", "sweep.fixed.objective.beat=none"]) == 2
    )
    made = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert set(made) <= {"sweep.json", ".lock"}, made  # nothing was tracked, nothing trained


def test_early_stopping_needs_reports_in_time(
    sample_corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        f"corpus={sample_corpus}",
        f"out={tmp_path}",
        *OVERRIDES[2:],
        "run=early",
        "sweep=asha",
        "sweep.num_samples=2",
    ]
    assert main(["sweep", *overrides, "sweep.grace_period=1", "train.validate_every_epochs=2"]) == 2
    assert "reports every 2 epochs, which does not fit sweep.grace_period=1" in capsys.readouterr().err
    assert main(["sweep", *overrides, "sweep.metric=beat/loss"]) == 2
    assert "known too late" in capsys.readouterr().err


@ray.remote(num_cpus=0)
class Controller:
    """Reserves places for others, as the controller of a training run does."""

    def reserve(self) -> str:
        group = ray.util.placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return str(group.id.hex())


def test_what_a_lost_trial_had_reserved_is_free_again(local_ray: None) -> None:
    own_group = ray.util.placement_group([{"CPU": 0.5}])
    lost, alive = Controller.remote(), Controller.remote()
    left, kept = ray.get([lost.reserve.remote(), alive.reserve.remote()])

    def there() -> set[str]:
        return {key for key, about in ray.util.placement_group_table().items() if about["state"] != "REMOVED"}

    ray.kill(lost)
    deadline = time.monotonic() + 60
    while free_leftovers() == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while left in there():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {kept, own_group.id.hex()} <= there()
    assert free_leftovers() == 0
    ray.util.remove_placement_group(own_group)
    ray.kill(alive)
    while free_leftovers() == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
