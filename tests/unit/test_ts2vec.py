"""TS2Vec and SoftCLT against a slow oracle, their closed forms and invariances, and the network of dilated blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from ts2vec_oracle import instance_loss, max_pool, temporal_loss
from ts2vec_oracle import ts2vec_loss as slow_loss

from beatray.models.encoder import Encoder, Stage, valid_cells
from beatray.models.registry import build_encoder
from beatray.models.segmentation import ConvDecoder, UNetDecoder
from beatray.models.ts2vec import TS2VecEncoder
from beatray.objectives.objective import Progress
from beatray.objectives.statistics import FeatureStatistics
from beatray.objectives.ts2vec import TS2Vec, TS2VecSettings, draw_parts
from beatray.objectives.ts2vec_loss import record_losses, ts2vec_loss
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"width": 8, "out_width": 8, "blocks": 3, "stride": 8}


def built(network: str = "ts2vec", sizes: dict[str, Any] | None = None, **settings: Any) -> TS2Vec:
    torch.manual_seed(0)
    encoder = build_encoder(network, **(SMALL if sizes is None else sizes))
    statistics = FeatureStatistics.from_dict(rows_of(7)[1])
    objective = TS2Vec(encoder, TS2VecSettings(**{"crop_seconds": 1.6, "temporal_unit": 1, **settings}), statistics)
    for module in objective.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d)):
            module.p = 0.0
    return objective.double()


def pair(records: int, moments: int, width: int = 3, size: float = 1.0) -> Tensor:
    return size * torch.randn(2, records, moments, width, dtype=torch.float64, generator=torch.manual_seed(5))


def short_batch(objective: TS2Vec) -> dict[str, Tensor]:
    """Four recordings, of which one ends early and one after three cells."""
    batch = batch_of(objective, rows_of(7)[0], slice(0, 4))
    batch["n_samples"] = torch.tensor([5000, 380, 5000, 20])
    for row in (1, 3):
        batch["signal_uv"][row, :, batch["n_samples"][row] :] = 0
    return batch


# ------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize(("records", "moments"), [(3, 7), (1, 5), (4, 1), (2, 16), (1, 1)])
@pytest.mark.parametrize(("alpha", "unit"), [(0.5, 0), (0.3, 2), (1.0, 0), (0.0, 1)])
def test_the_hard_loss_is_that_of_the_formula(records: int, moments: int, alpha: float, unit: int) -> None:
    z_1, z_2 = pair(records, moments)
    expected = slow_loss(z_1.numpy(), z_2.numpy(), alpha, unit)
    assert float(ts2vec_loss(z_1, z_2, alpha, unit)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("tau", [None, 0.4, 30.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_soft_loss_is_that_of_the_formula(tau: float | None, weighted: bool) -> None:
    z_1, z_2 = pair(3, 9)
    weights = torch.rand(3, 3, dtype=torch.float64, generator=torch.manual_seed(1)) if weighted else None
    expected = slow_loss(z_1.numpy(), z_2.numpy(), 0.3, 1, None if weights is None else weights.numpy(), tau)
    assert float(ts2vec_loss(z_1, z_2, 0.3, 1, weights, tau)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("records", "moments", "known"), [(4, 13, 1.8762312), (1, 6, None), (5, 1, None), (2, 64, None)]
)
def test_equal_outputs_cost_what_chance_gives(records: int, moments: int, known: float | None) -> None:
    z = torch.full((records, moments, 3), 0.7, dtype=torch.float64)
    lengths = [moments >> level for level in range(moments.bit_length())]
    assert len(lengths) == math.floor(math.log2(moments)) + 1
    expected = sum(0.5 * math.log(2 * records - 1) + 0.5 * math.log(2 * length - 1) for length in lengths)
    found = float(ts2vec_loss(z, z))
    assert found == pytest.approx(expected / len(lengths), abs=1e-12)
    if known is not None:
        assert found == pytest.approx(known, abs=5e-8)


def test_views_may_be_swapped_and_records_permuted() -> None:
    z_1, z_2 = pair(4, 11)
    weights = torch.rand(4, 4, dtype=torch.float64)
    whole = ts2vec_loss(z_1, z_2, 0.4, 0, weights, 0.3)
    torch.testing.assert_close(ts2vec_loss(z_2, z_1, 0.4, 0, weights, 0.3), whole, atol=1e-12, rtol=0)
    turned = torch.tensor([2, 0, 3, 1])
    again = ts2vec_loss(z_1[turned], z_2[turned], 0.4, 0, weights[turned][:, turned], 0.3)
    torch.testing.assert_close(again, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [0.5, 1.3])
def test_recordings_that_are_told_apart_cost_little(length: float) -> None:
    records = 4
    z = length * torch.eye(records, dtype=torch.float64)[:, None]
    found = record_losses(torch.stack([z, z]), torch.ones(records).long(), slice(0, records), 1.0, 0).instance
    assert found.tolist() == pytest.approx([math.log(1 + (2 * records - 2) * math.exp(-(length**2)))] * records)


@pytest.mark.parametrize("moments", [7, 9, 12])
def test_an_odd_last_moment_is_dropped_by_the_pools(moments: int) -> None:
    z_1, z_2 = pair(3, moments)
    levels, expected = moments.bit_length(), 0.0
    one, two = z_1.numpy(), z_2.numpy()
    for _ in range(levels):
        expected += 0.5 * (instance_loss(one, two) + temporal_loss(one, two))
        one, two = max_pool(one), max_pool(two)
    assert float(ts2vec_loss(z_1, z_2)) == pytest.approx(expected / levels, abs=1e-10)
    changed = z_1.clone()
    changed[:, moments // 2 * 2 :] += 1.0
    without_level_0 = [ts2vec_loss(z, z_2, 0.0, 1) for z in (z_1, changed)]
    assert torch.equal(*without_level_0)


def test_levels_below_the_unit_have_no_temporal_term() -> None:
    z_1, z_2 = pair(2, 12)
    assert float(ts2vec_loss(z_1, z_2, 0.0, 9)) == 0.0
    one, two = max_pool(max_pool(z_1.numpy())), max_pool(max_pool(z_2.numpy()))
    assert float(ts2vec_loss(z_1, z_2, 0.0, 2)) == pytest.approx(temporal_loss(one, two) / 4, abs=1e-12)


def test_a_short_record_is_a_series_of_its_length() -> None:
    z = pair(4, 13)
    cells = torch.tensor([13, 6, 0, 1])
    found = record_losses(z, cells, slice(0, 4), 0.3, 0)
    instance, temporal = np.zeros(4), np.zeros(4)
    views, left = z.numpy(), cells.numpy().copy()
    while left.any():
        for record in np.flatnonzero(left):
            own = views[:, record : record + 1, : left[record]]
            temporal[record] += temporal_loss(*own)
            for t in range(left[record]):  # against those that have this moment, its own rows first
                order = [record, *(other for other in np.flatnonzero(left > t) if other != record)]
                one, two = views[:, order, t : t + 1]
                rows = np.concatenate([one[:, 0], two[:, 0]])
                for mine, theirs in ((0, len(order)), (len(order), 0)):
                    scores = np.delete(rows @ rows[mine], mine)
                    instance[record] += (np.log(np.exp(scores).sum()) - rows[mine] @ rows[theirs]) / 2 / left[record]
        views, left = np.stack([max_pool(view) for view in views]) if views.shape[2] > 1 else views, left // 2
    levels = np.array([4, 3, 1, 1])
    np.testing.assert_allclose(found.instance, instance / levels, atol=1e-10)
    np.testing.assert_allclose(found.temporal, temporal / levels, atol=1e-10)
    np.testing.assert_allclose(found.loss, (0.3 * instance + 0.7 * temporal) / levels, atol=1e-10)
    assert float(ts2vec_loss(*z, 0.3, cells=cells)) == pytest.approx(float(found.loss.sum()) / 3)
    changed = z.clone()
    changed[:, 1, 6:], changed[:, 2], changed[:, 3, 1:] = 50.0, -50.0, 50.0
    for name in ("loss", "instance", "temporal"):
        again = getattr(record_losses(changed, cells, slice(0, 4), 0.3, 0), name)
        torch.testing.assert_close(again, getattr(found, name), atol=1e-12, rtol=0)
    soft = torch.rand(4, 4, dtype=torch.float64)
    expected = record_losses(z, cells, slice(0, 4), 0.3, 0, soft, 0.2).loss
    torch.testing.assert_close(record_losses(changed, cells, slice(0, 4), 0.3, 0, soft, 0.2).loss, expected)


def test_rows_of_a_rank_are_rows_of_the_whole() -> None:
    z, weights = pair(5, 6), torch.rand(5, 5, dtype=torch.float64)
    cells = torch.tensor([6, 6, 4, 6, 6])
    whole = record_losses(z, cells, slice(0, 5), 0.5, 0, weights, 0.3)
    part = record_losses(z, cells, slice(2, 4), 0.5, 0, weights[2:4], 0.3)
    torch.testing.assert_close(part.loss, whole.loss[2:4], atol=1e-12, rtol=0)
    torch.testing.assert_close(part.instance_weight, whole.instance_weight[2:4], atol=1e-12, rtol=0)


# ------------------------------------------------------------------------------------------------ soft weights


def test_no_weight_on_others_is_the_hard_loss_and_more_weight_adds_in_proportion() -> None:
    z_1, z_2 = pair(4, 9)
    weights = torch.rand(4, 4, dtype=torch.float64)
    hard = ts2vec_loss(z_1, z_2)
    nothing = ts2vec_loss(z_1, z_2, instance_weights=0.0 * weights, temporal_tau=1e3)
    torch.testing.assert_close(nothing, hard, atol=1e-12, rtol=0)
    one, three = (ts2vec_loss(z_1, z_2, instance_weights=factor * weights) - hard for factor in (1.0, 3.0))
    torch.testing.assert_close(three, 3.0 * one, atol=1e-12, rtol=0)
    assert float(one) > 0.1


def test_equal_scores_cost_their_logarithm_for_each_weight() -> None:
    records, moments = 5, 6
    z = torch.full((2, records, moments, 2), 0.4, dtype=torch.float64)
    weights = torch.rand(records, records, dtype=torch.float64)
    found = record_losses(z, torch.full((records,), moments), slice(0, records), 1.0, 0, weights, 0.5)
    row_weight = 1.0 + 2.0 * (weights.sum(1) - weights.diagonal())
    torch.testing.assert_close(found.instance_weight, row_weight)
    torch.testing.assert_close(found.instance, math.log(2 * records - 1) * row_weight)
    lags = torch.arange(moments)
    w = 2.0 * torch.sigmoid(-0.5 * (lags[:, None] - lags).abs().double())
    levels = [2.0 * w.sum(1).mean() - 1.0]
    w = 2.0 * torch.sigmoid(-1.0 * (lags[:3, None] - lags[:3]).abs().double())
    levels.append(2.0 * w.sum(1).mean() - 1.0)
    expected = (levels[0] * math.log(11) + levels[1] * math.log(5)) / 3  # the third level is a single moment
    torch.testing.assert_close(found.temporal, expected.expand(records))
    torch.testing.assert_close(found.temporal_weight, ((levels[0] + levels[1]) / 2).expand(records))


@pytest.mark.parametrize("tau", [(20.0, 0.5), (20.0, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_the_step_takes_the_weights_of_the_features(tau: tuple[float, float]) -> None:
    objective = built(soft=True, tau_instance=tau[0], tau_temporal=tau[1]).eval()
    batch = batch_of(objective, rows_of(7)[0])
    views = views_of(objective, batch, exact=True)
    result = objective(views, Progress())
    moments = views["counted"].shape[1]
    z_1, z_2 = (objective._outputs(views, view).detach() for view in (1, 2))
    z_1, z_2 = z_1[:, -moments:].numpy(), z_2[:, :moments].numpy()
    weights = None
    if tau[0]:
        scaled = objective.record_features.scale(objective.record_features.impute(views["record_features"])).numpy()
        apart = np.sqrt(np.square(scaled[:, None] - scaled).mean(-1))
        weights = 1.0 / (1.0 + np.exp(tau[0] * apart))  # 2 alpha sigmoid(-tau d), alpha a half
        assert np.array_equal(weights, weights.T) and (weights.diagonal() == 0.5).all() and weights.max() <= 0.5
        row_weight = 1.0 + 2.0 * (weights.sum(1) - 0.5)
        assert float(result.means["instance/row_weight"]) == pytest.approx(row_weight.mean(), rel=1e-5)
    assert ("instance/row_weight" in result.means, "temporal/row_weight" in result.means) == (tau[0] > 0, tau[1] > 0)
    assert ("record_features" in objective.reads) == (tau[0] > 0)
    expected = slow_loss(z_1, z_2, 0.5, 1, weights, tau[1] or None)
    assert float(result.loss.detach()) == pytest.approx(expected, abs=1e-8)
    if tau == (0.0, 0.0):
        hard = built().eval()
        torch.testing.assert_close(hard(views, Progress()).loss, result.loss, atol=1e-12, rtol=0)


# ------------------------------------------------------------------------------------------------ views


def test_parts_overlap_as_drawn() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_parts(generator.random(4), 40, 8) for _ in range(3000)]
    for begin, first, stop, end in drawn:
        assert 0 <= begin <= first and stop <= end <= 40 and 8 <= stop - first <= 40
    lengths = np.bincount([stop - first for _, first, stop, _ in drawn])[8:]
    assert len(lengths) == 33 and (lengths > 40).all()  # 91 of each are expected
    assert draw_parts(np.zeros(4), 40, 8) == (0, 0, 8, 8)
    assert draw_parts(np.full(4, 1.0 - 2**-53), 40, 8) == (0, 0, 40, 40)
    assert draw_parts(generator.random(4), 6, 8)[1:3] == (0, 6)  # a window shorter than the least overlap


@pytest.mark.parametrize("epoch", range(6))
def test_both_parts_hold_the_same_moments_at_their_end_and_beginning(epoch: int) -> None:
    objective = built()
    batch = batch_of(objective, rows_of(7)[0])
    views = views_of(objective, batch, epoch)
    samples = 8 * views["counted"].shape[1]
    assert torch.equal(views["view_1"][..., -samples:], views["view_2"][..., :samples])
    assert views["counted"].all() and samples >= 8 * 2**2
    for view in (1, 2):
        assert views[f"keep_{view}"].shape == (7, views[f"view_{view}"].shape[-1] // 8)
        assert views[f"n_valid_{view}"].tolist() == [views[f"view_{view}"].shape[-1]] * 7
    assert not torch.equal(views["keep_1"][0], views["keep_1"][1])
    whole = built(crop_seconds=None).views(batch, objective_draws(batch, epoch))
    assert whole["crop_start"].tolist() == [int(start) // 8 * 8 for start in whole["crop_start"]]


def objective_draws(batch: dict[str, Tensor], epoch: int) -> Any:
    from beatray.augment.draws import Draws

    return Draws.of(batch, 11, epoch)


def test_half_of_the_time_steps_are_masked_and_all_leads_with_them() -> None:
    objective = built(crop_seconds=None, mask_ratio=0.3)
    batch = batch_of(objective, rows_of(7)[0])
    kept = torch.cat([objective.views(batch, objective_draws(batch, e))["keep_1"].flatten() for e in range(12)])
    assert float(kept.double().mean()) == pytest.approx(0.7, abs=0.02)
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    seen: list[Tensor] = []
    encode = objective.encoder.encode  # type: ignore[operator]
    objective.encoder.encode = lambda tokens, **more: (seen.append(tokens), encode(tokens, **more))[1]  # type: ignore
    objective(views, Progress())
    for view, tokens in zip((1, 2), seen, strict=True):
        assert torch.equal((tokens != 0).any(-1), views[f"keep_{view}"])


def test_in_evaluation_nothing_is_masked() -> None:
    objective = built(average=False)
    views = views_of(objective, batch_of(objective, rows_of(7)[0]), exact=True)
    other = {**views, "keep_1": ~views["keep_1"], "keep_2": ~views["keep_2"]}
    assert not torch.equal(objective(views, Progress()).loss, objective(other, Progress()).loss)
    objective.eval()
    assert torch.equal(objective(views, Progress()).loss, objective(other, Progress()).loss)


@pytest.mark.parametrize("network", ["ts2vec", "vit", "s4d", "lstm"])
def test_what_follows_a_short_recording_matters_nowhere(network: str) -> None:
    sizes = {
        "ts2vec": SMALL,
        "vit": {"width": 8, "depth": 1, "heads": 2},
        "s4d": {"width": 8, "layers": 1, "state": 4, "stride": 8, "direction": "bidirectional"},
        "lstm": {"width": 8, "layers": 1, "direction": "both"},
    }[network]
    objective = built(network, sizes).eval()
    batch = short_batch(objective)
    reached = set()
    for epoch in range(8):
        views = views_of(objective, batch, epoch, exact=True)
        result = objective(views, Progress())
        assert torch.isfinite(result.loss)
        changed = {name: value.clone() for name, value in views.items()}
        for view in (1, 2):
            for row in (1, 3):  # beyond the reach of stems and filters
                changed[f"view_{view}"][row, :, int(views[f"n_valid_{view}"][row]) + 30 :] = 3.0
        torch.testing.assert_close(objective(changed, Progress()).loss, result.loss, atol=1e-10, rtol=1e-10)
        held = views["counted"].sum(1)
        assert held[0] == views["counted"].shape[1] and float(result.counts["records"]) == int((held > 0).sum())
        reached.add(int(held[1]))
    assert len(reached) > 2


def test_the_overlap_of_a_short_recording_lies_in_its_signal_where_it_can() -> None:
    objective = built(crop_seconds=None)
    batch = short_batch(objective)
    batch["n_samples"] = torch.tensor([5000, 4000, 5000, 2500])
    for epoch in range(10):
        counted = views_of(objective, batch, epoch)["counted"]
        begin, first, stop, _ = draw_parts(objective_draws(batch, epoch).shared("overlap", 4), 625, objective.least)
        for row, held in ((1, 500), (3, 313)):
            assert counted[row].all() == (stop - begin <= held), (epoch, row)
            assert int(counted[row].sum()) == min(max(held - (first - begin), 0), stop - first)


# ------------------------------------------------------------------------------------------------ the average, refusals


def test_the_average_is_of_all_weights_and_is_what_others_get() -> None:
    objective = built()
    kept = [[p.detach().clone() for p in objective.encoder.parameters()]]
    objective.after_step(Progress())
    assert all(torch.equal(a, b) for a, b in zip(objective.exported().parameters(), kept[0], strict=True))
    kept.append(kept[0])
    for number in range(3):
        with torch.no_grad():
            for parameter in objective.encoder.parameters():
                parameter += torch.randn_like(parameter)
        kept.append([p.detach().clone() for p in objective.encoder.parameters()])
        objective.after_step(Progress(number + 1, 10))
    assert int(objective.averaged) == 5 and "averaged" in objective.state_dict()
    for found, *each in zip(objective.exported().parameters(), *kept, strict=True):
        torch.testing.assert_close(found, torch.stack(each).mean(0), atol=1e-12, rtol=0)
        assert not found.requires_grad
    newest = built(average=False)
    newest.after_step(Progress())
    assert newest.exported() is newest.encoder and not any("average" in name for name in newest.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(newest.encoder.parameters(), kept[0], strict=True))


def test_what_cannot_be_is_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="TS2Vec needs a network that makes tokens of the signal, which tiny does not"):
        built("tiny", {})
    with pytest.raises(ValueError, match=r"crop_seconds=0\.5 gives 31 cells, and objective\.temporal_unit=4 needs"):
        built(crop_seconds=0.5, temporal_unit=4)
    with pytest.raises(ValueError, match="need the feature statistics"):
        TS2Vec(build_encoder("ts2vec", **SMALL), TS2VecSettings(soft=True))

    class Fine(Encoder):
        token_stage, directions, drops_tokens = Stage(4, 1), (), False

        def tokens(self, x_mv: Tensor, n_samples: Tensor | None = None) -> Tensor:
            raise NotImplementedError

        def encode(self, tokens: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
            raise NotImplementedError

    fine = Fine(None, [Stage(4, 1)])
    with pytest.raises(ValueError, match=r"5000 at a time are contrasted.*raise objective\.temporal_unit"):
        TS2Vec(fine, TS2VecSettings(crop_seconds=None))
    TS2Vec(fine, TS2VecSettings(crop_seconds=None, temporal_unit=1))


# ------------------------------------------------------------------------------------------------ the network


def network(**settings: Any) -> TS2VecEncoder:
    torch.manual_seed(1)
    made = build_encoder("ts2vec", **{**SMALL, **settings}).double().eval()
    assert isinstance(made, TS2VecEncoder)
    return made


def test_ten_blocks_and_a_last_one_see_8189_time_steps() -> None:
    encoder = network(width=2, out_width=2, blocks=10)
    tokens = torch.randn(1, 8301, 2, dtype=torch.float64, requires_grad=True)
    encoder.encode(tokens)[0, 4150].sum().backward()
    assert tokens.grad is not None
    seen = (tokens.grad[0] != 0).any(-1).nonzero()[:, 0]
    assert (int(seen[0]), int(seen[-1])) == (4150 - 4094, 4150 + 4094) and len(seen) <= 8189


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_a_cell_is_centred_on_its_sample(stride: int) -> None:
    encoder = network(stride=stride)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 3:
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
        x = torch.randn(1, 12, 40 * stride + 1, dtype=torch.float64)
        for one, other in zip(encoder.forward_stages(x), encoder.forward_stages(x.flip(-1)), strict=True):
            torch.testing.assert_close(one, other.flip(-1), atol=1e-12, rtol=1e-12)


def test_a_short_recording_ends_as_the_window_does() -> None:
    encoder = network(blocks=5)
    x = torch.randn(2, 12, 800, dtype=torch.float64)
    x[1, :, 290:] = 0.0  # the filters that halve the rate look 14 samples ahead
    with torch.no_grad():
        alone = encoder.forward_features(x[1:, :, :320])
        beside = encoder.forward_features(x, torch.tensor([800, 320]))
        tokens = encoder.tokens(x, torch.tensor([800, 320]))
        there = valid_cells(torch.tensor([800, 320]), encoder.token_stage, 100)
        torch.testing.assert_close(beside[1:, :, :40], alone, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(encoder.encode(tokens, valid=there).transpose(1, 2), beside, atol=1e-12, rtol=1e-12)
        assert not torch.allclose(encoder.forward_features(x)[1:, :, :40], alone, atol=1e-3)
        assert not beside[1, :, 40:].any() and not tokens[1, 40:].any()


@pytest.mark.parametrize(("stride", "fine"), [(2, 2), (4, 4), (8, 4)])
def test_decoders_take_its_maps(stride: int, fine: int) -> None:
    encoder = network(stride=stride).float()
    assert [(stage.channels, stage.stride) for stage in encoder.stages] == [(8, fine), (8, stride)]
    maps = encoder.forward_stages(torch.randn(2, 12, 1001))
    for decoder in (ConvDecoder(encoder.stages[-1]), UNetDecoder(encoder.stages)):
        assert decoder(maps, 1001).shape == (2, 4, 1001)


def test_tokens_cannot_be_left_out() -> None:
    encoder = network()
    with pytest.raises(ValueError, match="cannot leave tokens out"):
        encoder.encode(torch.zeros(1, 5, 8, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int64))
