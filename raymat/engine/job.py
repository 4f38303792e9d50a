"""What the engine runs, as a value: work, its list of rows, and what runs it. No Ray in here."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from raymat.engine.stages import Pool, Work
from raymat.engine.tries import Marks

# The largest nodules take a minute or two.
NODULE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Part:
    """A part of a work list: how many rows, and how a task loads them. Rows have nodule_id, patient_id, source, key."""

    rows: int
    load: Callable[[], pa.Table]


def part_of(rows: list[dict]) -> Part:
    """A part of rows that are at hand."""
    return Part(len(rows), partial(_as_table, rows))


def _as_table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows)


@dataclass(frozen=True)
class Job:
    """What runs, on what.

    Attributes
    ----------
    work : stages, reading and committing
    parts : of the work list
    pools : what runs where, in order
    marks : of nodules that killed a worker
    session : unique to this run
    limit_s : seconds that one stage may take on one nodule
    shared : what the workers fetch with ``raymat.engine.sharing.shared``
    pipelines : how many drivers the work is dealt to
    label : what the names of its batches begin with, after the session
    again : whether some of the nodules may be committed already
    outlived : whether workers of an earlier command may still commit some of them, as they outlive a killed driver
    """

    work: Work
    parts: Sequence[Part]
    pools: Sequence[Pool]
    marks: Marks
    session: str
    limit_s: float = NODULE_TIMEOUT_S
    shared: Mapping[str, object] = field(default_factory=dict)
    pipelines: int = 1
    label: str = ""
    again: bool = False
    outlived: bool = False

    @property
    def rows(self) -> int:
        """How many rows the work list has."""
        return sum(part.rows for part in self.parts)

    @property
    def workers(self) -> int:
        """How many workers read, at most."""
        return self.pools[0].most_workers or self.pools[0].workers

    @property
    def gpus(self) -> float:
        """GPUs that one of its workers asks for, at most."""
        return max(pool.most("gpus") for pool in self.pools)

    def dealt(self) -> list[Job]:
        """A job for each pipeline: its share of the parts and of the workers."""
        count = min(self.pipelines, len(self.parts))
        return [
            replace(
                self,
                parts=self.parts[number::count],
                pools=[pool.share(number, count) for pool in self.pools],
                session=f"{self.session}-{number}",
                shared={},
                pipelines=1,
            )
            for number in range(count)
        ]

    def without(self, done: set[str]) -> Job:
        """What is left of the job when these keys are done."""
        tables = [part.load() for part in self.parts]
        keys = pa.array(sorted(done), pa.string())
        left = [table.filter(pc.invert(pc.is_in(table["key"], keys))) for table in tables]
        parts = [Part(table.num_rows, partial(_same, table)) for table in left if table.num_rows]
        return replace(self, parts=parts, label=f"{self.label}again-", again=True)


def _same(table: pa.Table) -> pa.Table:
    return table


def new_session() -> str:
    """A name for one run that no other has."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
