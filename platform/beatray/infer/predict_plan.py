"""What a prediction run will do: settings, the models it takes, where the recordings are and where answers go.

No Ray here. Everything a user can get wrong is found here, before anything starts. Contract: `made_by` holds all that
decides an answer, apart from the recordings, so that parts of an interrupted run are taken over only where they would
be the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from beatray.corpus.reader import open_corpus
from beatray.errors import CheckpointError, SettingsError
from beatray.fields import check, setting
from beatray.infer.files import digest_of
from beatray.infer.locations import CorpusLocation, refuse_inside
from beatray.infer.model import EcgModel
from beatray.infer.prediction_paths import OutputPaths, output_paths
from beatray.infer.windows import Part, parts_of_corpus, parts_of_files
from beatray.ingest.plan import IngestSettings, list_items, recipe_of
from beatray.ingest.sources.registry import SOURCES, Unlisted
from beatray.models import bundled
from beatray.models.encoder_folder import check_recipe
from beatray.models.model_folder import model_sha256
from beatray.plugins import nearest
from beatray.settings import ClusterSettings
from beatray.storage.store import Store, absolute

VERSION = 1


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """How the work is done and shared out."""

    annotations: bool = setting(True, "of a model of waves: WFDB annotations beside the table")
    recordings_per_task: int = setting(64, "files that one task reads", at_least=1)
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    workers: int = setting(1, "copies of the models, each with a GPU where there are any", at_least=1)
    threads_per_worker: int = setting(1, at_least=1)
    cpus_per_worker: float = setting(0.5, above=0.0)
    readers: int = setting(2, "tasks that read recordings", at_least=1)
    cpus_per_reader: float = setting(0.25, above=0.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class PredictCommand:
    """Everything `beatray predict` needs."""

    model: str = ""
    corpus: CorpusLocation = field(default_factory=CorpusLocation)
    files: str = ""
    source: str = "files"
    out: str = "predictions"
    format: str = "auto"
    overwrite: bool = False
    predict: PredictSettings = field(default_factory=PredictSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)


@dataclass(frozen=True, slots=True)
class PredictPlan:
    """All the work needs; see the module text."""

    models: tuple[str, ...]
    sha256: tuple[str, ...]
    model: EcgModel
    settings: PredictSettings
    made_by: dict[str, Any]
    of: dict[str, Any]
    parts: tuple[Part, ...]
    unlisted: tuple[Unlisted, ...]
    paths: OutputPaths

    @property
    def key(self) -> str:
        """Two plans share it only if they predict the same for the same recording."""
        return digest_of(self.made_by)

    @property
    def annotated(self) -> bool:
        """Whether annotation files are to be written."""
        return self.model.kind == "waves" and self.settings.annotations

    @property
    def recordings(self) -> int:
        """Of files: those listed; of a corpus: its rows."""
        return sum(part.rows for part in self.parts)


def prepare_plan(command: PredictCommand) -> PredictPlan:
    """Open the models and the recordings and check that they fit; SettingsError, CorpusError or CheckpointError."""
    models = tuple(absolute(bundled.location_of(path)) for path in paths_in(command.model))
    if not models:
        raise SettingsError("which model? set model=PATH (a run folder of `beatray finetune`, or its model/ folder)")
    if bool(command.corpus.path) == bool(command.files):
        raise SettingsError("of which recordings? set one of corpus=PATH and files=PATH (a folder, zip, tar or URI)")
    if command.source not in SOURCES:
        raise SettingsError(f"there is no source {command.source!r}{nearest(command.source, SOURCES)}")
    paths = output_paths(absolute(command.out), command.format)
    try:
        model: EcgModel = EcgModel(list(models)).fit()
        sha256 = tuple(model_sha256(path) for path in models)
    except CheckpointError as error:
        raise SettingsError(f"model={command.model}: {error}") from error
    recipe: dict[str, Any] = model.description["recipe"]
    unlisted: tuple[Unlisted, ...] = ()
    if command.corpus.path:
        corpus = open_corpus(absolute(command.corpus.path))
        refuse_inside(paths.store, command.out, corpus.store, "the corpus")
        check_recipe(recipe, corpus.recipe, f"the model {models[0]}")
        parts = parts_of_corpus(corpus)
        of: dict[str, Any] = {"corpus": corpus.store.where()}
    else:
        location = absolute(command.files)
        refuse_inside(paths.store, command.out, Store(location), "the files")
        chosen = {key: recipe[key] for key in ("detector", "quality", "hrv") if key in recipe}
        reading = IngestSettings(
            {command.source: location}, "", **chosen, items_per_shard=command.predict.recordings_per_task
        )
        check_recipe(recipe, recipe_of(reading), f"the model {models[0]}")
        listed = list_items(reading)
        parts = parts_of_files(listed, reading, recipe_of(reading))
        unlisted = tuple(other for _, others in listed.values() for other in others)
        of = {"files": Store(location).where(), "source": command.source}
    made_by = {"version": VERSION, "models": list(sha256), "kind": model.kind, "names": list(model.names)}
    return PredictPlan(models, sha256, model, command.predict, made_by, of, tuple(parts), unlisted, paths)


def paths_in(text: str) -> list[str]:
    """The paths of `model=A`, `model=A,B` or `model=[A,B]`."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return [path.strip().strip("'\"") for path in inner.split(",") if path.strip()]
