"""What an embedding run will do: settings, the encoder it takes, and what is finished already.

No Ray here. Everything a user can get wrong is found here, before anything starts. Contract: an `EmbedPlan` is small
and picklable; `made_by` holds all that decides the numbers of a shard's vectors, apart from the shard itself, so that
files of an interrupted run, or of an older snapshot of the same corpus, are taken over only where they would
be the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from beatray.augment.beats import BeatBox
from beatray.corpus.manifest import Shard
from beatray.corpus.reader import Corpus, open_corpus
from beatray.errors import SettingsError
from beatray.infer.files import (
    LEVELS,
    LISTING,
    STAGING,
    VERSION,
    EmbeddingsError,
    Listing,
    VectorFile,
    digest_of,
    is_note,
    read_listing,
    read_note,
)
from beatray.infer.locations import CorpusLocation, refuse_inside
from beatray.infer.vectors import BEAT_POOLINGS, BeatBoxes
from beatray.models.bundled import location_of
from beatray.models.encoder_folder import ENCODER_FOLDER, check_recipe, encoder_sha256, load_encoder
from beatray.objectives.registry import objective_class, objective_settings
from beatray.settings import ClusterSettings
from beatray.storage.store import TEMPORARY_PREFIX, Store, absolute


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """How: the beats' boxes (null: those the encoder was trained with), and the work's parallelism."""

    beat_pooling: str = "bins"
    box_before_s: float | None = None
    box_after_s: float | None = None
    roi_bins: int | None = None
    precision: str = "fp32"
    batch_size: int = 64
    device: str = "auto"
    workers: int = 1
    threads_per_worker: int = 1
    cpus_per_worker: float = 0.5
    readers: int = 2
    cpus_per_reader: float = 0.25

    def __post_init__(self) -> None:
        for name, allowed in (
            ("beat_pooling", BEAT_POOLINGS),
            ("precision", ("fp32", "bf16")),
            ("device", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"embed.{name}={getattr(self, name)} is not one of {', '.join(allowed)}")
        for name in ("batch_size", "workers", "threads_per_worker", "readers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"embed.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("cpus_per_worker", "cpus_per_reader", "box_before_s", "box_after_s", "roi_bins"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"embed.{name} must be above 0, not {value}")


@dataclass(frozen=True, slots=True)
class EmbedCommand:
    """Everything `beatray embed` needs."""

    corpus: CorpusLocation = field(default_factory=CorpusLocation)
    embed: EmbedSettings = field(default_factory=EmbedSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    encoder_path: str | None = None
    out: str = "embeddings"
    level: str = "recording"
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class EmbedPlan:
    """All the work needs; see the module text."""

    encoder: str
    encoder_sha256: str
    levels: tuple[str, ...]
    boxes: BeatBoxes
    settings: EmbedSettings
    made_by: dict[str, Any]
    widths: dict[str, int]
    corpus: Corpus
    out: Store

    @property
    def key(self) -> str:
        """Two plans share it only if they give the same vectors for the same shard."""
        return digest_of(self.made_by)


def prepare_plan(command: EmbedCommand) -> EmbedPlan:
    """Open the corpus and the encoder and check that they fit; SettingsError, CorpusError or CheckpointError."""
    if not command.encoder_path:
        raise SettingsError("which encoder? set encoder=PATH (a run folder, or its encoder/ folder)")
    if not command.corpus.path:
        raise SettingsError("of which corpus? set corpus=PATH (make one with `beatray ingest`)")
    if command.level not in (*LEVELS, "both"):
        raise SettingsError(f"level={command.level} is not one of {', '.join(LEVELS)}, both")
    encoder, out = absolute(location_of(command.encoder_path)), Store(absolute(command.out))
    corpus = open_corpus(absolute(command.corpus.path))
    refuse_inside(out, command.out, corpus.store, "the corpus")
    loaded: Any = load_encoder(_exported(encoder))
    made_for: dict[str, Any] = loaded.description
    check_recipe(made_for["recipe"], corpus.recipe, f"the encoder {command.encoder_path}")
    levels = LEVELS if command.level == "both" else (command.level,)
    boxes = _boxes(command.embed, made_for.get("objective", {}))
    sha256 = encoder_sha256(encoder, listed=True)
    made_by = {
        "version": VERSION,
        "encoder": {"name": made_for["name"], "settings": loaded.described_settings(), "sha256": sha256},
        "levels": list(levels),
        "precision": command.embed.precision,
        "recipe": corpus.recipe,
    }
    if "beat" in levels:
        made_by["beats"] = {
            "pooling": boxes.pooling,
            "bins": boxes.bins,
            "box_before_s": boxes.before_s,
            "box_after_s": boxes.after_s,
        }
    widths = {"recording": loaded.embed_dim, "beat": boxes.width(loaded.channels)}
    return EmbedPlan(
        encoder=encoder,
        encoder_sha256=sha256,
        levels=levels,
        boxes=boxes,
        settings=command.embed,
        made_by=json.loads(json.dumps(made_by)),  # as it will be read back
        widths={level: widths[level] for level in levels},
        corpus=corpus,
        out=out,
    )


def _exported(path: str) -> str:
    """The path of an encoder; SettingsError if none is there, with another message for a run that has not ended."""
    store = Store(path)
    if store.size("encoder.json") is None and store.child(ENCODER_FOLDER).size("encoder.json") is None:
        if store.child("checkpoints").exists():
            raise SettingsError(
                f"encoder={path} is a run that has not ended, and has no encoder yet; the same `beatray pretrain` "
                "command continues it"
            )
        raise SettingsError(f"encoder={path}: there is no exported encoder (a run folder, or its encoder/ folder)")
    return path


def _boxes(settings: EmbedSettings, objective: dict[str, Any]) -> BeatBoxes:
    """The settings' boxes; what they leave open is that of the encoder's training, where it knew of beats, or usual."""
    trained = _trained_with(objective) or BeatBox()
    before_s, after_s, bins = settings.box_before_s, settings.box_after_s, settings.roi_bins
    return BeatBoxes(
        trained.before_s if before_s is None else before_s,
        trained.after_s if after_s is None else after_s,
        trained.bins if bins is None else bins,
        settings.beat_pooling,
    )


def _trained_with(objective: dict[str, Any]) -> BeatBox | None:
    """The boxes of beats by the method of the encoder; None if it has none, or is not available here."""
    try:
        name = objective["name"]
        rest = {key: value for key, value in objective.items() if key != "name"}
        return objective_class(name).beat_box(objective_settings(name, rest))
    except (KeyError, ValueError):  # a user's own method, or one of another version
        return None


def finished_parts(plan: EmbedPlan) -> dict[str, tuple[VectorFile, ...]]:
    """By shard, the files that are there already, from a finished folder or from an interrupted run.

    Raises SettingsError when `out` holds embeddings of another kind.
    """
    store = plan.out
    listed: dict[str, list[VectorFile]] = {}
    if store.size(LISTING) is not None:
        try:
            listing = read_listing(store)
        except EmbeddingsError as error:
            raise SettingsError(str(error)) from error
        if listing.made_by != plan.made_by:
            differing = [key for key in sorted({*listing.made_by, *plan.made_by}) if _differs(listing, plan, key)]
            raise SettingsError(
                f"out={store.where()} holds embeddings made otherwise (different: {', '.join(differing)}). Choose "
                "another out=, or set overwrite=true"
            )
        there = {shard.name for shard in plan.corpus.manifest.shards}
        if listing.parts and not any(part.shard in there for part in listing.parts):
            raise SettingsError(
                f"out={store.where()} holds embeddings of another corpus than {plan.corpus.store.where()}. Choose "
                "another out=, or set overwrite=true"
            )
        for part in listing.parts:
            listed.setdefault(part.shard, []).append(part)
    else:
        _refuse_own(plan)
    noted = set(store.names(STAGING))
    found = {}
    for shard in plan.corpus.manifest.shards:
        parts = tuple(listed.get(shard.name, ()))
        if not _whole(plan, shard, parts) and f"{shard.name}.json" in noted:
            parts = read_note(store, plan.key, shard.name)
        if _whole(plan, shard, parts):
            found[shard.name] = parts
    return found


def _refuse_own(plan: EmbedPlan) -> None:
    """Raise SettingsError where no embeddings are listed and folders of theirs hold something of the user's."""
    store = plan.out
    notes = [name for name in store.names(STAGING) if is_note(store, name)]
    shards = {shard.name for shard in plan.corpus.manifest.shards} | {name.removesuffix(".json") for name in notes}
    known = {**dict.fromkeys(LEVELS, shards), STAGING: set(notes)}
    for folder, names in known.items():
        there = store.child(folder).walk() if store.exists(folder) else {}
        own = [name for name in there if name not in names and not name.startswith(TEMPORARY_PREFIX)]
        if own:
            raise SettingsError(
                f"{store.where(f'{folder}/{own[0]}')} is there, and no {LISTING} shows that beatray made it: choose "
                "another out=, or set overwrite=true, which removes the folder"
            )


def _differs(listing: Listing, plan: EmbedPlan, key: str) -> bool:
    return bool(listing.made_by.get(key) != plan.made_by.get(key))


def _whole(plan: EmbedPlan, shard: Shard, parts: tuple[VectorFile, ...]) -> bool:
    """True if these are the files of just this shard, all levels, and all still there."""
    return (
        sorted(part.level for part in parts) == sorted(plan.levels)
        and all(part.shard_sha256 == shard.sha256 for part in parts)
        and all(plan.out.size(part.name) == part.bytes for part in parts)
    )
