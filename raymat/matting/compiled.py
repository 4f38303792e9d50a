"""The one way in which this package compiles its inner loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


class CacheStats(Protocol):
    """What Numba reports of a kernel's kept machine code."""

    @property
    def cache_path(self) -> str | None:
        """The folder; None where nothing is kept."""


class Kernel(Protocol):
    """A function that Numba compiles."""

    @property
    def stats(self) -> CacheStats:
        """What is kept of it."""


KERNELS: list[Kernel] = []


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` with Numba: one thread, IEEE arithmetic in the written order, machine code kept on disk.

    No fastmath and no parallel loops: the same input gives the same bits, whatever the number of workers. Numba keeps
    the machine code beside the source or, where that folder is read-only, in the user's cache; where neither can be
    written (a container without a home), it is compiled again in every process.
    """
    try:
        kernel = njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        kernel = njit(nogil=True)(function)
    KERNELS.append(kernel)
    return kernel
