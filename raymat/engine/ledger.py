"""Which batches have been begun, and what their workers have reported: one small actor beside the driver.

It also holds what all workers of a run need and fetch once: a network's weights, the list of a dataset's nodules.

A worker asks it once per batch. Ray gives the batch of a worker that died to another, which learns here that it is not
the first, and what the first one had finished. No message is exchanged per nodule.

A pool that hands its nodules to a next one makes batches of a batch, named after it: "B.0", "B.1". Which nodules are in
each is noted before it is handed on, as Ray takes from the next worker on the batch as many as it lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class Begun:
    """What a worker learns that begins with a batch.

    Attributes
    ----------
    earlier : how many workers began with it before
    rows : the outcome rows that they reported
    handed : the keys of the nodules in each of the batches that they handed on, in order
    committed : keys of those of them that have been reported as committed
    """

    earlier: int
    rows: list[pa.Table]
    handed: list[list[str]]
    committed: set[str]


@dataclass
class _Batch:
    begun: int = 0
    rows: list[pa.Table] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    handed: list[list[str]] = field(default_factory=list)
    committed: set[str] = field(default_factory=set)
    received: int = 0  # of those handed on, how many have come to the driver
    ended: bool = False


@ray.remote(num_cpus=0)
class Ledger:
    """The open batches of one run: how often each was begun, and the outcome rows reported so far."""

    def __init__(self) -> None:
        self.batches: dict[str, _Batch] = {}
        # Ray may begin one again even when the driver has its rows, where its node is lost before Ray knows of its end.
        self.forgotten: set[str] = set()
        self.outcomes: Counter[str] = Counter()  # of all open batches
        self.shared: dict[str, object] = {}

    def share(self, name: str, value: object) -> None:
        """Keep a value for all workers."""
        self.shared[name] = value

    def fetch(self, name: str) -> object:
        """A value that was shared."""
        return self.shared[name]

    def begin(self, batch: str) -> Begun:
        """Note that a worker begins with ``batch``."""
        known = self.batches.setdefault(batch, _Batch(begun=int(batch in self.forgotten)))
        known.begun += 1
        return Begun(known.begun - 1, known.rows, known.handed, known.committed)

    def report(self, batch: str, rows: pa.Table) -> None:
        """Add outcome rows of an open batch."""
        if batch in self.batches:
            known, outcomes = self.batches[batch], Counter(rows["outcome"].to_pylist())
            known.rows.append(rows)
            known.outcomes += outcomes
            self.outcomes += outcomes
            if (whole := _whole(batch)) in self.batches:
                self.batches[whole].committed.update(rows["key"].to_pylist())

    def hand(self, batch: str, keys: list[str]) -> None:
        """Note that these nodules of an open batch are the next that are handed on together."""
        if batch in self.batches:
            self.batches[batch].handed.append(keys)

    def end(self, batch: str) -> None:
        """Note that all of an open batch is handed on."""
        if batch in self.batches:
            self.batches[batch].ended = True
            self._forget_if_received(batch)

    def take(self) -> list[tuple[str, pa.Table]]:
        """The rows reported of all open batches, which are forgotten here."""
        return [(name, pa.concat_tables(rows)) for name in list(self.batches) if (rows := self._forget(name))]

    def _forget(self, batch: str) -> list[pa.Table]:
        known = self.batches.pop(batch, _Batch())
        self.forgotten.add(batch)
        self.outcomes -= known.outcomes
        if (whole := _whole(batch)) in self.batches:
            self.batches[whole].received += 1
            self._forget_if_received(whole)
        return known.rows

    def _forget_if_received(self, batch: str) -> None:
        known = self.batches[batch]
        if known.ended and known.received >= len(known.handed):
            del self.batches[batch]
            self.forgotten.add(batch)

    def poll(self, received: list[str]) -> Counter[str]:
        """Forget batches whose rows the driver has; outcomes reported of all others, for progress."""
        for batch in received:
            self._forget(batch)
        return self.outcomes


def _whole(batch: str) -> str:
    """The batch that a batch was handed on from; "" where it is a part of the work list."""
    return batch.rpartition(".")[0]


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


def fetch(session: str, name: str) -> Any:
    """What the driver shares with the workers of a session, for a worker of it."""
    return ray.get(find_ledger(session).fetch.remote(name))


def _name(session: str) -> str:
    return f"raymat ledger {session}"
