"""Work as values: stages that are plain functions, and what becomes of a finished nodule. No Ray in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from raymat.nodule import Nodule

READ, COMMIT = "read", "commit"


@dataclass(frozen=True)
class Stage:
    """One step on a nodule's way.

    Attributes
    ----------
    name : what logs, metrics and reasons call it
    run : nodule to nodule; what is wrong with a nodule becomes its outcome, only what is no nodule's fault is raised
    cpus, memory_gib, gpus : what a worker that runs it asks Ray for
    prepare : called once by each worker before its first nodule; no nodule's time limit counts it
    """

    name: str
    run: Callable[[Nodule], Nodule]
    cpus: float = 0.0
    memory_gib: float = 0.0
    gpus: float = 0.0
    prepare: Callable[[], None] | None = None


def recall_nothing(nodules: list[Nodule]) -> list[pa.Table]:
    """Where nothing is stored of single nodules, the ledger alone knows what is done."""
    return []


@dataclass(frozen=True)
class Work:
    """How rows of a work list become outcomes; picklable, known to every worker.

    Attributes
    ----------
    read : a row to the nodule that the stages begin with; runs ahead of them, in threads
    stages : in order; a nodule that has an outcome passes the rest untouched
    commit : makes nodules durable together, and gives their outcome rows (with ``key`` and ``outcome``)
    recall : the outcome rows of those nodules that are committed already, of nodules that know their key alone
    group : how many nodules are committed together
    ahead : how many nodules are read ahead; more than one hides the latency of an object store
    """

    read: Callable[[dict], Nodule]
    stages: tuple[Stage, ...]
    commit: Callable[[list[Nodule]], pa.Table]
    recall: Callable[[list[Nodule]], list[pa.Table]] = recall_nothing
    group: int = 1
    ahead: int = 1


@dataclass(frozen=True)
class Pool:
    """Actors that run some of the stages.

    Attributes
    ----------
    stages : of ``Work.stages``, those of this pool
    first, last : whether it reads, whether it commits
    workers : actors that it has at the start
    most_workers : how many they may become on a cluster that grows; None where it stays as it is
    report_every_s : how often a worker says how far it is within a batch; 400 workers have one ledger
    queued : batches that each worker may have at once, of which it works on one. What waits behind a long nodule no
        idle worker can have, and what does not wait comes late
    """

    stages: tuple[Stage, ...]
    workers: int
    most_workers: int | None = None
    first: bool = True
    last: bool = True
    report_every_s: float = 2.0
    queued: int = 1

    @property
    def name(self) -> str:
        """What Ray's dashboard shows: the stages."""
        names = [READ] * self.first + [stage.name for stage in self.stages] + [COMMIT] * self.last
        return "_".join(names)

    @property
    def hand_every_s(self) -> float:
        """Seconds for which a worker gathers nodules for the next pool: four blocks a second come to the driver."""
        return (self.most_workers or self.workers) / 4

    def share(self, number: int, count: int) -> Pool:
        """The pool with its share of the workers where there are ``count`` such pools; one at least."""

        def of(workers: int) -> int:
            return max(1, workers // count + (number < workers % count))

        return replace(
            self,
            workers=of(self.workers),
            most_workers=of(self.most_workers) if self.most_workers else None,
        )

    def most(self, resource: str) -> float:
        """The largest share that one of the stages asks for: a worker runs one at a time."""
        return max((getattr(stage, resource) for stage in self.stages), default=0.0)
