"""Numbers, durations, parameters and tables as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence


def counted(number: int, thing: str) -> str:
    """A number of things: "1 reader", "3 readers"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def in_words(seconds: float) -> str:
    """A duration: "42 s", "3 min 10 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def dotted(parameters: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested parameters under one name each: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, object] = {}
    for key, value in parameters.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


_PLAIN = str.maketrans({"+": "_plus", "&": "and", "‡": "_ablation", " ": "_", "'": None, ",": None})


def plain_name(name: str) -> str:
    """A name without signs that folders or MLflow's metrics cannot have: "cf+ & mean" becomes "cf_plus_and_mean"."""
    return name.translate(_PLAIN)


def plus_minus(mean: float, spread: float, form: str = ".2f") -> str:
    """A mean with its standard deviation: "19.21 (± 4.45)"; alone where there is none (NaN)."""
    return f"{mean:{form}}" if math.isnan(spread) else f"{mean:{form}} (± {spread:{form.lstrip('+')}})"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; what would break it in a cell (a bar, an end of a line) is written so that it does not."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
