"""The build: plan, then each nodule read and prepared, solved, scored and committed by ``raymat.engine``.

The work itself is in ``raymat.steps`` and ``raymat.store``; here are the plan, the stages as values and the index. What
the driver sees of a nodule is its small outcome row.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymat.engine.cluster import Pools, at_work, connected, size_pools
from raymat.engine.job import NODULE_TIMEOUT_S, Job, Part, new_session
from raymat.engine.log import count_committed
from raymat.engine.progress import Progress
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.stream import run
from raymat.engine.tries import Marks
from raymat.matting.warm_up import are_compiled, compile_kernels
from raymat.nodule import InputError, Nodule
from raymat.places import Unreachable
from raymat.reuse import Committed, kept
from raymat.sources import NoduleRef, Source
from raymat.steps import BuildParameters, read_and_prepare, score, solve
from raymat.store import BRIEF, MANIFEST, OUTCOME, Store, counts
from raymat.words import counted

INDEX_ROWS, INDEX_SECONDS = 5_000, 60.0
PART_ROWS = 256
# Nodules that a worker reads ahead: more of them where each request takes its time.
AHEAD, AHEAD_REMOTE = 1, 4
# Blocks of nodules that a scorer may have waiting: to score takes less time than the driver's turn.
SCORE_QUEUED = 4
Finish = Callable[[Nodule], Nodule]


@dataclass
class Plan:
    """What a build has to do.

    Attributes
    ----------
    total : nodules of the source
    committed : those that are committed already
    changed : those that were committed with another input, parameter or solver version and are done again
    rescored : those whose mattes are all still valid, so that only quality is judged again
    partly : those that keep their prepared arrays and solve only the mattes that they lack
    retried : failed ones that are tried again
    absent : nodules that are committed here but that the source no longer names
    work : names of the work list's parts in the store, and their rows
    """

    total: int = 0
    committed: int = 0
    changed: int = 0
    rescored: int = 0
    partly: int = 0
    retried: int = 0
    absent: int = 0
    work: list[tuple[str, int]] = field(default_factory=list)

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
    store: Store, source: Source, parameters: BuildParameters, retry_failed: bool = False, part_rows: int = PART_ROWS
) -> Plan:
    """Write the manifest and, from what is not committed yet, the work list."""
    committed = Committed(store, parameters, retry_failed)

    def rows() -> Iterator[dict]:
        for ref in source.plan():
            yield {**vars(ref), "key": parameters.key(ref)}

    plan = Plan(total=store.write_manifest(rows()))
    named = store.manifest(["nodule_id", "key"])
    gone = pc.invert(pc.is_in(committed.nodule_ids.unique(), named["nodule_id"].combine_chunks()))
    plan.absent = pc.sum(gone).as_py() or 0
    stands = pc.is_in(named["key"], committed.standing)
    plan.committed = pc.sum(stands).as_py() or 0
    del named
    store.delete_all("worklist")
    deaths = {key: json.dumps(asdict(found)) for key, found in Marks(store).read_all().items()}
    start = 0
    for number, part in enumerate(store.manifest_parts() if plan.to_do else []):
        count = store.read_table(part, ["key"]).num_rows
        open_rows = pc.invert(stands[start : start + count])
        start += count
        if not pc.any(open_rows).as_py():
            continue
        todo = store.read_table(part).filter(open_rows).combine_chunks()
        tried = pc.is_in(todo["key"], committed.tried)
        plan.retried += pc.sum(tried).as_py() or 0
        plan.changed += pc.sum(pc.and_not(pc.is_in(todo["nodule_id"], committed.nodule_ids), tried)).as_py() or 0
        shards, lacking = committed.shards(todo)
        plan.rescored += lacking.count(0)
        plan.partly += len(lacking) - lacking.count(0)
        todo = todo.append_column("reuse", shards)
        # One that is tried again after it has failed begins from the start.
        again = tried.to_pylist()
        died = ["" if again[i] else deaths.get(key, "") for i, key in enumerate(todo["key"].to_pylist())]
        todo = todo.append_column("died", pa.array(died, pa.string()))
        for first in range(0, todo.num_rows, part_rows):
            name = f"worklist/{number:06d}-{first:06d}.parquet"
            piece = todo.slice(first, part_rows)
            store.write_table(name, piece)
            plan.work.append((name, piece.num_rows))
    return plan


@dataclass(frozen=True)
class Steps:
    """The steps of ``raymat.steps`` for one build, as the engine runs them; known to every worker.

    Attributes
    ----------
    store, source, parameters : of the build
    session : unique to it; sets its failed nodules apart from those of another
    finish : what a scored nodule is turned into before it is committed
    """

    store: Store
    source: Source
    parameters: BuildParameters
    session: str
    finish: Finish | None = None

    def read(self, row: dict) -> Nodule:
        """The prepared nodule of a row of the work list, with its mattes where an earlier build's are still valid."""
        ref = NoduleRef(**{name: row[name] for name in MANIFEST.names if name != "key"})
        if row["reuse"]:
            try:
                return self._kept(row["reuse"], ref)
            except Unreachable:
                raise
            except (InputError, FileNotFoundError, StopIteration):
                pass  # a damaged file costs a solve, not the build
        return read_and_prepare(self.source, ref, self.parameters)

    def _kept(self, shard: str, ref: NoduleRef) -> Nodule:
        committed = next(nodule for nodule in self.store.read_shard(shard) if nodule.nodule_id == ref.nodule_id)
        return kept(committed, ref, self.parameters)

    def solve(self, nodule: Nodule) -> Nodule:
        return solve(nodule, self.parameters)

    def score(self, nodule: Nodule) -> Nodule:
        return score(nodule, self.parameters, self.finish)

    def commit(self, nodules: list[Nodule]) -> pa.Table:
        return self.store.commit_nodules(nodules, self.session)

    def recall(self, nodules: list[Nodule]) -> list[pa.Table]:
        return self.store.recall(nodules, self.session)

    def work(self, pools: Pools, group: int) -> Work:
        """What the engine runs."""
        assert pools.cpus is not None  # the pools are sized
        stages = (
            Stage("solve", self.solve, pools.cpus, pools.memory_gib, prepare=compile_kernels),
            Stage("score", self.score, pools.score_cpus, pools.score_memory_gib),
        )
        ahead = AHEAD_REMOTE if self.source.remote or not self.store.is_local else AHEAD
        return Work(self.read, stages, self.commit, self.recall, group, ahead)


