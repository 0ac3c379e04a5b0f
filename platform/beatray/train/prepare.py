"""From settings to a `RunSpec`: opens the corpus, chooses its rows and fixes everything a rank needs.

Everything that can be wrong with the settings of a user is found here, before Ray starts.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beatray.augment.draws import record_key
from beatray.corpus.reader import Corpus, open_corpus
from beatray.corpus.splits import Role, assign_roles, drawn_patients, policy_of
from beatray.errors import SettingsError
from beatray.models.bundled import location_of
from beatray.models.encoder_folder import check_recipe, describe_encoder, encoder_sha256, trained_on
from beatray.objectives.registry import objective_class, objective_settings
from beatray.plugins import nearest
from beatray.settings import CorpusSettings, PretrainSettings
from beatray.storage.store import Store, absolute
from beatray.track.setup import check_default_database
from beatray.train.blocks import ARRAYS, patient_keys
from beatray.train.epoch_audit import key_sum
from beatray.train.order import OrderSettings
from beatray.train.run_spec import RunSpec, build_model
from beatray.train.stream_settings import RowGroup, StreamSettings
from beatray.train.targets import TargetTable


def select_rows(corpus: Corpus, settings: CorpusSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The index rows to train on and those to validate on; held-out rows are neither."""
    index = corpus.index
    if settings.pretrain_sees_test:
        chosen, held_out = index, index.iloc[:0]
    else:
        roles = assign_roles(index, policy_of(settings))
        chosen, held_out = index.loc[roles == Role.TRAIN], index.loc[roles == Role.VALIDATION]
    if settings.most_recordings is not None:
        chosen = chosen.loc[drawn_patients(chosen, settings.most_recordings, settings.fold_rotation)]
    return chosen, held_out


def row_groups(corpus: Corpus, chosen: pd.DataFrame) -> tuple[RowGroup, ...]:
    """The chosen rows by row group, in manifest order; row groups without any are left out."""
    by_group: dict[tuple[int, int], list[int]] = {}
    for shard, group, row in chosen[["shard", "group", "row"]].to_numpy(np.int64).tolist():
        by_group.setdefault((shard, group), []).append(row)
    return tuple(
        RowGroup(corpus.manifest.shards[shard], group, tuple(sorted(by_group[shard, group])))
        for shard, group in sorted(by_group)
    )


def some_of(groups: tuple[RowGroup, ...], rows: int) -> tuple[RowGroup, ...]:
    """Row groups from all over the corpus, always the same ones, with at most `rows` rows."""
    taken, left = [], rows
    for number in np.random.default_rng(0).permutation(len(groups)).tolist():
        if left > 0:
            taken.append(replace(groups[number], rows=groups[number].rows[:left]))
            left -= len(taken[-1].rows)
    return tuple(taken)


def hashes_of(rows: pd.DataFrame) -> bytes:
    """The rows' content hashes, cut to 8 bytes, sorted and joined."""
    hashes = np.frombuffer(b"".join(value[:8] for value in rows["content_hash"]), "<u8")
    return np.unique(hashes).tobytes()


