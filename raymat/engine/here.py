"""A job in the process that asks for it, and the choice between that and Ray.

A local Ray takes longer to start than a few nodules take. The steps, their order and what becomes of each nodule are
those of ``raymat.engine.worker``. What a cluster has beyond them are the time limit of a stage and the second try of a
nodule that killed its worker: here Ctrl-C ends the one, and such a nodule ends the command.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa

from raymat.engine.job import Job
from raymat.engine.progress import Progress
from raymat.engine.sharing import shared_here
from raymat.nodule import FAILED, Nodule


def is_here(workers: int, address: str | None = None) -> bool:
    """Whether work of so many workers is done in this process: of one, where no cluster is named.

    A cluster is named by ``address``, by ``RAY_ADDRESS``, as in a submitted job, or by a connection that stands.
    """
    return workers == 1 and not address and not os.environ.get("RAY_ADDRESS") and not _is_connected()


@contextlib.contextmanager
def workplace(workers: int, address: str | None = None) -> Iterator[None]:
    """In here ``outcomes_of`` runs jobs: in this process, else on the cluster at ``address``, or a local one.

    Raises
    ------
    InputError
        There is no such cluster, or Ray does not start.
    """
    if is_here(workers, address):
        yield
        return
    # Ray takes two seconds and 200 MB.
    from raymat.engine.cluster import connected

    with connected(address):
        yield


def outcomes_of(job: Job, say: Callable[[str], None]) -> pa.Table:
    """Run the job to its end at the ``workplace``, and report its progress; all outcome rows.

    Raises
    ------
    InputError
        The cluster has no room for the workers, or the store cannot be used.
    """
    if not _is_connected():
        return run_here(job, say)
    from raymat.engine.cluster import refuse_too_many
    from raymat.engine.stream import gather

    refuse_too_many(job.workers, job.gpus > 0)
    return gather(job, say)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def run_here(job: Job, say: Callable[[str], None]) -> pa.Table:
    """Run the job in this process, one nodule after another, and report its progress; all outcome rows."""
    progress = Progress(job.rows, say, outcomes=(FAILED,))
    tables: list[pa.Table] = []
    counts: Counter[str] = Counter()
    group: list[Nodule] = []

    def commit() -> None:
        rows = job.work.commit(group)
        tables.append(rows)
        counts.update(rows["outcome"].to_pylist())
        progress.show(counts)
        group.clear()

    with shared_here(job.session, job.shared):
        for nodule in _nodules(job):
            group.append(nodule)
            if len(group) >= job.work.group:
                commit()
        if group:
            commit()
    return pa.concat_tables(tables)


def _nodules(job: Job) -> Iterator[Nodule]:
    """Each nodule of the work list, taken through the stages."""
    prepared: set[str] = set()
    for part in job.parts:
        for row in part.load().to_pylist():
            nodule = job.work.read(row)
            for stage in job.work.stages:
                if nodule.outcome:
                    break
                if stage.prepare and stage.name not in prepared:
                    stage.prepare()
                    prepared.add(stage.name)
                nodule = stage.run(nodule)
            yield nodule
