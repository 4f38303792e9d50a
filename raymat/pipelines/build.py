"""The build on Ray Data: plan, then read and prepare -> solve -> score -> commit, nodule by nodule.

Nodules travel as Arrow rows of ``raymat.nodule.SCHEMA``, one a block. The work itself is in ``raymat.steps`` and
``raymat.store``; here it is only placed on the cluster. What the last stage emits, and so all that the driver sees of a
nodule, is its small outcome row.
"""

from __future__ import annotations

import datetime
import faulthandler
import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymat.lock import held
from raymat.nodule import ACCEPTED, FAILED, REJECTED, InputError, Nodule, from_table, to_table
from raymat.pipelines.cluster import GIB, Pools, at_work, connected, data_settings, size_pools, thread_environment
from raymat.pipelines.progress import Progress
from raymat.pipelines.telling import count_committed, tell_committed, told
from raymat.places import Unreachable
from raymat.sources import NoduleRef, Source
from raymat.steps import SOLVE_KEY_LENGTH, BuildParameters, counted, ended, read_and_prepare, score, solve
from raymat.store import BRIEF, MANIFEST, OUTCOME, Store, counts

logger = logging.getLogger(__name__)

MAX_TRIES = 3
# The largest nodules take a minute or two.
NODULE_TIMEOUT_S = 600.0
INDEX_ROWS, INDEX_SECONDS = 5_000, 60.0
DIED = "died"  # the store's folder of nodules that killed a worker and have no outcome yet
WORK = MANIFEST.append(pa.field("reuse", pa.string()))
Finish = Callable[[Nodule], Nodule]


@dataclass
class Plan:
    """What a build has to do.

    Attributes
    ----------
    total : nodules of the source
    committed : those that stand already
    changed : those that were committed with another input, parameter or solver version and are done again
    rescored : those of ``changed`` whose mattes still hold, so that only quality is judged anew
    retried : failed ones that are tried again
    absent : nodules that are committed here but that the source no longer names
    work : names of the work list's parts in the store
    """

    total: int = 0
    committed: int = 0
    changed: int = 0
    rescored: int = 0
    retried: int = 0
    absent: int = 0
    work: list[str] = field(default_factory=list)

    @property
    def to_do(self) -> int:
        return self.total - self.committed


@dataclass
class Result:
    """How a build ended: ``outcomes`` has ``raymat.store.BRIEF`` of ``OUTCOME`` for every nodule of the manifest."""

    plan: Plan
    outcomes: pa.Table
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        return counts(self.outcomes["outcome"])


def plan_build(
    store: Store, source: Source, parameters: BuildParameters, retry_failed: bool = False, part_rows: int = 256
) -> Plan:
    """Write the manifest and, from what is not committed yet, the work list."""

    def rows() -> Iterator[dict]:
        for ref in source.plan():
            yield {**vars(ref), "key": parameters.key(ref)}

    plan = Plan(total=store.write_manifest(rows()))
    index = store.index(["nodule_id", "key", "outcome", "shard"])
    keys = index["key"].combine_chunks()
    failed = pc.equal(index["outcome"], FAILED)
    standing = keys.filter(pc.invert(failed)) if retry_failed else keys
    # What failed or was excluded has no mattes to judge anew.
    reusable = index.filter(pc.is_in(index["outcome"], pa.array([ACCEPTED, REJECTED])))
    reusable_keys = pc.utf8_slice_codeunits(reusable["key"], 0, SOLVE_KEY_LENGTH).combine_chunks()
    nodules_before = index["nodule_id"].combine_chunks()
    named = store.manifest(["nodule_id", "key"])
    plan.absent = pc.sum(pc.invert(pc.is_in(nodules_before.unique(), named["nodule_id"].combine_chunks()))).as_py() or 0
    stands = pc.is_in(named["key"], standing)
    plan.committed = pc.sum(stands).as_py() or 0
    del named
    store.delete_all("worklist")
    start = 0
    for number, part in enumerate(store.manifest_parts() if plan.to_do else []):
        rows = store.read_table(part, ["key"]).num_rows
        open_rows = pc.invert(stands[start : start + rows])
        start += rows
        if not pc.any(open_rows).as_py():
            continue
        todo = store.read_table(part).filter(open_rows).combine_chunks()
        tried = pc.is_in(todo["key"], keys)
        plan.retried += pc.sum(tried).as_py() or 0
        plan.changed += pc.sum(pc.and_not(pc.is_in(todo["nodule_id"], nodules_before), tried)).as_py() or 0
        match = pc.index_in(pc.utf8_slice_codeunits(todo["key"], 0, SOLVE_KEY_LENGTH), reusable_keys)
        shards = reusable["shard"].combine_chunks().take(match.combine_chunks())
        plan.rescored += len(shards) - shards.null_count
        todo = todo.append_column("reuse", shards)
        for first in range(0, todo.num_rows, part_rows):
            name = f"worklist/{number:06d}-{first:06d}.parquet"
            store.write_table(name, todo.slice(first, part_rows))
            plan.work.append(name)
    return plan


