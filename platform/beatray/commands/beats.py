"""`beatray beats train PATH --out FOLDER`: a classifier of heartbeats from annotated WFDB recordings."""

from __future__ import annotations

import torch

from beatray.beat_classifier.annotations import SYMBOLS_OF, AnnotatedBeats, read_beats
from beatray.beat_classifier.fit import FitSettings, fit
from beatray.beat_classifier.folder import digest_of, write
from beatray.beat_classifier.network import CLASSES
from beatray.commands.console import say
from beatray.commands.local import local_folder
from beatray.errors import SettingsError
from beatray.ingest.spelling import paths_with
from beatray.ingest.tree import open_tree
from beatray.record import LEADS, RecordError


def train(path: str, out: str, *, leads: str = "II", epochs: int | None = None, seed: int = 0) -> int:
    """Read, train, write, and print the confusion of the held-out beats."""
    chosen = tuple(leads.split(","))
    if not 1 <= len(set(chosen)) == len(chosen) <= 2 or any(lead not in LEADS for lead in chosen):
        raise SettingsError(f"--leads {leads}: one or two of {', '.join(LEADS)}")
    if epochs is not None and epochs < 1:
        raise SettingsError(f"--epochs {epochs}: at least 1")
    folder = local_folder("--out ", out)
    if folder.exists():
        raise SettingsError(f"{out} exists already; choose another --out")
    recordings = read_folder_of(path, chosen)
    settings = FitSettings(seed=seed) if epochs is None else FitSettings(seed=seed, epochs=epochs)
    torch.set_num_threads(1)
    try:
        labels, report = fit(recordings, chosen, settings)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error
    write(folder, labels, {**report, "symbols": {name: list(symbols) for name, symbols in SYMBOLS_OF.items()}})
    say(f"  learnt from {sum(report['train_beats'].values()):,} beats, held out {sum(report['test_beats'].values()):,}")
    say("  true\\found " + "".join(name.rjust(7) for name in CLASSES))
    for name, row in zip(CLASSES, report["confusion"], strict=True):
        say(f"  {name.rjust(10)} " + "".join(f"{count:7,}" for count in row))
    say(f"  {report['split_means']}")
    unseen = [name for name, known in zip(CLASSES, labels.known, strict=True) if not known]
    if unseen:
        say(f"  never found, since there are no beats to learn from: {', '.join(unseen)}")
    say(f"  use it: objective.beat_positives=aami objective.beat_classifier={out}  (digest {digest_of(out)[:12]})")
    return 0


def read_folder_of(path: str, leads: tuple[str, ...]) -> list[AnnotatedBeats]:
    """The beats of all recordings below `path` that have annotations and the leads; the others are reported."""
    try:
        tree = open_tree(path)
        headers = [name for name, _ in paths_with(tree, ".hea")]
    except (OSError, ValueError, RecordError) as error:
        raise SettingsError(f"{path}: {error}") from error
    found: list[AnnotatedBeats] = []
    skipped: list[str] = []
    for name in headers:
        try:
            beats = read_beats(tree, name, leads)
        except RecordError as error:
            say(f"  left out: {name}: {error.detail}")
            continue
        if beats is None or not len(beats.kind):
            skipped.append(name)
        else:
            found.append(beats)
    if skipped:
        say(f"  left out, without {' and '.join(leads)} or beat annotations (.atr): {', '.join(skipped[:5])}"
            + (f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""))  # fmt: skip
    if not found:
        raise SettingsError(f"{path}: no WFDB recording with leads {', '.join(leads)} and an .atr file")
    return found
