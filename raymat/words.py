"""Numbers, durations and parameters as a person reads them."""

from collections.abc import Mapping


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
