"""MLflow, and the only room that knows it: a run a build or training, with parameters, metrics, pictures, failures."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import re
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymat.nodule import OUTCOMES, InputError
from raymat.store import counts
from raymat.version import __version__

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

EXPERIMENT = "raymat builds"
TRAININGS = "raymat 3DMM"
EVIDENCE = "raymat evidence"
REGISTERED = "raymat-3dmm"
SERVED = "from mlflow.models import set_model\nfrom raymat.tracking import ServedNetwork\nset_model(ServedNetwork())\n"
METRICS_A_BATCH, PARAMETERS_A_BATCH = 1000, 100  # as many as a tracking server takes at once
PROGRESS_EVERY_S = 10.0
LISTED = ["nodule_id", "patient_id", "outcome", "stage", "method", "reason"]
ROWS_SHOWN = 1_000  # of the table that MLflow's page shows; outcomes.csv has them all


class ServedNetwork(PythonModel):
    """3DMM as MLflow serves it: HU (z, y, x) on the network's grid in, alpha out."""

    def load_context(self, context) -> None:
        """Read the weights, once per server."""
        # What logs a build needs no torch.
        from raymat.network.inference import Ensemble

        self.ensemble = Ensemble([context.artifacts["weights"]])

    def predict(self, context, model_input: np.ndarray, params: dict | None = None) -> np.ndarray:
        """Alpha (z, y, x) of an image (z, y, x) in HU."""
        return self.ensemble.predict(np.asarray(model_input, np.float32)).alpha


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
        # Workers of a cluster run in folders of their own: a file named relative to this one would be another there.
        file = uri.removeprefix("sqlite:///")
        return uri if file == uri else f"sqlite:///{Path(file).absolute()}"
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


def how_to_look(uri: str, page: str = "") -> str:
    """What to do to see a run in a browser; ``page`` is ``Run.page``."""
    if uri.startswith("http"):
        return without_credentials(uri).rstrip("/") + page
    page = f"http://127.0.0.1:5000{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))}   (then open {page})"


def flatten(parameters: dict, prefix: str = "") -> dict[str, object]:
    """Nested parameters with dotted names."""
    flat: dict[str, object] = {}
    for key, value in parameters.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


