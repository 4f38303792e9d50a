"""What all workers of a run need, by name: a network's weights, the list of a dataset's nodules. No Ray in here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

_HERE: dict[str, Mapping[str, object]] = {}


def shared(session: str, name: str) -> Any:
    """What is shared with the workers of a session: at hand in this process, else fetched once by each of them."""
    if session in _HERE:
        return _HERE[session][name]
    return _fetched(session, name)


@functools.cache
def _fetched(session: str, name: str) -> Any:
    from raymat.engine.ledger import fetch

    return fetch(session, name)


@contextlib.contextmanager
def shared_here(session: str, values: Mapping[str, object]) -> Iterator[None]:
    """The values of a session are at hand in this process."""
    _HERE[session] = values
    try:
        yield
    finally:
        del _HERE[session]
