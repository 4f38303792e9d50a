"""The main job whole: source, build, pictures and the MLflow run; what `raymat build` and its job run."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from raymat.engine.cluster import Pools
from raymat.lock import refuse_if_held
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, OUTCOMES, REJECTED
from raymat.pipelines.build import NODULE_TIMEOUT_S, Build, Result, build
from raymat.sources import Source, digest
from raymat.steps import BuildParameters
from raymat.store import PARAMETERS, Store, counts
from raymat.tracking import Run, ending, flatten, how_to_look, without_credentials
from raymat.version import __version__
from raymat.words import in_words

CONTACT_SHEET = "contact_sheet.png"
RUN = "run.json"
SHEET_NODULES = 12


@dataclass(frozen=True)
class Job:
    """What to build, from what, where and how.

    Attributes
    ----------
    source, source_name : the source and how the run's parameters call it
    out : folder or URI of the dataset
    tracking_uri : the MLflow store; None for no run
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    source: Source
    source_name: str
    out: str
    parameters: BuildParameters = field(default_factory=BuildParameters)
    pools: Pools = field(default_factory=Pools)
    retry_failed: bool = False
    nodule_timeout_s: float = NODULE_TIMEOUT_S
    tracking_uri: str | None = None
    address: str | None = None


def build_dataset(job: Job, say: Callable[[str], None] = print) -> Result:
    """Build the dataset, draw its contact sheet, log its run. Says what came out and where to look.

    Raises
    ------
    InputError
        The source, the output, the cluster or the MLflow store cannot be used; found before any work is done.
    """
    store = Store.create(job.out)
    refuse_if_held(store)  # before this build touches what tells of the other
    run = _begin_run(job, store) if job.tracking_uri else None
    how = {"raymat": __version__, "source": job.source_name, "parameters": asdict(job.parameters)}
    store.write(PARAMETERS, json.dumps(how, indent=1).encode())
    with ending(run):
        what = Build(
            store,
            job.source,
            job.parameters,
            job.pools,
            job.retry_failed,
            job.nodule_timeout_s,
            address=job.address,
        )
        result = build(what, say, run.progress if run else None)
        sheet = draw_contact_sheet(store, result)
        if run:
            run.outcomes(result.outcomes, store.solves(result.outcomes), result.seconds, store.source_digest())
            from raymat import pictures

            run.figure("chosen_methods.png", pictures.method_histogram(chosen_methods(result)))
            if sheet is not None:
                run.figure(CONTACT_SHEET, sheet)
        say(summary(result))
        say(f"dataset        {job.out}   (raymat inspect {shlex.quote(job.out)})")
        if sheet is not None:
            say(f"contact sheet  {job.out}/{CONTACT_SHEET}")
        if run:
            say(f"MLflow         {how_to_look(run.uri, run.page)}")
        store.delete(RUN)
        return result


def _begin_run(job: Job, store: Store) -> Run:
    """The run of this build: that of an earlier, equal one which was cut off in its midst, else a new one."""
    uri = job.tracking_uri
    assert uri is not None
    flat = flatten({"source": job.source_name, "out": job.out, **asdict(job.parameters)})
    same = digest(without_credentials(uri), sorted(flat.items()))
    before = json.loads(store.read(RUN)) if store.exists(RUN) else {"run": None, "of": same}
    goes_on = before["of"] == same
    run = Run(
        uri,
        f"build {job.out}",
        flat,
        continues=before["run"] if goes_on else None,
        replaces=None if goes_on else before["run"],
    )
    store.write(RUN, json.dumps({"run": run.id, "of": same}).encode())
    return run


def chosen_methods(result: Result) -> Counter[str]:
    """How often each method was chosen among the accepted nodules."""
    accepted = result.outcomes.filter(pc.equal(result.outcomes["outcome"], ACCEPTED))
    return counts(accepted["method"])


def draw_contact_sheet(store: Store, result: Result):
    """Draw nodules evenly spread over the dataset, write the sheet beside it and return the figure (None for none)."""
    rows = result.outcomes.select(["key", "shard", "outcome"])
    rows = rows.filter(pc.is_in(rows["outcome"], pa.array([ACCEPTED, REJECTED])))
    if not rows.num_rows:
        return None
    step = max(1, rows.num_rows // SHEET_NODULES)
    spread = rows.take(list(range(0, rows.num_rows, step))[:SHEET_NODULES]).to_pylist()
    nodules = (store.read_committed(row["key"], row["shard"]) for row in spread)
    from raymat import pictures  # matplotlib takes a second and 25 MiB that a build need not hold from the start

    figure = pictures.contact_sheet(nodules)
    store.write(CONTACT_SHEET, pictures.png_bytes(figure))
    return figure


def summary(result: Result) -> str:
    """The table of outcomes, why nodules were not accepted, and the chosen methods."""
    of = result.counts
    lines = ["", *(f"{name:<10}{of[name]:>7}" for name in OUTCOMES), f"{'in all':<10}{sum(of.values()):>7}"]
    for outcome in (FAILED, REJECTED, EXCLUDED):
        rows = result.outcomes.filter(pc.equal(result.outcomes["outcome"], outcome))
        lines += [
            f"  {outcome} {row['nodule_id']}: {row['reason'].removeprefix(row['nodule_id'] + ': ')}"
            for row in rows.slice(0, 10).to_pylist()
        ]
        if rows.num_rows > 10:
            lines.append(f"  ... and {rows.num_rows - 10} more {outcome} (raymat inspect lists them)")
    if of[FAILED]:
        lines.append("  (--retry-failed tries the failed ones again)")
    chosen = ", ".join(f"{method} {n}" for method, n in chosen_methods(result).most_common())
    if chosen:
        lines.append(f"chosen     {chosen}")
    lines.append(f"time       {in_words(result.seconds)}")
    return "\n".join([*lines, ""])


def exit_status(result: Result) -> int:
    """0 where no nodule failed, else 1."""
    return 1 if result.counts[FAILED] else 0
