"""`beatray ingest SOURCE=PATH ... --out CORPUS`: recordings into a corpus; a source given twice has two locations."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from beatray.commands.console import progress, say
from beatray.config import compose
from beatray.corpus.manifest import Manifest, latest_number, read_manifest
from beatray.corpus.summary import show
from beatray.corpus.writer import FOLDER
from beatray.errors import CorpusError, SettingsError
from beatray.ingest.locations import ELSEWHERE, Locations, locations_of, one_holds_the_other
from beatray.ingest.lock import only_ingest
from beatray.ingest.plan import IngestSettings, id_key_for, list_items
from beatray.ingest.slices import STAGING
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import is_remote, local_path
from beatray.ray_session import RaySettings, session
from beatray.schema import as_dict, build, warn_renamed
from beatray.settings import ClusterSettings
from beatray.storage.store import Store

OWN_FILE = re.compile(r"manifest-\d+\.json|quarantine-\d+(-[0-9a-f]{8})?\.parquet")
"""Names of the files of a corpus beside its shards."""


def split_overrides(overrides: list[str]) -> tuple[dict[str, Locations], list[str]]:
    """The SOURCE=PATH overrides with absolute locations (several where a source is repeated), and the others."""
    found: dict[str, list[str]] = {}
    others = []
    for override in overrides:
        key, sign, value = override.partition("=")
        if sign and key in SOURCES:
            location = value if is_remote(value) else str(_folder(f"{key}=", local_path(value)))
            for other in found.setdefault(key, []):
                if one_holds_the_other(location, other):
                    raise SettingsError(
                        f"{key}={location} and {key}={other} are one location, or one lies in the other: give it once, "
                        "or name folders that have nothing in common"
                    )
            found[key].append(location)
        elif key == "salt_file":
            warn_renamed("salt_file", "id_key_file")
            others.append(f"id_key_file={value}")
        else:
            others.append(override)
    return {key: locations[0] if len(locations) == 1 else tuple(locations) for key, locations in found.items()}, others


def _folder(key: str, value: str) -> Path:
    if not value:
        raise SettingsError(f"{key} is empty: give a folder or an archive (an unset variable?)")
    return Path(value).expanduser().absolute()


def settings_from(
    overrides: list[str], out: str | None, id_key_file: str | None = None
) -> tuple[IngestSettings, ClusterSettings]:
    """The settings that the overrides of the command line mean."""
    sources, others = split_overrides(overrides)
    if out is not None:
        others.append(f"out={out}")
    if id_key_file is not None:
        others.append(f"id_key_file={id_key_file}")
    content = compose("ingest", others, others=tuple(SOURCES))
    cluster = build(ClusterSettings, content.pop("cluster"), "cluster.")
    if not sources:
        raise SettingsError(f"name at least one source: {', '.join(f'{name}=PATH' for name in sorted(SOURCES))}")
    settings = build(IngestSettings, {**content, "sources": sources})
    if settings.items_per_shard < 1 or (settings.limit is not None and settings.limit < 1):
        raise SettingsError("items_per_shard and limit must be at least 1")
    if Store(settings.out).is_local:
        folder = _folder("--out", settings.out.removeprefix("file://"))
        for source, location in locations_of(sources):
            if Path(location).is_relative_to(folder):
                raise SettingsError(
                    f"{source}={location} lies inside --out {folder}; choose another folder for the corpus"
                )
        settings = replace(settings, out=str(folder))
    return _with_id_key(settings), cluster


def _with_id_key(settings: IngestSettings) -> IngestSettings:
    """The settings with the path of the id key spelled out; it must not lie where others will look."""
    if settings.id_key_file is None:
        return settings
    key = _folder("--id-key-file", settings.id_key_file)
    for name, path in [("--out", settings.out), *locations_of(settings.sources)]:
        if "://" not in path and key.resolve().is_relative_to(Path(path).resolve()):
            raise SettingsError(f"--id-key-file {key} lies inside {name} {path}: keep the secret away from the data")
    return replace(settings, id_key_file=str(key))


def run(settings: IngestSettings, cluster: ClusterSettings, *, overwrite: bool = False) -> Manifest:
    """Ingest and print a summary."""
    from beatray.ingest.convert import ingest  # imports Ray, which takes a second

    store = Store(settings.out)
    listed = list_items(settings)  # a wrong path or id key must be reported before anything is started or removed
    number = latest_number(store)
    id_key_for(settings, read_manifest(store) if number is not None and not overwrite else None)
    if number is not None and not overwrite:
        say(f"a corpus exists at {settings.out} (manifest {number}); only recordings it does not know are read")
    with session(RaySettings(**as_dict(cluster))), progress("ingest", "recordings") as update:
        if overwrite:  # no earlier: a Ray that cannot be reached costs no corpus
            with only_ingest(store):
                remove_corpus(store)
            number = None
        done = ingest(settings, lambda p: update(p.done, p.total, f"{p.refused} refused" if p.refused else ""), listed)
    manifest = done.manifest
    if done.known:
        say(
            f"  {done.known:,} recordings are known by source and name and were not read again (where a path is the "
            "name, ingest another folder with the same paths through a common parent folder; for corrected files that "
            "were refused, add retry_refused=true)"
        )
    for (source, _), (_, unlisted) in listed.items():
        for other in unlisted:
            if ELSEWHERE in other.detail:
                say(f"  {source}: {other.detail}")
    if done.ids_dropped:
        say(
            f"  warning: {done.ids_dropped:,} recordings have a hospital's patient id, which is not stored without a "
            "id key: recordings of one patient may lie on both sides of a split. --id-key-file PATH keeps them together"
        )
    if number is not None and manifest.number == number:
        say(f"nothing to do: the corpus at {settings.out} already holds or has refused all of them")
    say(summary_text(show(manifest)))
    for source in settings.sources:
        if source not in manifest.statistics["by_source"]:
            say(f"  warning: nothing of {source} was kept; see beatray corpus refused {settings.out}")
    return manifest


def remove_corpus(store: Store) -> None:
    """Delete what beatray writes in a corpus folder, and nothing else.

    Raises CorpusError for a folder that holds other things and no corpus.
    """
    names, folders = store.names(), store.folders()
    files = [name for name in names if OWN_FILE.fullmatch(name)]
    if (names or folders) and not files and STAGING not in folders:
        raise CorpusError(
            f"{store.where()} is not empty and holds no corpus; --overwrite leaves it alone. Choose another --out."
        )
    for name in files:  # manifests first: what is left of an interrupted removal is no corpus
        store.delete(name)
    for name in (FOLDER, STAGING):
        store.delete_folder(name)


def summary_text(public: dict[str, Any]) -> str:
    """A corpus in a few lines."""
    sources = ", ".join(f"{name} {count:,}" for name, count in public["by_source"].items())
    lines = [
        f"  recordings  {public['recordings']:,} ({sources}) in {public['rows']:,} rows",
        f"  patients    {public['patients']:,}",
        f"  beats       {public['beats']:,}",
        f"  hours       {public['hours']:.2f}",
        f"  duplicates  {public['duplicates']:,}" + (" rows (beatray corpus splits)" if public["duplicates"] else ""),
        f"  refused     {public['quarantined']:,}" + (" (beatray corpus refused)" if public["quarantined"] else ""),
    ]
    lines += [f"                {reason}: {count:,}" for reason, count in public["quarantine_reasons"].items()]
    if public["flags"]:
        lines.append("  flagged     " + ", ".join(f"{name} {count:,}" for name, count in public["flags"].items()))
    return "\n".join(lines)
