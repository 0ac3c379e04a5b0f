"""3KG: views of a record as if the heart lay turned and stretched in the chest.

Gopal et al., "3KG: Contrastive Learning of 12-Lead Electrocardiograms using Physiologically-Inspired Augmentations",
PMLR 158, 2021. The leads go to the vectorcardiogram, are rotated about the three axes (each angle uniform in
+-`angle_deg`, the order of the axes uniform over the six), then scaled along each axis (uniform in 1..`scale`,
inverted with probability 1/2), and come back as leads.

All of it is linear and the same at every sample, so the product of the matrices is formed first, in float64, and one
(12, 12) matrix per record is applied in one batched product. Time is untouched: beat positions stay valid.

- `project` (the paper): x' = D M V x. Even without rotation it loses whatever is not a dipole: 12 % of the energy of a
  PTB-XL record in the median.
- `residual` (default): x' = x + D (M - I) V x. Identity, bit for bit, for M = I.

D is Dower's matrix, V its published inverse or Kors' regression (`vcg.py`). Kors with `project` is refused: D does not
invert Kors, so even M = I would turn and shrink the heart. Of a record without some of the eight independent leads V
is what the others tell of the dipole (`vcg.vcg_of_some_leads`): zeros in their place would be measured as such.

Contract: x_mv (B, 12, T), canonical leads on one scale. Derived limb leads follow I and II: in `project` they are
computed from them, in `residual` their change is, so that a record which obeys Einthoven still does, to rounding.
Row b of the result depends on row b alone, whatever the batch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.augment.draws import Draws
from beatray.augment.vcg import DOWER, LEADS_FROM_EIGHT, Transform, vcg_matrix, vcg_of_some_leads
from beatray.record import INDEPENDENT_LEADS, LEADS

Mode = Literal["residual", "project"]

AXIS_ORDERS: tuple[tuple[int, ...], ...] = tuple(itertools.permutations(range(3)))


@dataclass(frozen=True, slots=True)
class HeartDraws:
    """Uniform numbers in [0, 1) that place the heart of each record: `order` (B,), the others (B, 3) for X, Y, Z."""

    order: NDArray[np.float64]
    angle: NDArray[np.float64]
    scale: NDArray[np.float64]
    invert: NDArray[np.float64]


def draw_heart(draws: Draws, view: int) -> HeartDraws:
    """The position of the heart of each record in one view (1, 2, ...)."""
    return HeartDraws(
        order=draws.uniform("axis_order", 1, view)[:, 0],
        angle=draws.uniform("angle", 3, view),
        scale=draws.uniform("scale", 3, view),
        invert=draws.uniform("scale_invert", 3, view),
    )


def axis_rotations(angle_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right-handed rotations about X, Y and Z: (B, 3) angles -> (B, 3 axes, 3, 3)."""
    turn = np.zeros((*angle_rad.shape, 3, 3))
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[:, axis, axis, axis] = 1.0
        turn[:, axis, first, first] = turn[:, axis, second, second] = cosine[:, axis]
        turn[:, axis, second, first] = sine[:, axis]
        turn[:, axis, first, second] = -sine[:, axis]
    return turn


def heart_matrices(draws: HeartDraws, angle_deg: float, scale: float) -> NDArray[np.float64]:
    """diag(s) R of each record: (B, 3, 3), acting on X, Y, Z columns. `scale` must be at least 1."""
    if scale < 1.0:
        raise ValueError(f"scale must be at least 1 (it is inverted half of the time), not {scale}")
    turn = axis_rotations(np.deg2rad(angle_deg) * (2.0 * draws.angle - 1.0))
    order = np.array(AXIS_ORDERS)[(draws.order * len(AXIS_ORDERS)).astype(np.int64)]
    first, second, third = (np.take_along_axis(turn, order[:, i, None, None, None], axis=1)[:, 0] for i in range(3))
    stretch = 1.0 + (scale - 1.0) * draws.scale
    stretch = np.where(draws.invert < 0.5, 1.0 / stretch, stretch)
    rotated: NDArray[np.float64] = stretch[:, :, None] * (third @ second @ first)
    return rotated


@dataclass(frozen=True, slots=True)
class LeadMatrices:
    """Products that act on the leads of each record: D M V (B, 12, 12) where all leads are there, D M (B, 12, 3) for
    another V. Columns of the derived limb leads are zero."""

    whole: NDArray[np.float64]
    of_dipole: NDArray[np.float64]


def lead_matrices(heart: NDArray[np.float64], mode: Mode, transform: Transform) -> LeadMatrices:
    """From heart matrices (B, 3, 3) to matrices on canonical leads.

    `project`: the view itself. `residual`: the change D (M - I) V to add to the record. Raises ValueError for another
    mode and for `project` with `kors`.
    """
    if mode not in ("residual", "project"):
        raise ValueError(f"mode must be 'residual' or 'project', not {mode!r}")
    if mode == "project" and transform != "dower":
        raise ValueError("mode=project needs transform=dower: Dower's matrix does not invert Kors'; use mode=residual")
    moved = heart - np.eye(3) if mode == "residual" else heart
    matrices = np.zeros((len(heart), len(LEADS), len(LEADS)))
    of_dipole = LEADS_FROM_EIGHT @ DOWER @ moved
    matrices[:, :, list(INDEPENDENT_LEADS)] = of_dipole @ vcg_matrix(transform)
    return LeadMatrices(matrices, of_dipole)


def apply_leads(x_mv: Tensor, matrices: LeadMatrices, mode: Mode) -> Tensor:
    """One batched product: (B, 12, T) and the matrices of each record -> a new tensor (B, 12, T), same type and device.

    A lead that is zero throughout stays so, and says nothing of the dipole.
    """

    def there_as(values: NDArray[np.float64]) -> Tensor:
        return torch.as_tensor(values, dtype=x_mv.dtype).to(x_mv.device, non_blocking=True)

    there = (x_mv != 0).any(-1)
    eight = there[:, list(INDEPENDENT_LEADS)]
    bits = (eight * (1 << torch.arange(len(INDEPENDENT_LEADS), device=x_mv.device))).sum(1)
    of_some = torch.zeros_like(lead_by_lead := there_as(matrices.whole))
    of_some[:, :, list(INDEPENDENT_LEADS)] = there_as(matrices.of_dipole) @ there_as(vcg_of_some_leads())[bits]
    lead_by_lead = torch.where(eight.all(1)[:, None, None], lead_by_lead, of_some)
    lead_by_lead = lead_by_lead * there[..., None]  # what was not recorded is not made up from the rest
    if mode == "residual":
        return torch.baddbmm(x_mv, lead_by_lead, x_mv)
    return torch.bmm(lead_by_lead, x_mv)


def three_kg(
    x_mv: Tensor,
    draws: HeartDraws,
    angle_deg: float = 45.0,
    scale: float = 1.5,
    mode: Mode = "residual",
    transform: Transform = "dower",
) -> Tensor:
    """One 3KG view (without the time mask) of each record: (B, 12, T) mV -> new (B, 12, T) mV.

    Raises ValueError for a scale below 1, an unknown mode or transform, and `project` with `kors`.
    """
    return apply_leads(x_mv, lead_matrices(heart_matrices(draws, angle_deg, scale), mode, transform), mode)
