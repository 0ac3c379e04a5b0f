"""What the evaluation does unless set otherwise.

The defaults are sized for a laptop: a few hundred labelled records and an encoder of some hundred thousand parameters
take two to three minutes on two cores. Training lengths are given in optimizer steps, not epochs, so that a run on a
tenth of the labels is trained as long as one on all of them.

A protocol is how an encoder is read: `linear_probe` is a linear layer on frozen features (a logistic regression of each
class, a class of each sample), `frozen_decoder` a small convolutional decoder on frozen feature maps, `mlp` and `knn`
read pooled features, `finetune` trains the encoder too. `TASK/PROTOCOL` asks for a protocol in one task alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from beatray.corpus.label_settings import LabelSettings
from beatray.errors import SettingsError
from beatray.evaluate.label_spaces import SNOMED_CLASSES, SPACES, TABLE
from beatray.fields import check, setting

TASKS = ("segment", "classify")
PROTOCOLS_OF = {
    "segment": ("linear_probe", "frozen_decoder", "finetune"),
    "classify": ("linear_probe", "mlp", "knn", "finetune"),
}
PROTOCOLS = ("linear_probe", "frozen_decoder", "mlp", "knn", "finetune")
MAIN_PROTOCOL = {"segment": "frozen_decoder", "classify": "linear_probe"}
"""What a task is judged by where one figure must do."""
PROBES = ("linear_probe", "mlp", "knn")
"""What reads pooled features in the classification, and so also measured ones and permuted labels."""
TARGETS = ("shared", "per_lead")
FOLD_OVER = ("held_out", "all")
VALIDATIONS = ("auto", "inner", "held_out")
POOLINGS = ("mean_std", "encoder", "stages", "stages_beat")
DECODERS = ("conv", "unet")

_OF_TASK = tuple(f"{task}/{protocol}" for task, protocols in PROTOCOLS_OF.items() for protocol in protocols)
_BEFORE_0_2 = {"linear": ("segment/linear_probe",), "frozen": ("classify/linear_probe", "frozen_decoder")}


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One supervised training run: AdamW, linear warm-up over a tenth of the steps, cosine to zero."""

    steps: int = setting(200, at_least=1)
    batch_size: int = setting(16, at_least=1)
    head_lr: float = setting(3e-3, "learning rate of the head", above=0.0, was="head_rate")
    encoder_lr: float = setting(3e-4, "of a pretrained encoder that is trained too", above=0.0, was="encoder_rate")
    scratch_lr: float = setting(
        3e-3,
        "of an encoder that starts from random weights: each gets the rate that suits it, or the comparison would be "
        "one of learning rates",
        above=0.0,
        was="scratch_rate",
    )
    weight_decay: float = setting(1e-2, at_least=0.0)
    crop_samples: int = setting(2500, "of the random crops that are trained on", at_least=1, at_most=5000)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class ClassifySettings:
    """What is classified, and how probes and fine-tuning choose among candidates."""

    labels: str = setting(
        "superdiagnostic",
        "or subdiagnostic, diagnostic, form, rhythm, all (PTB-XL), snomed (Challenge sets), table (labels=PATH)",
        choices=(*SPACES, TABLE),
    )
    snomed_classes: str = setting(
        "scored", "by the Challenge of 2021; or counted: every code that occurs", choices=SNOMED_CLASSES
    )
    min_positives: int = setting(20, "training recordings that a SNOMED class needs", at_least=1)
    validation: str = setting(
        "auto",
        "inner cross-validation, held_out records, or auto: held_out where there are any",
        choices=VALIDATIONS,
    )
    mlp: FitSettings = setting(FitSettings(steps=300, batch_size=64, head_lr=1e-3), "training of the MLP probe")
    mlp_weight_decays: tuple[float, ...] = setting(
        (1e-3, 1e-1, 1.0), "the best on validation is taken, and so below", at_least=0.0, not_empty=True
    )
    k: tuple[int, ...] = setting(
        (1, 3, 5, 10, 20, 50, 100), "neighbours that vote", at_least=1, not_empty=True, was="neighbours"
    )
    lr_factors: tuple[float, ...] = setting(
        (1.0,), "times the encoder's learning rate when fine-tuned", above=0.0, not_empty=True, was="rate_factors"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """The target of the segmentation, and whether records take turns in being tested.

    With `folds`, the tested records are dealt into so many parts by patient, each part is tested by a model trained on
    all other records, and `repeats` deals take the place of the seeds. `held_out` deals the records that pretraining
    left out, `all` also those it may have seen (without their marks).
    """

    target: str = setting("shared", "or per_lead", choices=TARGETS)
    folds: int = setting(
        0, "at least 2: every tested record takes its turn, instead of one split; 0: one split", at_least=0
    )
    repeats: int = setting(1, "of the folds; they take the place of the seeds", at_least=1)
    fold_over: str = setting("held_out", "or all: also the records that pretraining may have seen", choices=FOLD_OVER)

    def __post_init__(self) -> None:
        check(self)
        if self.folds == 1:
            raise SettingsError("folds must be 0 or at least 2, not 1")


@dataclass(frozen=True, slots=True)
class RobustnessSettings:
    """What else test recordings are tested under, at the largest label fraction; see `conditions`.

    All empty: nothing. `noise_folder` holds the Noise Stress Test segments, which are not bundled.
    """

    noise_levels: tuple[int, ...] = setting(
        (), "of 1 to 6: wander, muscle noise, power line, baseline shifts", choices=(1, 2, 3, 4, 5, 6)
    )
    leads: tuple[int, ...] = setting((), "how many leads are left", choices=(12, 8, 6, 3, 2, 1))
    noise_folder: str | None = setting(
        None, "bw.hea, em.hea, ma.hea of the MIT-BIH Noise Stress Test, or BW.mat, EM.mat, MA.mat"
    )
    noise_kinds: tuple[str, ...] = setting(("BW", "EM", "MA"), choices=("BW", "EM", "MA"))
    snr_db: tuple[float, ...] = setting((24.0, 12.0, 6.0, 0.0), "signal to noise of that noise")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """All of an evaluation. `seeds` are repeats of everything after pretraining: see `notes.SPREAD`."""

    tasks: tuple[str, ...] = setting(TASKS, choices=TASKS, not_empty=True)
    classify: ClassifySettings = setting(ClassifySettings)
    labels: LabelSettings = setting(LabelSettings, "the table of classify.labels=table")
    segment: SegmentSettings = setting(SegmentSettings)
    robustness: RobustnessSettings = setting(RobustnessSettings, "rows beside the clean ones; test recordings only")
    protocols: tuple[str, ...] = setting(
        ("linear_probe", "frozen_decoder", "finetune"),
        "also mlp and knn, of the classification; TASK/PROTOCOL: in that task alone",
        choices=(*PROTOCOLS, *_OF_TASK),
        not_empty=True,
    )
    seeds: tuple[int, ...] = setting((0, 1, 2), "repeats of everything after pretraining", at_least=0, not_empty=True)
    finetune_seeds: tuple[int, ...] | None = setting(None, "null: the same as seeds", at_least=0, not_empty=True)
    segment_fractions: tuple[float, ...] = setting((0.1, 1.0), "of the labels", above=0.0, at_most=1.0, not_empty=True)
    classify_fractions: tuple[float, ...] = setting((1.0,), "of the labels", above=0.0, at_most=1.0, not_empty=True)
    classify_subsample: float = setting(
        0.9, "share of the training patients that one seed of the classification sees", above=0.0, at_most=1.0
    )
    min_leads: int = setting(3, "leads that must mark a wave", at_least=1, at_most=12)
    pooling: str = setting(
        "mean_std",
        "what a probe reads; or encoder; stages: of every stage; stages_beat: and the median heartbeat",
        choices=POOLINGS,
    )
    inner_folds: int = setting(5, "of the cross-validation inside the training part", at_least=2)
    C: tuple[float, ...] = setting(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0),
        "inverse penalties of the logistic probe to choose from, as scikit-learn's C",
        above=0.0,
        not_empty=True,
        was="inverse_penalties",
    )
    baselines: bool = setting(
        True, "random weights, measured features and permuted labels beside the encoder", was="controls"
    )
    permutations: int = setting(
        10, "of the training labels, for the row at chance; 0 leaves it out", at_least=0, was="shuffles"
    )
    decoder: FitSettings = setting(FitSettings(steps=150, head_lr=5e-3), "training of decoders on frozen maps")
    segment_finetune: FitSettings = setting(FitSettings(steps=150))
    classify_finetune: FitSettings = setting(FitSettings(steps=120))
    finetune_decoder: str = setting("conv", "or unet, which also reads the encoder's finer maps", choices=DECODERS)
    bootstraps: int = setting(1000, "resamples of the test patients behind each interval", at_least=1)
    bf16: bool = setting(False, "autocast; faster only where the processor multiplies bfloat16 itself")
    device: str = setting("cpu", "or cuda, cuda:1, ...")
    keep_outputs: bool = setting(
        False, "leave what the encoders gave in out/outputs, for a later evaluation of the same ones on the same corpus"
    )
    workers: int = setting(2, "processes of one thread each; 1 or 0 works in this process", at_least=0)

    def __post_init__(self) -> None:
        check(self)
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise SettingsError(f"device must be cpu, cuda or cuda:NUMBER, not {self.device!r}")
        if self.classify.labels == TABLE and not self.labels.table:
            raise SettingsError("classify.labels=table needs a table: set labels=PATH")
        if self.labels.table and self.classify.labels != TABLE:
            raise SettingsError(f"classify.labels={self.classify.labels} reads no table: leave it out, or labels=")
        for name in ("seeds", "finetune_seeds"):
            seeds = getattr(self, name) or ()
            if len(set(seeds)) < len(seeds):
                raise SettingsError(f"{name} must differ from each other, not {list(seeds)}")
        if not any(map(self.protocols_of, self.tasks)):
            raise SettingsError(f"protocols={list(self.protocols)} holds none of {', '.join(self.tasks)}")

    @classmethod
    def older(cls, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The content with the protocols called as they are today, and the settings of them as they are now."""
        given = content.get("protocols")
        if not isinstance(given, (list, tuple)) or not set(given) & set(_BEFORE_0_2):
            return content, {}
        now = protocols_today(given)
        gone = {f"protocols=[{','.join(given)}]": f"protocols=[{','.join(now)}]"}
        return {**content, "protocols": now}, gone

    def protocols_of(self, task: str) -> tuple[str, ...]:
        """The protocols that are asked for in a task."""
        return tuple(
            name for name in PROTOCOLS_OF[task] if name in self.protocols or f"{task}/{name}" in self.protocols
        )

    def seeds_of(self, task: str, protocol: str) -> tuple[int, ...]:
        """The repeats of one task and protocol."""
        if task == "segment" and self.segment.folds:
            return tuple(range(self.segment.repeats))
        if protocol == "finetune" and self.finetune_seeds is not None:
            return self.finetune_seeds
        return self.seeds


def quick() -> EvaluateSettings:
    """The smallest evaluation that still runs every branch: for tests and for a first look."""
    short = FitSettings(steps=4, batch_size=4)
    return EvaluateSettings(
        seeds=(0,),
        inner_folds=3,
        C=(1e-2, 1.0),
        permutations=1,
        decoder=short,
        segment_finetune=short,
        classify_finetune=short,
        bootstraps=50,
        workers=1,
    )


def protocols_today(names: Iterable[str]) -> list[str]:
    """Protocols by the names of today, in the tasks that the names of before 0.2 were about.

    There `linear` was of the segmentation alone, and `frozen` the decoder there and the logistic probe of the
    classification.
    """
    found = [name for name in names for name in _BEFORE_0_2.get(name, (name,))]
    if {f"{task}/linear_probe" for task in TASKS} <= set(found):
        found = ["linear_probe" if name.endswith("/linear_probe") else name for name in found]
    return list(dict.fromkeys(found))
