"""The VCG matrices: each is what its paper says, and they belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beatray.augment.vcg import DOWER, INVERSE_DOWER, KORS, LEADS_FROM_EIGHT, ecg_to_vcg, vcg_to_ecg
from beatray.record import INDEPENDENT_LEADS, LEADS


def test_inverse_dower_inverts_dower() -> None:
    np.testing.assert_allclose(INVERSE_DOWER @ DOWER, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(INVERSE_DOWER, np.linalg.pinv(DOWER), atol=5e-4)


def test_kors_is_no_inverse_of_dower_but_near_it() -> None:
    expected = [[0.970, -0.111, 0.129], [0.088, 1.005, -0.082], [0.002, -0.378, 0.894]]
    np.testing.assert_allclose(KORS @ DOWER, expected, atol=1e-3)


def test_leads_from_eight_are_einthoven_and_goldberger() -> None:
    eight = np.random.default_rng(0).normal(size=8)
    lead = dict(zip(LEADS, LEADS_FROM_EIGHT @ eight, strict=True))
    np.testing.assert_array_equal([lead[LEADS[i]] for i in INDEPENDENT_LEADS], eight)
    assert lead["III"] == lead["II"] - lead["I"]
    assert lead["aVR"] == pytest.approx(-(lead["I"] + lead["II"]) / 2)
    assert lead["aVL"] == pytest.approx((lead["I"] - lead["III"]) / 2)
    assert lead["aVF"] == pytest.approx((lead["II"] + lead["III"]) / 2)


def test_round_trip_of_a_dipole_is_exact() -> None:
    vcg = torch.randn(3, 3, 40, dtype=torch.float64)
    ecg = vcg_to_ecg(vcg)
    assert ecg.shape == (3, 12, 40)
    torch.testing.assert_close(ecg_to_vcg(ecg), vcg, atol=5e-3, rtol=0)
    torch.testing.assert_close(ecg_to_vcg(ecg[:, list(INDEPENDENT_LEADS)]), ecg_to_vcg(ecg))


def test_axes_point_left_down_and_back() -> None:
    left, down, back = vcg_to_ecg(torch.eye(3, dtype=torch.float64)[:, :, None])[:, :, 0]
    lead = {name: i for i, name in enumerate(LEADS)}
    assert left[lead["I"]] > 0.5 < left[lead["V6"]]
    assert down[lead["aVF"]] > 0.5
    assert back[lead["V2"]] < -0.5


def test_wrong_shapes_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="12 leads or the 8"):
        ecg_to_vcg(torch.zeros(1, 3, 10))
    with pytest.raises(ValueError, match="dower"):
        ecg_to_vcg(torch.zeros(1, 12, 10), "frank")  # type: ignore[arg-type]
