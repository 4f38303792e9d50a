"""Leave one reader out, on the build's own machinery: each nodule four times, measured instead of kept.

OUT/nodules, OUT/outcomes, ...  those of the build, one nodule per left-out reader, without arrays
OUT/measurements.parquet        one row per nodule, left-out reader and method
OUT/readers.csv, readers.md     the table
OUT/readers.png, readers.pdf    the figure
OUT/readers.json                what was run
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pandas as pd
import pyarrow as pa

from raymat.engine.cluster import Pools
from raymat.evidence import reader_prediction, readers_table
from raymat.evidence.files import MEASUREMENTS
from raymat.evidence.files import READERS as NAME
from raymat.evidence.left_out import LeftOutSource
from raymat.experiment import READERS, Experiment, Facts, Output, experiment
from raymat.methods import MEMBERSHIP, kind_of
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, REJECTED, InputError
from raymat.pictures.evidence import reader_predictions as draw_predictions
from raymat.pipelines.build import Build, build
from raymat.pipelines.build_job import summary
from raymat.sources import Source
from raymat.steps import BuildParameters
from raymat.store import PARAMETERS, Store
from raymat.version import __version__
from raymat.words import plain_name


@dataclass(frozen=True)
class ReadersJob:
    """What to measure, and where.

    Attributes
    ----------
    source, source_name : nodules of four readers, and how the run's parameters call it
    output : where the measurements are written and logged
    parameters : of the build; mattes of the kind membership are chosen, as masks are of that kind, if there are any
    nodules : number of nodules to draw; all of them where None
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    source: Source
    source_name: str
    output: Output
    parameters: BuildParameters = field(default_factory=lambda: BuildParameters(min_readers=3))
    pools: Pools = field(default_factory=Pools)
    nodules: int | None = None
    retry_failed: bool = False
    address: str | None = None


def leave_one_reader_out(job: ReadersJob, say: Callable[[str], None] = print) -> tuple[pd.DataFrame, Counter[str]]:
    """Measure every split, or resume what an earlier command began; write table and figure.

    Returns
    -------
    table, outcomes
        ``raymat.evidence.readers_table.summarise``, and how many splits came to which outcome.

    Raises
    ------
    InputError
        No nodule has four readers, none could be measured, or source, output, cluster or MLflow store cannot be used.
    """
    out = job.output.path
    parameters = judging_membership(job.parameters)
    store = Store.create(out)
    # Quality decides which matte is the chosen one: another rule is another measurement.
    depends = f"({reader_prediction.VERSION!r}, {parameters.quality.identity})"
    source = LeftOutSource(job.source, depends, job.nodules)
    facts = {"source": job.source_name, "out": out, "nodules": job.nodules, **parameters.to_dict()}
    with experiment(READERS, job.output, Facts(facts), say, store) as work:
        how = {"raymat": __version__, "source": job.source_name, "parameters": parameters.to_dict()}
        work.json(PARAMETERS, how)
        work.write_note(**how, nodules=job.nodules, command=shlex.join(job.output.command))
        what = Build(
            store,
            source,
            parameters,
            job.pools,
            job.retry_failed,
            finish=reader_prediction.measure,
            address=job.address,
        )
        work.describe("Each reader left out, and predicted by the other three.")
        result = build(what, say, work.run.progress)
        work.input(job.source_name, store.source_digest(), parameters.kind)
        # The chosen method of a build is none here, where even a rejected nodule's best matte is measured.
        say(summary(result).replace("chosen     ", "best score "))
        rows = _rows(store)
        if rows.empty:
            raise InputError(f"{out}: no split could be measured; the reasons are above and in `raymat inspect`")
        store.write_table(MEASUREMENTS, pa.Table.from_pandas(rows, preserve_index=False))
        table = readers_table.summarise(rows)
        counts = result.counts
        work.write_note(
            measured=readers_table.counts_in_words(rows),
            seconds=result.seconds,
            outcomes={name: counts[name] for name in (ACCEPTED, REJECTED, EXCLUDED, FAILED)},
        )
        _write(work, table, rows)
        work.conclude(readers_table.as_markdown(table))
        say(readers_table.as_markdown(table))
        say(f"\nmeasured {work.note['measured']}")
        say(f"table    {out}/readers.md, .csv   figure {out}/readers.png, .pdf")
        return table, counts


def judging_membership(parameters: BuildParameters) -> BuildParameters:
    """The parameters with membership as the kind of the chosen matte, where one of the methods gives it."""
    if any(kind_of(method) == MEMBERSHIP for method in parameters.matting.methods):
        return replace(parameters, quality=replace(parameters.quality, kind=MEMBERSHIP))
    return parameters


def _rows(store: Store) -> pd.DataFrame:
    """The rows of all measured splits, in the manifest's order."""
    rows = []
    for row in store.outcomes(["key", "shard", "outcome"]).to_pylist():
        if row["outcome"] in (ACCEPTED, REJECTED):
            rows += reader_prediction.rows_of(store.read_committed(row["key"], row["shard"]))
    return pd.DataFrame(rows)


def _write(work: Experiment, table: pd.DataFrame, rows: pd.DataFrame) -> None:
    text = "\n\n".join(
        [
            "# The left-out reader, predicted by the other three",
            f"{work.note['measured']}; inside the unknown region if not stated; 95 % intervals over patients.",
            readers_table.as_markdown(table),
            readers_table.gains_as_markdown(table),
        ]
    )
    work.text(f"{NAME}.md", f"{text}\n")
    work.text(f"{NAME}.csv", table.to_csv(index=False))
    work.figure(f"{NAME}.png", draw_predictions(table, rows), pdf=True)
    for row in table.to_dict("records"):
        measures = (*readers_table.MEASURES, "calibration_error")
        work.run.metrics({f"{name}/{plain_name(row['method'])}": row[name] for name in measures})
