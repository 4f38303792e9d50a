"""Which batches have been begun, and what their workers have reported: one small actor beside the driver.

It also holds what all workers of a run need and fetch once: a network's weights, the list of a dataset's nodules.

A worker asks it once per batch. Ray gives the batch of a worker that died to another, which learns here that it is not
the first, and what the first one had finished. No message is exchanged per nodule.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass
class _Batch:
    begun: int = 0
    rows: list[pa.Table] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


@ray.remote(num_cpus=0)
class Ledger:
    """The open batches of one run: how often each was begun, and the outcome rows reported so far."""

    def __init__(self) -> None:
        self.batches: dict[str, _Batch] = {}
        self.outcomes: Counter[str] = Counter()  # of all open batches
        self.shared: dict[str, object] = {}

    def share(self, name: str, value: object) -> None:
        """Keep a value for all workers."""
        self.shared[name] = value

    def fetch(self, name: str) -> object:
        """A value that was shared."""
        return self.shared[name]

    def begin(self, batch: str) -> tuple[int, list[pa.Table]]:
        """Note that a worker begins with ``batch``.

        Returns
        -------
        earlier, rows
            How many workers began with it before, and the outcome rows that they reported.
        """
        known = self.batches.setdefault(batch, _Batch())
        known.begun += 1
        return known.begun - 1, known.rows

    def report(self, batch: str, rows: pa.Table) -> None:
        """Add outcome rows of an open batch."""
        if batch in self.batches:
            known, outcomes = self.batches[batch], Counter(rows["outcome"].to_pylist())
            known.rows.append(rows)
            known.outcomes += outcomes
            self.outcomes += outcomes

    def take(self) -> list[tuple[str, pa.Table]]:
        """The rows reported of all open batches, which are forgotten here."""
        return [(name, pa.concat_tables(rows)) for name in list(self.batches) if (rows := self._forget(name))]

    def _forget(self, batch: str) -> list[pa.Table]:
        known = self.batches.pop(batch, _Batch())
        self.outcomes -= known.outcomes
        return known.rows

    def poll(self, received: list[str]) -> Counter[str]:
        """Forget batches whose rows the driver has; outcomes reported of all others, for progress."""
        for batch in received:
            self._forget(batch)
        return self.outcomes


def open_ledger(session: str, shared: Mapping[str, object]) -> ray.actor.ActorHandle:
    """A new ``Ledger`` on the driver's own node, which no autoscaler takes away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # The class has what ray.remote gives it; the annotations know the class as it was written.
    ledger = Ledger.options(name=_name(session), scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    ray.get([ledger.share.remote(name, value) for name, value in shared.items()])
    return ledger


def find_ledger(session: str) -> ray.actor.ActorHandle:
    """The ledger of a session, for a worker of it."""
    return ray.get_actor(_name(session))


@functools.cache
def shared(session: str, name: str) -> Any:
    """What the driver shares with the workers of a session; fetched once by each."""
    return ray.get(find_ledger(session).fetch.remote(name))


def _name(session: str) -> str:
    return f"raymat ledger {session}"
