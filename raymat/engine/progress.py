"""Progress that a person can read: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from raymat.nodule import OUTCOMES
from raymat.words import in_words

FEW = 4  # nodules, before which nothing is said of the time left


class Progress:
    """Says how far the work is.

    Parameters
    ----------
    total : nodules to do
    say : called with each line when the output is no terminal
    every : seconds between lines there
    further : what each line ends with
    outcomes : which of them are counted in it
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None] = print,
        every: float = 15.0,
        further: Callable[[], str] | None = None,
        outcomes: Sequence[str] = OUTCOMES,
    ) -> None:
        self.total, self.say, self.every, self.further, self.outcomes = total, say, every, further, outcomes
        self.counts: Counter[str] = Counter()
        self.start = self.last = time.monotonic()
        self.terminal = sys.stdout.isatty()

    @property
    def done(self) -> int:
        """How many nodules have their outcome."""
        return sum(self.counts.values())

    def show(self, counts: Counter[str]) -> None:
        """Take the outcomes so far, and say how far it is when it is time."""
        if counts == self.counts:
            return
        self.counts = Counter(counts)
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
        parts = ", ".join(f"{self.counts[name]} {name}" for name in self.outcomes if self.counts[name])
        return (
            f"{self.done}/{self.total} nodules ({100 * self.done / max(self.total, 1):.0f} %), "
            f"{60 * self.done / elapsed:.1f} per minute, {left_text}"
            + (f": {parts}" if parts else "")
            + (f"; {self.further()}" if self.further else "")
        )
