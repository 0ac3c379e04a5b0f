"""ECG-FM against the slow oracles, its closed forms, what may and may not matter, and the networks it works with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from clocs_oracle import clocs_loss
from ecg_fm_oracle import diversity as slow_diversity
from ecg_fm_oracle import masked_contrast as slow_contrast
from torch import Tensor

from beatray.models.encoder import valid_cells
from beatray.models.registry import build_encoder
from beatray.objectives.contrast import unit_rows
from beatray.objectives.ecg_fm import EcgFm, scaled_gradient
from beatray.objectives.ecg_fm_settings import EcgFmSettings
from beatray.objectives.masked_contrast import masked_contrast
from beatray.objectives.objective import Progress
from beatray.objectives.patient_contrast import patient_contrast
from beatray.objectives.product_quantiser import code_temperature, gumbel_noise, straight_through
from beatray.preprocess import prepare
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"crop_seconds": 1.6, "n_negatives": 12, "codes": 6, "code_dim": 8, "feature_dropout": 0.0}
NETWORK = {
    "conv_channels": 6,
    "width": 8,
    "depth": 1,
    "heads": 2,
    "hidden": 8,
    "position_kernel": 4,
    "position_groups": 2,
    "half_rate": True,
    "dropout": 0.0,
}
AT = Progress(2, 10)


def built(network: str = "wav2vec", of_network: dict[str, Any] | None = None, **settings: Any) -> EcgFm:
    torch.manual_seed(0)
    encoder = build_encoder(network, **(NETWORK if of_network is None else of_network))
    return EcgFm(encoder, EcgFmSettings(**{**SMALL, **settings})).double()


def made(objective: EcgFm, records: int = 4, n_samples: list[int] | None = None) -> dict[str, Tensor]:
    batch = batch_of(objective, rows_of(7)[0], slice(0, records))
    batch["patient_key"] = batch["patient_key"].clone()
    batch["patient_key"][-1] = batch["patient_key"][0]
    if n_samples is not None:
        batch["n_samples"] = torch.tensor(n_samples)
    return views_of(objective, batch, exact=True)


def parts(objective: EcgFm, views: dict[str, Tensor]) -> dict[str, float]:
    """The four parts by the oracles, from what the module's own networks make, one segment at a time."""
    encoder: Any = objective.encoder
    losses, probabilities, squares, pooled = [], [], [], []
    for view in (1, 2):
        tokens = encoder.tokens(views[f"view_{view}"], views["n_valid"])
        there = valid_cells(views["n_valid"], objective.stage, tokens.shape[1])
        masked, negatives = views[f"masked_{view}"].long(), views[f"negatives_{view}"].long()
        count = objective.masked_count(there.sum(1)).tolist()
        hidden = torch.zeros_like(there)
        for row, number in enumerate(count):
            hidden[row, masked[row, :number]] = True
        context = encoder.encode(torch.where(hidden[..., None], objective.mask_token, tokens), valid=there)
        whole = encoder.encode(tokens, valid=there)
        noise = gumbel_noise(
            views["gumbel"][:, view - 1], (masked.shape[1], 2, objective.settings.codes), torch.float64
        )
        for row, number in enumerate(count):
            chosen_tokens = masked[row, :number]
            logits = objective.quantiser.logits(objective.token_norm(tokens[row, chosen_tokens]))
            codes = (logits + noise[row, :number]).argmax(-1)
            rows = [objective.quantiser.codebook[group, codes[:, group]] for group in range(2)]
            losses.append(
                number
                * slow_contrast(
                    objective.project_context(context[row, chosen_tokens]).detach().numpy(),
                    objective.project_codes(torch.cat(rows, 1)).detach().numpy(),
                    negatives[row, :number].numpy(),
                    codes.numpy(),
                    objective.settings.temperature,
                )
            )
            probabilities.append(logits.softmax(-1).detach().numpy())
            squares.append(tokens[row, there[row]].detach().square().mean(1).numpy())
        pooled.append(torch.stack([whole[row, there[row]].mean(0) for row in range(len(whole))]).detach().numpy())
    patients = views["patient_key"].tolist()
    return {
        "token/loss": sum(losses) / sum(len(p) for p in probabilities),
        "code/loss": slow_diversity(np.concatenate(probabilities)),
        "token/mean_square": float(np.concatenate(squares).mean()),
        "record/loss": clocs_loss(pooled, patients, temperature=0.1, symmetric=True, present=None),
    }


