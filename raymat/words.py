"""Numbers and durations as a person says them."""


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
