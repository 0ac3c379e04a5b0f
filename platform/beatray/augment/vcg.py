"""Between the 12-lead ECG and the vectorcardiogram (VCG): the three fixed matrices, and products with them.

The heart seen as one dipole moves in three dimensions, X to the left, Y to the feet, Z to the back; leads are
projections of it. A rotation of the heart in the chest is then a rotation of three numbers.

- `DOWER`: leads from the VCG (Dower, Machado and Osborne, Clin. Cardiol. 1980).
- `INVERSE_DOWER`: the VCG from leads (Edenbrandt and Pahlm, J. Electrocardiol. 1988); the pseudo-inverse of `DOWER`
  to within 5e-4.
- `KORS`: the VCG from leads by regression (Kors et al., Eur. Heart J. 1990; as tabulated by Jaros et al. 2019,
  Table 2). It is not an inverse of `DOWER`, and its own pseudo-inverse is a poor model of the leads (V2 far too
  small), so leads are always computed with `DOWER`.

Contract: rows or columns follow I, II, V1..V6. All leads must be on one common scale (millivolts): after a z-score of
each lead the geometry is lost. Limb leads obey III = II - I, aVR = -(I + II)/2, aVL = I - II/2, aVF = II - I/2.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beatray.record import INDEPENDENT_LEADS, LEADS

Transform = Literal["dower", "kors"]

# fmt: off
DOWER: NDArray[np.float64] = np.array([
    [0.632, -0.235, 0.059],
    [0.235, 1.066, -0.132],
    [-0.515, 0.157, -0.917],
    [0.044, 0.164, -1.387],
    [0.882, 0.098, -1.277],
    [1.213, 0.127, -0.601],
    [1.125, 0.127, -0.086],
    [0.831, 0.076, 0.230],
])
"""(8, 3): leads I, II, V1..V6 from X, Y, Z."""

INVERSE_DOWER: NDArray[np.float64] = np.array([
    [0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194],
    [-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048],
    [0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108],
])
"""(3, 8): X, Y, Z from leads I, II, V1..V6."""

KORS: NDArray[np.float64] = np.array([
    [0.38, -0.07, -0.13, 0.05, -0.01, 0.14, 0.06, 0.54],
    [-0.07, 0.93, 0.06, -0.02, -0.05, 0.06, -0.17, 0.13],
    [0.11, -0.23, -0.43, -0.06, -0.14, -0.20, -0.11, 0.31],
])
"""(3, 8): X, Y, Z from leads I, II, V1..V6, by regression."""
# fmt: on


def _all_leads_from_eight() -> NDArray[np.float64]:
    extend = np.zeros((len(LEADS), len(INDEPENDENT_LEADS)))
    extend[list(INDEPENDENT_LEADS), range(len(INDEPENDENT_LEADS))] = 1.0
    extend[2, :2] = (-1.0, 1.0)
    extend[3, :2] = (-0.5, -0.5)
    extend[4, :2] = (1.0, -0.5)
    extend[5, :2] = (-0.5, 1.0)
    return extend


LEADS_FROM_EIGHT: NDArray[np.float64] = _all_leads_from_eight()
"""(12, 8): all leads in canonical order from I, II, V1..V6 (Einthoven and Goldberger)."""


def vcg_matrix(method: Transform) -> NDArray[np.float64]:
    """(3, 8) matrix from I, II, V1..V6 to X, Y, Z. Raises ValueError for another name."""
    if method == "dower":
        return INVERSE_DOWER
    if method == "kors":
        return KORS
    raise ValueError(f"transform must be 'dower' or 'kors', not {method!r}")


@cache
def vcg_of_some_leads() -> NDArray[np.float64]:
    """(256, 3, 8): X, Y, Z from those of I, II, V1..V6 that are there: bit k of the first index is lead k.

    The smallest dipole that fits them best, by the pseudo-inverse of their rows of `DOWER`: with three leads or fewer
    one that gives them back exactly. Columns of absent leads are zero.
    """
    there = (np.arange(1 << len(DOWER))[:, None] >> np.arange(len(DOWER)) & 1).astype(bool)
    inverse: NDArray[np.float64] = np.linalg.pinv(DOWER * there[:, :, None]) * there[:, None, :]
    return inverse


def ecg_to_vcg(ecg: Tensor, method: Transform = "dower") -> Tensor:
    """Vectorcardiogram of a batch: (B, 12, T) canonical or (B, 8, T) independent leads in mV -> (B, 3, T) in mV.

    `dower` is the inverse Dower matrix, `kors` the regression. Raises ValueError for another number of leads.
    """
    if ecg.shape[-2] == len(LEADS):
        ecg = ecg[..., list(INDEPENDENT_LEADS), :]
    elif ecg.shape[-2] != len(INDEPENDENT_LEADS):
        raise ValueError(f"ecg must hold 12 leads or the 8 independent ones, not {ecg.shape[-2]}")
    return torch.as_tensor(vcg_matrix(method), dtype=ecg.dtype, device=ecg.device) @ ecg


def vcg_to_ecg(vcg: Tensor) -> Tensor:
    """All twelve leads of a dipole: (B, 3, T) -> (B, 12, T), same unit, by Dower's matrix."""
    forward = torch.as_tensor(LEADS_FROM_EIGHT @ DOWER, dtype=vcg.dtype, device=vcg.device)
    return forward @ vcg
