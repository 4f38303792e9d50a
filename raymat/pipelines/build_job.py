"""The main job whole: source, build, pictures and the MLflow run; what `raymat build` and its job run."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from raymat.engine.cluster import Pools
from raymat.experiment import BUILD, Experiment, Facts, Output, as_csv, experiment
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, OUTCOMES, REJECTED
from raymat.pipelines.build import NODULE_TIMEOUT_S, Build, Result, build
from raymat.places import without_credentials
from raymat.sources import Source, digest
from raymat.steps import BuildParameters
from raymat.store import PARAMETERS, Store, counts
from raymat.version import __version__
from raymat.words import dotted, in_words, plain_name

CONTACT_SHEET = "contact_sheet.png"
LISTED = ["nodule_id", "patient_id", "outcome", "stage", "method", "reason"]
ROWS_SHOWN = 1_000  # of the table that MLflow's page shows; outcomes.csv has them all
SHEET_NODULES = 12
NONE = "none"


@dataclass(frozen=True)
class Job:
    """What to build, from what, where and how.

    Attributes
    ----------
    source, source_name : the source and how the run's parameters call it
    output : where the dataset is written and logged
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    source: Source
    source_name: str
    output: Output
    parameters: BuildParameters = field(default_factory=BuildParameters)
    pools: Pools = field(default_factory=Pools)
    retry_failed: bool = False
    nodule_timeout_s: float = NODULE_TIMEOUT_S
    address: str | None = None

    @property
    def facts(self) -> Facts:
        """What the dataset is made from."""
        parameters = {"source": self.source_name, "out": self.output.path, **self.parameters.to_dict()}
        uri = without_credentials(self.output.tracking_uri or "")
        return Facts(parameters, {"of": digest(uri, sorted(dotted(parameters).items()))})


def build_dataset(job: Job, say: Callable[[str], None] = print) -> Result:
    """Build the dataset, draw its contact sheet, log its run. Says what came out and where to look.

    Raises
    ------
    InputError
        The source, the output, the cluster or the MLflow store cannot be used; found before any work is done.
    """
    out = job.output.path
    store = Store.create(out)
    with experiment(BUILD, job.output, job.facts, say, store) as work:
        how = {"raymat": __version__, "source": job.source_name, "parameters": job.parameters.to_dict()}
        work.json(PARAMETERS, how)
        what = Build(
            store,
            job.source,
            job.parameters,
            job.pools,
            job.retry_failed,
            job.nodule_timeout_s,
            address=job.address,
        )
        work.describe("A dataset of alpha mattes.")
        result = build(what, say, work.run.progress)
        work.input(job.source_name, store.source_digest())
        log_outcomes(work, store, result)
        if draw_contact_sheet(work, store, result):
            say(f"contact sheet  {out}/{CONTACT_SHEET}")
        of = result.counts
        work.conclude(", ".join(f"**{of[name]} {name}**" for name in OUTCOMES) + f". Chosen: {chosen_words(result)}.")
        say(summary(result))
        say(f"dataset        {out}   (raymat inspect {shlex.quote(out)})")
        return result


def log_outcomes(work: Experiment, store: Store, result: Result) -> None:
    """Log what came out: counts, seconds and iterations of each method, the chosen methods, and a table of failures."""
    rows, run = result.outcomes, work.run
    if not run.uri:
        return
    of = result.counts
    run.metrics({f"nodules/{name}": of[name] for name in OUTCOMES} | {"nodules/total": rows.num_rows})
    run.metrics({"seconds": result.seconds})
    chosen = counts(rows["method"])
    for method, sums in _by_method(store.solves(rows)).items():
        name = f"method/{plain_name(method)}"
        solved = sums["count"]
        run.metrics(
            {
                f"{name}/seconds_mean": sums["seconds"] / solved,
                f"{name}/iterations_mean": sums["iterations"] / solved,
                f"{name}/not_converged": solved - sums["converged"],
                f"{name}/score_mean": sums["score"] / solved,
                f"{name}/chosen": chosen[method],
            }
        )
    run.text("outcomes.csv", as_csv(rows.select(LISTED)))
    failures = rows.filter(pc.not_equal(rows["outcome"], ACCEPTED)).slice(0, ROWS_SHOWN)
    run.table("not_accepted.json", failures.to_pylist(), [name for name in LISTED if name != "method"])
    from raymat.pictures import charts  # matplotlib takes a second and 25 MiB that a build need not hold from the start

    run.figure("chosen_methods.png", charts.method_histogram(chosen_methods(result)))


def _by_method(solves: Iterable[pa.Table]) -> dict[str, Counter]:
    """Method to its number of solves and the sums over them."""
    sums: dict[str, Counter] = {}
    for table in solves:
        names = ("seconds", "iterations", "converged", "score")
        wanted = [(name, "sum") for name in names] + [("method", "count")]
        for row in table.group_by("method").aggregate(wanted).to_pylist():
            add = {name: row[f"{name}_sum"] or 0 for name in names}
            sums.setdefault(row["method"], Counter()).update(add | {"count": row["method_count"]})
    return sums


def chosen_methods(result: Result) -> Counter[str]:
    """How often each method was chosen among the accepted nodules."""
    accepted = result.outcomes.filter(pc.equal(result.outcomes["outcome"], ACCEPTED))
    return counts(accepted["method"])


def chosen_words(result: Result) -> str:
    """The chosen methods, the most frequent first: "cf 2, knn+ 1"."""
    return ", ".join(f"{method} {n}" for method, n in chosen_methods(result).most_common()) or NONE


def draw_contact_sheet(work: Experiment, store: Store, result: Result) -> bool:
    """Draw nodules evenly spread over the dataset, beside it and in its run; whether there were any."""
    rows = result.outcomes.select(["key", "shard", "outcome"])
    rows = rows.filter(pc.is_in(rows["outcome"], pa.array([ACCEPTED, REJECTED])))
    if not rows.num_rows:
        return False
    step = max(1, rows.num_rows // SHEET_NODULES)
    spread = rows.take(list(range(0, rows.num_rows, step))[:SHEET_NODULES]).to_pylist()
    nodules = (store.read_committed(row["key"], row["shard"]) for row in spread)
    from raymat.pictures.sheet import contact_sheet

    work.figure(CONTACT_SHEET, contact_sheet(nodules))
    return True


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
    chosen = chosen_words(result)
    if chosen != NONE:
        lines.append(f"chosen     {chosen}")
    lines.append(f"time       {in_words(result.seconds)}")
    return "\n".join([*lines, ""])


def exit_status(result: Result) -> int:
    """0 where no nodule failed, else 1."""
    return 1 if result.counts[FAILED] else 0
