"""Millivolts to the encoder's own scale: each lead divided by a fixed standard deviation.

A fixed number per lead, not one measured on the record: amplitude carries diagnoses (low voltage, hypertrophy), and a
view that turned the heart must be scaled like the record it came from. The numbers are the standard deviations of
PTB-XL as published with the code of Mehari and Strodthoff (Comput. Biol. Med. 2022), brought to canonical lead order.

Contract: (B, 12, T) millivolts in, same shape and type out; a lead that is zero stays zero. The numbers travel with the
weights as the buffer `lead_std_mv`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.record import LEADS

LEAD_STD_MV: dict[str, float] = {
    "I": 0.1640,
    "II": 0.1647,
    "III": 0.1713,
    "aVR": 0.1403,
    "aVL": 0.1461,
    "aVF": 0.1466,
    "V1": 0.2337,
    "V2": 0.3377,
    "V3": 0.3336,
    "V4": 0.3058,
    "V5": 0.2731,
    "V6": 0.2755,
}
"""Standard deviation of each lead over PTB-XL, millivolts."""


class LeadScale(nn.Module):
    """Divide each lead by its fixed standard deviation."""

    lead_std_mv: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lead_std_mv", torch.tensor([LEAD_STD_MV[lead] for lead in LEADS]))

    def forward(self, x_mv: Tensor) -> Tensor:
        """(B, 12, T) mV -> (B, 12, T). Raises ValueError for another number of leads."""
        if x_mv.dim() != 3 or x_mv.shape[1] != len(LEADS):
            raise ValueError(f"expected (B, {len(LEADS)}, T) millivolts, got {tuple(x_mv.shape)}")
        return x_mv / self.lead_std_mv.to(x_mv.dtype)[:, None]