class WorkList(Datasource):
    """The parts of the work list, each read by one task, one nodule's reference a row."""

    def __init__(self, store: Store, names: list[str]) -> None:
        super().__init__()
        self.store, self.names = store, names

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context=None) -> list:
        def task(name: str) -> ReadTask:
            store = self.store

            def read() -> Iterator[pa.Table]:
                table = store.read_table(name)
                yield from (table.slice(i, 1) for i in range(table.num_rows))

            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return ReadTask(read, metadata, schema=WORK, per_task_row_limit=per_task_row_limit)

        return [task(name) for name in self.names]


@ray.remote(num_cpus=0)
class OpenTries:
    """Which tries at which nodule have begun and not come to their end.

    It is kept beside the driver, and not in the store, where a mark for each stage of each nodule would cost more
    requests than the nodule itself. Once a worker died of a nodule its tries go to the store, each before it begins,
    so that a build that is cut off and goes on gives it no new ones. A driver's death alone is no nodule's fault and
    leaves no mark.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.begun: dict[str, list[tuple[str, float]]] = {}
        marks = {name.partition("/")[2]: store.read(name) for name in store.listing(DIED)}
        self.died = {key: int(mark) if mark.isdigit() else 1 for key, mark in marks.items()}

    def begin(self, key: str, stage: str) -> tuple[int, list[tuple[str, float]]]:
        """Note that work on ``key`` begins.

        Returns
        -------
        tuple
            Its tries in earlier builds, where a worker died in them, and of each open try of this one the stage and how
            many seconds ago it began, the last one now.
        """
        now = time.monotonic()
        tries = self.begun.setdefault(key, [])
        tries.append((stage, now))
        before = self.died.get(key, 0)
        if len(tries) > 1:
            self.store.write(f"{DIED}/{key}", str(before + len(tries)).encode())
        return before, [(name, now - at) for name, at in tries]

    def end(self, key: str, stage: str) -> None:
        """Forget the tries of a stage that came to its end."""
        left = [(name, at) for name, at in self.begun.pop(key, []) if name != stage]
        if left:
            self.begun[key] = left

    def forget(self, key: str) -> None:
        """Forget all tries at a nodule that has failed; those at the others go when all have their outcome."""
        self.begun.pop(key, None)
        self.died.pop(key, None)
        self.store.delete_many([f"{DIED}/{key}"])


def open_tries(store: Store) -> ray.actor.ActorHandle:
    """A new ``OpenTries`` on the driver's own node, which no autoscaler takes away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return OpenTries.options(scheduling_strategy=here).remote(store)


