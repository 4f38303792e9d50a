"""The one class of actors that Ray runs: a list of stages over a batch of nodules, one after the other.

While a nodule is being solved the next ones are read, and the one before is committed. Each is committed as soon as it
is done, so that a worker's death costs the nodule that it was at and no other. Where the next pool commits, nodules are
handed to it when a few seconds or 32 MiB of them have gathered: what is not committed then is solved again.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import ray

from raymat.engine.ledger import Begun, find_ledger
from raymat.engine.log import log_committed, logged
from raymat.engine.stages import COMMIT, READ, Pool, Stage, Work
from raymat.engine.tries import MAX_TRIES, Deaths, Marks, Position
from raymat.nodule import FAILED, Nodule, from_table, to_table

# Of nodules that one pool hands to the next at once: beyond it they go in several blocks.
HANDED_BYTES = 32 << 20
COMMITS_BEHIND = 2
# Workers whose driver was killed end within seconds, and commit what they have done until then.
OUTLIVING_S = 60.0


@dataclass
class Item:
    """A nodule of a batch with its row of the work list (None behind the first pool)."""

    nodule: Nodule
    row: dict | None = None

    @property
    def key(self) -> str:
        """The nodule's key."""
        return self.nodule.key


class Worker:
    """Runs the stages of one pool.

    Parameters
    ----------
    work : the stages, how a nodule is read and committed
    pool : which of the stages are this worker's
    marks : of nodules that killed a worker
    session : names the ledger, see ``raymat.engine.ledger``
    limit_s : seconds that one stage may take on one nodule
    again : whether some of the nodules may be committed already
    outlived : whether workers of an earlier command may still commit some of them
    """

    def __init__(
        self,
        work: Work,
        pool: Pool,
        marks: Marks,
        session: str,
        limit_s: float,
        again: bool = False,
        outlived: bool = False,
    ) -> None:
        self.work, self.pool, self.marks, self.limit_s, self.again = work, pool, marks, limit_s, again
        self.alone_from = time.monotonic() + OUTLIVING_S if outlived else 0.0
        # By name: Ray cannot restart an actor that was given a handle once the object behind that is lost.
        self.ledger = find_ledger(session)
        self.readers = ThreadPoolExecutor(work.ahead, thread_name_prefix=READ)
        self.committer = ThreadPoolExecutor(COMMITS_BEHIND, thread_name_prefix=COMMIT)
        self.prepared: set[str] = set()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Take a batch of rows through the stages; outcome rows as they come."""
        batch, items = _opened(table, self.pool.first)
        reference: ray.ObjectRef[Begun] = self.ledger.begin.remote(batch)
        begun = ray.get(reference)
        position = Position(batch, self.limit_s)
        run = _Run(self, batch, position)
        try:
            committed = run.committed(items, begun) if begun.earlier or self.again or _any_bare(items) else set()
            to_do = [item for item in items if item.key not in committed]
            if begun.earlier:
                run.blame(to_do, begun.earlier)
            deaths = self._deaths(to_do, begun.earlier)
            yield from run.handed_again(items, begun.handed, committed, deaths)
            handed = {key for keys in begun.handed for key in keys}
            left = [item for item in items if item.key not in handed]
            sound = [item for item in left if item.key not in committed and item.key not in deaths]
            if begun.earlier:
                yield from run.one_by_one(sound)
            else:
                yield from run.overlapped(sound)
            # Alone and last, so that their neighbours are out of danger.
            yield from run.one_by_one([item for item in left if item.key in deaths], deaths)
            yield from run.finish([item for item in left if item.key in committed])
        finally:
            run.abandon()
        position.close()

    def _deaths(self, items: list[Item], earlier: int) -> dict[str, Deaths]:
        """Those of the items that killed workers before: in this build, or in an earlier one as the plan found."""
        if earlier:
            return self.marks.read(item.key for item in items)
        return {item.key: Deaths(**json.loads(item.row["died"])) for item in items if item.row and item.row.get("died")}


class _Run:
    """One batch on one worker."""

    def __init__(self, worker: Worker, batch: str, position: Position) -> None:
        self.work, self.pool, self.marks = worker.work, worker.pool, worker.marks
        self.ledger, self.limit_s = worker.ledger, worker.limit_s
        self.readers, self.committer, self.prepared = worker.readers, worker.committer, worker.prepared
        self.alone_from = worker.alone_from
        self.batch, self.position = batch, position
        self.reading: deque[Future] = deque()
        self.done: list[Nodule] = []  # to be committed or handed on
        self.bytes, self.blocks, self.last_handed = 0, 0, time.monotonic()
        self.commits: deque[tuple[str, Future]] = deque()
        self.rows: list[pa.Table] = []
        self.unreported: list[pa.Table] = []
        self.last_report = time.monotonic()

    # Nodules ----------------------------------------------------------------------------------------------------------

    def overlapped(self, items: list[Item]) -> Iterator[pa.Table]:
        """Take the items through the stages, reading ahead of them and committing behind them."""
        waiting = iter(items)
        for item in items:
            if self.pool.first:
                for one in islice(waiting, self.work.ahead + 1 - len(self.reading)):
                    self.reading.append(self.readers.submit(self._read, one))
                with self.position.at(item.key, READ):
                    nodule = self.reading.popleft().result()
            else:
                nodule = item.nodule
            if time.monotonic() >= self.alone_from or not self._recalled(item):
                yield from self._take(self._through(nodule))

    def one_by_one(self, items: list[Item], deaths: dict[str, Deaths] | None = None) -> Iterator[pa.Table]:
        """Take the items through the stages with nothing beside them, so that a death has one possible cause."""
        for item in items:
            died = (deaths or {}).get(item.key)
            if not self._recalled(item):
                yield from self._take(self._alone(item, died))
            if died and self.pool.last:
                self.flush()
                self._wait_for_commits(0)
                self.marks.remove(item.key)

    def _recalled(self, item: Item) -> bool:
        """Whether the item has been committed since this batch began: a worker may outlive its node by seconds."""
        rows = list(self.work.recall([item.nodule])) if self.pool.last else []
        self.rows += rows
        return bool(rows)

    def _alone(self, item: Item, died: Deaths | None) -> Nodule:
        self._wait_for_commits(0)
        if died and died.count >= MAX_TRIES:
            # Its stage may be one of an earlier version: the reason says what is known.
            return item.nodule.without_arrays(
                outcome=FAILED, stage=died.stage or self._stages[0], reason=died.reason(self.limit_s), method=None
            )
        if died:
            self.marks.begin(item.key, died)
        nodule = item.nodule
        if self.pool.first:
            with self.position.at(item.key, READ):
                nodule = self._read(item)
        return self._through(nodule)

    def handed_again(
        self, items: list[Item], handed: list[list[str]], committed: set[str], deaths: dict[str, Deaths]
    ) -> Iterator[pa.Table]:
        """Hand on what workers before had handed on, in the same parts.

        Ray has some of these blocks, and takes of this worker those alone that it lacks. Of what is committed it gets
        the key.
        """
        by_key = {item.key: item for item in items}
        for keys in handed:
            for item in (by_key[key] for key in keys):
                self.done.append(item.nodule if item.key in committed else self._alone(item, deaths.get(item.key)))
            yield self._block()

    @property
    def _stages(self) -> list[str]:
        return [READ] * self.pool.first + [stage.name for stage in self.pool.stages] + [COMMIT] * self.pool.last

    def _read(self, item: Item) -> Nodule:
        with logged(READ, item.nodule.nodule_id):
            assert item.row is not None  # the first pool is given rows
            return self.work.read(item.row)

    def _through(self, nodule: Nodule) -> Nodule:
        for stage in self.pool.stages:
            if not nodule.outcome:
                nodule = self._stage(stage, nodule)
        return nodule

    def _stage(self, stage: Stage, nodule: Nodule) -> Nodule:
        if stage.prepare and stage.name not in self.prepared:
            stage.prepare()
            self.prepared.add(stage.name)
        with self.position.at(nodule.key, stage.name), logged(stage.name, nodule.nodule_id):
            return stage.run(nodule)

    # What becomes of them ---------------------------------------------------------------------------------------------

    def _take(self, nodule: Nodule) -> Iterator[pa.Table]:
        """A nodule that has been through this pool's stages: to be committed, or handed to the next pool."""
        self.done.append(nodule)
        if self.pool.last:
            if len(self.done) >= self.work.group:
                self.flush()
                self._wait_for_commits(COMMITS_BEHIND)
            return
        self.bytes += _size_of(nodule)
        if self.bytes >= HANDED_BYTES or time.monotonic() - self.last_handed >= self.pool.hand_every_s:
            yield self._handed()

    def flush(self) -> None:
        """Begin to commit what is done."""
        if self.done:
            done, self.done = self.done, []
            self.commits.append((done[0].key, self.committer.submit(self._commit, done)))

    def _commit(self, nodules: list[Nodule]) -> pa.Table:
        with logged(COMMIT, *(nodule.nodule_id for nodule in nodules)):
            rows = self.work.commit(nodules)
        log_committed(nodules)
        return rows

    def _wait_for_commits(self, most: int) -> None:
        """Wait until at most this number of commits is under way, and report what has ended."""
        while self.commits and (len(self.commits) > most or self.commits[0][1].done()):
            key, commit = self.commits.popleft()
            with self.position.at(key, COMMIT):
                rows = commit.result()
            self.rows.append(rows)
            self.unreported.append(rows)
        # A commit of several nodules cannot be recalled by their names: the ledger has to know of each.
        if self.unreported and (self.work.group > 1 or time.monotonic() - self.last_report >= self.pool.report_every_s):
            self.ledger.report.remote(self.batch, pa.concat_tables(self.unreported))
            self.unreported, self.last_report = [], time.monotonic()

    def _handed(self) -> pa.Table:
        # Known before Ray has it: a later worker on this batch has to hand on the same.
        ray.get(self.ledger.hand.remote(self.batch, [nodule.key for nodule in self.done]))
        return self._block()

    def _block(self) -> pa.Table:
        table = to_table(self.done, packed=True)
        name = f"{self.batch}.{self.blocks}"
        self.done, self.bytes, self.blocks, self.last_handed = [], 0, self.blocks + 1, time.monotonic()
        return as_block(name, "nodules", table)

    def finish(self, committed: list[Item]) -> Iterator[pa.Table]:
        """The end of the batch: everything committed, its rows as one block; or the rest handed on.

        ``committed`` are items that were met as committed, whose rows the last pool finds by their keys.
        """
        if not self.pool.last:
            self.done += [item.nodule for item in committed]
            if self.done:
                yield self._handed()
            self.ledger.end.remote(self.batch)
            return
        self.flush()
        self._wait_for_commits(0)
        yield as_block(self.batch, "rows", pa.concat_tables(self.rows))

    def abandon(self) -> None:
        """Leave no thread at work for a batch that is over, or was broken off."""
        for future in (*self.reading, *(commit for _, commit in self.commits)):
            future.cancel()

    # After a death ----------------------------------------------------------------------------------------------------

    def committed(self, items: list[Item], begun: Begun) -> set[str]:
        """The keys of the items that have their outcome already; the last pool keeps their rows."""
        known: dict[str, pa.Table] = {}
        for table in begun.rows:
            for number, key in enumerate(table["key"].to_pylist()):
                known.setdefault(key, table.slice(number, 1))
        open_items = [item for item in items if item.key not in known and item.key not in begun.committed]
        for table in self.work.recall([item.nodule for item in open_items]):
            known[table["key"][0].as_py()] = table
        if self.pool.last:
            self.rows += known.values()
        return known.keys() | begun.committed

    def blame(self, items: list[Item], earlier: int) -> None:
        """Mark the nodule that the worker before was at."""
        if not items:
            return
        keys = [item.key for item in items]
        before = self.position.before
        if before and before.key in keys:
            self.marks.blame(before.key, before.stage, before.too_long)
        elif self.pool.last or earlier >= MAX_TRIES:
            # Its node is gone with its file; it worked in this order.
            self.marks.blame(keys[0], "", too_long=False)


