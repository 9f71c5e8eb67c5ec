"""The report's page: one HTML file that needs nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from report_parts import style


@dataclass(frozen=True)
class Section:
    """One question: a heading, a few sentences (HTML), figures, and what they were made from."""

    name: str  # anchor
    heading: str
    text: str
    figures: Sequence[tuple[str, str]] = ()  # SVG, caption (HTML)
    sources: Sequence[str] = ()  # HTML, one an origin
    table: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    lede: str
    facts: Sequence[tuple[str, str]] = ()  # number, what it counts
    sections: Sequence[Section] = field(default_factory=list)
    missing: Sequence[str] = ()  # folders without results


_STYLE = """
:root { --ink: INK; --muted: MUTED; --line: #dfe4e8; --paper: #fff; --ground: #f6f7f8; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 56px 24px 80px; }
h1 { font-size: 40px; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 16px; }
h2 { font-size: 24px; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 78ch; }
a { color: #00598c; text-decoration-thickness: 1px; text-underline-offset: 2px; }
.lede { font-size: 18px; color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: 16px; margin: 28px 0 20px; padding: 0;
  list-style: none; }
.facts li { flex: 1 1 168px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; padding: 14px 18px; font-size: 14px; line-height: 1.45;
  color: var(--muted); }
.facts b { display: block; font-size: 28px; line-height: 1.25; color: var(--ink); }
nav { font-size: 14px; line-height: 2; margin: 0 0 36px; }
nav a { margin-right: 18px; white-space: nowrap; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 28px 32px 20px; margin: 0 0 28px; }
figure { margin: 20px 0 8px; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: 640px; }
svg text { font-family: "DejaVu Sans", Verdana, sans-serif; }
figcaption { font-size: 14px; color: var(--muted); margin-top: 10px; max-width: 92ch; }
.source { font-size: 12.5px; line-height: 1.55; color: var(--muted);
  border-top: 1px solid var(--line); margin-top: 18px; padding-top: 10px; }
.source p { margin: 0 0 4px; max-width: none; }
code { font: 0.92em ui-monospace, "DejaVu Sans Mono", monospace; background: #f0f2f4;
  padding: 1px 4px; border-radius: 4px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.45;
  margin: 12px 0; }
th { text-align: left; font-weight: 600; color: var(--muted);
  border-bottom: 1px solid var(--line); }
th, td { padding: 7px 14px 7px 0; vertical-align: top; }
td { border-bottom: 1px solid #eef1f3; }
.yes { color: PACE; font-weight: 600; }
.no { color: LATE; font-weight: 600; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def escape(text: str) -> str:
    """Text as HTML, with `code` and links [text](address) as Markdown writes them."""
    safe = html.escape(text, quote=False)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', safe)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; a cell that only says yes or no is coloured."""

    def cell(text: str) -> str:
        mark = f' class="{text}"' if text in ("yes", "no") else ""
        return f"<td{mark}>{escape(text)}</td>"

    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text.split("\n\n")]
    for drawing, caption in section.figures:
        parts.append(f"<figure>\n{drawing}\n<figcaption>{escape(caption)}</figcaption>\n</figure>")
    parts.append(section.table)
    if section.sources:
        lines = "\n".join(f"<p>{escape(source)}</p>" for source in section.sources)
        parts.append(f'<div class="source">\n{lines}\n</div>')
    return "\n".join([*filter(None, parts), "</section>"])


def render(page: Page) -> str:
    """The whole file."""
    shades = {
        "INK": style.INK,
        "MUTED": style.MUTED,
        "PACE": style.COLOURS["pace"],
        "LATE": style.MISSED,
    }
    sheet = re.sub("|".join(shades), lambda found: shades[found.group()], _STYLE)
    facts = "\n".join(
        f"<li><b>{escape(number)}</b> {escape(text)}</li>" for number, text in page.facts
    )
    links = "\n".join(f'<a href="#{s.name}">{escape(s.heading)}</a>' for s in page.sections)
    left_out = ""
    if page.missing:
        left_out = f"<p>Not shown, as nothing is recorded yet: {', '.join(page.missing)}.</p>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>{sheet}</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
<p class="lede">{escape(page.lede)}</p>
<ul class="facts">
{facts}
</ul>
<nav>
{links}
</nav>
{chr(10).join(map(_section, page.sections))}
{left_out}
</main>
</body>
</html>
"""
