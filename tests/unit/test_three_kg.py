"""3KG: identity where it must be, the published law of the draws, and rows that know nothing of their batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beatray.augment.draws import Draws, uniform
from beatray.augment.three_kg import (
    AXIS_ORDERS,
    HeartDraws,
    apply_leads,
    axis_rotations,
    draw_heart,
    heart_matrices,
    lead_matrices,
    three_kg,
)
from beatray.augment.vcg import ecg_to_vcg, vcg_to_ecg
from beatray.record import LEADS

KEYS = np.arange(4000)


def einthoven_record(batch: int, n: int = 700) -> torch.Tensor:
    x = torch.randn(batch, 12, n, generator=torch.Generator().manual_seed(1))
    one, two = x[:, 0], x[:, 1]
    x[:, 2], x[:, 3], x[:, 4], x[:, 5] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return x


def test_residual_without_movement_is_bit_equal() -> None:
    x = torch.randn(5, 12, 1001)
    for transform in ("dower", "kors"):
        matrices = lead_matrices(np.broadcast_to(np.eye(3), (5, 3, 3)), "residual", transform)
        assert torch.equal(apply_leads(x, matrices, "residual"), x)
    still = draw_heart(Draws(KEYS[:5], 0, 0), 1)
    assert torch.equal(three_kg(x, still, angle_deg=0.0, scale=1.0), x)


def test_project_without_movement_is_the_dipole_part() -> None:
    x = torch.randn(4, 12, 300, dtype=torch.float64)
    y = three_kg(x, draw_heart(Draws(KEYS[:4], 0, 0), 1), angle_deg=0.0, scale=1.0, mode="project")
    torch.testing.assert_close(y, vcg_to_ecg(ecg_to_vcg(x)))


@pytest.mark.parametrize("kept", [["I", "II"], ["I", "II", "V2"], ["I", "II", "V1", "V3", "V5"], list(LEADS[:11])])
def test_a_dipole_without_some_leads_is_turned_as_what_is_there_tells(kept: list[str]) -> None:
    x = vcg_to_ecg(torch.randn(4, 3, 300, dtype=torch.float64))
    limbs = {"III", "aVR", "aVL", "aVF"} if {"I", "II"} <= set(kept) else set()
    absent = [k for k, lead in enumerate(LEADS) if lead not in {*kept, *limbs}]
    cut = x.clone()
    cut[:, absent] = 0
    draws = draw_heart(Draws(KEYS[:4], 0, 0), 1)
    still = three_kg(cut, draws, angle_deg=0.0, scale=1.0, mode="project")
    torch.testing.assert_close(still, cut)  # as measured zeros they would have shrunk it
    for mode in ("project", "residual"):
        turned = three_kg(cut, draws, mode=mode)
        assert not turned[:, absent].any()
        if len(kept) > 3:  # the dipole is known: the leads that are there move as in the whole record
            expected = three_kg(x, draws, mode=mode)
            expected[:, absent] = 0
            torch.testing.assert_close(turned, expected, atol=2e-3 * float(x.abs().max()), rtol=0)
    one = three_kg(cut[1:2], draw_heart(Draws(KEYS[1:2], 0, 0), 1))
    torch.testing.assert_close(one[0], three_kg(cut, draws)[1])


def test_three_thirds_of_a_turn_are_none() -> None:
    turn = axis_rotations(np.full((1, 3), np.deg2rad(120.0)))[0]
    for axis in range(3):
        np.testing.assert_allclose(np.linalg.matrix_power(turn[axis], 3), np.eye(3), atol=1e-15)
        np.testing.assert_array_equal(turn[axis] @ np.eye(3)[axis], np.eye(3)[axis])
        # right-handed: from each axis to the next
        quarter = axis_rotations(np.full((1, 3), np.pi / 2))[0, axis]
        np.testing.assert_allclose(quarter @ np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3], atol=1e-15)


def test_rotation_then_scale_in_the_drawn_order() -> None:
    draws = HeartDraws(
        order=np.array([(AXIS_ORDERS.index((2, 0, 1)) + 0.5) / 6]),
        angle=np.array([[0.9, 0.3, 0.6]]),
        scale=np.array([[0.2, 0.8, 0.5]]),
        invert=np.array([[0.9, 0.1, 0.9]]),
    )
    turn = axis_rotations(np.deg2rad(45.0 * (2 * draws.angle - 1)))[0]
    stretch = np.diag([1.1, 1 / 1.4, 1.25])
    expected = stretch @ turn[1] @ turn[0] @ turn[2]
    np.testing.assert_allclose(heart_matrices(draws, 45.0, 1.5)[0], expected, atol=1e-15)


def test_draws_follow_the_published_law() -> None:
    draws = draw_heart(Draws(KEYS, 0, 0), 1)
    heart = heart_matrices(draws, 45.0, 1.5)
    # rotations keep lengths, so the row norms are the scales
    scales = np.linalg.norm(heart, axis=2)
    assert scales.max() < 1.5
    assert scales.min() > 1 / 1.5
    assert abs((scales > 1).mean() - 0.5) < 0.02
    assert abs(np.where(scales > 1, scales, 1 / scales).mean() - 1.25) < 0.01
    counts = np.bincount((draws.order * 6).astype(int), minlength=6)
    assert counts.min() > 4000 / 6 * 0.85
    rotation = heart / scales[:, :, None]
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-12)
    assert np.abs(uniform(KEYS, 0, 0, 3, 3) - draws.angle).max() > 0.9  # another stream than that of no view


def test_one_axis_turns_at_most_by_the_angle() -> None:
    draws = HeartDraws(np.zeros(2), np.array([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]]), np.zeros((2, 3)), np.ones((2, 3)))
    heart = heart_matrices(draws, 45.0, 1.5)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(heart[1], [[1, 0, 0], [0, half, -half], [0, half, half]], atol=1e-15)
    np.testing.assert_allclose(heart[0], heart[1].T, atol=1e-15)


@pytest.mark.parametrize(("mode", "transform"), [("residual", "dower"), ("residual", "kors"), ("project", "dower")])
def test_limb_leads_stay_consistent(mode: str, transform: str) -> None:
    x = einthoven_record(6)
    y = three_kg(x, draw_heart(Draws(KEYS[:6], 1, 2), 1), mode=mode, transform=transform)  # type: ignore[arg-type]
    one, two = y[:, 0], y[:, 1]
    assert not torch.allclose(y, x, atol=0.1)
    for lead, expected in ((2, two - one), (3, -(one + two) / 2), (4, one - two / 2), (5, two - one / 2)):
        torch.testing.assert_close(y[:, lead], expected, atol=2e-6, rtol=0)


def test_residual_moves_only_the_dipole() -> None:
    x = einthoven_record(3).double()
    y = three_kg(x, draw_heart(Draws(KEYS[:3], 0, 0), 2))
    heart = torch.as_tensor(heart_matrices(draw_heart(Draws(KEYS[:3], 0, 0), 2), 45.0, 1.5))
    vcg = ecg_to_vcg(x)
    torch.testing.assert_close(y - x, vcg_to_ecg(heart @ vcg - vcg))


@pytest.mark.parametrize("n", [2500, 5000, 1237])
@pytest.mark.parametrize("mode", ["residual", "project"])
def test_a_record_alone_gives_the_same_bits(n: int, mode: str) -> None:
    x = torch.randn(64, 12, n, generator=torch.Generator().manual_seed(n))
    together = three_kg(x, draw_heart(Draws(KEYS[:64], 5, 6), 1), mode=mode)  # type: ignore[arg-type]
    for rows in (slice(0, 1), slice(63, 64), slice(10, 13), slice(0, 33)):
        apart = three_kg(x[rows], draw_heart(Draws(KEYS[:64][rows], 5, 6), 1), mode=mode)  # type: ignore[arg-type]
        assert torch.equal(apart, together[rows])


def test_wrong_settings_are_refused() -> None:
    x, draws = torch.zeros(1, len(LEADS), 10), draw_heart(Draws(KEYS[:1], 0, 0), 1)
    with pytest.raises(ValueError, match="mode=residual"):
        three_kg(x, draws, mode="project", transform="kors")
    with pytest.raises(ValueError, match="scale"):
        three_kg(x, draws, scale=0.5)
    with pytest.raises(ValueError, match="mode"):
        three_kg(x, draws, mode="both")  # type: ignore[arg-type]
