"""Measures of every accepted nodule of a dataset, a release or predictions.

DATASET/measures.parquet    where no other file is named: inspect, report, and release show them
OUT.csv or OUT.parquet      one row per nodule, see ``raymat.measures.dictionary``
OUT.csv-metadata.json       units and meanings of the columns of a CSV file
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymat.engine.here import outcomes_of, workplace
from raymat.engine.job import Job, new_session, part_of
from raymat.engine.sharing import shared
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.tries import Marks
from raymat.experiment import Output
from raymat.folder import Folder
from raymat.guard import guarded
from raymat.learning import Data
from raymat.loading import window_of
from raymat.measures.nodule import measure
from raymat.measures.table import DIGEST, PERCENTS, TableFile, as_csv, as_table
from raymat.nodule import ACCEPTED, FAILED, InputError, Nodule
from raymat.pipelines.nodules import SHARED, read_nodule, work_rows
from raymat.tracking import EVIDENCE, Run
from raymat.version import __version__
from raymat.words import counted

WINDOW = "window"  # what the workers share beside the nodules
MEASURED = pa.schema(
    [(name, pa.string()) for name in ("key", "nodule_id", "patient_id", "outcome", "reason", "measures")]
)


@dataclass(frozen=True)
class MeasureJob:
    """What to measure.

    Attributes
    ----------
    dataset : folder or URI of a dataset, a release or predictions
    output : the table's file (.csv or .parquet), and where the run is logged
    workers : processes that measure
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    dataset: str
    output: Output
    workers: int = 1
    address: str | None = None


def measure_all(job: MeasureJob, say: Callable[[str], None] = print) -> tuple[pa.Table, int]:
    """Measure every accepted nodule and write the table.

    Returns
    -------
    table, failed
        One row per nodule in the order of the dataset, and how many could not be measured: their rows have ids and a
        note alone.

    Raises
    ------
    InputError
        There is nothing to measure, no nodule can be measured, or the table cannot be written.
    """
    file, data = TableFile.at(job.output.path), Data.open(job.dataset)
    if not len(data.nodules):
        raise InputError(f"{job.dataset}: holds no accepted nodule to measure (`raymat inspect` lists outcomes)")
    found = _measured(job, data, file, say)
    failed = [row for row in found if row["outcome"] == FAILED]
    for row in failed:
        say(f"failed {row['nodule_id']}: {row['reason']}")
    if len(failed) == len(found):
        raise InputError(f"{job.dataset}: no nodule can be measured; the first reason: {failed[0]['reason']}")
    rows = [json.loads(row["measures"]) if row["measures"] else _bare(row) for row in found]
    about = {"raymat": __version__, "dataset": job.dataset, DIGEST: data.digest}
    table = as_table(rows, about)
    written, *beside = file.write(table)
    say(f"{counted(table.num_rows, 'nodule')}  {file.folder.path(written)}")
    for name in beside:
        say(f"units  {file.folder.path(name)}")
    _log(job, data, table, len(failed))
    return table, len(failed)


def _log(job: MeasureJob, data: Data, table: pa.Table, failed: int) -> None:
    """A run with the percentiles of each number over the nodules, a figure of distributions, and the table."""
    run = Run(job.output.tracking_uri, f"measure {job.dataset}", {"dataset": job.dataset}, EVIDENCE)
    run.dataset(job.dataset, job.dataset, data.digest, data.kind)
    values = {"nodules/measured": table.num_rows - failed, "nodules/failed": failed}
    for name in (field.name for field in table.schema if field.type == pa.float64()):
        known = table[name].drop_null().to_numpy()
        if len(known):
            parts = np.percentile(known, PERCENTS)
            values |= {f"{name}/p{percent}": float(part) for percent, part in zip(PERCENTS, parts, strict=True)}
    run.metrics(values)
    run.text("measures.csv", as_csv(table))
    if run.uri:
        # matplotlib takes a second.
        from raymat.pictures.measures import distributions

        run.figure("distributions.png", distributions(table))
    run.end()


def _bare(row: dict) -> dict[str, object]:
    return {"nodule_id": row["nodule_id"], "patient_id": row["patient_id"], "notes": [f"not measured: {row['reason']}"]}


def _measured(job: MeasureJob, data: Data, file: TableFile, say: Callable[[str], None]) -> list[dict]:
    session = new_session()
    measurement = Measurement(session)
    work = work_rows(data, range(len(data.nodules)))
    pool = Pool(measurement.work.stages, min(job.workers, len(work)))
    # Only a nodule that kills its worker leaves a mark there, until the command ends.
    marks = Marks(Folder(file.folder.filesystem, file.folder.path(f"{file.name}.work")))
    values = {SHARED: data.nodules, WINDOW: window_of(job.dataset)}
    what = Job(measurement.work, [part_of(work)], [pool], marks, session, shared=values)
    with workplace(job.workers, job.address):
        return sorted(outcomes_of(what, say).to_pylist(), key=lambda row: str(row["key"]))


@dataclass(frozen=True)
class Measurement:
    """The steps of a measurement, as the engine runs them; the nodules are shared with every worker."""

    session: str

    @property
    def work(self) -> Work:
        """Read, measure, and nothing that is stored of single nodules."""
        return Work(self.read, (Stage("measure", self.measure, cpus=0.9),), self.rows)

    def read(self, row: dict) -> Nodule:
        """A nodule by its position."""
        return read_nodule(self.session, row)

    def measure(self, nodule: Nodule) -> Nodule:
        """The nodule without arrays, with its measures."""

        def work(nodule: Nodule) -> Nodule:
            row = measure(nodule, shared(self.session, WINDOW))
            return nodule.without_arrays(outcome=ACCEPTED, metadata={"measures": json.dumps(row)})

        return guarded("measure", nodule, work)

    def rows(self, nodules: list[Nodule]) -> pa.Table:
        """What comes back of the nodules."""
        names = ("key", "nodule_id", "patient_id", "outcome", "reason")
        return pa.Table.from_pylist(
            [
                {name: getattr(nodule, name) for name in names} | {"measures": nodule.metadata.get("measures")}
                for nodule in nodules
            ],
            schema=MEASURED,
        )
