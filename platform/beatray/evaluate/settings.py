"""What the evaluation does unless told otherwise.

The defaults are sized for a laptop: a few hundred labelled records and an encoder of some hundred thousand parameters
take two to three minutes on two cores. Training lengths are given in optimiser steps, not epochs, so that a run on a
tenth of the labels is trained as long as one on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from beatray.evaluate.label_spaces import SNOMED_CLASSES, SPACES

TASKS = ("segment", "classify")
PROTOCOLS = ("linear", "frozen", "mlp", "knn", "finetune")
"""`linear` is of the segmentation only: for the classification, the logistic probe of `frozen` is linear already.
`mlp` and `knn` are of the classification only."""
PROBES = ("frozen", "mlp", "knn")
"""What reads pooled features, and so also measured ones and permuted labels."""
TARGETS = ("shared", "per_lead")
FOLD_OVER = ("held_out", "all")
VALIDATIONS = ("auto", "inner", "held_out")
POOLINGS = ("mean_std", "encoder", "stages", "stages_beat")
DECODERS = ("conv", "unet")


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One supervised training run: AdamW, linear warm-up over a tenth of the steps, cosine to zero.

    `encoder_rate` is used for a pretrained encoder, `scratch_rate` for one that starts from random weights: each gets
    the rate that suits it, or the comparison would be one of learning rates.
    """

    steps: int = 200
    batch_size: int = 16
    head_rate: float = 3e-3
    encoder_rate: float = 3e-4
    scratch_rate: float = 3e-3
    weight_decay: float = 1e-2
    crop_samples: int = 2500


@dataclass(frozen=True, slots=True)
class ClassifySettings:
    """What is classified: a label space of `label_spaces`, and for SNOMED codes which classes of it."""

    labels: str = "superdiagnostic"
    snomed_classes: str = "scored"  # by the Challenge of 2021; or "counted": every code that occurs
    min_positives: int = 20  # training recordings that a SNOMED class needs
    validation: str = "auto"  # "inner" cross-validation; "held_out" records; auto: held-out ones where there are any
    mlp: FitSettings = field(default_factory=lambda: FitSettings(steps=300, batch_size=64, head_rate=1e-3))
    mlp_weight_decays: tuple[float, ...] = (1e-3, 1e-1, 1.0)  # the best on validation is taken, and so below
    neighbours: tuple[int, ...] = (1, 3, 5, 10, 20, 50, 100)
    rate_factors: tuple[float, ...] = (1.0,)  # times the encoder's learning rate when fine-tuned

    def __post_init__(self) -> None:
        _only_known("classify.labels", (self.labels,), SPACES)
        _only_known("classify.snomed_classes", (self.snomed_classes,), SNOMED_CLASSES)
        _only_known("classify.validation", (self.validation,), VALIDATIONS)
        if min(self.neighbours, default=0) < 1 or not self.mlp_weight_decays or not self.rate_factors:
            raise ValueError("classify.neighbours, mlp_weight_decays and rate_factors need a value, neighbours from 1")


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """The target of the segmentation, and whether records take turns in being tested.

    With `folds`, the tested records are dealt into so many parts by patient, each part is tested by a model trained on
    all other records, and `repeats` deals take the place of the seeds. `held_out` deals the records that pretraining
    left out, `all` also those it may have seen (without their marks).
    """

    target: str = "shared"  # or "per_lead"
    folds: int = 0  # 0: one split, that of the corpus
    repeats: int = 1
    fold_over: str = "held_out"

    def __post_init__(self) -> None:
        _only_known("segment.target", (self.target,), TARGETS)
        _only_known("segment.fold_over", (self.fold_over,), FOLD_OVER)
        if self.folds < 0 or self.folds == 1 or self.repeats < 1:
            raise ValueError("segment.folds must be 0 or at least 2, segment.repeats at least 1")