@pytest.mark.parametrize("n_samples", [None, [5000, 700, 333, 60]])
def test_the_loss_is_that_of_the_formulas(n_samples: list[int] | None) -> None:
    objective = built()
    views = made(objective, 4, n_samples)
    result = objective(views, AT)
    expected = parts(objective, views)
    for name, value in expected.items():
        assert float(result.means[name]) == pytest.approx(value, rel=1e-6), name
    total = (
        expected["token/loss"]
        + 0.1 * expected["code/loss"]
        + 10 * expected["token/mean_square"]
        + expected["record/loss"]
    )
    assert float(result.loss.detach()) == pytest.approx(total, rel=1e-9)
    weights = {"token_weight": 0.3, "diversity_weight": 2.0, "penalty_weight": 0.0, "patient_weight": 0.7}
    other = built(**weights)(views, AT)
    total = 0.3 * expected["token/loss"] + 2.0 * expected["code/loss"] + 0.7 * expected["record/loss"]
    assert float(other.loss.detach()) == pytest.approx(total, rel=1e-9)
    assert float(other.means["loss"]) == pytest.approx(total, rel=1e-6)


def contrast_of(codes: Tensor, quantised: Tensor | None = None, records: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Loss per token and the inputs of a contrast with 101 masked tokens and all 100 others as negatives."""
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(records, 101, 5, dtype=torch.float64, generator=generator).requires_grad_()
    if quantised is None:
        quantised = torch.randn(records, 101, 5, dtype=torch.float64, generator=generator)
    quantised = quantised.requires_grad_()
    others = torch.tensor([[n for n in range(101) if n != m] for m in range(101)]).expand(records, 101, 100)
    loss, _ = masked_contrast(context, quantised, codes, others, 0.1)
    return loss, context, quantised


def test_equal_logits_cost_the_logarithm_of_101() -> None:
    codes = torch.arange(101)[:, None].expand(2, 101, 1)
    loss, *_ = contrast_of(codes, torch.ones(2, 101, 5, dtype=torch.float64))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(101)))


def test_equal_codes_cost_nothing_and_have_a_finite_gradient() -> None:
    loss, context, quantised = contrast_of(torch.full((2, 101, 2), 4))
    assert torch.equal(loss, torch.zeros_like(loss))
    gradients = torch.autograd.grad(loss.sum(), (context, quantised))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_codes_must_be_equal_in_all_groups_to_be_left_out() -> None:
    codes = torch.zeros(1, 101, 2, dtype=torch.int64)
    codes[0, :, 1] = torch.arange(101)
    apart, *_ = contrast_of(torch.arange(101)[:, None].expand(1, 101, 1), records=1)
    partly, *_ = contrast_of(codes, records=1)
    torch.testing.assert_close(partly, apart)
    codes[0, 7, 1] = codes[0, 3, 1]
    fewer, *_ = contrast_of(codes, records=1)
    assert (fewer[0, [3, 7]] < apart[0, [3, 7]]).all()
    torch.testing.assert_close(fewer[0, 8:], apart[0, 8:])


def test_a_contrast_does_not_depend_on_scale_or_the_order_of_negatives() -> None:
    generator = torch.Generator().manual_seed(1)
    context, quantised = (torch.randn(2, 9, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    codes = torch.arange(9)[:, None].expand(2, 9, 1)
    negatives = torch.randint(0, 9, (2, 9, 20), generator=generator)
    loss, hit = masked_contrast(context, quantised, codes, negatives, 0.1)
    turned, _ = masked_contrast(5.0 * context, 0.2 * quantised, codes, negatives.flip(2), 0.1)
    torch.testing.assert_close(loss, turned)
    sure, right = masked_contrast(quantised, quantised, codes, negatives, 0.1)
    assert right.all() and not hit.all() and (sure < loss.mean()).all()
    empty, _ = masked_contrast(context[:0], quantised[:0], codes[:0], negatives[:0], 0.1)
    assert empty.shape == (0, 9)


def test_only_masked_outputs_are_asked_for() -> None:
    objective = built(patient_weight=0.0)
    views = made(objective)
    encoder: Any = objective.encoder
    kept: list[Tensor] = []

    def encode(tokens: Tensor, **more: Any) -> Tensor:
        kept.append(type(encoder).encode(encoder, tokens, **more))
        kept[-1].retain_grad()
        return kept[-1]

    encoder.encode = encode
    objective(views, AT).loss.backward()
    (context,) = kept  # without patients one pass is enough
    asked = context.grad.abs().sum(-1) > 0
    expected = torch.zeros_like(asked).scatter(1, torch.cat([views["masked_1"], views["masked_2"]]).long(), True)
    assert torch.equal(asked, expected)
    assert float(expected.sum(1).double().mean()) == 13  # round(.5 x 25) of 25 tokens


def test_the_context_does_not_see_masked_tokens() -> None:
    objective = built(patient_weight=0.0).eval()
    views = made(objective)
    encoder: Any = objective.encoder
    tokens = encoder.tokens(torch.cat([views["view_1"], views["view_2"]]), views["n_valid"].repeat(2))
    seen: list[Tensor] = []
    encoder.encode = lambda tokens, **more: seen.append(tokens) or type(encoder).encode(encoder, tokens, **more)
    objective(views, AT)
    masked = torch.cat([views["masked_1"], views["masked_2"]]).long()
    hidden = torch.zeros(tokens.shape[:2], dtype=torch.bool).scatter(1, masked, True)
    assert torch.equal(seen[0][hidden], objective.mask_token.expand(int(hidden.sum()), -1))
    torch.testing.assert_close(seen[0][~hidden], tokens[~hidden])


def test_silent_tokens_have_no_penalty() -> None:
    objective = built()
    views = made(objective)
    flat = {**views, "view_1": torch.zeros_like(views["view_1"]), "view_2": torch.zeros_like(views["view_2"])}
    assert float(objective(flat, AT).means["token/mean_square"]) == 0.0
    assert float(objective(views, AT).means["token/mean_square"]) > 0.0


def test_the_temperature_of_the_codes_changes_gradients_not_the_loss() -> None:
    found = []
    for at in (Progress(0, 10), Progress(9, 10), Progress(9, 10, 4, 5)):
        objective = built(patient_weight=0.0)
        result = objective(made(objective), at)
        result.loss.backward()
        found.append((float(result.loss.detach()), objective.quantiser.choose.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-12)
    assert not torch.allclose(found[0][1], found[1][1]) and torch.equal(found[1][1], found[2][1])


def test_evaluation_takes_the_likeliest_codes_without_noise() -> None:
    objective = built().eval()
    views = made(objective)
    other = {**views, "gumbel": views["gumbel"] + 1}
    assert torch.equal(objective(views, AT).loss, objective(other, AT).loss)
    assert torch.equal(objective(views, AT).loss, objective(views, Progress(9, 10)).loss)
    objective.train()
    assert not torch.equal(objective(views, AT).loss, objective(other, AT).loss)


def test_the_layers_before_the_tokens_get_a_part_of_the_gradient() -> None:
    gradients = []
    for part in (1.0, 0.1):
        objective = built(feature_gradient=part)
        objective(made(objective), AT).loss.backward()
        gradients.append({name: p.grad for name, p in objective.named_parameters()})
    for name, whole in gradients[0].items():
        stem = name.startswith(("encoder.convs", "encoder.conv_norm"))
        torch.testing.assert_close(gradients[1][name], (0.1 if stem else 1.0) * whole, msg=name)
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(scaled_gradient(x, 0.3).detach(), x.detach())


def test_a_longer_pooled_segment_is_no_other() -> None:
    """The length of a vector takes part in the gradient, so that none of it lies along the vector."""
    pooled = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = patient_contrast([unit_rows(view) for view in pooled], torch.tensor([1, 2, 3, 1, 4]), 0.1).loss
    (gradient,) = torch.autograd.grad(loss, pooled)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close((gradient * pooled).sum(-1), torch.zeros(2, 5, dtype=torch.float64))


def test_segments_are_adjacent_and_lose_leads_of_their_own() -> None:
    objective = built(lead_mask=0.0)
    plain = made(objective)
    arrays = rows_of(7)[0]
    whole = prepare(torch.from_numpy(arrays["signal_uv"][:4]), 500.0, torch.from_numpy(arrays["n_samples"][:4]))
    zeroed = made(built())
    for view in (1, 2):
        kept = (zeroed[f"view_{view}"] != 0).any(-1)
        assert torch.equal(zeroed[f"view_{view}"], plain[f"view_{view}"] * kept[..., None])
        assert kept.any(1).all() and not kept.all()
    assert not torch.equal((zeroed["view_1"] != 0).any(-1), (zeroed["view_2"] != 0).any(-1))
    for row, start in enumerate(plain["crop_start"].tolist()):
        both = torch.cat([plain["view_1"][row], plain["view_2"][row]], 1)
        torch.testing.assert_close(both.float(), whole[row, :, start : start + 1600])


def test_what_follows_a_short_recording_does_not_matter() -> None:
    objective = built()
    views = made(objective, 3, [5000, 700, 61])
    assert views["n_valid"].tolist() == [800, 350, 30]
    cells = valid_cells(views["n_valid"], objective.stage, 25).sum(1)
    count = objective.masked_count(cells)
    assert cells.tolist() == [25, 11, 1] and count.tolist() == [13, 6, 1]
    for view in (1, 2):
        for row in range(3):
            assert int(views[f"masked_{view}"][row, : count[row]].max()) < cells[row]
            assert int(views[f"negatives_{view}"][row].max()) < count[row]
    changed = {**views, **{f"view_{view}": views[f"view_{view}"].clone() for view in (1, 2)}}
    for view in (1, 2):
        for row, length in enumerate(views["n_valid"].tolist()):
            changed[f"view_{view}"][row, :, length:] = 3.0
            changed[f"masked_{view}"] = views[f"masked_{view}"].clone()
            changed[f"masked_{view}"][row, count[row] :] = 0
    one, other = objective(views, AT), objective(changed, AT)
    torch.testing.assert_close(one.loss, other.loss, atol=1e-12, rtol=1e-12)
    assert torch.isfinite(one.loss) and float(one.counts["token/masked"]) == 40


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ("vit", {"width": 8, "depth": 1, "heads": 2}),
        ("s4d", {"width": 8, "layers": 1, "state": 4, "stride": 8, "direction": "bidirectional"}),
    ],
)
def test_other_networks_whose_tokens_see_both_sides_will_do(network: str, settings: dict[str, Any]) -> None:
    objective = built(network, settings)
    result = objective(made(objective), AT)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())
    assert objective.mask_token.grad.abs().max() > 0


def test_masked_tokens_of_a_transformer_keep_their_position_which_is_no_content() -> None:
    objective = built("vit", {"width": 8, "depth": 1, "heads": 2}, patient_weight=0.0)
    views = made(objective)
    seen: list[Tensor] = []
    encoder: Any = objective.encoder
    encoder.encode = lambda tokens, **more: seen.append(tokens) or type(encoder).encode(encoder, tokens, **more)
    objective(views, AT)
    first = views["masked_1"][0].long()
    expected = objective.mask_token + encoder.token_positions(seen[0])[first]
    torch.testing.assert_close(seen[0][0, first], expected)
    flat = {**views, "view_1": torch.zeros_like(views["view_1"]), "view_2": torch.zeros_like(views["view_2"])}
    assert float(objective(flat, AT).means["token/mean_square"]) == pytest.approx(0.0, abs=1e-20)


def test_networks_that_do_not_see_both_sides_are_refused() -> None:
    for direction in ("forward", "both"):
        with pytest.raises(ValueError, match=r"needs a network whose tokens see both sides.*bidirectional"):
            built("s4d", {"width": 8, "layers": 1, "direction": direction})
    with pytest.raises(ValueError, match="needs a network that makes tokens"):
        built("tiny", {"channels": (4, 4, 8)})


def test_one_pass_less_pools_what_was_masked() -> None:
    whole, masked = built(), built(patient_tokens="masked")
    views = made(whole)
    one, other = whole(views, AT).means, masked(views, AT).means
    assert torch.equal(one["token/loss"], other["token/loss"])
    assert not torch.equal(one["record/loss"], other["record/loss"])


def test_codes_that_collapse_are_told() -> None:
    settings = EcgFmSettings()
    means = {"code/perplexity_1": 15.0, "code/perplexity_2": 17.0, "record/embedding_std": 0.9}
    found = EcgFm.warnings(settings, means, Progress(50, 100))
    assert list(found) == ["code/perplexity_1"] and "codes of group 1 have nearly collapsed (15.0 of 320" in str(found)
    assert EcgFm.warnings(settings, means, Progress(2, 100)) == {}
    assert EcgFm.warnings(settings, {"record/embedding_std": 0.1}, Progress(50, 100)).keys() == {"record/embedding_std"}
    alone = EcgFmSettings(patient_weight=0.0)
    assert EcgFm.warnings(alone, {"record/embedding_std": 0.1}, Progress(50, 100)) == {}
    keys = [curve.key for curve in EcgFm.curves(settings)]
    assert {"code/perplexity_1", "code/perplexity_2", "record/loss"} <= set(keys)
    assert "record/loss" not in [curve.key for curve in EcgFm.curves(alone)]


def test_perplexities_count_the_codes_that_were_taken() -> None:
    objective = built(patient_weight=0.0).eval()
    with torch.no_grad():
        objective.quantiser.choose.weight.zero_()
        objective.quantiser.choose.bias.zero_()
        objective.quantiser.choose.bias[3] = 1.0
    result = objective(made(objective), AT)
    assert float(result.means["code/perplexity_1"]) == pytest.approx(1.0, abs=1e-5)
    assert float(result.means["token/loss"]) == 0.0  # one code for all: no negative is another


def test_the_noise_is_that_of_the_quantiser() -> None:
    """The forward pass uses the seeds of the views and the temperature of the step."""
    objective = built(patient_weight=0.0, token_weight=0.0, penalty_weight=0.0)
    views = made(objective, 1)
    calls: list[Tensor] = []
    look_up = objective.quantiser.look_up
    objective.quantiser.look_up = lambda chosen: calls.append(chosen) or look_up(chosen)  # type: ignore[method-assign]
    objective(views, AT)
    encoder: Any = objective.encoder
    tokens = encoder.tokens(torch.cat([views["view_1"], views["view_2"]]), views["n_valid"].repeat(2))
    masked = torch.cat([views["masked_1"], views["masked_2"]]).long()
    content = tokens.gather(1, masked[..., None].expand(-1, -1, tokens.shape[2]))
    logits = objective.quantiser.logits(objective.token_norm(content))
    noise = gumbel_noise(views["gumbel"][0], tuple(logits.shape[1:]), torch.float64)
    assert torch.equal(calls[0], straight_through(logits, code_temperature(AT, 2.0, 0.5), noise))
