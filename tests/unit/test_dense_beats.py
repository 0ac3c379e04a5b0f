"""Prediction of moments beside beats and features: each term is the one it is taken from, and no context sees ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from beatray.models.encoder import Stage
from beatray.models.registry import build_encoder
from beatray.objectives.beat_ssl import BeatSsl
from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.cpc import Cpc, CpcSettings
from beatray.objectives.dense_prediction import CausalHead, DensePredictionSettings
from beatray.objectives.objective import Objective, Progress, StepResult
from beatray.objectives.registry import build_objective
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.token_prediction import PredictionSettings, TokenPrediction
from every_method import CROP_S, batch_of, model_of, rows_of, settings_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 6
AT = Progress(1, 10)
OTHERS = {"rhythm": "none", "beat": "none", "feature_weight": 0.0, "prediction_weight": 0.0}
SMALL = {"width": 16, "layers": 1, "stride": 8, "dropout": 0.0, "direction": "both"}


def built(encoder: str = "tiny", network: dict[str, Any] | None = None, **settings: Any) -> Objective:
    """Beat-SSL with the terms that are said and no others, in float64."""
    torch.manual_seed(0)
    network_of = build_encoder(encoder, **(network or {}))
    content = {**OTHERS, "augment": {"crop_seconds": CROP_S}, **settings}
    objective = build_objective("beat_ssl", network_of, content, FeatureStatistics.from_dict(rows_of(ROWS)[1]))
    return objective.double()


def real_rows() -> dict[str, Any]:
    """Real recordings; one is short."""
    arrays = {name: values.copy() for name, values in rows_of(ROWS)[0].items()}
    arrays["n_samples"][2] = 500
    arrays["signal_uv"][2, :, 500:] = 0
    return arrays


def stepped(objective: Objective) -> tuple[StepResult, dict[str, Tensor]]:
    views = views_of(objective, batch_of(objective, real_rows()), exact=True)
    return objective(views, AT), views


@pytest.mark.parametrize("negatives", ["circular", "iid", "all"])
@pytest.mark.parametrize("lent", [0, 3])
def test_the_prediction_alone_is_cpc(negatives: str, lent: int) -> None:
    prediction = {"negatives": negatives, "n_negatives": 9, "batch_negatives": lent}
    objective = built("s4d", SMALL, prediction_weight=1.0, prediction=prediction)
    cpc = Cpc(objective.encoder, CpcSettings(crop_seconds=CROP_S, **prediction)).double()  # type: ignore[arg-type]
    cpc.predictors.load_state_dict(objective.prediction.predictors.state_dict())  # type: ignore[union-attr,operator]
    (one, _), (other, _) = stepped(objective), stepped(cpc)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-12, atol=1e-12)
    for name, value in other.means.items():
        assert torch.equal(one.means["token/loss" if name == "loss" else name], value), name
    assert torch.equal(one.counts["token/rows"], other.counts["records"])
    gradients = [torch.autograd.grad(found.loss, list(objective.encoder.parameters())) for found in (one, other)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_both_views_are_predicted_with_the_pass_that_contrast_makes() -> None:
    """The term over views is the mean of those over each view alone, and the contrast beside it stays what it was."""
    prediction = {"signal": "views", "n_negatives": 9}
    objective = built("s4d", SMALL, rhythm="hard", beat="hard", prediction_weight=0.5, prediction=prediction).eval()
    alone = built("s4d", SMALL, rhythm="hard", beat="hard").eval()
    passes: list[int] = []
    objective.encoder.first.register_forward_hook(lambda _, given, out: passes.append(len(out)))  # type: ignore[union-attr]
    found, views = stepped(objective)
    assert passes == [2 * ROWS] and "plain" not in views
    of_views = []
    for name in ("view_1", "view_2"):
        _, tokens = objective.prediction.encode(objective.encoder, views[name], views["n_valid"])  # type: ignore[operator,union-attr]
        of = objective.prediction.of.loss(objective.prediction.predictors, *tokens, views, objective.chosen)  # type: ignore[union-attr]
        of_views.append(of.loss)
    alone.load_state_dict(objective.state_dict(), strict=False)
    contrast, _ = stepped(alone)
    torch.testing.assert_close(found.loss, contrast.loss + 0.5 * sum(of_views) / 2, rtol=1e-12, atol=1e-12)
    assert float(found.counts["token/rows"]) == 2 * ROWS


def test_views_of_one_record_lend_each_other_nothing() -> None:
    """Moments of the other view would be the positive itself, now and then: what they hold must not matter."""
    of = TokenPrediction(
        PredictionSettings(horizon_s=0.032, n_negatives=4, batch_negatives=2), Stage(5, 8), ["forward"]
    )
    torch.manual_seed(0)
    predictors = of.predictors(5).double()
    z = torch.randn(6, 20, 5, dtype=torch.float64)
    drawn = {"distances_forward": torch.full((3, 1, 4), 3), "lent": torch.tensor([[1, 2]] * 3)}
    n_valid = torch.full((6,), 160)

    def chosen(rows: Tensor, there: Tensor) -> tuple[Tensor, None]:
        return rows[there], None

    def loss_of(lent_by: Tensor) -> Tensor:
        """Of record 0 in view 1 alone: all others have no token that counts, and lend theirs."""
        few = torch.cat([n_valid[:1], torch.full((5,), 16)])
        return of.loss(predictors, lent_by, [z], few, drawn, chosen, copies=2).loss

    other_view, other_record = z.clone(), z.clone()
    other_view[3] += 1.0
    other_record[4] += 1.0
    assert torch.equal(loss_of(other_view), loss_of(z))
    assert not torch.equal(loss_of(other_record), loss_of(z))


def test_weights_scale_terms_and_the_sum_is_that_of_the_terms() -> None:
    prediction = {"signal": "plain", "n_negatives": 9, "horizon_s": 0.4}
    terms = {"beat": "hard", "feature_weight": 3.0, "prediction_weight": 0.25, "prediction": prediction}
    objective, _ = stepped(built(**terms))
    parts = 0.25 * objective.means["token/loss"] + 3.0 * objective.means["feature/loss"] + objective.means["beat/loss"]
    assert float(objective.means["loss"]) == pytest.approx(float(parts), rel=1e-6)
    assert float(objective.loss.detach()) == pytest.approx(float(parts), rel=1e-6)
    twice, _ = stepped(built(**{**terms, "prediction_weight": 0.5}))
    assert float((twice.loss - objective.loss).detach()) == pytest.approx(
        0.25 * float(objective.means["token/loss"]), rel=1e-6
    )


@pytest.mark.parametrize("term", [{"beat": "hard"}, {"rhythm": "hard"}, {"feature_weight": 2.0}])
def test_each_term_alone_is_the_one_in_the_sum(term: dict[str, Any]) -> None:
    terms = {"rhythm": "hard", "beat": "hard", "feature_weight": 2.0, "prediction_weight": 1.0}
    together, alone = built(**terms, prediction={"horizon_s": 0.4}), built(**term)
    alone.load_state_dict(together.state_dict(), strict=False)
    (all_of, _), (one, _) = stepped(together.eval()), stepped(alone.eval())
    for name, value in one.means.items():
        if name != "loss":
            assert torch.equal(all_of.means[name], value), name
    assert one.means.keys() < all_of.means.keys()


@pytest.mark.parametrize("at", [0, 7, 19])
def test_contexts_of_a_head_see_no_future(at: int) -> None:
    torch.manual_seed(0)
    head = CausalHead(Stage(6, 16), 2).double()
    tokens = torch.randn(2, 20, 6, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(2, 20, dtype=torch.bool)
    mixed = torch.randn(6, dtype=torch.float64)  # the plain sum of channels behind a layer norm is a constant
    for number, context in enumerate(head(tokens, valid)):
        (gradient,) = torch.autograd.grad(context[0, at] @ mixed, tokens, retain_graph=True)
        seen = gradient[0].abs().amax(1)
        later, earlier = (seen[at + 1 :], seen[:at]) if number == 0 else (seen[:at], seen[at + 1 :])
        assert (later < 1e-14).all(), "the rounding of a Fourier transform, and no more"
        assert (earlier > 1e-8).all() and seen[at] > 1e-3
        assert not gradient[1].any()


def test_what_lies_beyond_the_end_does_not_reach_the_backward_context() -> None:
    torch.manual_seed(0)
    head = CausalHead(Stage(6, 16), 2).double()
    tokens = torch.randn(1, 20, 6, dtype=torch.float64)
    valid = torch.arange(20)[None] < 12
    changed = tokens.clone()
    changed[:, 12:] = 100.0
    for one, other in zip(head(tokens, valid), head(changed, valid), strict=True):
        torch.testing.assert_close(one[:, :12], other[:, :12], rtol=1e-12, atol=1e-12)
    cut = head(tokens[:, :12], valid[:, :12])
    for one, other in zip(head(tokens, valid), cut, strict=True):
        torch.testing.assert_close(one[:, :12], other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", ["s4d", "lstm"])
def test_the_map_that_other_terms_read_is_the_one_of_the_network(network: str) -> None:
    """Tokens and contexts of the one pass: where the signal is, the map is `forward_features`."""
    small = SMALL if network == "s4d" else {"width": 12, "direction": "both"}
    objective = built(network, small, beat="hard", prediction_weight=1.0).eval()
    x_mv, n_valid = torch.randn(2, 12, 800, dtype=torch.float64), torch.tensor([800, 400])
    with torch.no_grad():
        fmap, tokens = objective.prediction.encode(objective.encoder, x_mv, n_valid)  # type: ignore[operator,union-attr]
        expected = objective.encoder.forward_features(x_mv, n_valid)
    half = 400 // objective.encoder.stride
    torch.testing.assert_close(fmap[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fmap[1, :, :half], expected[1, :, :half], rtol=1e-12, atol=1e-12)
    assert tokens.z.shape[1] == fmap.shape[2] and len(tokens.contexts) == 2


@pytest.mark.parametrize("recipe", ["dense_beats_conv", "dense_beats_conv_tiny"])
def test_what_a_convolutional_network_is_to_predict_it_has_not_seen(recipe: str) -> None:
    """No sample is under both a cell and the one at the horizon of the recipe."""
    settings = settings_of(recipe)
    chosen = dict(settings.encoder)
    encoder = build_encoder(chosen.pop("name"), **chosen).eval().double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(parameter.abs() + 1e-3)  # no path that begins as zero or is cut by a ReLU
    x_mv = torch.rand(1, 12, 4000, dtype=torch.float64, requires_grad=True)
    fmap = encoder.forward_features(x_mv)
    seen = torch.autograd.grad(fmap[0, :, fmap.shape[2] // 2].sum(), x_mv)[0][0].sum(0).nonzero()
    ahead = settings.objective["prediction"]["horizon_s"]
    assert 0.8 * ahead < float(seen.max() - seen.min()) / 500 < ahead


def test_nothing_of_the_head_is_exported() -> None:
    objective = model_of(settings_of("dense_beats_conv_tiny"), rows_of(ROWS)[1])
    assert any(name.startswith("prediction.head.") for name, _ in objective.named_parameters())
    assert objective.exported().state_dict().keys() == build_encoder("tiny").state_dict().keys()


def test_the_context_is_the_one_that_the_network_offers() -> None:
    assert built("s4d", SMALL, prediction_weight=1.0).prediction.head is None  # type: ignore[union-attr]
    assert built("tiny", prediction_weight=1.0).prediction.head is not None  # type: ignore[union-attr]
    assert len(built("s4d", {**SMALL, "direction": "forward"}, prediction_weight=1.0).prediction.predictors) == 1  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("network", "small", "context", "message"),
    [
        ("tiny", {}, "encoder", "needs a network that makes tokens"),
        ("s4d", {**SMALL, "direction": "bidirectional"}, "encoder", r"encoder\.direction=forward or both"),
        ("s4d", {**SMALL, "direction": "bidirectional"}, "auto", "needs a network whose cells are local"),
        ("s4d", SMALL, "head", "take context=encoder"),
        ("vit_tiny", None, "auto", "needs a network whose cells are local"),
    ],
)
def test_networks_that_cannot_serve_are_refused_in_words(
    network: str, small: dict[str, Any] | None, context: str, message: str
) -> None:
    if small is None:
        network, small = "vit", {"width": 16, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match=message):
        built(network, small, prediction_weight=1.0, prediction={"context": context})


def test_too_short_a_crop_is_refused_by_the_keys_to_change() -> None:
    with pytest.raises(ValueError, match=r"objective\.augment\.crop_seconds=1\.6.*objective\.prediction\.horizon_s"):
        built(prediction_weight=1.0, prediction={"horizon_s": 1.7})


def test_the_settings_are_those_of_cpc_and_say_what_is_wrong() -> None:
    objective, theirs = DensePredictionSettings(), CpcSettings()
    for name in PredictionSettings.__dataclass_fields__:
        assert getattr(objective, name) == getattr(theirs, name), name
    with pytest.raises(ValueError, match="horizon_s must be above 0"):
        built(prediction_weight=1.0, prediction={"horizon_s": 0.0})
    with pytest.raises(ValueError, match="nothing to learn from"):
        built()
    with pytest.raises(ValueError, match=r"objective\.prediction\.signal='masked' is not one of plain, views"):
        built(prediction_weight=1.0, prediction={"signal": "masked"})


def test_it_describes_its_terms() -> None:
    settings = BeatSslSettings(rhythm="none", beat="hard", feature_weight=3.0, prediction_weight=0.3)
    description = BeatSsl.described(settings)
    assert "beats hard (same_record)" in description and "measured features (weight 3)" in description
    assert description.endswith("moments 0.12 s ahead in plain (weight 0.3)")
    assert [curve.key for curve in BeatSsl.curves(settings)][-3:] == [
        "feature/explained",
        "token/accuracy",
        "token/embedding_std",
    ]
    row = {"objective.rhythm": "none", "objective.beat": "hard", "objective.prediction_weight": 0.3}
    assert BeatSsl.variant(row, {}) == ("- / hard + 0.3 moments", {})
    assert BeatSsl.variant({**row, "objective.prediction_weight": 0}, {}) == ("- / hard", {})
    soft = {"objective.rhythm": "soft_1", "objective.beat": "hard"}
    assert BeatSsl.variant(soft, {}) == ("soft_1^50 / hard", {})
    assert BeatSsl.variant(soft, {"exponent": 2.0}) == ("soft_1^2 / hard", {})
    assert BeatSsl.variant({**soft, "objective.exponent": 1}, {"exponent": 50.0}) == ("soft_1 / hard", {})
    assert BeatSsl.variant(soft, {"exponent": None}) == ("soft_1 / hard", {})
    collapsed = BeatSsl.warnings(settings, {"token/embedding_std": 0.1}, Progress(50, 100))
    assert "token embeddings have nearly collapsed" in collapsed["token/embedding_std"]
