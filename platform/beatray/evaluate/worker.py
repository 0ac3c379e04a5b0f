"""One unit of work of the evaluation: a variant of a task with one seed, over all its label fractions.

A variant is what the head reads: the encoder under test, the same from random weights, measured features, the encoder
under test together with measured features, or the encoder under test with permuted training labels. The label
subsets depend on the seed alone, so every variant sees the same ones.

Contract: units are small and picklable; positions in `TaskData`; nothing of the test part's truth is read before the
predictions are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beatray.evaluate import classify, segment
from beatray.evaluate.encoders import EncoderSpec, build
from beatray.evaluate.metrics import SegmentCounts, segment_counts
from beatray.evaluate.outputs import Outputs, Source, source_of
from beatray.evaluate.probes import chosen_probe, held_out, inner_folds
from beatray.evaluate.recordings import count, positives
from beatray.evaluate.results import METRICS, VALIDATION_AUROC, VARIANTS, Decisions, Run, score
from beatray.evaluate.robustness import CLEAN, condition_names, in_chunks
from beatray.evaluate.settings import MAIN_PROTOCOL, EvaluateSettings, FitSettings
from beatray.evaluate.split import Index, fold_subsets
from beatray.evaluate.tasks import TaskData
from beatray.evaluate.waves import joined, wave_counts, wave_scores
from beatray.models.encoder import Encoder

KEPT = 4
"""Encoders whose frozen outputs a worker remembers."""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """What one worker does in one go. `spec` is None for measured features."""

    task: str
    protocol: str
    variant: str
    spec: EncoderSpec | None
    seed: int

    def name(self) -> str:
        """For progress lines."""
        what = self.spec.label if self.variant == "pretrained" and self.spec else VARIANTS[self.variant]
        return f"{self.task} {self.protocol} {what}"


class Worker:
    """Runs units of work over the tasks' data and encoders' outputs; remembers those of the last few encoders."""

    def __init__(self, tasks: Mapping[str, TaskData], settings: EvaluateSettings, outputs: Outputs) -> None:
        self.tasks = tasks
        self.settings = settings
        self.outputs = outputs
        self.signals = {name: np.load(data.signals, mmap_mode="r") for name, data in tasks.items()}
        self.kept: dict[tuple[str, str, int], NDArray[np.float32]] = {}

    def run(self, unit: WorkUnit) -> list[Run]:
        """All runs of one unit, one per label fraction; the caller's random generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            return self._runs(unit)

    def _runs(self, unit: WorkUnit) -> list[Run]:
        settings, data = self.settings, self.tasks[unit.task]
        runs: list[Run] = []
        if unit.task == "segment":
            n_folds, fractions = settings.segment.folds, settings.segment_fractions
            in_folds = fold_subsets(data.patients, data.train, data.test, fractions, n_folds, unit.seed)
            for fraction, folds in in_folds.items():
                runs += self._segment_runs(unit, fraction, folds)
            return runs
        at_least = 1 if len(data.validation) else 2  # inner folds need two patients
        subsets = classify.label_subsets(
            data.patients, data.train, settings.classify_subsample, settings.classify_fractions, unit.seed, at_least
        )
        for fraction, train in subsets.items():
            runs += self._classify_runs(unit, fraction, train)
        return runs

    def _segment_runs(self, unit: WorkUnit, fraction: float, folds: list[tuple[Index, Index]]) -> list[Run]:
        """One run per condition, each over all folds."""
        data, began = self.tasks[unit.task], time.monotonic()
        conditions = conditions_of(unit, fraction, self.settings)
        found: dict[str, list[NDArray[np.int8]]] = {condition: [] for condition in conditions}
        for train, test in folds:
            predict = self._segment(unit, data, train)
            for condition in conditions:
                found[condition].append(predict(test, condition))
        settings = self.settings
        tested = np.concatenate([test for _, test in folds])
        trained_on = [count([data.record_ids[i] for i in train]) for train, _ in folds]
        masks = len(np.atleast_2d(data.truth[0]))
        order = (np.argsort(tested)[:, None] * masks + np.arange(masks)).ravel()  # rows back into the part's order
        first_seed = settings.seeds_of("segment", MAIN_PROTOCOL["segment"])[0]
        first = (unit.variant, unit.protocol, unit.seed) == ("pretrained", MAIN_PROTOCOL["segment"], first_seed)
        runs = []
        for condition, labelled in found.items():
            samples = labelled[0].shape[-1]
            pairs = [
                (data.truth[test].reshape(-1, samples), labels.reshape(-1, samples))
                for (_, test), labels in zip(folds, labelled, strict=True)
            ]
            counts = [segment_counts(*pair) for pair in pairs]
            waves = joined([wave_counts(*pair) for pair in pairs], order)
            outcome = SegmentCounts(
                *(np.concatenate([getattr(c, name) for c in counts])[order] for name in ("both", "truth", "predicted"))
            )
            kept = first and masks == 1 and condition == CLEAN and fraction == max(settings.segment_fractions)
            fold_scores = tuple({name: score(c, None)[name] for name in METRICS["segment"]} for c in counts)
            runs.append(
                Run(
                    **self._named(unit, fraction, began),
                    train_records=round(float(np.mean(trained_on))),
                    outcome=outcome,
                    metrics={**score(outcome, None), **wave_scores(waves)},
                    predictions=np.concatenate(labelled)[order] if kept else None,
                    condition=condition,
                    waves=waves,
                    fold_scores=fold_scores if settings.segment.folds else (),
                )
            )
        return runs

    def _classify_runs(self, unit: WorkUnit, fraction: float, train: Index) -> list[Run]:
        """One run per condition."""
        data, began = self.tasks[unit.task], time.monotonic()
        names = [data.record_ids[i] for i in train]
        decide, validation_auroc = self._classify(unit, data, train)
        runs = []
        for condition in conditions_of(unit, fraction, self.settings):
            outcome = decide(condition)
            chosen_by = {VALIDATION_AUROC: validation_auroc} if condition == CLEAN else {}
            runs.append(
                Run(
                    **self._named(unit, fraction, began),
                    train_records=count(names),
                    outcome=outcome,
                    metrics={**score(outcome, data.truth[data.test]), **chosen_by},
                    condition=condition,
                    train_positives=positives(names, data.truth[train]),
                )
            )
        return runs

    def _named(self, unit: WorkUnit, fraction: float, began: float) -> dict[str, Any]:
        return {
            "task": unit.task,
            "protocol": unit.protocol,
            "variant": unit.variant,
            "encoder": unit.spec.label if unit.spec else unit.variant,
            "architecture": unit.spec.random().key() if unit.spec else "",
            "fraction": fraction,
            "seed": unit.seed,
            "seconds": time.monotonic() - began,
        }

    def _segment(self, unit: WorkUnit, data: TaskData, train: Index) -> Callable[[Index, str], NDArray[np.int8]]:
        """Train on `train`; the function gives the labels of test records under a condition."""
        settings, x_mv, device = self.settings, self.signals[unit.task], self.settings.device
        encoder, spec = self._encoder(unit)
        if unit.protocol != "finetune":
            source = source_of(spec, unit.seed)
            maps = torch.from_numpy(self._clean(unit.task, source))
            depth = 0 if unit.protocol == "linear_probe" else segment.DECODER_DEPTH
            decoder = segment.train_decoder(
                maps[train], data.truth[train], encoder.stages[-1], settings.decoder, unit.seed, device, depth
            )

            def from_maps(index: Index, condition: str) -> NDArray[np.int8]:
                if condition == CLEAN:
                    return segment.predict_from_maps(decoder, maps[index], x_mv.shape[2], device)
                tested = torch.from_numpy(self.outputs.read(unit.task, condition, source))
                return segment.predict_from_maps(
                    decoder, tested[np.searchsorted(data.test, index)], x_mv.shape[2], device
                )

            return from_maps
        fit = settings.segment_finetune
        model = segment.finetune(
            encoder, x_mv, data.truth, train, fit, encoder_lr(spec, fit), unit.seed,
            decoder=settings.finetune_decoder, bf16=settings.bf16, device=device,
        )  # fmt: skip

        def from_signals(index: Index, condition: str) -> NDArray[np.int8]:
            if condition == CLEAN:
                return segment.predict(model, x_mv[index], device)
            return np.concatenate(
                [segment.predict(model, x, device) for x, _ in in_chunks(condition, data, index, settings.robustness)]
            )

        return from_signals

    def _classify(self, unit: WorkUnit, data: TaskData, train: Index) -> tuple[Callable[[str], Decisions], float]:
        """Train on `train`; a function that gives the decisions on the test part under a condition, and the AUROC of
        the choice on validation records.
        """
        settings, x_mv, device = self.settings, self.signals[unit.task], self.settings.device
        folds = held_out(train, data.validation)
        if not len(data.validation):
            folds = inner_folds(data.patients, train, settings.inner_folds, unit.seed)
        if unit.protocol == "finetune":
            _, spec = self._encoder(unit)
            fit = settings.classify_finetune
            rates = [encoder_lr(spec, fit) * factor for factor in settings.classify.lr_factors]
            model, thresholds, validation_auroc = classify.finetune(
                lambda: build(spec, unit.seed), x_mv, data.n_samples, data.truth, train, folds[0], fit, rates,
                unit.seed,
                bf16=settings.bf16, device=device,
            )  # fmt: skip

            def fine_tuned(condition: str) -> Decisions:
                if condition == CLEAN:
                    return Decisions(classify.predict(model, x_mv, data.n_samples, data.test, device), thresholds)
                parts = in_chunks(condition, data, data.test, settings.robustness)
                scores = [classify.predict(model, x, n, np.arange(len(x)), device) for x, n in parts]
                return Decisions(np.concatenate(scores), thresholds)

            return fine_tuned, validation_auroc
        source = None if unit.spec is None else source_of(unit.spec, unit.seed)
        features = data.features if source is None else self._clean(unit.task, source)
        if unit.variant == "encoder_features":
            features = np.concatenate([features, data.features], axis=1)
        truth = data.truth
        if (
            unit.variant == "permuted_labels"
        ):  # within each part, or the true labels of validation would choose among chances
            truth = classify.shuffled_labels(truth, train, unit.seed)
            truth = classify.shuffled_labels(truth, data.validation, unit.seed)
        found = chosen_probe(unit.protocol, features, truth, train, folds, settings, unit.seed)

        def probed(condition: str) -> Decisions:
            if condition == CLEAN or source is None:
                return Decisions(found.scores(features[data.test]), found.thresholds)
            return Decisions(found.scores(self.outputs.read(unit.task, condition, source)), found.thresholds)

        return probed, found.validation_auroc

    def _encoder(self, unit: WorkUnit) -> tuple[Encoder, EncoderSpec]:
        if unit.spec is None:
            raise ValueError(f"{unit.name()} needs an encoder")
        return build(unit.spec, unit.seed), unit.spec

    def _clean(self, task: str, source: Source) -> NDArray[np.float32]:
        """What an encoder gives of all recordings of a task."""
        spec, seed = source
        key = (task, spec.key(), seed)
        if key not in self.kept:
            while len(self.kept) >= KEPT:
                self.kept.pop(next(iter(self.kept)))
            self.kept[key] = self.outputs.read(task, CLEAN, source)
        return self.kept[key]


def conditions_of(unit: WorkUnit, fraction: float, settings: EvaluateSettings) -> tuple[str, ...]:
    """`clean`, and the others where they are asked for: of encoders, at the largest label fraction."""
    fractions = settings.segment_fractions if unit.task == "segment" else settings.classify_fractions
    if unit.variant not in ("pretrained", "random") or fraction != max(fractions):
        return (CLEAN,)
    return (CLEAN, *condition_names(settings.robustness))


def read_by(unit: WorkUnit, settings: EvaluateSettings) -> list[tuple[str, str, Source]]:
    """The frozen outputs (task, condition, encoder) that a unit reads."""
    if unit.protocol == "finetune" or unit.spec is None:
        return []
    fractions = settings.segment_fractions if unit.task == "segment" else settings.classify_fractions
    source = source_of(unit.spec, unit.seed)
    return [(unit.task, condition, source) for condition in conditions_of(unit, max(fractions), settings)]


def encoder_lr(spec: EncoderSpec, settings: FitSettings) -> float:
    """The learning rate that suits where the encoder starts from."""
    return settings.scratch_lr if spec.weights is None else settings.encoder_lr


def start_process() -> None:
    """Settings of a worker process: one thread, since there is one process per core."""
    torch.set_num_threads(1)