def pools_of(work: Work, pools: Pools) -> list[Pool]:
    """One pool of workers for all stages, or one that reads and solves and one that scores and commits."""
    assert pools.workers is not None  # the pools are sized
    if not pools.apart:
        return [Pool(work.stages, pools.workers, pools.most_workers)]
    assert pools.scorers is not None
    solve_stage, score_stage = work.stages
    return [
        Pool((solve_stage,), pools.workers, pools.most_workers, last=False),
        Pool((score_stage,), pools.scorers, pools.most_scorers, first=False, queued=SCORE_QUEUED),
    ]


def nodules_per_shard(total: int) -> int:
    """How many nodules a commit holds: one while files are few, up to 16 where one object each would cost too much.

    More would hold a worker's memory full: a nodule with its eight mattes is 40 to 130 MB before it is compressed.
    """
    return int(np.clip(total // 20_000, 1, 16))


class IndexWriter:
    """Gathers outcome rows into index parts, written now and then."""

    def __init__(self, store: Store) -> None:
        self.store, self.count, self.last = store, 0, time.monotonic()
        self.rows: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        self.rows.append(rows)
        self.count += rows.num_rows
        if self.count >= INDEX_ROWS or time.monotonic() - self.last >= INDEX_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.store.add_to_index(pa.concat_tables(self.rows))
        self.rows, self.count, self.last = [], 0, time.monotonic()


@dataclass(frozen=True)
class Build:
    """What a build is made of.

    Attributes
    ----------
    store : where the dataset is
    source : where the nodules come from
    parameters : what decides the arrays
    pools : what the workers may hold of the cluster
    retry_failed : try again what failed in an earlier build
    nodule_timeout_s : seconds that one stage may take on one nodule; its worker is then ended and the nodule tried
        again, three times in all
    finish : what a scored nodule is turned into before it is committed, where it is to be measured and not kept whole;
        what it depends on has to be part of the source's fingerprints
    address : the Ray cluster; None for the one this process is on, else a local one, where there is work to do
    """

    store: Store
    source: Source
    parameters: BuildParameters
    pools: Pools = field(default_factory=Pools)
    retry_failed: bool = False
    nodule_timeout_s: float = NODULE_TIMEOUT_S
    finish: Finish | None = None
    address: str | None = None


def build(
    what: Build,
    say: Callable[[str], None] = print,
    on_progress: Callable[[Counter, float, bool], None] | None = None,
) -> Result:
    """Build the dataset, or resume where an earlier build of the same output stopped; the caller holds its lock.

    Parameters
    ----------
    what : the build
    say : called with each line for the person who watches
    on_progress : called with the counts of outcomes so far, the seconds since the start, and whether all is done

    Raises
    ------
    InputError
        The source or the store cannot be used, or the pools would starve the build.
    """
    session = new_session()
    store, start = what.store, time.monotonic()
    store.raise_format()
    plan = plan_build(store, what.source, what.parameters, what.retry_failed)
    say(describe(plan))
    if plan.to_do:
        _do(what, plan, session, say, partial(_since, start, on_progress))
    store.delete_all("worklist")
    Marks(store).remove_all()
    store.delete_unfinished("nodules", "outcomes", "manifest")
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


def _since(start: float, on_progress: Callable | None, counts_so_far: Counter, finished: bool) -> None:
    if on_progress:
        on_progress(counts_so_far, time.monotonic() - start, finished)


def _do(
    what: Build, plan: Plan, session: str, say: Callable[[str], None], tell: Callable[[Counter, bool], None]
) -> None:
    """Run the stages over the work list."""
    store = what.store
    with connected(what.address):
        pools = size_pools(what.pools, plan.to_do, say)
        say(str(pools))
        if not are_compiled():
            say("compiling the solvers' loops first, once on this machine: half a minute or so")
        work = Steps(store, what.source, what.parameters, session, what.finish).work(
            pools, nodules_per_shard(plan.total)
        )
        parts = [Part(rows, partial(store.read_table, name)) for name, rows in plan.work]
        job = Job(
            work,
            parts,
            pools_of(work, pools),
            Marks(store),
            session,
            what.nodule_timeout_s,
            pipelines=pools.pipelines or 1,
            outlived=plan.committed > 0,
        )
        progress = Progress(plan.to_do, say, further=at_work if pools.most_workers else None)
        index = IndexWriter(store)
        try:
            for update in run(job):
                for rows in update.rows:
                    index.add(rows.cast(OUTCOME))
                    count_committed(rows["outcome"].to_pylist())
                progress.show(update.counts)
                tell(update.counts, progress.done == plan.to_do)
        except Unreachable:
            raise  # nothing can be written now; the files are found by their listing
        except BaseException:
            index.flush()
            raise
        index.flush()


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
    if plan.partly:
        line += f" ({plan.partly} solve only the mattes that they lack)"
    if plan.retried:
        line += f"; {plan.retried} that failed are tried again"
    if plan.absent:
        line += (
            f"; {counted(plan.absent, 'nodule')} of an earlier source, not named by this one, "
            "leave the dataset (the files stay)"
        )
    return line
