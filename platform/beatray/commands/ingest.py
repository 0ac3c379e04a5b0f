"""`beatray ingest SOURCE=PATH ... --out CORPUS`: recordings into a corpus."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from beatray.commands.console import progress, say
from beatray.corpus.manifest import CorpusError, Manifest, latest_number, read_manifest
from beatray.corpus.store import Store
from beatray.corpus.summary import show
from beatray.ingest.convert import IngestSettings, ingest
from beatray.ingest.source import SOURCES
from beatray.ray_session import RaySettings, session
from beatray.settings import ClusterSettings, SettingsError, as_dict, build, compose


def split_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The SOURCE=PATH words, and the others."""
    sources, others = {}, []
    for word in words:
        key, sign, value = word.partition("=")
        if sign and key in SOURCES:
            if key in sources:
                raise SettingsError(f"{key}= is said twice; ingest one after the other into the same corpus")
            sources[key] = value if "://" in value else str(Path(value).absolute())
        else:
            others.append(word)
    return sources, others


def settings_from(words: list[str], out: str | None) -> tuple[IngestSettings, ClusterSettings]:
    """The settings that the words of the command line mean."""
    sources, others = split_words(words)
    content = compose("ingest", [*others, *([f"out={out}"] if out else [])])
    cluster = build(ClusterSettings, content.pop("cluster"), "cluster.")
    if not sources:
        raise SettingsError(f"name at least one source: {', '.join(f'{name}=PATH' for name in sorted(SOURCES))}")
    settings = build(IngestSettings, {**content, "sources": sources})
    if settings.items_per_shard < 1 or (settings.limit is not None and settings.limit < 1):
        raise SettingsError("items_per_shard and limit must be at least 1")
    store = Store(settings.out)
    return replace(settings, out=str(store.folder) if store.is_local else settings.out), cluster


def run(settings: IngestSettings, cluster: ClusterSettings, *, overwrite: bool = False) -> Manifest:
    """Ingest and tell the user what came of it."""
    store = Store(settings.out)
    if overwrite:
        remove_corpus(store)
    number = latest_number(store)
    if number is not None:
        say(f"a corpus exists at {settings.out} (manifest {number}); only recordings it does not know are read")
    with session(RaySettings(**as_dict(cluster))), progress("ingest", "recordings") as update:
        done = ingest(settings, lambda p: update(p.done, p.total, f"{p.refused} refused" if p.refused else ""))
    manifest = done.manifest
    if done.known:
        say(f"  {done.known:,} recordings are known by source and name and were not read again")
    if number is not None and manifest.number == number:
        say(f"nothing to do: the corpus at {settings.out} already holds all of them")
    say(summary_text(show(manifest)))
    return manifest


def remove_corpus(store: Store) -> None:
    """Delete a corpus, and only a corpus: a folder without a manifest is left alone."""
    if not store.is_local:
        raise CorpusError("--overwrite works on local folders only; remove the objects yourself")
    if latest_number(store) is not None:
        read_manifest(store)  # a folder that merely looks like a corpus is not deleted
        shutil.rmtree(store.folder)


def summary_text(public: dict[str, Any]) -> str:
    """A corpus in a few lines."""
    sources = ", ".join(f"{name} {count:,}" for name, count in public["by_source"].items())
    lines = [
        f"  recordings  {public['recordings']:,} ({sources}) in {public['rows']:,} rows",
        f"  patients    {public['patients']:,}",
        f"  beats       {public['beats']:,}",
        f"  hours       {public['hours']:.2f}",
        f"  refused     {public['quarantined']:,}",
    ]
    lines += [f"                {reason}: {count:,}" for reason, count in public["quarantine_reasons"].items()]
    if public["flags"]:
        lines.append("  flagged     " + ", ".join(f"{name} {count:,}" for name, count in public["flags"].items()))
    return "\n".join(lines)
