"""Progress that a person can read: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable

from raymat.nodule import OUTCOMES

FEW = 4  # nodules, before which nothing is said of the time left


def in_words(seconds: float) -> str:
    """A duration as a person would say it: "42 s", "3 min 10 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """Counts outcomes as they are committed and says how far the build is.

    Parameters
    ----------
    total : nodules to do
    say : called with each line when the output is no terminal
    every : seconds between lines there
    further : what each line ends with
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None] = print,
        every: float = 15.0,
        further: Callable[[], str] | None = None,
    ) -> None:
        self.total, self.say, self.every, self.further = total, say, every, further
        self.counts: Counter[str] = Counter()
        self.start = self.last = time.monotonic()
        self.terminal = sys.stdout.isatty()

    @property
    def done(self) -> int:
        return sum(self.counts.values())

    def add(self, outcomes: list[str]) -> None:
        """Count outcomes, and say so when it is time."""
        self.counts.update(outcomes)
        now = time.monotonic()
        if self.terminal:
            print(f"\r\033[K{self.line()}", end="\n" if self.done == self.total else "", flush=True)
        elif now - self.last >= self.every or self.done == self.total:
            self.last = now
            self.say(self.line())

    def line(self) -> str:
        """Done, rate, time left and outcomes, in one line."""
        elapsed = max(time.monotonic() - self.start, 1e-9)
        left = (self.total - self.done) * elapsed / max(self.done, 1)
        # The first ones also wait for the workers to start.
        left_text = f"{in_words(left)} left" if self.done >= min(FEW, self.total) else "time left not yet known"
        parts = ", ".join(f"{self.counts[name]} {name}" for name in OUTCOMES if self.counts[name])
        return (
            f"{self.done}/{self.total} nodules ({100 * self.done / max(self.total, 1):.0f} %), "
            f"{60 * self.done / elapsed:.1f} a minute, {left_text}"
            + (f": {parts}" if parts else "")
            + (f"; {self.further()}" if self.further else "")
        )
