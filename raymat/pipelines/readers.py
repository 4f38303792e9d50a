"""Leave one reader out, on the build's own machinery: each nodule four times, measured instead of kept.

OUT/nodules, OUT/outcomes, ...  the build's, a nodule and left-out reader each, without arrays
OUT/foretold.parquet            a row a nodule, left-out reader and method
OUT/readers.csv, readers.md     the table
OUT/readers.png, readers.pdf    the figure
OUT/readers.json                what was run
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from raymat import pictures
from raymat.engine.cluster import Pools
from raymat.evidence import foretelling, readers_table
from raymat.evidence.files import FORETOLD
from raymat.evidence.files import READERS as NAME
from raymat.evidence.files import READERS_NOTE as NOTE
from raymat.evidence.left_out import LeftOutSource
from raymat.evidence_pictures import foretelling as draw_foretelling
from raymat.lock import refuse_if_held
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, REJECTED, InputError
from raymat.pipelines.build import Build, build
from raymat.pipelines.dataset import summary
from raymat.sources import Source
from raymat.steps import BuildParameters
from raymat.store import PARAMETERS, Store
from raymat.tracking import EVIDENCE, Run, ending, flatten, how_to_look
from raymat.version import __version__


@dataclass(frozen=True)
class ReadersJob:
    """What to measure, and where.

    Attributes
    ----------
    source, source_name : nodules of four readers, and how the run's parameters call it
    out : folder or URI of the measurements
    nodules : so many of them, drawn; all where None
    command : what was typed, for the record
    tracking_uri : the MLflow store; None for no run
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    source: Source
    source_name: str
    out: str
    parameters: BuildParameters = field(default_factory=lambda: BuildParameters(min_readers=3))
    pools: Pools = field(default_factory=Pools)
    nodules: int | None = None
    retry_failed: bool = False
    command: tuple[str, ...] = ()
    tracking_uri: str | None = None
    address: str | None = None


def leave_one_reader_out(job: ReadersJob, say: Callable[[str], None] = print) -> tuple[pd.DataFrame, Counter[str]]:
    """Measure every split, or go on where an earlier command stopped; write table and figure.

    Returns
    -------
    table, outcomes
        ``raymat.evidence.readers_table.summarise``, and how many splits came to which outcome.

    Raises
    ------
    InputError
        No nodule has four readers, none could be measured, or source, output, cluster or MLflow store cannot be used.
    """
    store = Store.create(job.out)
    refuse_if_held(store)  # before this command touches what tells of the other
    # Quality decides which matte is the chosen one: another rule measures anew.
    depends = repr((foretelling.VERSION, sorted(asdict(job.parameters.quality).items())))
    source = LeftOutSource(job.source, depends, job.nodules)
    facts = {"source": job.source_name, "out": job.out, "nodules": job.nodules}
    run = None
    if job.tracking_uri:
        before = json.loads(store.read(NOTE)).get("run") if store.exists(NOTE) else None
        run = Run(
            job.tracking_uri,
            f"readers {job.out}",
            flatten({**facts, **asdict(job.parameters)}),
            EVIDENCE,
            continues=before,
        )
    how = {"raymat": __version__, "source": job.source_name, "parameters": asdict(job.parameters)}
    store.write(PARAMETERS, json.dumps(how, indent=1).encode())
    note: dict[str, Any] = {
        **how,
        "nodules": job.nodules,
        "command": shlex.join(job.command),
        "run": run.id if run else None,
    }
    store.write(NOTE, json.dumps(note, indent=1).encode())
    with ending(run):
        what = Build(
            store,
            source,
            job.parameters,
            job.pools,
            job.retry_failed,
            finish=foretelling.measure,
            address=job.address,
        )
        result = build(what, say, run.progress if run else None)
        # The chosen method of a build is none here, where even a rejected nodule's best matte is measured.
        say(summary(result).replace("chosen     ", "best score "))
        rows = _rows(store)
        if rows.empty:
            raise InputError(f"{job.out}: no split could be measured; the reasons are above and in `raymat inspect`")
        store.write_table(FORETOLD, pa.Table.from_pandas(rows, preserve_index=False))
        table = readers_table.summarise(rows)
        counts = result.counts
        note |= {"measured": readers_table.counts_in_words(rows), "seconds": result.seconds}
        note |= {"outcomes": {name: counts[name] for name in (ACCEPTED, REJECTED, EXCLUDED, FAILED)}}
        store.write(NOTE, json.dumps(note, indent=1).encode())
        _write(store, table, rows, note, run)
        say(readers_table.as_markdown(table))
        say(f"\nmeasured {note['measured']}")
        say(f"table    {job.out}/readers.md, .csv   figure {job.out}/readers.png, .pdf")
        if run:
            say(f"MLflow   {how_to_look(run.uri, run.page)}")
        return table, counts


def _rows(store: Store) -> pd.DataFrame:
    """The rows of all measured splits, in the manifest's order."""
    rows = []
    for row in store.outcomes(["key", "shard", "outcome"]).to_pylist():
        if row["outcome"] in (ACCEPTED, REJECTED):
            rows += foretelling.rows_of(store.read_committed(row["key"], row["shard"]))
    return pd.DataFrame(rows)


def _write(store: Store, table: pd.DataFrame, rows: pd.DataFrame, note: dict, run: Run | None) -> None:
    text = "\n\n".join(
        [
            "# The left-out reader, foretold by the other three",
            f"{note['measured']}; inside the unknown region but where said; 95 % intervals over patients.",
            readers_table.as_markdown(table),
            readers_table.gains_as_markdown(table),
        ]
    )
    figure = draw_foretelling(table, rows)
    csv = table.to_csv(index=False)
    store.write(f"{NAME}.md", f"{text}\n".encode())
    store.write(f"{NAME}.csv", csv.encode())
    store.write(f"{NAME}.png", pictures.png_bytes(figure))
    store.write(f"{NAME}.pdf", pictures.pdf_bytes(figure))
    if run:
        run.text(f"{NAME}.md", text)
        run.text(f"{NAME}.csv", csv)
        run.figure(f"{NAME}.png", figure)
        for row in table.to_dict("records"):
            plain = row["method"].replace("+", "_plus").replace("&", "and").replace(" ", "_")
            run.metrics({f"{name}/{plain}": row[name] for name in (*readers_table.MEASURES, "calibration_error")})