@dataclass(frozen=True, slots=True)
class RobustnessSettings:
    """What else test recordings are tested under, at the largest label fraction; see `conditions`.

    All empty: nothing. `noise_folder` holds the Noise Stress Test segments, which are not bundled.
    """

    noise_levels: tuple[int, ...] = ()  # of 1 to 6
    leads: tuple[int, ...] = ()  # of 12, 8, 6, 3, 2, 1
    noise_folder: str | None = None
    noise_kinds: tuple[str, ...] = ("BW", "EM", "MA")
    snr_db: tuple[float, ...] = (24.0, 12.0, 6.0, 0.0)

    def __post_init__(self) -> None:
        for name, given, known in (
            ("noise_levels", self.noise_levels, (1, 2, 3, 4, 5, 6)),
            ("leads", self.leads, (12, 8, 6, 3, 2, 1)),
            ("noise_kinds", self.noise_kinds, ("BW", "EM", "MA")),
        ):
            _only_known(f"robustness.{name}", tuple(map(str, given)), tuple(map(str, known)))


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """All of an evaluation. `seeds` are repeats of everything after pretraining: see `notes.SPREAD`."""

    tasks: tuple[str, ...] = TASKS
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)
    protocols: tuple[str, ...] = ("linear", "frozen", "finetune")
    seeds: tuple[int, ...] = (0, 1, 2)
    finetune_seeds: tuple[int, ...] | None = None  # None: the same as `seeds`
    segment_fractions: tuple[float, ...] = (0.1, 1.0)
    classify_fractions: tuple[float, ...] = (1.0,)
    classify_subsample: float = 0.9  # share of the training patients that one seed of the classification sees
    min_leads: int = 3
    pooling: str = "mean_std"  # or "encoder", "stages", "stages_beat": what a probe reads of the feature maps
    inner_folds: int = 5
    inverse_penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    controls: bool = True  # random weights, measured features and permuted labels beside the encoder
    shuffles: int = 10  # permutations of the training labels behind the shuffled-label row; 0 leaves it out
    decoder: FitSettings = field(default_factory=lambda: FitSettings(steps=150, head_rate=5e-3))
    segment_finetune: FitSettings = field(default_factory=lambda: FitSettings(steps=150))
    classify_finetune: FitSettings = field(default_factory=lambda: FitSettings(steps=120))
    finetune_decoder: str = "conv"  # or "unet", which also reads the encoder's finer maps
    bootstraps: int = 1000  # resamples of the test patients behind each interval
    bf16: bool = False  # autocast; faster only where the processor multiplies bfloat16 itself
    device: str = "cpu"
    workers: int = 2  # processes of one thread each; 1 or 0 works in this process

    def seeds_of(self, task: str, protocol: str) -> tuple[int, ...]:
        """The repeats of one task and protocol."""
        if task == "segment" and self.segment.folds:
            return tuple(range(self.segment.repeats))
        if protocol == "finetune" and self.finetune_seeds is not None:
            return self.finetune_seeds
        return self.seeds

    def __post_init__(self) -> None:
        _only_known("task", self.tasks, TASKS)
        _only_known("protocol", self.protocols, PROTOCOLS)
        _only_known("pooling", (self.pooling,), POOLINGS)
        _only_known("finetune_decoder", (self.finetune_decoder,), DECODERS)
        if not self.seeds:
            raise ValueError("evaluate.seeds is empty: give at least one seed")


def quick() -> EvaluateSettings:
    """The smallest evaluation that still runs every branch: for tests and for a first look."""
    short = FitSettings(steps=4, batch_size=4)
    return EvaluateSettings(
        seeds=(0,),
        inner_folds=3,
        inverse_penalties=(1e-2, 1.0),
        shuffles=1,
        decoder=short,
        segment_finetune=short,
        classify_finetune=short,
        bootstraps=50,
        workers=1,
    )


def _only_known(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known are {', '.join(known)}")