@dataclass(frozen=True, slots=True)
class LabelledParts:
    """What an objective that learns from labels learns: positions in the corpus index, and the targets."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    targets: TargetTable


def opened(settings: PretrainSettings) -> tuple[PretrainSettings, Corpus]:
    """The corpus, and the settings with paths that hold on every node. SettingsError for paths that cannot."""
    if not settings.corpus.path:
        raise SettingsError("which corpus? set corpus=PATH (make one with `beatray ingest`)")
    out = Store(settings.out)
    if out.is_local:
        settings = replace(settings, out=str(out.folder))
        check_default_database(settings.tracking.uri, out.folder)
    elif settings.tracking.uri == "auto" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise SettingsError(
            f"out={settings.out} is an object store, which cannot hold MLflow's database: set tracking.uri= (or set "
            "MLFLOW_TRACKING_URI), or tracking.uri=null for none"
        )
    settings = replace(settings, corpus=replace(settings.corpus, path=absolute(settings.corpus.path)))
    if settings.encoder_weights is not None:
        location = absolute(location_of(settings.encoder_weights))
        settings = replace(settings, encoder_weights=location, encoder_weights_sha256=encoder_sha256(location))
    return settings, open_corpus(settings.corpus.path)


def prepare_run(
    settings: PretrainSettings, corpus: Corpus | None = None, labelled: LabelledParts | None = None
) -> RunSpec:
    """Choose the rows and fix everything a rank needs; clear errors before anything starts.

    With `labelled` the settings and the corpus are as `opened` gave them, and the rows are those of `labelled`.
    """
    if corpus is None:
        settings, corpus = opened(settings)
    if settings.encoder_weights is not None:
        described = describe_encoder(settings.encoder_weights)
        check_recipe(described["recipe"], corpus.recipe, f"the encoder {settings.encoder_weights}")
    if labelled is None:
        chosen, held_out = select_rows(corpus, settings.corpus)
    else:
        chosen, held_out = corpus.index.iloc[labelled.train], corpus.index.iloc[labelled.validation]
    if settings.train.validate_every_epochs == 0:
        held_out = held_out.iloc[:0]
    groups = row_groups(corpus, chosen)
    if not groups:
        why = "all are held out for tests"
        if settings.corpus.most_recordings is not None:
            why += f", or corpus.most_recordings={settings.corpus.most_recordings} holds no whole patient"
        raise SettingsError(f"no recording of {settings.corpus.path} may be trained on: {why}")
    if held_out.empty:
        refuse_without_validation(settings)
    settings = resolved(settings)
    statistics = feature_statistics(corpus)
    arrays = _reads(settings, statistics)
    clusters = corpus.manifest.statistics.get("beat_clusters")
    if "beat_class" in arrays and clusters is None:
        raise SettingsError(
            f"the corpus has too few beats for clusters, which objective={settings.objective['name']} asks for; choose "
            "targets without them"
        )
    train_settings = settings.train
    stream = StreamSettings(
        store=corpus.store,
        groups=groups,
        order=OrderSettings(
            seed=settings.seed,
            batch_size=train_settings.batch_size,
            streams=train_settings.shuffle_streams,
            window=train_settings.window,
            parts=train_settings.gradient_accumulation_steps,
            patients=_patients(corpus, groups, chosen) if train_settings.keep_patients_together else None,
        ),
        arrays=arrays,
        clusters=clusters if "beat_class" in arrays else None,
        readers=train_settings.readers_per_worker,
        cpus_per_reader=train_settings.cpus_per_reader,
        chunk_steps=train_settings.chunk_steps,
        cache_mb=train_settings.cache_mb,
        targets=None if labelled is None else labelled.targets,
        on_bad_shard=settings.corpus.on_bad_shard,
    )
    return RunSpec(
        settings=settings,
        stream=stream,
        validation=replace(stream, groups=some_of(row_groups(corpus, held_out), settings.train.validation_rows)),
        statistics=statistics,
        recipe=corpus.recipe,
        manifest_hash=corpus.manifest.hash,
        trained_on=_with_earlier(hashes_of(chosen), settings.first_weights),
        key_sum=key_sum(record_key(name) for name in chosen["record_id"]),
        sources={str(name): int(count) for name, count in sorted(chosen["source"].value_counts().items())},
        earlier_sources=_sources_of(settings.first_weights),
    )


def _sources_of(weights: str | None) -> dict[str, int] | None:
    """What the encoder that training starts from was trained on by source; None where that, or a part, is not known."""
    if weights is None:
        return None
    description = describe_encoder(weights)
    own, earlier = description.get("sources"), description.get("earlier_sources")
    if not own or (description.get("started_from") and not earlier):
        return None
    return {name: max(own.get(name, 0), (earlier or {}).get(name, 0)) for name in sorted({*own, *(earlier or {})})}


def refuse_without_validation(settings: PretrainSettings) -> None:
    """SettingsError if something is set that follows from validations, for a run that has none."""
    for name, is_set, off in (
        ("checkpoint.export=best", settings.checkpoint.export == "best", "checkpoint.export=last"),
        (f"train.patience={settings.train.patience}", settings.train.patience is not None, "train.patience=null"),
    ):
        if is_set:
            raise SettingsError(
                f"{name} needs a validation, and no recording of {settings.corpus.path} is held out for one: choose "
                "corpus.validation_folds that the corpus has, with corpus.pretrain_sees_test=false (sources without "
                f"folds have none), or set {off}"
            )


def _with_earlier(hashes: bytes, weights: str | None) -> bytes:
    """The hashes of what is trained on, with those of what the encoder that training starts from was trained on."""
    if weights is None:
        return hashes
    return np.union1d(np.frombuffer(hashes, "<u8"), trained_on(weights)).astype("<u8").tobytes()


def feature_statistics(corpus: Corpus) -> dict[str, Any]:
    """Statistics of the record and beat features of a corpus, as objectives take them."""
    return {name: corpus.manifest.statistics[f"{name}_features"] for name in ("record", "beat")}


def resolved(settings: PretrainSettings) -> PretrainSettings:
    """The settings as the run begins with them: what the objective makes absolute or fills in."""
    name = settings.objective["name"]
    kind = objective_class(name)
    content = {key: value for key, value in settings.objective.items() if key != "name"}
    made = kind.resolved(objective_settings(name, content))
    return replace(settings, objective={"name": name, **asdict(made)})


def _patients(corpus: Corpus, groups: tuple[RowGroup, ...], chosen: pd.DataFrame) -> NDArray[np.int64]:
    """Patient key of every row that is trained on, row group by row group as the order counts them."""
    number_of = {shard.name: number for number, shard in enumerate(corpus.manifest.shards)}
    by_position = chosen.set_index(["shard", "group", "row"])[["patient_id", "record_id"]]
    positions = [(number_of[group.shard.name], group.group, row) for group in groups for row in group.rows]
    rows = by_position.loc[positions]
    own = np.array([record_key(name) for name in rows["record_id"]], np.int64)
    known = rows["patient_id"].where(rows["patient_id"].notna(), None)
    return patient_keys(known.tolist(), own)


def _reads(settings: PretrainSettings, statistics: dict[str, Any]) -> tuple[str, ...]:
    """What the objective reads of a corpus; building it here also checks its settings before anything starts."""
    try:
        built = build_model(settings.objective, settings.encoder, settings.seed, statistics, settings.first_weights)
    except (ValueError, TypeError) as error:
        raise SettingsError(str(error)) from error
    unknown = [name for name in built.reads if name not in ARRAYS]
    if unknown:
        raise SettingsError(
            f"{built.title} reads {unknown[0]!r}, which a corpus does not give{nearest(unknown[0], ARRAYS)}"
        )
    return tuple(built.reads)
