"""How the site reads docstrings of the form ``name : what it is``, whose types are in the signature.

Numpydoc expects a type after the colon. raymat writes shapes, units and meaning there, and the type as an annotation:
the text becomes the description of the name, and Griffe takes the type from the annotation.
"""

from __future__ import annotations

import re
from itertools import pairwise

import griffe

SECTIONS = ("Parameters", "Attributes")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*) ?: (.+)")
PLAIN_TYPE = re.compile(r"[\w.]+(?: of \w+)?(?: or None|, optional)?")


class Described(griffe.Extension):
    """Rewrites the sections of parameters and attributes before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by Griffe for every object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = described(obj.docstring.value)


def described(docstring: str) -> str:
    """The docstring with ``name : text`` as a name and its description, one entry per name."""
    lines = docstring.splitlines()
    heads = [n for n, line in enumerate(lines[1:]) if re.fullmatch("-{3,}", line)]
    bounds = [*heads, len(lines)]
    out = lines[: bounds[0]]
    for start, stop in pairwise(bounds):
        part = lines[start:stop]
        out += [*part[:2], *entries(part[2:])] if part[0] in SECTIONS else part
    return "\n".join(out)


def entries(lines: list[str]) -> list[str]:
    """The entries of one section."""
    out: list[str] = []
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        entry = ENTRY.fullmatch(line)
        if entry is None:
            out.append(line)
            continue
        more = []
        while rest and (rest[0].startswith(" ") or not rest[0]):
            more.append(rest.pop(0))
        text, about = entry[2], " ".join(part.strip() for part in more).strip()
        if about and PLAIN_TYPE.fullmatch(text):
            text = about
        elif about:
            text = f"{text} {about}" if about[0].islower() else f"{text.rstrip('.')}. {about}"
        for name in entry[1].split(", "):
            out += [name, f"    {text}"]
    return out
