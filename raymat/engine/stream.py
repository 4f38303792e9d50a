"""A work list on Ray Data: batches of nodules through pools of workers, outcome rows back in blocks.

A batch is one row of a block, whatever it holds. Batches are large at first and of one nodule at the end (guided
self-scheduling), so that Ray's driver has little to do for each nodule and the tail is no longer than the longest one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from raymat.engine.cluster import LIST_CPUS, PIPELINE_CPUS, data_settings, quiet_ray, thread_environment
from raymat.engine.job import Job, Part
from raymat.engine.ledger import open_ledger
from raymat.engine.progress import Progress
from raymat.engine.ray_private import (
    Pause,
    fetch_metadata_at_once,
    pass_constructor_arguments_by_value,
    take_stock_once_a_turn,
)
from raymat.engine.stages import Pool
from raymat.engine.tries import MAX_TRIES
from raymat.engine.worker import Worker, as_block, from_block
from raymat.machine import GIB
from raymat.nodule import FAILED, InputError
from raymat.places import Unreachable
from raymat.words import in_words

LARGEST_BATCH = 32
# A batch is at most what is left for each worker, divided by this.
SHARES = 2
POLL_S = 1.0

LIST_TASKS = 2
NO_LIMIT_S = 10**8
PIPELINE_LIVES = 5
GROW_AT = 0.5  # of a pool's actors, those to come included, at work
# Beyond what all tries of one nodule may take.
STILL_S = 300.0


def batch_sizes(start: int, rows: int, total: int, workers: int) -> Iterator[int]:
    """Sizes of the batches of a part that begins at row ``start`` of ``total``: a share of what is left per worker."""
    end = start + rows
    while start < end:
        size = int(np.clip((total - start) // (SHARES * workers), 1, LARGEST_BATCH))
        yield min(size, end - start)
        start += size


class WorkList(Datasource):
    """The parts of a work list, each read by one task, a batch of rows in each block."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known to Ray before the parts are read."""
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context=None) -> list:
        """One task for each part."""
        label = f"{self.job.session}-{self.job.label}"
        tasks, start = [], 0
        for part in self.job.parts:
            batches = partial(_batches, part, start, self.job.rows, self.job.workers, label)
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            tasks.append(ReadTask(batches, metadata, per_task_row_limit=per_task_row_limit))
            start += part.rows
        return tasks


def _batches(part: Part, start: int, total: int, workers: int, label: str) -> Iterator[pa.Table]:
    table, at = part.load(), 0
    for size in batch_sizes(start, part.rows, total, workers):
        yield as_block(f"{label}{start + at:08d}", "rows", table.slice(at, size))
        at += size


def stream(job: Job) -> Iterator[tuple[str, pa.Table]]:
    """Run the job from this process: batches with their outcome rows, as they are done."""
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    pass_constructor_arguments_by_value()
    fetch_metadata_at_once()
    take_stock_once_a_turn()
    with data_settings() as context:
        # A batch may take long; whether anything moves is seen from what the workers report.
        context.execution_no_progress_timeout_s = NO_LIMIT_S
        # What stops the work (a store that cannot be written) is raised as it is.
        context.raise_original_map_exception = True
        # A pool on a growing cluster doubles while its actors have their one batch each. Ray's own threshold is above
        # 1: actors that have no second batch waiting would never reach it.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_AT
        context.custom_execution_callback_classes = [Pause]
        # A block is one row, and so never joined to another.
        context.target_max_block_size = 1
        tasks = min(LIST_TASKS, len(job.parts))
        nodules = ray.data.read_datasource(
            WorkList(job), num_cpus=LIST_CPUS / tasks, concurrency=tasks, override_num_blocks=len(job.parts)
        )
        for pool in job.pools:
            nodules = _through(nodules, pool, job)
    # Not as batches, which two further threads of the driver would prepare.
    for bundle in nodules.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            yield from_block(ray.get(entry.ref), "rows")


def _through(nodules: ray.data.Dataset, pool: Pool, job: Job) -> ray.data.Dataset:
    cpus, gpus = pool.most("cpus"), pool.most("gpus")
    worker = type(pool.name, (Worker,), {})
    return nodules.map_batches(
        worker,
        fn_constructor_args=(job.work, pool, job.marks, job.session, job.limit_s, job.again, job.outlived),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=pool.workers,
            max_size=pool.most_workers or pool.workers,
            max_tasks_in_flight_per_actor=pool.queued,
        ),
        num_cpus=cpus,
        num_gpus=gpus or None,
        memory=pool.most("memory_gib") * GIB or None,
        runtime_env={"env_vars": thread_environment(cpus)} if cpus >= 2 else None,
    )


@dataclass
class Update:
    """What is new: outcome rows of batches that are done, and the outcomes so far, open batches included."""

    rows: list[pa.Table]
    counts: Counter[str]


