"""The report: one HTML file that holds everything and asks the network for nothing.

Pictures are inlined (PNG as data, SVG as an image of data, so that no id of one figure meets another's), the style
sheet is inlined, there is no script. It reads on a laptop screen, in both colour schemes, and on A4 paper. A content
security policy forbids any request, so the promise does not rest on care alone.

Contract: every text given is escaped; only `Section.html` is taken as it is, for tables this package renders. The file
is written aside and renamed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from beatray.full_disk import named

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as PNG or SVG bytes; `alt` describes it to those who cannot see it, `caption` how to read it.

    `share` is how much of the page's width it takes: text in all figures should come out about as large.
    """

    image: bytes
    alt: str
    caption: str = ""
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and, in this order, paragraphs, facts (name: value), html, pictures, preformatted text, small print.

    `anchor` is what links point at. One `of` a group begins a page of its own on paper, and stands in a line of the
    group among the links at the top.
    """

    title: str
    paragraphs: Sequence[str] = ()
    facts: Mapping[str, object] | None = None
    html: str = ""
    pictures: Sequence[Picture] = ()
    preformatted: str = ""
    folded: Mapping[str, str] | None = None  # title: text behind a fold
    small_print: Sequence[str] = ()
    anchor: str = ""
    of: str = ""


def write_report(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section], footer: str = "") -> Path:
    """Write the page to `path` (its folder is made) and return it. `lead` are the first sentences under the title."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with named(path):
        aside.write_text(page(title, lead, sections, footer), encoding="utf-8")
    return aside.replace(path)


def page(title: str, lead: Sequence[str], sections: Sequence[Section], footer: str = "") -> str:
    """The whole page as text."""
    style = files("beatray.report").joinpath("page.css").read_text(encoding="utf-8")
    groups = dict.fromkeys(section.of for section in sections)
    links = "<br>".join(
        (f"{escape(group)}: " if group else "")
        + "".join(f'<a href="#{_anchor(n, s)}">{escape(s.title)}</a> ' for n, s in enumerate(sections) if s.of == group)
        for group in groups
    )
    body = "\n".join(_section(number, section) for number, section in enumerate(sections))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_paragraphs(lead, "lead")}
<nav>{links}</nav>
{body}
{f"<footer>{escape(footer)}</footer>" if footer else ""}
</body>
</html>
"""


def facts_table(facts: Mapping[str, object]) -> str:
    """Names and values as a two-column table; nested mappings are flattened with dots."""
    lines = [f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in flatten(facts)]
    return f'<table class="facts">{"".join(lines)}</table>'


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], links: Mapping[str, str] | None = None) -> str:
    """A table of texts; a first cell named in `links` leads to that anchor."""
    links = links or {}
    lines = []
    for row in rows:
        first = f'<a href="#{escape(links[row[0]])}">{escape(row[0])}</a>' if row[0] in links else escape(row[0])
        lines.append(f"<tr><td>{first}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table class='results'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def flatten(facts: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """(dotted name, value) of every leaf, in the order given."""
    leaves: list[tuple[str, object]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _section(number: int, section: Section) -> str:
    page = ' class="page"' if section.of else ""
    parts = [
        f'<section id="{_anchor(number, section)}"{page}>',
        f"<h2>{escape(section.title)}</h2>",
        _paragraphs(section.paragraphs),
    ]
    if section.facts:
        parts.append(facts_table(section.facts))
    if section.html:
        parts.append(f'<div class="wide">{section.html}</div>')
    parts += [_picture(picture) for picture in section.pictures]
    if section.preformatted:
        parts.append(f"<pre>{escape(section.preformatted)}</pre>")
    for title, text in (section.folded or {}).items():
        parts.append(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")
    parts += [_paragraphs(section.small_print, "sub"), "</section>"]
    return "\n".join(part for part in parts if part)


def _picture(picture: Picture) -> str:
    kind = "image/png" if picture.image.startswith(PNG_MAGIC) else "image/svg+xml"
    data = base64.b64encode(picture.image).decode("ascii")
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    width = f' style="width: {100 * picture.share:.0f}%"' if picture.share < 1 else ""
    return f'<figure><img{width} src="data:{kind};base64,{data}" alt="{escape(picture.alt)}">{caption}</figure>'


def _paragraphs(texts: Sequence[str], style: str = "") -> str:
    css = f' class="{style}"' if style else ""
    return "\n".join(f"<p{css}>{escape(text)}</p>" for text in texts)


def _anchor(number: int, section: Section) -> str:
    return section.anchor or f"section-{number + 1}"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(each) for each in value)
    return "-" if value is None or value == "" else str(value)
