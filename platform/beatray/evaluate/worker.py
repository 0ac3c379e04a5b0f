"""One job of the evaluation: an arm of a task with one seed, over all its label fractions.

An arm is what the head reads: the encoder under test, the same from random weights, measured features, or the encoder
under test with permuted training labels. The label subsets depend on the seed alone, so every arm sees the same ones.

Contract: positions in `TaskData`; nothing of the test part's truth is read before the predictions are made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.evaluate import choose, classify, segment
from beatray.evaluate.encoders import EncoderSpec, build, feature_maps, pooled_features
from beatray.evaluate.metrics import SegmentCounts, segment_counts
from beatray.evaluate.probe import chosen_probe
from beatray.evaluate.results import METRICS, Decisions, Run, score
from beatray.evaluate.settings import EvaluateSettings, FitSettings
from beatray.evaluate.split import Index, nested_fractions, patient_folds
from beatray.evaluate.tasks import TaskData
from beatray.evaluate.waves import joined, wave_counts, wave_scores
from beatray.models.encoder import Encoder

KEPT = 4
"""Encoders whose frozen outputs a worker remembers."""


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


class Worker:
    """Runs jobs over the tasks' data; remembers the frozen outputs of the last few encoders."""

    def __init__(self, tasks: dict[str, TaskData], settings: EvaluateSettings) -> None:
        self.tasks = tasks
        self.settings = settings
        self.signals = {name: np.load(data.signals, mmap_mode="r") for name, data in tasks.items()}
        self.kept: dict[tuple[str, str, int], Any] = {}

    def run(self, job: Job) -> list[Run]:
        """All runs of one job, one per label fraction; the caller's random generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            return self._runs(job)

    def _runs(self, job: Job) -> list[Run]:
        settings = self.settings
        if job.task == "segment":
            in_folds = fold_subsets(self.tasks["segment"], settings, job.seed)
            return [self._segment_run(job, fraction, folds) for fraction, folds in in_folds.items()]
        data = self.tasks[job.task]
        at_least = 1 if len(data.validation) else 2  # inner folds need two patients
        subsets = classify.label_subsets(
            data.patients, data.train, settings.classify_subsample, settings.classify_fractions, job.seed, at_least
        )
        return [self._classify_run(job, fraction, train) for fraction, train in subsets.items()]

    def _segment_run(self, job: Job, fraction: float, folds: list[tuple[Index, Index]]) -> Run:
        data, settings, began = self.tasks[job.task], self.settings, time.monotonic()
        counts, waves, labelled = [], [], []
        for train, test in folds:
            labelled.append(self._segment(job, data, train, test))
            by_mask = (-1, labelled[-1].shape[-1])
            truth, found = data.truth[test].reshape(by_mask), labelled[-1].reshape(by_mask)
            counts.append(segment_counts(truth, found))
            waves.append(wave_counts(truth, found))
        tested = np.concatenate([test for _, test in folds])
        masks = len(np.atleast_2d(data.truth[0]))
        order = (np.argsort(tested)[:, None] * masks + np.arange(masks)).ravel()  # rows back into the part's order
        outcome = SegmentCounts(
            *(np.concatenate([getattr(c, name) for c in counts])[order] for name in ("both", "truth", "predicted"))
        )
        in_order = joined(waves, order)
        first = (job.arm, job.protocol, job.seed) == ("pretrained", "frozen", settings.seeds_of("segment", "frozen")[0])
        kept = first and masks == 1 and fraction == max(settings.segment_fractions)
        fold_scores = tuple({name: score(c, None)[name] for name in METRICS["segment"]} for c in counts)
        return Run(
            **self._named(job, fraction, began),
            train_records=round(float(np.mean([len(train) for train, _ in folds]))),
            outcome=outcome,
            metrics={**score(outcome, None), **wave_scores(in_order)},
            predictions=np.concatenate(labelled)[order] if kept else None,
            waves=in_order,
            fold_scores=fold_scores if settings.segment.folds else (),
        )

    def _classify_run(self, job: Job, fraction: float, train: Index) -> Run:
        data, began = self.tasks[job.task], time.monotonic()
        outcome = self._classify(job, data, train)
        return Run(
            **self._named(job, fraction, began),
            train_records=len(train),
            outcome=outcome,
            metrics=score(outcome, data.truth[data.test]),
            train_positives=tuple(data.truth[train].sum(axis=0).tolist()),
        )

    def _named(self, job: Job, fraction: float, began: float) -> dict[str, Any]:
        return {
            "task": job.task,
            "protocol": job.protocol,
            "arm": job.arm,
            "encoder": job.spec.label if job.spec else job.arm,
            "architecture": job.spec.random().key() if job.spec else "",
            "fraction": fraction,
            "seed": job.seed,
            "seconds": time.monotonic() - began,
        }

    def _segment(self, job: Job, data: TaskData, train: Index, test: Index) -> NDArray[np.int8]:
        settings, x_mv = self.settings, self.signals[job.task]
        encoder, spec = self._encoder(job)
        if job.protocol in ("linear", "frozen"):
            maps = self._remembered(job, lambda: feature_maps(encoder, x_mv, settings.device))
            depth = 0 if job.protocol == "linear" else segment.DECODER_DEPTH
            decoder = segment.train_decoder(
                maps[train], data.truth[train], encoder.stride, settings.decoder, job.seed, settings.device, depth
            )
            return segment.predict_from_maps(decoder, maps[test], x_mv.shape[2], settings.device)
        fit = settings.segment_finetune
        model = segment.finetune(
            encoder, x_mv, data.truth, train, fit, encoder_rate(spec, fit), job.seed,
            decoder=settings.finetune_decoder, bf16=settings.bf16, device=settings.device,
        )  # fmt: skip
        return segment.predict(model, x_mv[test], settings.device)

    def _classify(self, job: Job, data: TaskData, train: Index) -> Decisions:
        settings, x_mv = self.settings, self.signals[job.task]
        folds = choose.held_out(train, data.validation)
        if not len(data.validation):
            folds = choose.inner_folds(data.patients, train, settings.inner_folds, job.seed)
        if job.protocol == "finetune":
            _, spec = self._encoder(job)
            fit = settings.classify_finetune
            rates = [encoder_rate(spec, fit) * factor for factor in settings.classify.rate_factors]
            model, thresholds = classify.finetune(
                lambda: build(spec, job.seed), x_mv, data.n_samples, data.truth, train, folds[0], fit, rates, job.seed,
                bf16=settings.bf16, device=settings.device,
            )  # fmt: skip
            return Decisions(classify.predict(model, x_mv, data.n_samples, data.test, settings.device), thresholds)
        features = data.features
        if job.arm != "features":
            encoder, _ = self._encoder(job)
            features = self._remembered(
                job, lambda: pooled_features(encoder, x_mv, data.n_samples, settings.pooling, settings.device)
            )
        truth = classify.shuffled_labels(data.truth, train, job.seed) if job.arm == "shuffled" else data.truth
        found = chosen_probe(job.protocol, features, truth, train, folds, settings, job.seed)
        return Decisions(found.scores(features[data.test]), found.thresholds)

    def _encoder(self, job: Job) -> tuple[Encoder, EncoderSpec]:
        if job.spec is None:
            raise ValueError(f"{job.name()} needs an encoder")
        return build(job.spec, job.seed), job.spec

    def _remembered(self, job: Job, compute: Any) -> Any:
        """The frozen outputs of a job's encoder; weights from a folder are the same for every seed."""
        spec = job.spec
        key = (job.task, spec.key() if spec else "", job.seed if spec and spec.weights is None else -1)
        if key not in self.kept:
            while len(self.kept) >= KEPT:
                self.kept.pop(next(iter(self.kept)))
            self.kept[key] = compute()
        return self.kept[key]


def fold_subsets(data: TaskData, settings: EvaluateSettings, seed: int) -> dict[float, list[tuple[Index, Index]]]:
    """For each label fraction of the segmentation the (train, test) pairs of one repeat: one, or one per fold.

    A fold's model trains on everything outside the fold: the records that are never tested, and those of other folds.
    """
    fractions, folds = settings.segment_fractions, settings.segment.folds
    if not folds:
        parts = nested_fractions(data.patients, data.train, fractions, seed)
        return {fraction: [(train, data.test)] for fraction, train in parts.items()}
    found: dict[float, list[tuple[Index, Index]]] = {fraction: [] for fraction in fractions}
    for others, tested in patient_folds(data.patients, data.test, folds, seed):
        pool = np.concatenate([data.train, data.test[others]])
        for fraction, train in nested_fractions(data.patients, pool, fractions, seed).items():
            found[fraction].append((train, data.test[tested]))
    return found


def encoder_rate(spec: EncoderSpec, settings: FitSettings) -> float:
    """The learning rate that suits where the encoder starts from."""
    return settings.scratch_rate if spec.weights is None else settings.encoder_rate


def start_process() -> None:
    """Settings of a worker process: one thread, since there is one process per core."""
    torch.set_num_threads(1)
