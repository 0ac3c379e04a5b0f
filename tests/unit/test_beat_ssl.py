"""Beat-SSL and its rivals as whole objectives: every row of the published ablation, refusals, learning, precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beatray.models.registry import build_encoder
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.feature_regression import feature_loss
from beatray.objectives.objective import Progress, collapse_warnings
from beatray.objectives.registry import build_objective
from beatray.objectives.soft_targets import Features
from beatray.objectives.statistics import FeatureStatistics
from feature_tables import table_of
from stepping import step_of, views_of

torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other

# (rhythm, beat, exponent) of the 14 rows of Table 1
ABLATION = [
    ("hard", "none", 1),
    ("hard", "hard", 1),
    ("hard", "soft_1", 1),
    ("hard", "soft_1", 50),
    ("hard", "soft_2", 1),
    ("soft_1", "none", 1),
    ("soft_1", "none", 50),
    ("soft_1", "hard", 1),
    ("soft_1", "hard", 50),
    ("soft_1", "soft_1", 1),
    ("soft_1", "soft_1", 50),
    ("soft_2", "none", 1),
    ("soft_2", "hard", 1),
    ("soft_2", "soft_2", 1),
]
SHORT = {"augment": {"crop_seconds": 2.0}}


def heartbeats(records: int, seed: int = 0) -> dict[str, Tensor]:
    """Records that differ in rhythm and in the shape of their beats, with peaks and features to match."""
    rng = np.random.default_rng(seed)
    t = np.arange(5000)
    signal = np.zeros((records, 12, 5000))
    peaks = np.full((records, 14), -1)
    for b in range(records):
        at = np.arange(rng.integers(60, 300), 5000, rng.integers(380, 600))[:14]
        peaks[b, : len(at)] = at
        width, size = rng.uniform(5, 25), rng.normal(0, 800, 12)
        beats = sum(np.exp(-(((t - p) / width) ** 2)) for p in at)
        signal[b] = size[:, None] * beats + rng.normal(0, 15, (12, 5000))
    return {
        "signal_uv": torch.as_tensor(signal.clip(-32000, 32000)).to(torch.int16),
        "n_samples": torch.full((records,), 5000),
        "record_key": torch.arange(records) + 100 * seed,
        "r_peaks": torch.as_tensor(peaks),
        "beat_features": torch.as_tensor(rng.normal(3, 1, (records, 14, 5)), dtype=torch.float32),
        "record_features": torch.as_tensor(rng.normal(3, 1, (records, 6)), dtype=torch.float32),
        "beat_class": torch.as_tensor(rng.integers(-1, 3, (records, 14))),
    }


BATCH = heartbeats(6)
BATCH["record_features"][0, 2] = float("nan")
BATCH["beat_features"][1, 0, 0] = float("nan")
STATISTICS = FeatureStatistics(
    table_of([f"r{i}" for i in range(6)], BATCH["record_features"].numpy()),
    table_of([f"b{i}" for i in range(5)], BATCH["beat_features"].reshape(-1, 5).numpy()),
)


def build(settings: dict[str, Any], name: str = "beat_ssl") -> Any:
    torch.manual_seed(0)
    return build_objective(name, build_encoder("tiny"), {**SHORT, **settings}, STATISTICS)


@pytest.mark.parametrize(("rhythm", "beat", "exponent"), ABLATION)
@pytest.mark.parametrize("positive_mass", [None, 0.5])
def test_every_row_of_the_ablation_trains(rhythm: str, beat: str, exponent: float, positive_mass: float | None) -> None:
    objective = build({"rhythm": rhythm, "beat": beat, "exponent": exponent, "positive_mass": positive_mass})
    needed = {key: BATCH[key] for key in objective.reads}
    result = step_of(objective, needed, epoch=0)
    loss, logs = result.loss, result.means | result.counts
    loss.backward()
    torch.testing.assert_close(loss.detach(), logs["loss"])
    assert loss > 0.5
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert objective.encoder.stem.weight.grad.abs().max() > 0
    if rhythm.startswith("soft") and positive_mass:
        assert float(logs["record/positive_mass"]) == pytest.approx(0.5, abs=1e-5)
    if beat != "none":
        assert 6 <= logs["beats"] <= 6 * 4
        assert logs["beat/skipped"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"beat_positives": "clusters"},
        {"beat": "soft_1", "beat_positives": "inherit_record", "rhythm": "none"},
        {"loss": "softclt"},
        {"rhythm": "soft_z", "beat": "soft_z"},
        {
            "rhythm": "soft_z",
            "beat": "soft_z",
            "beat_positives": "inherit_record",
            "z_power": 8.0,
            "positive_mass": None,
        },
        {"loss": "sigmoid", "sigmoid_bias": -3.0},
        {"augment": {"crop_seconds": None, "keep_beats": True, "mode": "project"}},
        {"rhythm": "none", "max_beats_per_record": 20},
    ],
)
def test_other_settings_train(settings: dict[str, Any]) -> None:
    objective = build(settings)
    loss = step_of(objective, BATCH).loss
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ["simclr", "three_kg"])
def test_rivals_train(name: str) -> None:
    objective = build({}, name)
    result = step_of(objective, {key: BATCH[key] for key in objective.reads}, epoch=0)
    loss, logs = result.loss, result.means | result.counts
    loss.backward()
    assert torch.isfinite(loss)
    assert logs["record/rows"] == 12


@pytest.mark.parametrize("positive_mass", [0.0, 0.25, 0.75])
def test_own_pairs_hold_the_mass_that_was_asked_for(positive_mass: float) -> None:
    objective = build({"rhythm": "soft_1", "beat": "soft_1", "positive_mass": positive_mass})
    result = step_of(objective, BATCH, epoch=0)
    loss, logs = result.loss, result.means | result.counts
    loss.backward()
    assert torch.isfinite(loss)
    for level in ("record", "beat"):
        assert float(logs[f"{level}/positive_mass"]) == pytest.approx(positive_mass, abs=1e-5)
        assert logs[f"{level}/skipped"] == 0


@pytest.mark.parametrize("loss", ["softclt", "sigmoid"])
def test_other_forms_of_the_loss_take_the_similarities_as_they_are(loss: str) -> None:
    def value(**settings: Any) -> float:
        objective = build({"rhythm": "soft_1", "beat": "soft_1", "loss": loss, **settings})
        return float(step_of(objective, BATCH, epoch=0).loss)

    assert value() == value(positive_mass=None) == value(positive_mass=0.1)
    assert value() != value(exponent=1.0)


def test_it_reads_what_it_needs() -> None:
    always = {"signal_uv", "n_samples", "record_key"}
    assert set(build({"rhythm": "hard", "beat": "none"}).reads) == always
    assert set(build({"rhythm": "soft_1", "beat": "hard"}).reads) == always | {"r_peaks", "record_features"}
    assert set(build({"rhythm": "hard", "beat": "soft_2"}).reads) == always | {"r_peaks", "beat_features"}
    assert set(build({"rhythm": "hard", "beat_positives": "clusters"}).reads) == always | {"r_peaks", "beat_class"}


@pytest.mark.parametrize("beat", ["hard", "soft_1"])
def test_views_are_the_same_for_any_batch(beat: str) -> None:
    objective = build({"beat": beat})
    together = views_of(objective, BATCH, 5, 6)
    apart = views_of(objective, {key: value[2:4] for key, value in BATCH.items()}, 5, 6)
    for key, value in apart.items():
        torch.testing.assert_close(value, together[key][2:4], rtol=0, atol=0, equal_nan=True)


def test_no_records_and_no_beats_are_no_error() -> None:
    for rows, without_peaks in ((slice(0, 0), False), (slice(0, 3), True), (slice(0, 1), True), (slice(0, 1), False)):
        objective = build({})
        batch = {key: value[rows].clone() for key, value in BATCH.items()}
        if without_peaks:
            batch["r_peaks"].fill_(-1)
        result = step_of(objective, batch, epoch=0)
        loss, logs = result.loss, result.means | result.counts
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())
        assert logs["record/rows"] == 2 * len(batch["n_samples"])
        assert (logs["beats"] == 0) == (without_peaks or len(batch["n_samples"]) == 0)


def test_bfloat16_stays_near_float32() -> None:
    objective = build({})
    views = views_of(objective, BATCH)
    exact = objective(views, Progress()).loss
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(views, Progress())
    loss, logs = result.loss, result.means | result.counts
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.03)
    assert all(value.dtype == torch.float32 for value in logs.values())


def test_it_learns_to_tell_records_apart() -> None:
    torch.manual_seed(0)
    objective = build({"rhythm": "hard", "temperature": 0.2})
    batch = heartbeats(16, seed=3)
    optimiser = torch.optim.AdamW(objective.parameters(), 2e-3)
    losses = []
    for step in range(30):
        result = step_of(objective, batch, epoch=step)
        loss, logs = result.loss, result.means | result.counts
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step(Progress(step, 30))
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
    assert collapse_warnings({key: float(value) for key, value in logs.items()}, Progress(29, 30)) == {}


def test_the_embedding_learns_to_predict_measured_features() -> None:
    """The features of the first records follow from their signals: what is read of them grows with training."""
    batch = heartbeats(12)
    amplitude = batch["signal_uv"].float().abs().amax(-1)[:, :6] / 1000
    batch["record_features"] = amplitude
    batch["record_features"][2, 1] = float("nan")
    statistics = FeatureStatistics(
        table_of([f"r{i}" for i in range(6)], np.nan_to_num(amplitude.numpy(), nan=1.0)),
        table_of([f"b{i}" for i in range(5)], batch["beat_features"].reshape(-1, 5).numpy()),
    )
    torch.manual_seed(0)
    settings = {**SHORT, "rhythm": "hard", "beat": "none", "feature_weight": 1.0}
    objective: Any = build_objective("beat_ssl", build_encoder("tiny"), settings, statistics)
    optimiser = torch.optim.AdamW(objective.parameters(), 3e-3)
    explained = []
    for step in range(25):
        result = step_of(objective, batch, epoch=step)
        loss, logs = result.loss, result.means | result.counts
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        explained.append(float(logs["feature/explained"]))
        assert float(logs["loss"]) == pytest.approx(float(logs["record/loss"] + logs["feature/loss"]), rel=1e-5)
    assert explained[0] < 0.3 and explained[-1] > explained[0] + 0.3


def test_the_loss_of_features_is_the_huber_distance_in_sds_of_those_that_were_measured() -> None:
    table = table_of(["a", "b"], np.array([[0.0, 10.0], [2.0, 30.0]]))
    known = Features(table)
    features = torch.tensor([[1.0, float("nan")], [2.0, 1e6]])
    predicted = torch.tensor([[0.5, 9.0], [1.0, 3.0]], requires_grad=True)
    loss, logs = feature_loss(predicted, features, known, weight=2.0)
    # (0.5 - 0), (1 - 1), (3 - 5, the farthest that counts); nothing for what is missing
    assert float(loss) == pytest.approx(2.0 * (0.5 * 0.25 + 0.0 + 1.5) / 3)
    assert float(logs["feature/loss"]) == pytest.approx((0.125 + 1.5) / 3)
    loss.backward()
    assert predicted.grad is not None and predicted.grad[0, 1] == 0.0
    nothing, _ = feature_loss(predicted[:0], features[:0], known, weight=2.0)
    assert float(nothing) == 0.0


def test_uniform_targets_are_told() -> None:
    objective = build({"exponent": 1.0, "positive_mass": None, "beat": "none"})
    means = {key: float(value) for key, value in step_of(objective, BATCH).means.items()}
    warnings = type(objective).warnings(objective.settings, means, Progress())
    assert "raise objective.exponent (now 1.0)" in warnings["record/target_entropy"]


def test_wrong_settings_say_what_is_right() -> None:
    for settings, overrides in (
        ({"exponant": 50}, "did you mean 'exponent'"),
        ({"augment": {"angel_deg": 4}}, "did you mean 'angle_deg'"),
        ({"rhythm": "soft"}, "objective.rhythm=.soft. is not one of"),
        ({"rhythm": "none", "beat": "none"}, "nothing to learn"),
        ({"positive_mass": 1.5}, "positive_mass"),
        ({"positive_mass": 0.0, "loss": "sigmoid"}, "is of loss=soft_cross_entropy"),
        ({"positive_mass": 0.0, "loss": "softclt"}, "is of loss=soft_cross_entropy"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"augment": {"mode": "project", "transform": "kors"}}, "mode=residual"),
        ({"augment": {"crop_seconds": 0.01}}, "crop_seconds"),
    ):
        with pytest.raises(ValueError, match=overrides):
            build(settings)
    with pytest.raises(ValueError, match="did you mean 'beat_ssl'"):
        build_objective("beatssl", build_encoder("tiny"), {})
    with pytest.raises(ValueError, match="need the feature statistics"):
        build_objective("beat_ssl", build_encoder("tiny"), {"rhythm": "soft_1"}, None)


def test_defaults_are_the_documented_ones() -> None:
    settings = BeatSslSettings()
    assert (settings.rhythm, settings.beat, settings.beat_positives) == ("soft_1", "hard", "same_record")
    assert (settings.exponent, settings.positive_mass, settings.temperature) == (50.0, 0.5, 0.1)
    assert (settings.max_beats_per_record, settings.augment.crop_seconds) == (4, 5.0)
