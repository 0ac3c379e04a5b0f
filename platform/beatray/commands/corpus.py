"""`beatray corpus show|verify|splits CORPUS`: what is in a corpus, whether it is whole, what may be trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from beatray.commands.console import print_table, say
from beatray.commands.ingest import summary_text
from beatray.config import compose
from beatray.corpus.reader import open_corpus, verify
from beatray.corpus.splits import Role, assign_roles, duplicates, policy_of
from beatray.corpus.summary import show
from beatray.dsp.quality import MEANINGS as QUALITY
from beatray.errors import SettingsError
from beatray.ingest.canonical import MEANINGS as READING
from beatray.ingest.plan import read_quarantine
from beatray.schema import build
from beatray.settings import CorpusSettings

LABELS_SHOWN = 6
GROUPS_SHOWN = 3


def show_corpus(uri: str, as_json: bool) -> int:
    """Print the summary; with `as_json` as one JSON object."""
    manifest = open_corpus(uri).manifest
    public = show(manifest)
    if as_json:
        say(json.dumps(public, indent=1, sort_keys=True))
        return 0
    say(f"corpus {uri}, manifest {manifest.number} ({manifest.hash[:12]})")
    say(summary_text(public))
    print_table(_by_source(public["sources"]))
    size = sum(shard.bytes for shard in manifest.shards)
    say(f"  shards      {len(manifest.shards)} ({size / 1e6:.1f} MB)")
    chosen = [
        manifest.recipe["detector"],
        *(f"{k}={manifest.recipe[k]}" for k in ("quality", "hrv") if k in manifest.recipe),
    ]
    say(f"  detector    {', '.join(chosen)}")
    return 0


def _by_source(sources: dict[str, Any]) -> Table:
    table = Table(*("source", "recordings", "rows", "beats", "rates in Hz", "leads", "flagged rows", "labels"))
    for source, about in sources.items():
        rates = ", ".join(f"{rate} ({count:,})" for rate, count in about["rates_hz"].items())
        flags = "\n".join(f"{name} {count:,}" for name, count in about["flags"].items())
        common = Counter(about["labels"]).most_common(LABELS_SHOWN)
        labels = ", ".join(f"{name} {count:,}" for name, count in common)
        more = len(about["labels"]) - len(common)
        leads = lead_counts(about["leads"], about["rows"])
        counts = (f"{about[key]:,}" for key in ("recordings", "rows", "beats"))
        cells = (source, *counts, rates, leads, flags, labels + (f" and {more} more" if more else ""))
        table.add_row(*(escape(cell) for cell in cells))  # labels are the user's own words
    return table


def lead_counts(leads: dict[str, int], rows: int) -> str:
    """In how many of the rows each lead is fit to be read, leads of one number together."""
    by_count: dict[int, list[str]] = {}
    for lead, count in leads.items():
        by_count.setdefault(count, []).append(lead)
    least, most = min(by_count), max(by_count)
    if least == most:
        return "12 in all rows" if least == rows else f"12 in {least:,} of {rows:,} rows"
    if len(by_count) > GROUPS_SHOWN:
        return f"each in {least:,} ({by_count[least][0]}) to {most:,} ({by_count[most][0]}) of {rows:,} rows"
    shown = {0: "none", rows: "all"}
    parts = [f"{', '.join(by_count[n])} in {shown.get(n, f'{n:,}')}" for n in sorted(by_count, reverse=True)]
    return "; ".join(parts) + f" of {rows:,} rows"


def write_html(uri: str, path: str) -> int:
    """Write the page of a corpus to `path`."""
    from beatray.report.corpus_page import write_corpus_page  # draws: imports matplotlib

    corpus = open_corpus(uri)
    flags = {str(f.name).lower(): (int(f), text) for f, text in (QUALITY | READING).items()}
    written = write_corpus_page(
        Path(path).expanduser().absolute(), corpus, read_quarantine(corpus.store, corpus.manifest), flags
    )
    say(f"  wrote {written}")
    return 0


def verify_corpus(uri: str, as_json: bool) -> int:
    """Check every byte against the manifest; exit code 1 if anything differs."""
    corpus = open_corpus(uri)
    faults = list(verify(corpus))
    if as_json:
        about = {
            "manifest": corpus.manifest.number,
            "shards": len(corpus.manifest.shards),
            "rows": corpus.manifest.rows,
        }
        say(json.dumps({**about, "faults": faults}, indent=1))
        return 1 if faults else 0
    for fault in faults:
        say(fault)
    if faults:
        say(f"{len(faults)} faults. Restore the files named above from a copy, or ingest again with --overwrite.")
        return 1
    say(
        f"whole: {len(corpus.manifest.shards)} shards, {corpus.manifest.rows:,} rows, manifest {corpus.manifest.number}"
    )
    return 0


def show_refused(uri: str, as_json: bool) -> int:
    """List every refused recording with its reason."""
    corpus = open_corpus(uri)
    rows = read_quarantine(corpus.store, corpus.manifest)
    if as_json:
        say(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        say(f"  {row['source']}/{row['item']}: {row['reason']}: {row['detail']}")
    say(f"{len(rows)} refused")
    return 0


def show_splits(uri: str, as_json: bool, overrides: Sequence[str] = ()) -> int:
    """Count rows by source and role, and the signals that came in more than once; `overrides` as pretrain takes them
    (`corpus.test_folds=[8,9]`)."""
    strange = [override for override in overrides if not override.startswith("corpus.")]
    if strange:
        raise SettingsError(f"splits takes settings of the corpus policy (corpus.test_folds=[8,9]), not {strange[0]}")
    policy = build(CorpusSettings, compose("pretrain", overrides)["corpus"], "corpus.")
    index = open_corpus(uri).index
    roles = assign_roles(index, policy_of(policy))
    if policy.most_recordings is not None:
        raise SettingsError("splits shows who trains at most; corpus.most_recordings= takes some of them")
    counts = {
        source: {role.name.lower(): int(((index["source"] == source) & (roles == role)).sum()) for role in Role}
        for source in sorted(index["source"].unique())
    }
    repeated = duplicates(index)
    if as_json:
        say(json.dumps({"rows": counts, "duplicates": repeated["record_id"].tolist()}, indent=1))
        return 0
    for source, by_role in counts.items():
        say(f"  {source:10s} " + ", ".join(f"{name} {count:,}" for name, count in by_role.items()))
    signals = repeated["content_hash"].nunique()
    say(f"  {signals} signals occur more than once ({len(repeated)} rows); all rows of a signal share one role")
    return 0
