"""The one way in which this package compiles its inner loops."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

DIGEST_SIZE = 16


class CacheStats(Protocol):
    """What Numba says of a kernel's stored machine code."""

    @property
    def cache_path(self) -> str | None:
        """The folder; None where nothing is stored."""


class Kernel(Protocol):
    """A function that Numba compiles."""

    @property
    def stats(self) -> CacheStats:
        """What is stored of it."""

    @property
    def py_func(self) -> Callable:
        """The function in Python."""


KERNELS: list[Kernel] = []


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` with Numba: one thread, IEEE arithmetic in the written order, machine code stored on disk.

    No fastmath and no parallel loops: the same input gives the same bits, whatever the number of workers. Numba stores
    the machine code beside the source or, where that folder is read-only, in the user's cache; where neither can be
    written (a container without a home), every process compiles it again. So does a process that finds it damaged.
    """
    kernel: Any = njit(nogil=True)(function)
    try:
        kernel._cache = _Cache(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
    KERNELS.append(kernel)
    return kernel


class _Files(IndexDataCacheFile):
    """Numba's cache files of one kernel, with a digest at the end of each file of machine code.

    Numba runs what it reads: bytes that a full disk or a lost write replaced by zeros would end the process.
    """

    def _save_data(self, name: str, data: object) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(dumped + _digest(dumped))

    def _load_data(self, name: str) -> object:
        stored = Path(self._data_path(name)).read_bytes()
        if stored[-DIGEST_SIZE:] != _digest(stored[:-DIGEST_SIZE]):
            raise ValueError(f"{name} is damaged")
        # Numba reads up to the end of what it wrote, and not the digest behind it.
        return super()._load_data(name)


class _Cache(FunctionCache):
    """Numba's cache of one kernel, without which a kernel works all the same."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        locator, base = self._impl.locator, self._impl.filename_base
        self._cache_file = _Files(
            cache_path=self._cache_path, filename_base=base, source_stamp=locator.get_source_stamp()
        )

    def load_overload(self, signature: object, target_context: object) -> object:
        """The compiled function; None, so that it is compiled again, where there is none or it cannot be read."""
        try:
            return super().load_overload(signature, target_context)
        except OSError as error:  # of another user, say
            _warn("read", self.cache_path, error)
        except Exception as error:  # unpickling damaged bytes raises almost anything
            _warn("read", self.cache_path, error)
            # Numba reads the index before it writes: a damaged one would stay for ever.
            with contextlib.suppress(OSError):
                self.flush()
        return None

    def save_overload(self, signature: object, data: object) -> None:
        """Store the compiled function where that is possible: on a full disk it is not."""
        try:
            super().save_overload(signature, data)
        except Exception as error:  # the damaged index of another process, too, which Numba reads first
            _warn("stored", self.cache_path, error)


_warned: set[str] = set()


def _warn(verb: str, folder: str, error: Exception) -> None:
    if verb not in _warned:
        _warned.add(verb)
        logger.warning("machine code in %s cannot be %s (%s); it is compiled again", folder, verb, error)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()
