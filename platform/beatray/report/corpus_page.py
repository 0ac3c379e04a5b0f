"""The page of a corpus: what is in it, what was refused and why, and what each quality flag looks like.

Contract: `write_corpus_page` reads the manifest, the quarantine rows it is given and, for the pictures, the flags of as
many shards as it takes to find an example of each flag. Raises CorpusError for a damaged corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from beatray.corpus.reader import Corpus
from beatray.corpus.summary import show
from beatray.record import LEADS
from beatray.report.canvas import to_png
from beatray.report.ecg import twelve_lead_strip
from beatray.report.html import Picture, Section, write_report

STRIP_DPI = 80
LABELS_SHOWN = 40
REFUSED_SHOWN = 3


def write_corpus_page(
    path: Path,
    corpus: Corpus,
    refused: Sequence[Mapping[str, str]],
    flags: Mapping[str, tuple[int, str]],
) -> Path:
    """Write the page; `refused` are the quarantine rows, `flags` the bit and the meaning of each flag by name."""
    public = show(corpus.manifest)
    facts = {
        "recordings": f"{public['recordings']:,}",
        "rows (10 s each)": f"{public['rows']:,}",
        "patients": f"{public['patients']:,}",
        "rows with the signal of another": f"{public['duplicates']:,}",
        "beats": f"{public['beats']:,}",
        "hours": f"{public['hours']:,.2f}",
        "refused": f"{public['quarantined']:,}",
        "size": f"{public['bytes'] / 1e6:,.1f} MB in {public['shards']:,} shards",
        "manifest": f"{public['manifest']} ({public['manifest_hash'][:12]})",
    }
    sections = [
        Section("What is in it", facts=facts, html=source_table(public["sources"])),
        Section("Leads", html=lead_table(public["sources"])),
        Section("Labels", html=label_table(public["sources"])),
        _refused_section(refused),
        *_flag_sections(corpus, flags),
        Section("Recipe", facts=public["recipe"]),
    ]
    location = corpus.store.where()
    return write_report(
        path, "Corpus", [f"{location}: what was kept, what was refused, and the quality flags."], sections
    )


def source_table(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """Counts, rates and flags by source."""
    rows = []
    for source, about in sources.items():
        rates = ", ".join(f"{rate} Hz: {count:,}" for rate, count in about["rates_hz"].items())
        flags = ", ".join(f"{name} {100 * count / about['rows']:.1f} %" for name, count in about["flags"].items())
        numbers = (about["recordings"], about["rows"], about["beats"])
        cells = [source, *(f"{number:,}" for number in numbers), rates, flags or "none"]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    return _table(("source", "recordings", "rows", "beats", "rates", "rows with a flag"), rows)


def lead_table(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """In how many rows each lead is fit to be read."""
    rows = [
        f"<td>{escape(source)}</td>"
        + "".join(f"<td>{100 * about['leads'][lead] / about['rows']:.1f} %</td>" for lead in LEADS)
        for source, about in sources.items()
    ]
    return _table(("source", *LEADS), rows)


def label_table(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """The most frequent labels of each source."""
    rows = []
    for source, about in sources.items():
        common = Counter(about["labels"]).most_common()
        text = ", ".join(f"{name} {count:,}" for name, count in common[:LABELS_SHOWN]) or "none"
        more = f" and {len(common) - LABELS_SHOWN} more" if len(common) > LABELS_SHOWN else ""
        rows.append(f"<td>{escape(source)}</td><td>{len(common)}</td><td>{escape(text + more)}</td>")
    return _table(("source", "different", "recordings with each label"), rows)


def _refused_section(refused: Sequence[Mapping[str, str]]) -> Section:
    reasons = Counter(row["reason"] for row in refused)
    rows = []
    for reason, count in reasons.most_common():
        some = [row for row in refused if row["reason"] == reason][:REFUSED_SHOWN]
        text = "<br>".join(escape(f"{row['source']}/{row['item']}: {row['detail']}") for row in some)
        rows.append(f"<td>{escape(reason)}</td><td>{count:,}</td><td>{text}</td>")
    if not rows:
        return Section("Refused", ["Nothing was refused."])
    return Section("Refused", html=_table(("reason", "recordings", "for example"), rows))


def _flag_sections(corpus: Corpus, flags: Mapping[str, tuple[int, str]]) -> list[Section]:
    counts = corpus.manifest.statistics["flags"]
    examples = _examples(corpus, {name: bit for name, (bit, _) in flags.items() if name in counts})
    sections = []
    for name, (_, meaning) in flags.items():
        if name not in counts:
            continue
        title, share = name.replace("_", " ").capitalize(), 100 * counts[name] / corpus.manifest.rows
        paragraphs = [f"{meaning} {counts[name]:,} rows ({share:.1f} %)."]
        sections.append(Section(title, paragraphs, pictures=[examples[name]] if name in examples else ()))
    return sections


def _examples(corpus: Corpus, bits: Mapping[str, int]) -> dict[str, Picture]:
    """A strip of one recording for each flag: the one with the fewest other flags in the first shard that has any."""
    chosen: dict[str, int] = {}
    first = 0
    for shard in corpus.manifest.shards:
        if len(chosen) == len(bits):
            break
        flags = np.asarray(corpus.columns(shard, ["flags"])["flags"].to_pylist(), np.int64)
        others = np.array([int(value).bit_count() for value in flags])
        for name, bit in bits.items():
            found = np.flatnonzero(flags & bit)
            if name not in chosen and found.size:
                chosen[name] = first + int(found[np.argmin(others[found])])
        first += shard.rows
    rows = corpus.rows(list(chosen.values()))
    pictures = {}
    for number, name in enumerate(chosen):
        x_mv = rows.signal_uv[number].astype(np.float32) / 1000.0
        figure = twelve_lead_strip(x_mv, rows.r_peaks[number], title=rows.record_id[number])
        alt = f"12-lead strip of {rows.record_id[number]}, a recording with the flag {name}"
        pictures[name] = Picture(to_png(figure, STRIP_DPI), alt, f"{rows.record_id[number]}: 25 mm/s, 10 mm/mV.")
    return pictures


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
