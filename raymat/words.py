"""Numbers, durations, names and tables as a person reads them, and as files and standards can hold them.

Texts come from headers, tables and folders of other people and may be anything. Here is the one border at which they
become valid UTF-8 of a bounded length, and no two of them one.
"""

from __future__ import annotations

import hashlib
import math
import re
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


LONGEST_TEXT = 2_000  # characters of a reason or note
LONGEST_LABEL = 64  # characters of DICOM's LO
LONGEST_NAME = 160  # bytes of a file's name, so that endings have room in the 255 of most file systems


def utf8(text: str) -> str:
    """The text as valid UTF-8; a byte of a path that is none, which Python keeps as a surrogate, is written as one."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def bounded(text: str, most: int = LONGEST_TEXT) -> str:
    """Valid UTF-8 of at most so many characters; of a longer text its first and last part."""
    text = utf8(text)
    if len(text) <= most:
        return text
    end = (most - 5) // 2
    return f"{text[: most - 5 - end]} ... {text[-end:]}"


def label(text: str, most: int = LONGEST_LABEL) -> str:
    """The text as a DICOM label (LO) of at most ``most`` characters; no two texts give one label.

    What a label cannot hold (a backslash, control characters) becomes ``_``. A text that had to change begins with a
    digest of it, and of one that is too long the end is kept, which is where ids of one series differ.
    """
    plain = re.sub(r"[\\\x00-\x1f\x7f-\x9f]", "_", utf8(text)).strip()
    if plain and plain == text and len(plain) <= most:
        return plain
    name = _digest(text)
    return f"{name} {plain[-(most - len(name) - 1) :]}".strip()


def file_name(text: str) -> str:
    """The text where it is a plain file name, else a plain one that no other text gives."""
    plain = re.sub(r"[^\w.-]", "_", utf8(text)).lstrip(".")
    if plain and plain == text and len(plain.encode()) <= LONGEST_NAME:
        return plain
    return f"{plain.encode()[:LONGEST_NAME].decode('utf-8', 'ignore')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(utf8(text).encode(), digest_size=16).hexdigest()[:8]