def run(job: Job) -> Iterator[Update]:
    """Run the job to its end; an update every second or so.

    Raises
    ------
    InputError
        The store cannot be used, or nothing has moved for longer than a nodule may take.
    """
    ledgers = [open_ledger(job.session, job.shared)]
    streams = [stream(job)]
    if job.pipelines > 1:
        # Each has a ledger of its own: one would not take the calls of many thousand workers.
        parts = job.dealt()
        ledgers += [open_ledger(part.session, {}) for part in parts]
        streams = [_driven(part, ledger) for part, ledger in zip(parts, ledgers[1:], strict=True)]
    try:
        yield from _updates(job, streams, ledgers)
    finally:
        for ledger in ledgers:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(ledger)


def _updates(job: Job, streams: list[Iterator], ledgers: list[ray.actor.ActorHandle]) -> Iterator[Update]:
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    for blocks in streams:
        threading.Thread(target=_forward, args=(blocks, arrived), daemon=True).start()
    running = len(streams)
    # One nodule may use up all its tries while nothing else is left to do.
    stalled_s = (MAX_TRIES + 1) * job.limit_s + STILL_S
    counts: Counter[str] = Counter()
    so_far: Counter[str] = Counter()
    moved = time.monotonic()
    while running:
        received: list[str] = []
        rows: list[pa.Table] = []
        for item in _within(POLL_S, arrived):
            if item is None:
                running -= 1
                if not running:
                    break
            elif isinstance(item, BaseException):
                error = _as_input_error(item)
                # The failed pool's actors are held by the frames of its error, in a cycle: they would keep their CPUs
                # from the next job on this connection.
                del item, blocks
                streams.clear()
                gc.collect()
                raise error from None
            else:
                batch, table = item
                received.append(batch)
                rows.append(table)
                counts.update(table["outcome"].to_pylist())
        now = counts.copy()
        of_ledgers: list[Counter[str]] = ray.get([ledger.poll.remote(received) for ledger in ledgers])
        now.update(sum(of_ledgers, Counter()))
        if now != so_far:
            so_far, moved = now, time.monotonic()
        yield Update(rows, so_far)
        if time.monotonic() - moved > stalled_s:
            raise InputError(
                f"the cluster stands still (nothing was finished for {in_words(stalled_s)}). Its nodes may be gone "
                "or none come; what is committed is kept, and the same command resumes"
            )


def _within(seconds: float, arrived: queue.SimpleQueue) -> Iterator:
    """What arrives within a number of seconds."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            yield arrived.get(timeout=left)
        except queue.Empty:
            return


@ray.remote(num_cpus=PIPELINE_CPUS)
class Pipeline:
    """A driver of its own for a share of a job."""

    def run(self, job: Job) -> Iterator[tuple[str, pa.Table]]:
        """``stream`` in this process."""
        quiet_ray()
        yield from stream(job)


def _driven(job: Job, ledger: ray.actor.ActorHandle) -> Iterator[tuple[str, pa.Table]]:
    """``stream`` in a process of its own; where that dies with its node, another takes over what is left."""
    done: set[str] = set()
    for _ in range(PIPELINE_LIVES):
        pipeline = Pipeline.remote()  # type: ignore[attr-defined]
        try:
            for reference in pipeline.run.options(num_returns="streaming").remote(job):
                batch, table = ray.get(reference)
                done.update(table["key"].to_pylist())
                yield batch, table
            return
        except ray.exceptions.RayActorError:
            # What its workers had reported is committed; the rest is looked up as it is met again.
            for batch, table in ray.get(ledger.take.remote()):
                done.update(table["key"].to_pylist())
                yield batch, table
            job = job.without(done)
            if not job.parts:
                return
    raise InputError(
        f"a driver of the work died {PIPELINE_LIVES} times; what is committed is kept; run the same command again"
    )


def gather(job: Job, say: Callable[[str], None]) -> pa.Table:
    """Run the job to its end and report its progress; all outcome rows."""
    progress, rows = Progress(job.rows, say, outcomes=(FAILED,)), []
    for update in run(job):
        rows += update.rows
        progress.show(update.counts)
    job.marks.remove_all()
    return pa.concat_tables(rows)


def _forward(blocks: Iterator[tuple[str, pa.Table]], arrived: queue.SimpleQueue) -> None:
    try:
        for block in blocks:
            arrived.put(block)
        arrived.put(None)
    except BaseException as error:
        arrived.put(error)


def _as_input_error(error: BaseException) -> BaseException:
    """What stopped a worker as the error that it raised, with what to do; others as they are."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if not isinstance(cause, InputError):
        return error
    what = str(cause).splitlines()[0]  # Ray adds lines of its own
    kind = Unreachable if isinstance(cause, Unreachable) else InputError
    return kind(f"{what}; what is committed is kept; mend this and run the same command again")