@dataclass(frozen=True)
class Tries:
    """Counts a nodule's tries before each piece of work, so that one that kills its worker ends as failed.

    A worker that dies leaves its try open; Ray gives the nodule to another, which sees the open tries of this build. A
    nodule that takes longer than ``limit_s`` ends its worker, however deep in compiled code it hangs; the worker's log
    then shows where.
    """

    opened: ray.actor.ActorHandle
    limit_s: float = NODULE_TIMEOUT_S

    def run(self, stage: str, nodule: Nodule, work: Callable[[], Nodule]) -> Nodule:
        before, begun = ray.get(self.opened.begin.remote(nodule.key, stage))
        if before + len(begun) > MAX_TRIES:
            # It is the stage before this try that the workers died in, where they died in this build.
            died_in = begun[-2][0] if len(begun) > 1 else stage
            lasted = [earlier - later for (_, earlier), (_, later) in pairwise(begun)]
            if lasted and min(lasted) >= self.limit_s:
                reason = f"{died_in} took longer than {self.limit_s:g} s, {MAX_TRIES} times (--nodule-timeout)"
            else:
                reason = f"its worker died {MAX_TRIES} times (killed, out of memory or crashed) in {died_in}"
            self.opened.forget.remote(nodule.key)
            return ended(nodule, FAILED, died_in, reason)
        faulthandler.dump_traceback_later(self.limit_s, exit=True, file=sys.__stderr__)
        try:
            with told(stage, nodule.nodule_id):
                done = work()
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.opened.end.remote(nodule.key, stage)
        return done


def _read(table: pa.Table, store: Store, source: Source, parameters: BuildParameters, tries: Tries) -> Nodule:
    """The prepared nodule of a row of the work list, with its mattes where an earlier build's still hold."""
    row = table.to_pylist()[0]
    reuse, key = row.pop("reuse"), row.pop("key")
    ref = NoduleRef(**row)
    nodule = Nodule(ref.nodule_id, ref.patient_id, ref.source, key=key)

    def work() -> Nodule:
        if reuse:
            solved = {n.key[:SOLVE_KEY_LENGTH]: n for n in store.read_shard(reuse)}[key[:SOLVE_KEY_LENGTH]]
            solved.key, solved.outcome, solved.stage, solved.reason, solved.method = key, None, None, None, None
            return solved
        return read_and_prepare(source, ref, parameters)

    return tries.run("read", nodule, work)


def _solved(nodule: Nodule, parameters: BuildParameters, tries: Tries) -> Nodule:
    if nodule.outcome or nodule.candidates:
        return nodule
    return tries.run("solve", nodule, lambda: solve(nodule, parameters))


def _scored(nodule: Nodule, parameters: BuildParameters, tries: Tries, finish: Finish | None) -> Nodule:
    return nodule if nodule.outcome else tries.run("score", nodule, lambda: score(nodule, parameters, finish))


def _read_stage(table: pa.Table, store: Store, source: Source, parameters: BuildParameters, tries: Tries) -> pa.Table:
    return to_table([_read(table, store, source, parameters, tries)], packed=True)


class SolveStage:
    """An actor that runs the solvers on one nodule at a time."""

    def __init__(self, parameters: BuildParameters, tries: Tries) -> None:
        self.parameters, self.tries = parameters, tries

    def __call__(self, table: pa.Table) -> pa.Table:
        nodule = from_table(table, copy=False)[0]
        done = _solved(nodule, self.parameters, self.tries)
        return table if done is nodule else to_table([done], packed=True)


class ScoreStage:
    """An actor that judges the mattes of one nodule at a time."""

    def __init__(self, parameters: BuildParameters, tries: Tries, finish: Finish | None) -> None:
        self.parameters, self.tries, self.finish = parameters, tries, finish

    def __call__(self, table: pa.Table) -> pa.Table:
        nodule = from_table(table, copy=False)[0]
        done = _scored(nodule, self.parameters, self.tries, self.finish)
        return table if done is nodule else to_table([done], packed=True)


