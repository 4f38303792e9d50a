"""Parts of a computation at the same time, with the same results for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Part: TypeAlias = "slice[int, int, None]"


class Threads:
    """Threads for compiled loops, which run without Python's lock.

    What is computed for a query of a search, or for a plane or row of a product, does not depend on the part that it is
    in. So the bits are the same for any number of threads.

    Parameters
    ----------
    count : 1 for none but the caller's own
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # Two pools: a part of the first may wait for parts of the second.
        self._outer, self._inner = (ThreadPoolExecutor(count) if count > 1 else None for _ in range(2))

    def each(self, work: Callable[[Part], T], size: int, least: int = 1) -> list[T]:
        """What ``work`` returns for parts of ``size`` items in a row, in their order; a part has ``least`` or more."""
        parts = max(1, min(self.count, size // least))
        if self._inner is None or parts == 1:
            return [work(slice(0, size))]
        ends = [size * part // parts for part in range(parts + 1)]
        return list(self._inner.map(work, [slice(a, b) for a, b in pairwise(ends)]))

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each of several returns, in their order; they may use ``each`` in turn."""
        if self._outer is None:
            return [work() for work in works]
        return [future.result() for future in [self._outer.submit(work) for work in works]]

    def __enter__(self) -> Threads:
        """The threads end with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._outer, self._inner):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)


ONE = Threads(1)
