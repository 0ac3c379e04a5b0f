"""What failures and checkpoints cost a run on many nodes: a simulation with a virtual clock, and the closed formulas.

A run of useful work (steps that count) stops for `snapshot_s` after every `interval_s` of training; the copy is written
in the background and is safe `write_s` later, one write at a time. The whole cluster fails as a Poisson process with
mean time `mtbf_s` between failures (that of a node divided by the nodes); a failure throws away all work since the
newest safe checkpoint, a write under way included, and training goes on `restart_s` later; a failure during a restart
begins it anew.

For `write_s` = 0 the expected time is known exactly (Daly, Future Generation Computer Systems 22, 2006):

    wall = useful / interval x mtbf x exp(restart / mtbf) x (exp((interval + snapshot) / mtbf) - 1)

Near its optimum, and with a background write, the loss is to first order

    1 - goodput = snapshot / interval + (interval / 2 + write + restart) / mtbf

which is least for interval = sqrt(2 x snapshot x mtbf) (Young, Communications of the ACM 17, 1974). Since writes follow
one another, an interval shorter than `write_s` gains nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

HOPELESS = 200.0
"""Wall time over useful time beyond which a run is given up."""


@dataclass(frozen=True)
class Costs:
    """Seconds; see the module text."""

    interval_s: float
    snapshot_s: float
    write_s: float
    restart_s: float
    mtbf_s: float


def simulate(costs: Costs, useful_s: float, rng: np.random.Generator) -> float:
    """Goodput of one run: useful seconds over the seconds on the clock until all work is safe; 0 if it never ends."""
    now = done = safe = 0.0
    writing_until, writing = 0.0, 0.0  # when the write under way will be safe, and how much work is in it
    failure = rng.exponential(costs.mtbf_s)
    while safe < useful_s:
        if now > HOPELESS * useful_s:
            return 0.0
        segment = min(costs.interval_s, useful_s - done)
        trained = now + segment
        snapped = max(trained, writing_until) + costs.snapshot_s
        last = done + segment >= useful_s
        if failure >= (snapped + costs.write_s if last else snapped):
            done += segment
            safe = writing
            now, writing_until, writing = snapped, snapped + costs.write_s, done
            if last:
                now, safe = writing_until, done
            continue
        now = failure
        if writing_until <= now:
            safe = writing
        done, writing, writing_until = safe, safe, 0.0
        while True:
            failure = now + rng.exponential(costs.mtbf_s)
            if failure >= now + costs.restart_s:
                now += costs.restart_s
                break
            now = failure
            if now > HOPELESS * useful_s:
                return 0.0
    return useful_s / now


def goodput_exactly(costs: Costs) -> float:
    """Daly's formula; for checkpoints that are safe at once (`write_s` = 0)."""
    mtbf = costs.mtbf_s
    try:
        per_segment = math.exp(costs.restart_s / mtbf) * math.expm1((costs.interval_s + costs.snapshot_s) / mtbf) * mtbf
    except OverflowError:
        return 0.0
    return costs.interval_s / per_segment


def goodput_roughly(costs: Costs) -> float:
    """The first-order formula, with a background write."""
    lost = costs.interval_s / 2 + costs.write_s + costs.restart_s
    return 1 - costs.snapshot_s / costs.interval_s - lost / costs.mtbf_s


def best_interval_s(snapshot_s: float, write_s: float, mtbf_s: float) -> float:
    """Young's optimum, not shorter than a write."""
    return max(math.sqrt(2 * snapshot_s * mtbf_s), write_s)


@dataclass(frozen=True)
class Link:
    """What one message costs: seconds to begin, and seconds for each byte."""

    latency_s: float
    s_per_byte: float


@dataclass(frozen=True)
class Message:
    """One collective call of a step: `bytes` that each rank gives; `grows` if the result is of all ranks' rows."""

    kind: str  # all_reduce or all_gather
    bytes: int
    grows: bool


def seconds_on(nodes: int, message: Message, link: Link) -> float:
    """A ring of `nodes`: (n - 1) rounds to gather, 2 (n - 1) to reduce, of which each moves one part in n.

    The backward pass of a gather reduces the rows of all ranks: its size grows with the nodes.
    """
    if nodes == 1:
        return 0.0
    if message.kind == "all_gather":
        return (nodes - 1) * (link.latency_s + message.bytes * link.s_per_byte)
    size = message.bytes * nodes if message.grows else message.bytes
    return 2 * (nodes - 1) * (link.latency_s + size / nodes * link.s_per_byte)


def parallel_efficiency(nodes: int, step_s: float, messages: list[Message], link: Link) -> float:
    """Share of a step that is not spent waiting for messages; nothing is assumed to overlap."""
    return step_s / (step_s + sum(seconds_on(nodes, message, link) for message in messages))


def fit_link(sizes: list[int], seconds: list[float]) -> Link:
    """Latency and time per byte from all-reduces between two ranks: t = 2 x latency + bytes x s_per_byte."""
    slope, intercept = np.polyfit(np.array(sizes, float), np.array(seconds), 1, w=1 / np.array(seconds))
    return Link(max(intercept / 2, 0.0), max(slope, 0.0))