class Run:
    """A run that stands in MLflow from the start of the work to its end.

    Parameters
    ----------
    uri : the tracking store
    name : the run's name
    parameters : logged as the run's parameters
    experiment : the experiment it stands in
    parent : id of the run under which it stands
    continues : id of a run that was interrupted and goes on as this one; a new one where the store has it no more
    replaces : id of a run that was interrupted and does not go on: it is ended as KILLED

    Raises
    ------
    InputError
        The store cannot be reached or written.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        parameters: dict[str, object],
        experiment: str = EXPERIMENT,
        parent: str | None = None,
        continues: str | None = None,
        replaces: str | None = None,
    ) -> None:
        for noisy in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # An unreachable server is to be known at once, not after minutes of retries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.uri, self.last = uri, 0.0
        try:
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            identifier = found.experiment_id if found else self._create_experiment(uri, experiment)
            if replaces and self._stands(replaces):
                self.client.set_terminated(replaces, "KILLED")
            if continues and self._stands(continues):
                self.id = continues
                self.client.update_run(self.id, status="RUNNING")
                return
            tags = {"mlflow.runName": name, "mlflow.source.name": "raymat", "mlflow.source.type": "LOCAL"}
            if parent:
                tags["mlflow.parentRunId"] = parent
            self.id = self.client.create_run(identifier, tags=tags).info.run_id
        except Exception as error:
            # MLflow's stores raise what their drivers raise: SQLAlchemy's, requests', OSError, MlflowException.
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if isinstance(error, MlflowException) and "Max retries exceeded" in first:
                first = "nothing answers there"
            raise InputError(
                f"the MLflow store {without_credentials(uri)} cannot be used: {without_credentials(first)}. Set "
                "MLFLOW_TRACKING_URI to one that can, or --no-tracking"
            ) from error
        # Together: each would be a transaction of its own.
        named = [mlflow.entities.Param(name, str(value)) for name, value in parameters.items()]
        for start in range(0, len(named), PARAMETERS_A_BATCH):
            self.client.log_batch(self.id, params=named[start : start + PARAMETERS_A_BATCH])

    @classmethod
    def join(cls, uri: str, identifier: str) -> Run:
        """A run that another process began, to log to it from this one."""
        run = cls.__new__(cls)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        run.uri, run.client, run.id, run.last = uri, MlflowClient(tracking_uri=uri), identifier, 0.0
        return run

    @property
    def page(self) -> str:
        """The run's page, after the address of MLflow's server."""
        return f"/#/experiments/{self.client.get_run(self.id).info.experiment_id}/runs/{self.id}"

    def _stands(self, identifier: str) -> bool:
        try:
            return self.client.get_run(identifier).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _create_experiment(self, uri: str, experiment: str) -> str:
        # Without a place of their own, artifacts of an SQLite store would go to wherever the next command runs.
        place = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
        # Without a kind MLflow's page takes an experiment for one of language models and shows its traces, of none.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return self.client.create_experiment(experiment, place.absolute().as_uri() if place else None, tags=kind)

    def progress(self, counts: Counter, seconds: float, finished: bool = False) -> None:
        """Log the counts so far, now and then and when all is done."""
        if finished or time.monotonic() - self.last >= PROGRESS_EVERY_S:
            self.last = time.monotonic()
            done = sum(counts.values())
            step = int(seconds)
            self.metrics({"progress/done": done, "progress/per_minute": 60 * done / max(seconds, 1e-9)}, step)
            self.metrics({f"progress/{name}": counts[name] for name in OUTCOMES}, step)

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
        self.metrics({f"nodules/{name}": found[name] for name in OUTCOMES} | {"nodules/total": rows.num_rows})
        self.metrics({"seconds": seconds})
        self.client.set_tag(self.id, "source_digest", source_digest)
        chosen = counts(rows["method"])
        for method, sums in _by_method(solves).items():
            name = f"method/{method.replace('+', '_plus')}"
            solved = sums["count"]
            self.metrics(
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
        with self._going_on():
            self.client.log_figure(self.id, figure, name)

    def text(self, name: str, text: str) -> None:
        """Log text as an artifact."""
        self.client.log_text(self.id, text, name)

    def table(self, name: str, rows: list[dict], columns: list[str]) -> None:
        """Log rows as a table that the MLflow page can show."""
        self.client.log_table(self.id, {c: [str(row[c] or "") for row in rows] for c in columns}, name)

    def model(self, weights: str, window: tuple[int, int, int]) -> None:
        """Log the network of a weights file and register it, ready for ``mlflow.pyfunc`` and ``mlflow models serve``.

        The model is two lines of code and the weights: loading it unpickles nothing.
        """
        mlflow.set_tracking_uri(self.client.tracking_uri)
        example = np.full([max(1, side // 4) for side in window], -900.0, np.float32)
        tensor = TensorSpec(np.dtype(np.float32), (-1, -1, -1))
        with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=self.id):
            code = Path(folder) / "model.py"
            code.write_text(SERVED)
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code),
                artifacts={"weights": weights},
                signature=ModelSignature(inputs=Schema([tensor]), outputs=Schema([tensor])),
                input_example=example,
                registered_model_name=REGISTERED,
                pip_requirements=[f"raymat=={__version__}"],
            )

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self.client.set_tag(self.id, name, value)

    @contextlib.contextmanager
    def system_metrics(self) -> Iterator[None]:
        """With the machine's CPU, memory, disk, network and GPU logged beside the run's metrics."""
        monitor = SystemMetricsMonitor(self.id, resume_logging=True, tracking_uri=self.client.tracking_uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def status(self, status: str) -> None:
        """Mark the run as SCHEDULED or RUNNING."""
        self.client.update_run(self.id, status=status)

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.id, status)

    def end_if_open(self) -> None:
        """End the run as FINISHED where whoever logged to it was killed before that."""
        if self.client.get_run(self.id).info.status in ("RUNNING", "SCHEDULED"):
            self.end()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        self.series([(step, values)])

    def series(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log the numbers of several steps at once."""
        now = int(time.time() * 1000)
        metrics = [
            mlflow.entities.Metric(name, float(value), now, step)
            for step, values in steps
            for name, value in values.items()
        ]
        with self._going_on():
            for start in range(0, len(metrics), METRICS_A_BATCH):
                self.client.log_batch(self.id, metrics=metrics[start : start + METRICS_A_BATCH])

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        # A tracking server that goes away must not cost hours of work: it goes on, the log says so.
        try:
            yield
        except (MlflowException, OSError) as error:
            told = without_credentials(str(error))
            logging.getLogger(__name__).warning("MLflow does not answer (%s); the work goes on", told)


@dataclass
class Ending:
    """How the work of a run ends where nothing is raised."""

    status: str = "FINISHED"


@contextlib.contextmanager
def ending(run: Run | None) -> Iterator[Ending]:
    """With a run that is ended in any case: as said, as KILLED by whoever stops it, as FAILED by any error."""
    end = Ending()
    try:
        yield end
    except KeyboardInterrupt:
        end.status = "KILLED"
        raise
    except BaseException:
        end.status = "FAILED"
        raise
    finally:
        if run:
            run.end(end.status)


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
        lines = zip(*batch.to_pydict().values(), strict=True)
        writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return out.getvalue()
