"""ECG-JEPA: its loss, and what student and teacher may and may not see. What it shares: tests/unit/test_latent.py."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from jepa_oracle import jepa_loss, layer_norm, smooth_l1

from beatray.augment.draws import Draws
from beatray.models.encoder import chosen_positions
from beatray.models.registry import build_encoder
from beatray.objectives.jepa import KEPT, MASKED, NO_SIGNAL, Jepa, JepaSettings, kept
from beatray.objectives.objective import Progress
from every_method import batch_of, rows_of, views_of

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = 25
TOKENS = 40


def built(encoder: dict[str, Any] | None = None, **settings: Any) -> Jepa:
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2, "registers": 1, "bias": False, **(encoder or {})}
    return Jepa(build_encoder("vit", **sizes), JepaSettings(**{"crop_seconds": 2.0, **settings})).double()


def views(objective: Jepa, records: int = 4, epoch: int = 0) -> dict[str, torch.Tensor]:
    return views_of(objective, batch_of(objective, rows_of(7)[0], slice(0, records)), epoch, exact=True)


def of_record(objective: Jepa, made: dict[str, torch.Tensor], row: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and wanted tokens (M, D) of one recording alone, without padding, by the module's own networks."""
    one = slice(row, row + 1)
    part = made["part"][row].numpy()
    kept_at, masked_at = (torch.from_numpy(np.flatnonzero(part == which))[None] for which in (KEPT, MASKED))
    valid = torch.from_numpy(part != NO_SIGNAL)[None]
    student, teacher = objective.encoder, objective.teacher.module
    with torch.no_grad():
        tokens = student.tokens(made["view_1"][one], made["n_valid"][one])  # type: ignore[operator]
        encoded = student.encode(tokens, kept_at)  # type: ignore[operator]
        predicted = objective.predictor(encoded, kept_at, masked_at, len(part), None)
        tokens = teacher.tokens(made["view_1"][one], made["n_valid"][one])  # type: ignore[operator]
        target = teacher.encode(tokens, valid=valid)[:, masked_at[0]]  # type: ignore[operator]
    return predicted[0].numpy(), target[0].numpy()


def short(objective: Jepa) -> dict[str, torch.Tensor]:
    """Views of recordings of 40, 20, 3 and 1 tokens."""
    batch = batch_of(objective, rows_of(7)[0], slice(0, 4))
    batch["n_samples"] = torch.tensor([5000, 500, 60, 20])
    return views_of(objective, batch, exact=True)


def test_the_loss_is_that_of_the_formula() -> None:
    objective = built()
    made = views(objective)
    pairs = [of_record(objective, made, row) for row in range(4)]
    expected = jepa_loss(*(np.stack(both) for both in zip(*pairs, strict=True)))
    assert float(objective(made, Progress()).loss.detach()) == pytest.approx(expected, abs=1e-10)


def test_the_other_loss_and_targets_are_those_of_the_formula() -> None:
    objective = built(loss="smooth_l1", normalise_targets=True)
    made = views(objective)
    pairs = [of_record(objective, made, row) for row in range(4)]
    predicted, target = (np.stack(both) for both in zip(*pairs, strict=True))
    expected = smooth_l1(predicted, layer_norm(target, 1e-5))
    assert float(objective(made, Progress()).loss.detach()) == pytest.approx(expected, abs=1e-10)


def test_a_short_recording_is_masked_within_its_signal_and_counts_by_its_tokens() -> None:
    objective = built()
    made = short(objective)
    part = made["part"]
    assert [(row == NO_SIGNAL).sum().item() for row in part] == [0, 20, 37, 39]
    assert all((row[count:] == NO_SIGNAL).all() for row, count in zip(part, (40, 20, 3, 1), strict=True))
    pairs = [of_record(objective, made, row) for row in range(3)]  # the last has one token, which is kept
    assert (part[3] == MASKED).sum() == 0 and (part[3] == KEPT).sum() == 1
    predicted, target = (np.concatenate(both)[None] for both in zip(*pairs, strict=True))
    result = objective(made, Progress())
    assert float(result.loss.detach()) == pytest.approx(jepa_loss(predicted, target), abs=1e-10)
    assert float(result.counts["token/masked"]) == predicted.shape[1]
    changed = {**made, "view_1": made["view_1"].clone()}
    changed["view_1"][1, :, 520:] = 7.0  # beyond the reach of the last token that holds signal
    changed["view_1"][3, :, 40:] = -7.0
    torch.testing.assert_close(objective(changed, Progress()).loss, result.loss, atol=1e-12, rtol=1e-12)


def test_kept_and_masked_tokens_are_all_there_are() -> None:
    objective = built()
    for epoch in range(5):
        batch = batch_of(objective, rows_of(7)[0])
        ratio = 0.15 + 0.1 * Draws.of(batch, 11, epoch).shared("keep_ratio", 1)[0]
        part = views_of(objective, batch, epoch)["part"]
        assert ((part == KEPT).sum(1) == math.ceil(ratio * TOKENS)).all()
        assert ((part == MASKED).sum(1) == TOKENS - math.ceil(ratio * TOKENS)).all()


