"""What there is to do: one job for each task, protocol, arm, encoder and seed.

An arm is what the head reads: the encoder under test, the same from random weights, measured features, the encoder
under test together with measured features (joined), or the encoder under test with permuted training labels. One random
control serves all encoders of one architecture.

Contract: jobs are small and picklable; slow ones come first, so that no worker is left with a long one at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beatray.evaluate.encoders import EncoderSpec
from beatray.evaluate.settings import PROBES, EvaluateSettings


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker does in one go. `spec` is None for measured features."""

    task: str
    protocol: str
    arm: str
    spec: EncoderSpec | None
    seed: int

    def name(self) -> str:
        """For progress lines."""
        return f"{self.task} {self.protocol} {self.spec.label if self.arm == 'pretrained' and self.spec else self.arm}"


def plan(tasks: Sequence[str], encoders: Sequence[EncoderSpec], settings: EvaluateSettings) -> list[Job]:
    """All jobs, with those of the controls if `settings.controls`; the slow ones first, so that no worker is left
    with a long one at the end."""
    arms = [("pretrained", spec) for spec in encoders if spec.weights is not None]
    if settings.controls:
        arms += [("random", spec) for spec in {spec.random().key(): spec.random() for spec in encoders}.values()]
    jobs: list[Job] = []
    for protocol in sorted(settings.protocols):  # "finetune" comes first
        for task in sorted(tasks, reverse=True):
            seeds = settings.seeds_of(task, protocol)
            if (task, protocol) in (("classify", "linear"), ("segment", "mlp"), ("segment", "knn")):
                continue
            jobs += [Job(task, protocol, arm, spec, seed) for arm, spec in arms for seed in seeds]
            if task == "classify" and protocol in PROBES:
                jobs += [
                    Job(task, protocol, "joined", spec, seed)
                    for arm, spec in arms
                    if arm == "pretrained"
                    for seed in seeds
                ]
            if settings.controls and task == "classify" and protocol in PROBES:
                jobs += [Job(task, protocol, "features", None, seed) for seed in seeds]
                shuffled = [(spec, number) for _, spec in arms[:1] for number in range(settings.shuffles)]
                jobs += [Job(task, protocol, "shuffled", spec, number) for spec, number in shuffled]
    return jobs
