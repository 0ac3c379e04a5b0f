"""A small network that classifies a heartbeat (AAMI) by a window around its R-peak and its two RR intervals.

Morphology alone cannot distinguish a premature atrial beat from a normal one, so beside the window go the intervals to
the beat before and after, each relative to the median interval of the 10 s around (de Chazal, O'Dwyer and Reilly, IEEE
TBME 51:1196-1206, 2004, use such ratios). Some 8,000 weights: it sees few beats of most classes.

Contract: `windows` (n, leads, WINDOW) prepared millivolts at 500 Hz with the R-peak at sample BEFORE, zero outside the
recording; `rr` (n, 2) from `rr_ratios`; logits (n, 5) in the order of CLASSES. Peaks are (B, P) int64, -1 behind the
last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beatray.record import RATE_HZ

CLASSES = ("N", "S", "V", "F", "Q")
BEFORE, AFTER = round(0.3 * RATE_HZ), round(0.5 * RATE_HZ)
WINDOW = BEFORE + AFTER
RR_LIMITS = (0.25, 4.0)
_DECIMATE = 4
_SCALE_MV = 0.25


class BeatNet(nn.Module):
    """Three convolutions at 125 Hz, mean and maximum over time, the RR ratios, one hidden layer."""

    def __init__(self, leads: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.AvgPool1d(_DECIMATE),
            nn.Conv1d(leads, 16, 9, padding=4),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(16, 24, 5, padding=2),
            nn.GroupNorm(4, 24),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(24, 24, 5, padding=2),
            nn.GroupNorm(4, 24),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(48 + 2, 32), nn.ReLU(), nn.Linear(32, len(CLASSES)))

    def forward(self, windows: Tensor, rr: Tensor) -> Tensor:
        """Logits (n, 5)."""
        maps = self.features(windows / _SCALE_MV)
        scores: Tensor = self.head(torch.cat([maps.mean(-1), maps.amax(-1), rr.log()], dim=1))
        return scores


def cut_windows(x_mv: Tensor, owner: Tensor, peak: Tensor) -> Tensor:
    """Windows (n, leads, WINDOW) around samples `peak` (n,) of the recordings `owner` (n,) in x_mv (B, leads, T)."""
    padded = nn.functional.pad(x_mv, (BEFORE, AFTER))
    at = peak[:, None] + torch.arange(WINDOW, device=peak.device)  # the padding moves everything by BEFORE
    return padded[owner[:, None, None], torch.arange(x_mv.shape[1], device=peak.device)[None, :, None], at[:, None, :]]


def rr_ratios(r_peaks: Tensor) -> Tensor:
    """Interval before and after each beat over the record's median interval: (B, P) -> (B, P, 2); 1 where unknown."""
    steps = (r_peaks[:, 1:] - r_peaks[:, :-1]).float()
    steps = torch.where(r_peaks[:, 1:] >= 0, steps, torch.nan)
    edge = steps.new_full((len(r_peaks), 1), torch.nan)
    both = torch.stack([torch.cat([edge, steps], 1), torch.cat([steps, edge], 1)], dim=2)
    usual = steps.nanmedian(dim=1).values if steps.shape[1] else edge[:, 0]
    return (both / usual[:, None, None]).nan_to_num(1.0).clamp(*RR_LIMITS)