class WholeWay:
    """An actor that takes one nodule at a time from the source to the store.

    On few CPUs a reader and a scorer beside the solvers bring nothing, and every hand from process to process costs
    copies of the arrays and the driver's time.
    """

    def __init__(
        self,
        parameters: BuildParameters,
        tries: Tries,
        finish: Finish | None,
        store: Store,
        source: Source,
        session: str,
    ) -> None:
        self.parameters, self.tries, self.finish = parameters, tries, finish
        self.store, self.source, self.session = store, source, session

    def __call__(self, table: pa.Table) -> pa.Table:
        nodule = _read(table, self.store, self.source, self.parameters, self.tries)
        nodule = _scored(_solved(nodule, self.parameters, self.tries), self.parameters, self.tries, self.finish)
        committed = []

        def commit() -> Nodule:
            committed.append(_commit([nodule], self.store, self.session))
            return nodule

        done = self.tries.run("commit", nodule, commit)
        return committed[0] if committed else _commit([done], self.store, self.session)


def _commit_stage(table: pa.Table, store: Store, session: str) -> pa.Table:
    return _commit(from_table(table, copy=False), store, session)


def _commit(nodules: list[Nodule], store: Store, session: str) -> pa.Table:
    sound = [nodule for nodule in nodules if nodule.outcome != FAILED]
    commits = [store.commit(to_table(sound))] if sound else []
    # A failed nodule stands alone and apart from other sessions' tries, so that a later success can take its place.
    failed = [nodule for nodule in nodules if nodule.outcome == FAILED]
    commits += [store.commit(to_table([nodule]), suffix=f"-{session}") for nodule in failed]
    tell_committed(nodules)
    return pa.concat_tables(commits)


