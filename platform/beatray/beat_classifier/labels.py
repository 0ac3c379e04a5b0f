"""AAMI classes of the chosen heartbeats of a batch, as targets for the beat contrast.

They are computed as views are made and not when rows are decoded: a view chooses at most a few beats of each record, so
a third of the beats is classified, on the training device in one batch; decoding would classify all beats of every row
on a reader's single core, again in every epoch that streams. A class depends on the clean record alone (with
`train.lead_dropout` on the record as it was), so both views and every number of workers see the same.

Contract: `__call__(batch, index)` takes `signal_uv` (or `recorded_uv`, of all leads), `n_samples` and `r_peaks` of a
batch and the numbers (B, K) of the chosen beats, -1 for none; gives classes (B, K) int64, -1 where there is no beat,
the network is not sure (`min_probability`), a lead it needs is flat, or the class is Q, whose beats have nothing in
common.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from beatray.beat_classifier.network import CLASSES, BeatNet, cut_windows, rr_ratios
from beatray.preprocess import prepare
from beatray.record import LEADS, RATE_HZ

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class BeatLabels:
    """A trained network, the leads it reads, the classes it was shown, and how sure it must be."""

    net: BeatNet
    leads: tuple[str, ...]
    known: tuple[bool, ...]  # of CLASSES: it had beats of this class to learn from
    min_probability: float

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], index: Tensor) -> Tensor:
        signal, peaks = batch.get("recorded_uv", batch["signal_uv"]), batch["r_peaks"]
        net = self.net.to(signal.device)
        picked = signal[:, [LEADS.index(lead) for lead in self.leads]]
        x_mv = prepare(picked, rate_hz=RATE_HZ, n_samples=batch["n_samples"])
        owner, slot = (index >= 0).nonzero(as_tuple=True)
        classes = torch.full_like(index, UNKNOWN)
        if not len(owner):
            return classes
        beat = index[owner, slot]
        windows = cut_windows(x_mv, owner, peaks[owner, beat])
        found = self.decide(net(windows, rr_ratios(peaks)[owner, beat]))
        flat = (windows.amax(-1) == windows.amin(-1)).any(1)
        classes[owner, slot] = found.masked_fill(flat, UNKNOWN)
        return classes

    def decide(self, logits: Tensor) -> Tensor:
        """Logits (n, 5) -> class (n,), -1 where not sure or Q."""
        absent = ~torch.tensor(self.known, device=logits.device)
        sure, found = logits.masked_fill(absent, -torch.inf).softmax(1).max(1)
        return found.masked_fill((sure < self.min_probability) | (found == CLASSES.index("Q")), UNKNOWN)
