"""How the scores of an evaluation are called as metrics: `eval/segment/frozen_decoder/10pct/f1`.

Before the metric may stand what was done to the test recordings (`noise_3`), and what was read in place of the encoder
or beside it (`random`, `encoder_features`). No name is the beginning of another one, so that a tracking server may keep
them as files in folders.
"""

from __future__ import annotations

from beatray.evaluate.results import METRICS, PREFIX, VALIDATION_AUROC
from beatray.evaluate.robustness import CLEAN, names_asked_for
from beatray.evaluate.settings import PROBES, EvaluateSettings


def score_name(task: str, protocol: str, fraction: float, metric: str, condition: str = CLEAN) -> str:
    """How a score of the encoder under test is called."""
    condition_parts = [] if condition == CLEAN else [condition.replace(" ", "_")]
    return "/".join([f"{PREFIX}{task}", protocol, f"{100 * fraction:g}pct", *condition_parts, metric])


def of_variant(name: str, variant: str) -> str:
    """How the same score of another variant is called."""
    prefix, _, metric = name.rpartition("/")
    return name if variant == "pretrained" else f"{prefix}/{variant}/{metric}"


def parts_of(name: str) -> tuple[str, str, str, float]:
    """(task, protocol, metric, fraction) of a clean score's name; the metric of others is all that follows."""
    task, protocol, fraction, metric = name.removeprefix(PREFIX).split("/", 3)
    return task, protocol, metric, float(fraction.removesuffix("pct")) / 100


def scores_of(settings: EvaluateSettings) -> set[str]:
    """Every score of an encoder, alone or with the measured features, that an evaluation may give."""
    found = set()
    for task in settings.tasks:
        fractions = settings.segment_fractions if task == "segment" else settings.classify_fractions
        for protocol in settings.protocols_of(task):
            metrics = (*METRICS[task], *([VALIDATION_AUROC] if task == "classify" else []))
            clean = {score_name(task, protocol, fraction, each) for fraction in fractions for each in metrics}
            found |= clean
            if task == "classify" and protocol in PROBES:
                found |= {of_variant(name, "encoder_features") for name in clean}
            found |= {
                score_name(task, protocol, max(fractions), each, condition)
                for each in METRICS[task]
                for condition in names_asked_for(settings.robustness)
            }
    return found