def as_block(batch: str, column: str, table: pa.Table) -> pa.Table:
    """A table as a single row of a block, so that Ray Data neither cuts it nor joins it to others."""
    array = table.combine_chunks().to_struct_array()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pa.table({"batch": [batch], column: pa.ListArray.from_arrays([0, len(array)], array)})


def from_block(block: pa.Table, column: str) -> tuple[str, pa.Table]:
    """The batch and the table of ``as_block``."""
    rows = block[column].combine_chunks()
    rows = rows.chunk(0) if isinstance(rows, pa.ChunkedArray) else rows
    return block["batch"][0].as_py(), pa.Table.from_struct_array(rows.flatten())


def _opened(block: pa.Table, first: bool) -> tuple[str, list[Item]]:
    batch, table = from_block(block, "rows" if first else "nodules")
    if not first:
        return batch, [Item(nodule) for nodule in from_table(table, copy=False)]
    return batch, [
        Item(Nodule(row["nodule_id"], row["patient_id"], row["source"], key=row["key"]), row)
        for row in table.to_pylist()
    ]


def _any_bare(items: list[Item]) -> bool:
    """Whether nodules came without arrays and outcome, as those do that are committed already."""
    return any(item.row is None and not item.nodule.outcome and item.nodule.image is None for item in items)


def _size_of(nodule: Nodule) -> int:
    truths = (nodule.true_membership, nodule.true_calibrated)
    channels = [channel.image for channel in nodule.channels]
    arrays = [nodule.image, nodule.trimap, *channels, *truths, *nodule.readers]
    # The mattes travel cut to their box, a tenth and less of the crop.
    return sum(array.nbytes for array in arrays if array is not None) * (2 if nodule.candidates else 1)
