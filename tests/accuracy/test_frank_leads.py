"""The VCG computed from twelve leads against Frank leads measured at the same time (PTB Diagnostic ECG Database)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from scipy.signal import resample_poly

from beatray.augment.vcg import Transform, ecg_to_vcg, vcg_to_ecg
from beatray.preprocess import prepare
from beatray.record import LEAD_INDEX

# correlation with the measured X, Y, Z to reach on this record, an acute infarction; the dipole explains Z worst
FLOORS: dict[Transform, tuple[float, float, float]] = {"dower": (0.94, 0.96, 0.3), "kors": (0.97, 0.94, 0.7)}


@pytest.fixture(scope="module")
def leads_and_frank(data_dir: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Record s0010_re at 500 Hz without wander: (1, 12, T) mV in canonical order and measured X, Y, Z (3, T) mV."""
    record = wfdb.rdrecord(str(data_dir / "misc" / "ptbdb" / "s0010_re"))
    signal_uv = torch.as_tensor(resample_poly(record.p_signal.T, 1, 2, axis=1) * 1000.0)
    order = {name.lower(): i for i, name in enumerate(record.sig_name)}
    twelve = signal_uv[[order[name] for name in LEAD_INDEX]][None]
    frank = signal_uv[[order[name] for name in ("vx", "vy", "vz")]][None]
    return prepare(twelve), prepare(frank)[0].numpy()


@pytest.mark.parametrize("method", ["dower", "kors"])
def test_computed_axes_follow_the_measured_ones(
    leads_and_frank: tuple[torch.Tensor, np.ndarray], method: Transform
) -> None:
    ecg, frank = leads_and_frank
    vcg = ecg_to_vcg(ecg, method)[0].numpy()
    for axis, floor in enumerate(FLOORS[method]):
        assert np.corrcoef(vcg[axis], frank[axis])[0, 1] > floor, "XYZ"[axis]
        # the same heart at the same size: regression slope through the origin
        slope = float(vcg[axis] @ frank[axis] / (frank[axis] @ frank[axis]))
        assert 0.4 < slope < 1.8, "XYZ"[axis]


def test_measured_frank_leads_give_back_leads(leads_and_frank: tuple[torch.Tensor, np.ndarray]) -> None:
    ecg, frank = leads_and_frank
    leads = vcg_to_ecg(torch.as_tensor(frank)[None])[0].numpy()
    for name, floor in (("i", 0.9), ("ii", 0.9), ("avl", 0.9), ("avf", 0.95), ("v4", 0.9)):
        lead = LEAD_INDEX[name]
        assert np.corrcoef(leads[lead], ecg[0, lead].numpy())[0, 1] > floor, name
