"""The sentences under a table of results: what it shows, what it was run on, what was left out and how to read it.

Contract: plain sentences, not wrapped; the first is the reading of the main scores, the last ones are the evaluation's
own notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from beatray.evaluate.metrics import Truth
from beatray.evaluate.recordings import count_text
from beatray.evaluate.results import METRICS, Evaluation, TaskPart
from beatray.evaluate.settings import MAIN_PROTOCOL
from beatray.evaluate.statistics import compare

if TYPE_CHECKING:
    from beatray.evaluate.table import Row

TASK_NAMES = {"segment": "waves", "classify": "diagnoses"}
TASK_TITLES = {"segment": "LUDB waves", "classify": "PTB-XL superclasses"}

SPREAD = {
    "segment": "which records are labelled (below 100 %), weights of decoders and random encoders, order of batches "
    "and crops",
    "classify": "which {share:.0%} of the training patients are used, inner folds, random encoders, order of batches "
    "and crops",
}
"""What a seed changes: the +- of a table is the SD over these and nothing else."""


def notes_of(evaluation: Evaluation, rows: Sequence[Row]) -> list[str]:
    """The sentences under a table: what it shows, what it was run on, what was left out, how to read it."""
    settings = evaluation.settings
    notes = [reading(rows)]
    for task, part in evaluation.parts.items():
        n_patients = len(set(part.test_patients))
        changes = SPREAD[task].format(share=settings.classify_subsample)
        seed_list = settings.seeds_of(task, MAIN_PROTOCOL[task])
        seeds = f"± is the SD over {len(seed_list)} seeds" if len(seed_list) > 1 else "One seed, so no spread"
        title = part.title or TASK_TITLES[task]
        notes.append(
            f"{TASK_NAMES[task]} ({title}): {count_text(part.test_ids, 'test')} of {n_patients} patients, "
            f"{count_text(part.train_ids)} to train on. {seeds}; a seed changes {changes}."
        )
        if task == "segment" and settings.segment.folds:
            notes.append(
                f"The test recordings are dealt into {settings.segment.folds} folds; each is tested by a model trained "
                "on those to train on and on the other folds. A seed is another deal."
            )
        if part.truth is not None:
            where = "inner cross-validation by patient inside the training part"
            if part.validation_ids:
                where = f"{count_text(part.validation_ids)} of the validation folds"
            notes.append(f"Hyper-parameters and thresholds of the diagnoses were chosen on {where}.")
            both = np.asarray((part.truth == 1).any(axis=0) & (part.truth == 0).any(axis=0))
            note = f"AUROC, AUPRC and F1 are means over {int(both.sum())} of {part.truth.shape[1]} classes."
            notes.append(note + _left_out(part, part.truth))
            notes += _unlearned(evaluation)
    notes += _paired_folds(evaluation)
    if any(run.condition != "clean" for run in evaluation.runs):
        notes.append(
            "noise 1-6: modelled wander, muscle noise, power line and baseline shifts in mV; BW, EM, MA: real noise at "
            "a signal-to-noise ratio; leads: all others set to zero. Done to test recordings only."
        )
    if not settings.baselines:
        return [*notes, "The baselines were left out (evaluate.baselines=false).", *evaluation.notes]
    notes.append(
        "random: the same architecture from random weights, frozen below decoders and probes, trained from scratch in "
        "the fine-tuned rows. features: the logistic probe on measured intervals and amplitudes, no network. permuted "
        "labels: the probe on permuted training labels, where an AUROC near 0.5 shows that no label leaks."
    )
    notes.append(
        "difference: pretrained - random, 95 % interval by paired bootstrap over test patients and seeds. It does "
        "not cover the choice of the training records or of the one pretraining run."
    )
    return notes + list(evaluation.notes)


def _left_out(part: TaskPart, truth: Truth) -> str:
    """The classes that no score covers, by name and reason."""
    names = part.classes or tuple(f"class {k}" for k in range(truth.shape[1]))
    absent = [name for k, name in enumerate(names) if not (truth[:, k] == 1).any()]
    always = [name for k, name in enumerate(names) if (truth[:, k] == 1).any() and not (truth[:, k] == 0).any()]
    unseen = [name for name, count in zip(part.classes, part.train_positives, strict=True) if not count]
    reasons = [
        ("no positive in the test part, so in no mean", absent),
        ("no negative in the test part, so in F1 alone", always),
        ("no positive in the training part, so not learned", unseen),
        ("too few positives in the training part to be a class", list(part.too_few)),
    ]
    return "".join(f" With {reason}: {', '.join(found)}." for reason, found in reasons if found)


def _paired_folds(evaluation: Evaluation) -> list[str]:
    """Pretrained against random weights over the folds of all repeats, for each protocol at its most labels."""
    runs = [run for run in evaluation.runs if run.fold_scores and run.condition == "clean"]
    notes = []
    for protocol, encoder in dict.fromkeys((r.protocol, r.encoder) for r in runs if r.variant == "pretrained"):
        here = [r for r in runs if r.protocol == protocol]
        most = max(r.fraction for r in here)
        pretrained = {r.seed: r for r in here if (r.encoder, r.fraction, r.variant) == (encoder, most, "pretrained")}
        like = {r.architecture for r in pretrained.values()}
        control = {r.seed: r for r in here if (r.fraction, r.variant) == (most, "random") and r.architecture in like}
        seeds = sorted(pretrained.keys() & control.keys())
        pairs = [[score["f1"] for seed in seeds for score in side[seed].fold_scores] for side in (pretrained, control)]
        if len(pairs[0]) < 2 or not np.isfinite(pairs).all():
            continue
        found = compare({"pretrained": pairs[0], "random": pairs[1]})
        pair = found.comparisons[0]
        notes.append(
            f"Waves, {protocol}, {100 * most:g} % of the labels, F1 over {found.runs} paired folds: {pair.verdict} "
            f"(median difference {pair.median_difference:+.3f}, Wilcoxon p {pair.p:.3g}, smallest possible "
            f"{found.smallest_p:.3g}). Folds share training recordings, so p is too small rather than too large."
        )
    return notes


def _unlearned(evaluation: Evaluation) -> list[str]:
    """For each label fraction, in how many classes some seed had no positive to learn from."""
    part, notes = evaluation.parts["classify"], []
    runs = [run for run in evaluation.runs if run.task == "classify" and run.train_positives]
    for fraction in sorted({run.fraction for run in runs}):
        counts = np.array([run.train_positives for run in runs if run.fraction == fraction])
        missing = (counts == 0).any(axis=0) & (np.array(part.train_positives) > 0)
        if missing.any():
            names = ", ".join(name for name, gone in zip(part.classes, missing, strict=True) if gone)
            notes.append(f"At {100 * fraction:g} % of the labels some seed had no positive to learn of: {names}.")
    return notes


def reading(rows: Sequence[Row]) -> str:
    """One sentence on the main scores: where pretraining helped, hurt, or cannot be distinguished from chance."""
    rows = [row for row in rows if row.condition == "clean"]
    compared = [row.difference for row in rows if row.difference is not None and row.metric == METRICS[row.task][0]]
    if not compared:
        return "Nothing here was compared with random weights."
    better = sum(gap.excludes_zero() and gap.value > 0 for gap in compared)
    worse = sum(gap.excludes_zero() and gap.value < 0 for gap in compared)
    unclear = len(compared) - better - worse
    sentence = (
        f"In the main scores, of {len(compared)} comparisons with random weights, pretraining is better in {better}, "
        f"worse in {worse} and not to be told apart in {unclear} (the 95 % interval includes zero)."
    )
    measured = [
        (row.pretrained[0], row.features[0], row.encoder_features)
        for row in rows
        if row.metric == "auroc" and row.protocol == MAIN_PROTOCOL["classify"] and row.features and row.pretrained
    ]
    for encoder, features, both in measured[-1:]:
        sentence += (
            f" Measured features alone reach an AUROC of {features:.3f}; the frozen encoder is "
            f"{abs(encoder - features):.3f} {'above' if encoder >= features else 'below'} that."
        )
        if both is not None:
            sentence += f" Both together reach {both[0]:.3f}."
    return sentence
