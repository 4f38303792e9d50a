"""MLflow, and the only room that knows it: a run a build, with parameters, counts, times, pictures and failures."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymat.nodule import OUTCOMES, InputError
from raymat.store import counts

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

EXPERIMENT = "raymat builds"
PROGRESS_EVERY_S = 10.0
LISTED = ["nodule_id", "patient_id", "outcome", "stage", "method", "reason"]
ROWS_SHOWN = 1_000  # of the table that MLflow's page shows; outcomes.csv has them all


def in_submitted_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def tracking_uri(out: str, given: str | None = None) -> str:
    """The MLflow store to use: the one given, ``MLFLOW_TRACKING_URI``, else an SQLite file.

    The SQLite file is ``mlflow.db`` where the command runs, as ``mlflow ui`` expects it. A job submitted to a cluster
    runs in a folder that is thrown away: there the file lies beside the dataset.

    Raises
    ------
    InputError
        A submitted job writes to an object store and no tracking server was named: its run would be lost.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    folder = Path.cwd()
    if in_submitted_job():
        if "://" in out:
            raise InputError(
                f"the run of a job that writes to {out} would be lost with the job's folder: set MLFLOW_TRACKING_URI "
                "to a tracking server, or --no-tracking"
            )
        folder = Path(out).absolute()
    return f"sqlite:///{folder / 'mlflow.db'}"


def without_credentials(uri: str) -> str:
    """The URI with any user and password left out."""
    return re.sub(r"//[^/@]*@", "//", uri)


def how_to_look(uri: str) -> str:
    """What to do to see the runs in a browser."""
    if uri.startswith("http"):
        return without_credentials(uri)
    return f"mlflow ui --backend-store-uri {without_credentials(uri)}   (then open http://127.0.0.1:5000)"


class Run:
    """A run that stands in MLflow from the start of the work to its end.

    Parameters
    ----------
    uri : the tracking store
    name : the run's name
    parameters : logged as the run's parameters

    Raises
    ------
    InputError
        The store cannot be reached or written.
    """

    def __init__(self, uri: str, name: str, parameters: dict[str, object]) -> None:
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # An unreachable server is to be known at once, not after minutes of retries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.last = 0.0
        try:
            self.client = MlflowClient(tracking_uri=uri)
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            identifier = experiment.experiment_id if experiment else self._create_experiment(uri)
            tags = {"mlflow.runName": name, "mlflow.source.name": "raymat", "mlflow.source.type": "LOCAL"}
            self.id = self.client.create_run(identifier, tags=tags).info.run_id
        except Exception as error:
            # MLflow's stores raise what their drivers raise: SQLAlchemy's, requests', OSError, MlflowException.
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"the MLflow store {without_credentials(uri)} cannot be used: {without_credentials(first)}. Set "
                "MLFLOW_TRACKING_URI to one that can, or --no-tracking"
            ) from error
        for key, value in parameters.items():
            self.client.log_param(self.id, key, value)

    def _create_experiment(self, uri: str) -> str:
        # Without a place of their own, artifacts of an SQLite store would go to wherever the next command runs.
        place = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
        return self.client.create_experiment(EXPERIMENT, place.absolute().as_uri() if place else None)

    def progress(self, counts: Counter, seconds: float, finished: bool = False) -> None:
        """Log the counts so far, now and then and when all is done."""
        if finished or time.monotonic() - self.last >= PROGRESS_EVERY_S:
            self.last = time.monotonic()
            done = sum(counts.values())
            step = int(seconds)
            self._metrics({"progress/done": done, "progress/per_minute": 60 * done / max(seconds, 1e-9)}, step)
            self._metrics({f"progress/{name}": counts[name] for name in OUTCOMES}, step)

    def outcomes(self, rows: pa.Table, solves: Iterable[pa.Table], seconds: float, source_digest: str) -> None:
        """Log what came out: counts, time and iterations a method, the chosen methods, the failures as a table.

        Parameters
        ----------
        rows : an outcome a nodule, of ``raymat.store.OUTCOME``
        solves : the fields of their solves, in as many tables as there are
        seconds : the build's
        source_digest : of the input
        """
        found = counts(rows["outcome"])
        self._metrics({f"nodules/{name}": found[name] for name in OUTCOMES} | {"nodules/total": rows.num_rows})
        self._metrics({"seconds": seconds})
        self.client.set_tag(self.id, "source_digest", source_digest)
        chosen = counts(rows["method"])
        for method, sums in _by_method(solves).items():
            name = f"method/{method.replace('+', '_plus')}"
            solved = sums["count"]
            self._metrics(
                {
                    f"{name}/seconds_mean": sums["seconds"] / solved,
                    f"{name}/iterations_mean": sums["iterations"] / solved,
                    f"{name}/not_converged": solved - sums["converged"],
                    f"{name}/score_mean": sums["score"] / solved,
                    f"{name}/chosen": chosen[method],
                }
            )
        self.text("outcomes.csv", as_csv(rows.select(LISTED)))
        failures = rows.filter(pc.not_equal(rows["outcome"], "accepted")).slice(0, ROWS_SHOWN)
        self.table("not_accepted.json", failures.to_pylist(), [name for name in LISTED if name != "method"])

    def figure(self, name: str, figure) -> None:
        """Log a matplotlib figure as an artifact."""
        self.client.log_figure(self.id, figure, name)

    def text(self, name: str, text: str) -> None:
        """Log text as an artifact."""
        self.client.log_text(self.id, text, name)

    def table(self, name: str, rows: list[dict], columns: list[str]) -> None:
        """Log rows as a table that the MLflow page can show."""
        self.client.log_table(self.id, {c: [str(row[c] or "") for row in rows] for c in columns}, name)

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.id, status)

    def _metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        metrics = [mlflow.entities.Metric(name, float(value), now, step) for name, value in values.items()]
        try:
            self.client.log_batch(self.id, metrics=metrics)
        except MlflowException as error:
            # A tracking server that goes away must not cost hours of solving: the build goes on, the log says so.
            logging.getLogger(__name__).warning("MLflow does not answer (%s); the build goes on", error)


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


def as_csv(rows: pa.Table) -> str:
    """A table as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows.column_names)
    for batch in rows.to_batches(max_chunksize=1_000):
        writer.writerows([cell or "" for cell in row] for row in zip(*batch.to_pydict().values(), strict=True))
    return out.getvalue()
