"""Puts the dictionary of measures on the page of measures, from the code that writes them."""

from __future__ import annotations

import sys
from pathlib import Path

MARK = "<!-- measures -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page's Markdown, its mark replaced by a table with one row per column; called by MkDocs."""
    if MARK not in markdown:
        return markdown
    # Set here: MkDocs restores sys.path after it has loaded a hook.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from raymat.measures.dictionary import MEASURES

    rows = [
        f"| `{name}` | {one.unit or one.type} | {one.meaning.replace('|', chr(92) + '|')} |"
        for name, one in MEASURES.items()
    ]
    return markdown.replace(MARK, "\n".join(["| column | unit or type | meaning |", "| --- | --- | --- |", *rows]))