def test_the_kept_part_is_shared_by_an_epoch_and_moves_between_epochs() -> None:
    objective = built()
    counts = [(views(objective, 2, epoch)["part"] == KEPT).sum(1).tolist() for epoch in range(20)]
    assert all(len(set(both)) == 1 for both in counts)
    # rows of all epochs go through the same memory when views are made on workers
    assert {tuple(views(objective, 2, epoch)["part"].shape) for epoch in range(20)} == {(2, TOKENS)}
    assert {both[0] for both in counts} <= set(range(6, 11)) and len({both[0] for both in counts}) > 2


@pytest.mark.parametrize(
    ("cells", "ratio", "expected"),
    [(200, 0.15, 30), (200, 0.151, 31), (100, 0.07, 7), (40, 0.2, 8), (3, 0.25, 1), (2, 0.9, 1), (1, 0.2, 1)],
)
def test_how_many_are_kept(cells: int, ratio: float, expected: int) -> None:
    assert kept(np.array([cells]), ratio).tolist() == [expected]


def test_masked_blocks_are_long_and_reach_every_token() -> None:
    objective = built()
    batch = batch_of(objective, rows_of(7)[0], slice(0, 1))
    parts = np.concatenate([views_of(objective, batch, epoch)["part"].numpy() for epoch in range(200)])
    assert (parts == MASKED).any(0).all() and (parts == KEPT).any(0).all()  # the first and the last token, too
    runs = [len(list(run)) for row in parts for part, run in groupby(row.tolist()) if part == MASKED]
    assert min(runs) >= 10


def test_positions_are_in_time_order_and_marked_where_they_exist() -> None:
    chosen = torch.tensor([[False, True, False, True], [True, False, False, False]])
    at, there = chosen_positions(chosen)
    assert at[0].tolist() == [1, 3] and at[1, 0] == 0 and there.tolist() == [[True, True], [True, False]]
    assert chosen_positions(chosen[:0])[0].shape == (0, 1)
    more, known = chosen_positions(chosen, at.shape[1] + 1)
    assert torch.equal(more[:, :-1], at) and torch.equal(known[:, :-1], there) and not known[:, -1].any()


def test_what_is_masked_can_change_without_the_student_noticing_and_the_teacher_does() -> None:
    objective = built().eval()
    made = views(objective, 2)
    hidden = made["part"] == MASKED
    samples = torch.zeros(2, 1, 1000, dtype=torch.bool)
    for row, token in hidden.nonzero().tolist():
        samples[row, 0, max(token * PATCH - PATCH // 2, 0) : token * PATCH + PATCH // 2 + 1] = True
    changed = {**made, "view_1": torch.where(samples, made["view_1"] + 5.0, made["view_1"])}
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    for who, encoder in (("student", objective.encoder), ("teacher", objective.teacher.module)):
        encode: Any = encoder.encode  # type: ignore[union-attr]

        def noted(*args: Any, encode: Any = encode, who: str = who, **more: Any) -> torch.Tensor:
            seen[who].append(encode(*args, **more))
            return seen[who][-1]

        encoder.encode = noted  # type: ignore[union-attr]
    with torch.no_grad():
        for each in (made, changed):
            objective(each, Progress())
    assert torch.equal(*seen["student"]) and not torch.equal(*seen["teacher"])
    remasked = {**made, "part": views(objective, 2, epoch=3)["part"]}
    with torch.no_grad():
        objective(remasked, Progress())
    assert torch.equal(seen["teacher"][0], seen["teacher"][2])  # what is masked does not matter to the target
    assert seen["student"][0].shape != seen["student"][2].shape or not torch.equal(
        seen["student"][0], seen["student"][2]
    )


def test_where_a_token_is_masked_matters_to_its_prediction() -> None:
    objective = built()
    encoded = torch.randn(1, 2, 16, dtype=torch.float64)
    at = torch.tensor([[0, 7]]), torch.tensor([[3, 20]])
    first, second = objective.predictor(encoded, *at, TOKENS, None)[0]
    assert (first - second).abs().max() > 1e-4
    turned = objective.predictor(encoded, at[0], at[1].flip(1), TOKENS, None)[0]
    torch.testing.assert_close(turned.flip(0), torch.stack([first, second]))


def test_the_predictor_is_half_as_wide_and_otherwise_like_the_network_unless_said() -> None:
    objective = built({"width": 24, "depth": 3, "heads": 6})
    assert len(objective.predictor.mask_token) == 12 and len(objective.predictor.blocks) == 3
    assert objective.predictor.blocks[0].heads == 6
    assert [name for name, _ in objective.predictor.named_parameters() if name.endswith("bias")] == []
    predictor = built(predictor_width=20, predictor_depth=1, predictor_heads=5, predictor_bias=True).predictor
    assert (len(predictor.mask_token), len(predictor.blocks), predictor.blocks[0].heads) == (20, 1, 5)
    assert predictor.mask_token.no_decay  # type: ignore[attr-defined]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"which tiny does not; networks that can: vit$"):  # and none that keeps all
        Jepa(build_encoder("tiny"), JepaSettings())
    with pytest.raises(ValueError, match="leaves tokens out, which s4d cannot"):
        Jepa(build_encoder("s4d", width=8, layers=1, direction="bidirectional"), JepaSettings())
    with pytest.raises(ValueError, match=r"set objective\.predictor_width"):
        built({"width": 18, "heads": 2})
    with pytest.raises(ValueError, match="keep_min must not be above keep_max"):
        JepaSettings(keep_min=0.3, keep_max=0.2)
