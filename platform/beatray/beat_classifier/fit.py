"""Train the beat classifier on annotated recordings and measure it on beats it did not see.

With ten recordings or more, whole recordings are held out (every fifth by name), as is usual. With fewer, the last 30 %
of each recording are held out in time: such a test knows the very person, electrodes and beat shapes from training, and
its figures show only that training worked, not how beats of other people are classified. The result states which of the
two it was.

Contract: `fit` is deterministic in (beats, settings) on one machine with one thread; returns the classifier, and a
report as plain JSON: counts by class, confusion [true][found] of the held-out beats, sensitivity and predictive value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from beatray.beat_classifier.annotations import JITTER, AnnotatedBeats
from beatray.beat_classifier.labels import BeatLabels
from beatray.beat_classifier.network import CLASSES, WINDOW, BeatNet

BY_RECORD_FROM = 10
HELD_OUT_TIME = 0.3
SPLITS = {
    "record": "whole recordings held out: every fifth by name",
    "time": "the last 30 % of each recording held out. This is weak: training saw the same people, electrodes and beat "
    "shapes, so these figures are no estimate for anybody else's beats",
}


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How it is trained; `least` beats of a class are needed for the class to be learnt at all."""

    epochs: int = 12
    batch_size: int = 256
    rate: float = 2e-3
    weight_decay: float = 1e-2
    least: int = 20
    min_probability: float = 0.6
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Windows:
    windows: torch.Tensor
    rr: torch.Tensor
    kind: torch.Tensor


def fit(
    recordings: list[AnnotatedBeats], leads: tuple[str, ...], settings: FitSettings
) -> tuple[BeatLabels, dict[str, Any]]:
    """Train and measure. Raises ValueError where fewer than two classes have enough beats to learn from."""
    how = "record" if len(recordings) >= BY_RECORD_FROM else "time"
    train, test = _split(recordings, how)
    counts = torch.bincount(train.kind, minlength=len(CLASSES))
    known = tuple(bool(count >= settings.least) for count in counts)
    if sum(known) < 2:
        counted = ", ".join(f"{name} {int(count)}" for name, count in zip(CLASSES, counts, strict=True))
        raise ValueError(f"two classes with {settings.least} beats each are needed to learn from; there are {counted}")
    torch.manual_seed(settings.seed)
    net = BeatNet(len(leads))
    _train(net, train, counts, known, settings)
    labels = BeatLabels(net.eval(), leads, known, settings.min_probability)
    with torch.no_grad():
        middle = test.windows[..., JITTER : JITTER + WINDOW]
        logits = torch.cat([net(w, r) for w, r in zip(middle.split(4096), test.rr.split(4096), strict=True)])
    absent = ~torch.tensor(known)
    confusion = _confusion(test.kind, logits.masked_fill(absent, -torch.inf).argmax(1))
    report = {
        "split": how,
        "split_means": SPLITS[how],
        "recordings": [one.name for one in recordings],
        "train_beats": _by_class(counts),
        "test_beats": _by_class(torch.bincount(test.kind, minlength=len(CLASSES))),
        "confusion": confusion.tolist(),
        "sensitivity": _shares(confusion, axis=1),
        "predictive_value": _shares(confusion, axis=0),
        "unsure": float((labels.decide(logits) < 0).float().mean()) if len(logits) else 0.0,
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
    }
    return labels, report


def _split(recordings: list[AnnotatedBeats], how: str) -> tuple[_Windows, _Windows]:
    train: list[tuple[AnnotatedBeats, slice]] = []
    test: list[tuple[AnnotatedBeats, slice]] = []
    for number, one in enumerate(sorted(recordings, key=lambda each: each.name)):
        if how == "record":
            (test if number % 5 == 4 else train).append((one, slice(None)))
        else:
            cut = round((1.0 - HELD_OUT_TIME) * len(one.kind))
            train.append((one, slice(0, cut)))
            test.append((one, slice(cut, None)))
    return _joined(train), _joined(test)


def _joined(parts: list[tuple[AnnotatedBeats, slice]]) -> _Windows:
    return _Windows(
        *(
            torch.from_numpy(np.concatenate([getattr(one, name)[chosen] for one, chosen in parts]))
            for name in ("windows", "rr", "kind")
        )
    )


def _train(net: BeatNet, part: _Windows, counts: torch.Tensor, known: tuple[bool, ...], settings: FitSettings) -> None:
    """Cross-entropy with weights of one over the root of a class's beats; windows moved and scaled at random."""
    usable = torch.tensor(known)[part.kind]
    windows, rr, kind = part.windows[usable], part.rr[usable], part.kind[usable]
    weight = torch.where(torch.tensor(known), counts.clamp_min(1).float().rsqrt(), 0.0)
    loss_of = nn.CrossEntropyLoss(weight / weight.sum())
    optimiser = torch.optim.AdamW(net.parameters(), settings.rate, weight_decay=settings.weight_decay)
    per_epoch = -(-len(kind) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, settings.epochs * per_epoch)
    draws = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(kind), generator=draws).split(settings.batch_size):
            start = torch.randint(0, 2 * JITTER + 1, (len(chosen),), generator=draws)
            at = (start[:, None] + torch.arange(WINDOW))[:, None, :].expand(-1, windows.shape[1], -1)
            scale = torch.empty(len(chosen), 1, 1).uniform_(0.7, 1.4, generator=draws)
            loss = loss_of(net(windows[chosen].gather(2, at) * scale, rr[chosen]), kind[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()


def _confusion(true: torch.Tensor, found: torch.Tensor) -> NDArray[np.int64]:
    flat = torch.bincount(true * len(CLASSES) + found, minlength=len(CLASSES) ** 2)
    table: NDArray[np.int64] = flat.view(len(CLASSES), len(CLASSES)).numpy()
    return table


def _shares(confusion: NDArray[np.int64], axis: int) -> dict[str, float | None]:
    """Right ones of all true (axis 1) or of all found (axis 0), None where there are none."""
    totals, right = confusion.sum(axis=axis), np.diag(confusion)
    return {name: round(float(r / t), 4) if t else None for name, r, t in zip(CLASSES, right, totals, strict=True)}


def _by_class(counts: torch.Tensor) -> dict[str, int]:
    return {name: int(count) for name, count in zip(CLASSES, counts, strict=True)}
