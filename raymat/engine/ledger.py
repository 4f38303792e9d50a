"""Which batches have been begun, and what their workers have reported: one small actor beside the driver.

A worker asks it once per batch. Ray gives the batch of a worker that died to another, which learns here that it is not
the first, and what the first one had finished. Nothing is asked or told for each nodule.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass
class _Batch:
    begun: int = 0
    rows: list[pa.Table] = field(default_factory=list)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Ledger:
    """The open batches of one run: how often each was begun, and the outcome rows reported so far."""

    def __init__(self) -> None:
        self.batches: dict[str, _Batch] = {}

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
            self.batches[batch].rows.append(rows)

    def poll(self, received: list[str]) -> Counter[str]:
        """Forget batches whose rows the driver has; outcomes reported of all others, for progress."""
        for batch in received:
            self.batches.pop(batch, None)
        outcomes: Counter[str] = Counter()
        for batch in self.batches.values():
            keys = set()
            for rows in batch.rows:
                for key, outcome in zip(rows["key"].to_pylist(), rows["outcome"].to_pylist(), strict=True):
                    if key not in keys:
                        keys.add(key)
                        outcomes[outcome] += 1
        return outcomes


def open_ledger(session: str) -> ray.actor.ActorHandle:
    """A new ``Ledger`` on the driver's own node, which no autoscaler takes away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Ledger.options(name=_name(session), scheduling_strategy=here).remote()


def find_ledger(session: str) -> ray.actor.ActorHandle:
    """The ledger of a session, for a worker of it."""
    return ray.get_actor(_name(session))


def _name(session: str) -> str:
    return f"raymat ledger {session}"
