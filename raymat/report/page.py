"""A self-contained page: styles and figures are in the file, no script, no request to a server."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from markdown_it import MarkdownIt

STYLE = """
:root { --ink: #1b1b1b; --faint: #5f6670; --line: #d9dce1; --ground: #f6f7f9; --accent: #7a1f2b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 15px/1.55 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 2px solid var(--accent); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, li { max-width: 62rem; }
.lead { color: var(--faint); margin-top: 0; }
nav ol { columns: 2; padding-left: 1.2rem; }
a { color: var(--accent); }
figure { margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; padding: .8rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: .6rem; color: var(--faint); font-size: .92rem; }
code, pre { font: .86em/1.4 ui-monospace, "Liberation Mono", Consolas, monospace; background: var(--ground);
  border-radius: 4px; }
code { padding: .1em .3em; overflow-wrap: anywhere; }
pre { padding: .6rem .8rem; overflow-x: auto; white-space: pre-wrap; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--ground); font-weight: 600; }
td:first-child { white-space: nowrap; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; } h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; } nav { display: none; }
  .table { overflow: visible; } table { font-size: 8pt; } th, td { padding: .15rem .4rem; }
  a { color: inherit; text-decoration: none; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
@page { margin: 15mm; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass
class Section:
    """A heading and its content, as HTML."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Add a subheading."""
        self.parts.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str) -> None:
        """Add Markdown; HTML in names of nodules or files is shown as text and never run."""
        self.parts.append(markdown(text))

    def folded(self, title: str, text: str) -> None:
        """Add Markdown that is folded until the user opens it."""
        self.parts.append(f"<details><summary>{html.escape(title)}</summary>{markdown(text)}</details>")

    def figure(self, png: bytes, caption: str, command: str = "", alternative: str = "") -> None:
        """Add a picture with its caption and its command."""
        data = base64.b64encode(png).decode()
        made = f"<br>Made by <code>{html.escape(command)}</code>" if command else ""
        words = html.escape(alternative or caption, quote=True)
        self.parts.append(
            f'<figure><img alt="{words}" src="data:image/png;base64,{data}">'
            f"<figcaption>{markdown_inline(caption)}{made}</figcaption></figure>"
        )


def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def markdown(text: str) -> str:
    """Markdown with tables as HTML; HTML in it is escaped and pictures are left as text."""
    body = _parser().render(text)
    return body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def markdown_inline(text: str) -> str:
    """One line of Markdown as HTML."""
    return _parser().renderInline(text)


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    links = "".join(f'<li><a href="#s{n}">{html.escape(one.title)}</a></li>' for n, one in enumerate(sections))
    body = "".join(
        f'<section id="s{n}"><h2>{html.escape(one.title)}</h2>{"".join(one.parts)}</section>'
        for n, one in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><nav><ol>{links}</ol></nav>'
        f"{body}</body></html>\n"
    )