def nodules_per_shard(total: int) -> int:
    """How many nodules a commit holds: one while files are few, up to 16 where an object each would cost too much.

    More would hold a worker's memory full: a nodule with its eight mattes is 40 to 130 MB before it is compressed.
    """
    return int(np.clip(total // 20_000, 1, 16))


def whole_way(pools: Pools, plan: Plan, source: Source) -> bool:
    """Whether one actor takes a nodule all the way."""
    # Reads from an object store wait for it: they go on beside the solvers, wherever that is.
    return bool(pools.fused) and nodules_per_shard(plan.total) == 1 and not source.remote


def pool(workers: int, most: int | None) -> ActorPoolStrategy:
    """A pool of so many actors, or one that grows to ``most`` as the cluster does."""
    # Elsewhere the size is fixed: a pool that shrinks while the disk is slow does not grow back in time.
    return ActorPoolStrategy(min_size=workers, max_size=most or workers, max_tasks_in_flight_per_actor=2)


def stream(
    store: Store,
    source: Source,
    parameters: BuildParameters,
    plan: Plan,
    pools: Pools,
    tries: Tries,
    session: str,
    finish: Finish | None = None,
) -> Iterable[pa.Table]:
    """Run the stages over the work list; yields outcome rows as nodules are committed."""
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    with data_settings() as context:
        # One nodule may use up all its tries while nothing else is left to do.
        context.execution_no_progress_timeout_s = int((MAX_TRIES + 1) * tries.limit_s + 300)
        # What stops the build (a store that cannot be written) is raised as it is and told once, see `_build`.
        context.raise_original_map_exception = True
        # One nodule a block: blocks are cut at this size, and a row is never cut.
        context.target_max_block_size = 1
        committed = _stages(store, source, parameters, plan, pools, tries, session, finish)
    return committed.iter_batches(batch_size=None, batch_format="pyarrow")


def _stages(
    store: Store,
    source: Source,
    parameters: BuildParameters,
    plan: Plan,
    pools: Pools,
    tries: Tries,
    session: str,
    finish: Finish | None,
) -> ray.data.Dataset:
    threads = {"env_vars": thread_environment(pools.solve_cpus)} if pools.solve_cpus >= 2 else None
    shard = nodules_per_shard(plan.total)
    solvers = pool(pools.solve_workers, pools.most_solve_workers)
    nodules = ray.data.read_datasource(
        WorkList(store, plan.work), num_cpus=pools.read_cpus / 2, concurrency=1, override_num_blocks=len(plan.work)
    )
    work = {"parameters": parameters, "tries": tries}
    one = {"batch_size": None, "batch_format": "pyarrow"}
    solving = {"num_cpus": pools.solve_cpus, "memory": pools.solve_memory_gib * GIB, "runtime_env": threads}
    if whole_way(pools, plan, source):
        work |= {"store": store, "source": source, "session": session, "finish": finish}
        return nodules.map_batches(WholeWay, fn_constructor_kwargs=work, compute=solvers, **solving, **one)
    nodules = nodules.map_batches(
        _read_stage,
        fn_kwargs={"store": store, "source": source, **work},
        num_cpus=pools.read_cpus,
        memory=pools.read_memory_gib * GIB,
        compute=TaskPoolStrategy(pools.read_workers),
        **one,
    )
    nodules = nodules.map_batches(SolveStage, fn_constructor_kwargs=work, compute=solvers, **solving, **one)
    nodules = nodules.map_batches(
        ScoreStage,
        fn_constructor_kwargs=work | {"finish": finish},
        compute=pool(pools.score_workers, pools.most_score_workers),
        num_cpus=pools.score_cpus,
        memory=pools.score_memory_gib * GIB,
        **one,
    )
    return nodules.map_batches(
        _commit_stage,
        fn_kwargs={"store": store, "session": session},
        batch_size=None if shard == 1 else shard,
        batch_format="pyarrow",
        num_cpus=pools.commit_cpus,
        memory=pools.commit_memory_gib * GIB,
        # Without a bound Ray keeps what a cluster gains for this last stage, and the solvers never grow into it.
        compute=TaskPoolStrategy(max(2, pools.read_workers)),
    )


class _IndexWriter:
    """Gathers outcome rows into index parts, written now and then."""

    def __init__(self, store: Store) -> None:
        self.store, self.rows, self.count, self.last = store, [], 0, time.monotonic()

    def add(self, rows: pa.Table) -> None:
        self.rows.append(rows)
        self.count += rows.num_rows
        if self.count >= INDEX_ROWS or time.monotonic() - self.last >= INDEX_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.store.add_to_index(pa.concat_tables(self.rows))
        self.rows, self.count, self.last = [], 0, time.monotonic()


def build(
    store: Store,
    source: Source,
    parameters: BuildParameters,
    pools: Pools | None = None,
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
    on_progress: Callable[[Counter, float, bool], None] | None = None,
    address: str | None = None,
    nodule_timeout_s: float = NODULE_TIMEOUT_S,
    finish: Finish | None = None,
) -> Result:
    """Build the dataset, or go on where an earlier build of the same output stopped.

    Parameters
    ----------
    store : where the dataset is
    source : where the nodules come from
    parameters : what decides the arrays
    pools : what each stage may hold of the cluster; sized from the cluster where None
    retry_failed : try again what failed in an earlier build
    say : called with each line for the person who watches
    on_progress : called with the counts of outcomes so far, the seconds since the start, and whether all is done
    address : the Ray cluster; None for the one this process is on, else a local one, where there is work to do
    nodule_timeout_s : seconds that one stage may take on one nodule; its worker is then ended and the nodule tried
        again, three times in all
    finish : what a judged nodule is turned into before it is committed, where it is to be measured and not kept whole;
        what it depends on has to be part of the source's fingerprints

    Returns
    -------
    Result

    Raises
    ------
    InputError
        The source or the store cannot be used, another build is at work in it, or the pools would starve the build.
    """
    session = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    pools = pools or Pools()
    with held(store, session):
        return _build(
            store, source, parameters, pools, retry_failed, say, on_progress, address, nodule_timeout_s, session, finish
        )


def _build(
    store: Store,
    source: Source,
    parameters: BuildParameters,
    pools: Pools,
    retry_failed: bool,
    say: Callable[[str], None],
    on_progress: Callable[[Counter, float, bool], None] | None,
    address: str | None,
    nodule_timeout_s: float,
    session: str,
    finish: Finish | None,
) -> Result:
    start = time.monotonic()
    plan = plan_build(store, source, parameters, retry_failed)
    say(describe(plan))
    if plan.to_do:
        with connected(address):
            pools = size_pools(pools, plan.to_do, say)
            growth = f" (up to {pools.most_solve_workers} as nodes come)" if pools.most_solve_workers else ""
            whole = whole_way(pools, plan, source)
            ends = f", {counted(pools.read_workers, 'reader')}, {counted(pools.score_workers, 'scorer')}"
            say(
                f"{counted(pools.solve_workers, 'worker' if whole else 'solve worker')} of {pools.solve_cpus:g} CPU "
                f"and {pools.solve_memory_gib:g} GiB{growth}{'' if whole else ends}"
            )
            further = at_work if pools.most_solve_workers else None
            progress, index = Progress(plan.to_do, say, further=further), _IndexWriter(store)
            tries = Tries(open_tries(store), nodule_timeout_s)
            try:
                for rows in stream(store, source, parameters, plan, pools, tries, session, finish):
                    rows = rows.cast(OUTCOME)
                    index.add(rows)
                    outcomes = rows["outcome"].to_pylist()
                    progress.add(outcomes)
                    count_committed(outcomes)
                    if on_progress:
                        on_progress(progress.counts, time.monotonic() - start, progress.done == plan.to_do)
            except (ray.exceptions.RayTaskError, InputError) as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                if not isinstance(cause, Unreachable):
                    index.flush()
                if not isinstance(cause, InputError):
                    raise
                what = str(cause).splitlines()[0]  # Ray adds lines of its own
                kind = Unreachable if isinstance(cause, Unreachable) else InputError
                raise kind(f"{what}; what is committed stands: mend this and run the same command again") from None
            except ExecutionTimeoutError as error:
                index.flush()
                stalled = str(error).splitlines()[0]  # the rest is advice on Ray's settings
                raise InputError(
                    f"the cluster stands still ({stalled}) Its nodes may be gone or none come; what is committed "
                    "stands, the same command goes on from there"
                ) from None
            except BaseException:
                index.flush()
                raise
            index.flush()
    store.delete_all("worklist")
    store.delete_all(DIED)
    removed = store.remove_superseded()
    if removed:
        say(f"{counted(removed, 'file')} of nodules that were done again removed")
    if plan.to_do:
        store.compact_index()
    outcomes = store.outcomes(BRIEF)
    if outcomes.num_rows != plan.total:
        raise InputError(
            f"{store.root}: {plan.total - outcomes.num_rows} of {plan.total} nodules have no outcome; run the same "
            "command again to finish them"
        )
    return Result(plan, outcomes, time.monotonic() - start)


def describe(plan: Plan) -> str:
    """The plan in one line."""
    line = f"{counted(plan.total, 'nodule')}, "
    line += (
        f"{plan.committed} committed already, {plan.to_do} to do" if plan.to_do else "all committed: nothing to solve"
    )
    if plan.changed:
        line += f"; {plan.changed} of them again, as their input, a parameter or the solvers changed"
    if plan.rescored:
        line += f" ({plan.rescored} need only be scored)"
    if plan.retried:
        line += f"; {plan.retried} that failed are tried again"
    if plan.absent:
        line += (
            f"; {counted(plan.absent, 'nodule')} of an earlier source, not named by this one, "
            "leave the dataset (the files stay)"
        )
    return line
