"""MLflow, known here and in ``raymat.serving`` alone: runs with parameters, metrics, pictures and their input."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import itertools
import json
import logging
import os
import shlex
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import numpy as np

from raymat.machine import can_make
from raymat.methods import ANY
from raymat.nodule import OUTCOMES, InputError
from raymat.places import in_submitted_job, without_credentials
from raymat.words import bounded, first_line, utf8

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

if TYPE_CHECKING:
    # Imported where a run is logged: MLflow takes two seconds, and a command that logs none is done before that.
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

BUILDS = "raymat builds"
TRAININGS = "raymat 3DMM"
EVIDENCE = "raymat evidence"
REGISTERED = "raymat-3dmm"
# What the served network imports; tests/test_tracking.py imports it without anything else.
SERVED_WITH = ("mlflow", "numpy", "pyarrow", "psutil", "scipy", "torch")
SERVED = "from mlflow.models import set_model\nfrom raymat.serving import ServedNetwork\nset_model(ServedNetwork())\n"
METRICS_A_BATCH, PARAMETERS_A_BATCH = 1000, 100  # as many as a tracking server takes at once
PROGRESS_EVERY_S = 10.0
# How long a server that did not answer is not asked again, and how many numbers are kept for it meanwhile.
SILENCE_S, UNSENT_METRICS = 60.0, 100_000
PARAMETER_LENGTH = 6000  # of a value, as MLflow takes it
# What MLflow imports when it stores the first file, after hours of work.
ARTIFACT_CLIENTS = {"s3": "boto3", "gs": "google.cloud.storage", "wasbs": "azure.storage.blob"}
DIGEST_LENGTH = 36  # of a dataset, as MLflow takes it


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


def how_to_look(uri: str, page: str = "") -> str:
    """What to do to see a run in a browser; ``page`` is ``Run.page``."""
    if uri.startswith("http"):
        return without_credentials(uri).rstrip("/") + page
    page = f"http://127.0.0.1:5000{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))}   (then open {page})"


class _Server:
    """A tracking server, and whether it answers.

    A server that goes away, or that cannot take an artifact, must not cost hours of work: work continues, one warning
    says so, and what could not be logged is missing on the run's page.
    """

    def __init__(self, uri: str) -> None:
        for noisy in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient

        # An unreachable server is to be known at once, not after minutes of retries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.uri, self.client = uri, MlflowClient(tracking_uri=uri)
        self.warned, self.silent_until, self.artifacts_silent_until = False, 0.0, 0.0

    def call(self, function: Callable[..., object], *arguments: object, **named: object) -> bool:
        """Call a function of MLflow; whether it was done."""
        if time.monotonic() < self.silent_until:
            return False
        try:
            function(*arguments, **named)
        except Exception as error:
            # MLflow raises what its drivers raise: SQLAlchemy, requests, boto, OSError, MlflowException.
            self.silent_until = time.monotonic() + SILENCE_S
            self._warn(_first_line(error))
            return False
        return True

    def store_artifact(self, function: Callable[..., object], *arguments: object, **named: object) -> None:
        """Call a function of MLflow that stores a file; files go elsewhere than numbers, and may fail alone."""
        if time.monotonic() < max(self.silent_until, self.artifacts_silent_until):
            return
        try:
            function(*arguments, **named)
        except Exception as error:
            self.artifacts_silent_until = time.monotonic() + SILENCE_S
            self._warn(_first_line(error))

    def try_artifacts(self, uri: str) -> None:
        """Warn before the work where the files of a run cannot be stored at ``uri``."""
        if trouble := _artifact_trouble(uri):
            self._warn(f"no figures, tables and models: {trouble}")

    def _warn(self, trouble: str) -> None:
        if not self.warned:
            self.warned = True
            logging.getLogger(__name__).warning(
                "MLflow at %s cannot log (%s); the work continues, and its run lacks what is not logged",
                without_credentials(self.uri),
                trouble,
            )


@functools.cache
def _server(uri: str) -> _Server:
    """One for each address, so that all runs of a command know whether it answers."""
    return _Server(uri)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """No other process of this machine opens the same SQLite file: two that create its tables at once both fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _artifact_trouble(uri: str) -> str:
    """Why no file can be stored at ``uri``, as far as that is known without storing one; "" where it can."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        folder = Path(unquote(parts.path))
        return "" if can_make(folder) else f"the folder {folder} cannot be written from here"
    if parts.scheme in ARTIFACT_CLIENTS:
        try:
            importlib.import_module(ARTIFACT_CLIENTS[parts.scheme])
        except ImportError:
            return (
                f"{parts.scheme}://{parts.netloc} needs {ARTIFACT_CLIENTS[parts.scheme]}, which is not installed here"
            )
    return ""


def store_trouble(uri: str) -> str:
    """Why the MLflow store cannot be used; "" where it can. No store is made."""
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():
        return "" if can_make(file.parent) else f"the folder {file.parent} cannot be written"
    try:
        with _alone(uri):
            _server(uri).client.search_experiments(max_results=1)
    except Exception as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    from mlflow.exceptions import MlflowException

    first = first_line(error)
    if isinstance(error, MlflowException) and "Max retries exceeded" in first:
        first = "nothing answers there"
    return without_credentials(first)


class Run:
    """A run in MLflow, from the start of the work to its end; every method does nothing where there is no store.

    Parameters
    ----------
    uri : the tracking store; None for no run
    name : the run's name
    parameters : logged as the run's parameters
    experiment : the experiment that it belongs to
    parent : id of the run that it belongs to
    continues : id of a run that was interrupted and is resumed as this one; a new one where the store does not have it
    replaces : id of a run that was interrupted and is not resumed: it is ended as KILLED

    Raises
    ------
    InputError
        The store cannot be reached or written.
    """

    def __init__(
        self,
        uri: str | None,
        name: str,
        parameters: Mapping[str, object],
        experiment: str = BUILDS,
        parent: str | None = None,
        continues: str | None = None,
        replaces: str | None = None,
    ) -> None:
        self.uri, self.id, self.experiment_id = uri, "", ""
        self.last = 0.0
        self.unsent: deque[Metric] = deque(maxlen=UNSENT_METRICS)
        if not uri:
            return
        try:
            with _alone(uri):
                self._server = _server(uri)
                self.client.search_experiments(max_results=1)
            if replaces and self._exists(replaces):
                self.client.set_terminated(replaces, "KILLED")
            if continues and self._exists(continues):
                self.client.update_run(continues, status="RUNNING")
                self.id, self.experiment_id = continues, self.client.get_run(continues).info.experiment_id
            else:
                self._create(name, parameters, experiment, parent)
        except Exception as error:
            raise InputError(
                f"the MLflow store {without_credentials(uri)} cannot be used: {_first_line(error)}. Set "
                "MLFLOW_TRACKING_URI to one that can, or --no-tracking"
            ) from error

    def child(self, name: str, parameters: Mapping[str, object], continues: str | None = None) -> Run:
        """A run that belongs to this one; none, with a warning, where the store does not answer any more."""
        if not self.uri:
            return self
        made: list[Run] = []

        def begin() -> None:
            made.append(Run(self.uri, name, parameters, parent=self.id, continues=continues))

        return made[0] if self._server.call(begin) else Run(None, name, parameters)

    @property
    def client(self) -> MlflowClient:
        """MLflow's client of the run's store."""
        return self._server.client

    @property
    def page(self) -> str:
        """The run's page, after the address of MLflow's server."""
        # Without the type MLflow 3 shows runs as evaluations of language models.
        return f"/#/experiments/{self.experiment_id}/runs/{self.id}?workflowType=machine_learning"

    def _exists(self, identifier: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(identifier).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _create(self, name: str, parameters: Mapping[str, object], experiment: str, parent: str | None) -> None:
        from mlflow.entities import Param

        tags = {"mlflow.runName": utf8(name), "mlflow.source.name": "raymat", "mlflow.source.type": "LOCAL"}
        if parent:
            tags["mlflow.parentRunId"] = parent
            self.experiment_id = self.client.get_run(parent).info.experiment_id
        else:
            self.experiment_id = self._find_experiment(experiment) or self._create_experiment(experiment)
        info = self.client.create_run(self.experiment_id, tags=tags).info
        self.id = info.run_id
        if not parent:
            self._server.try_artifacts(info.artifact_uri)
        # Together: each would be a transaction of its own.
        named = [Param(name, bounded(str(value), PARAMETER_LENGTH)) for name, value in parameters.items()]
        for start in range(0, len(named), PARAMETERS_A_BATCH):
            self.client.log_batch(self.id, params=named[start : start + PARAMETERS_A_BATCH])

    def _find_experiment(self, experiment: str) -> str:
        found = self.client.get_experiment_by_name(experiment)
        return found.experiment_id if found else ""

    def _create_experiment(self, experiment: str) -> str:
        from mlflow.exceptions import MlflowException

        uri = self._server.uri
        # Without a folder of their own, artifacts of an SQLite store would go to wherever the next command runs.
        folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
        # Without a kind MLflow's page takes an experiment for one of language models and shows its traces, of none.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return self.client.create_experiment(experiment, folder.absolute().as_uri() if folder else None, tags=kind)
        except MlflowException:
            # Another command may have created it since.
            if found := self._find_experiment(experiment):
                return found
            raise

    def _log(self, function: Callable[..., object], *arguments: object, **named: object) -> None:
        self._server.call(function, self.id, *arguments, **named)

    def _store(self, function: Callable[..., object], *arguments: object) -> None:
        self._server.store_artifact(function, self.id, *arguments)

    # What is logged ---------------------------------------------------------------------------------------------------

    def describe(self, text: str) -> None:
        """Set the description, in Markdown, that the run's page shows first."""
        self.tag("mlflow.note.content", text)

    def show(self, name: str) -> str:
        """Markdown that shows a picture of the run's artifacts in its description."""
        return f"![{name}](get-artifact?path={name}&run_uuid={self.id})"

    def dataset(self, name: str, uri: str, digest: str, kind: str = "") -> None:
        """Log the input as an MLflow dataset, its digest as the tag ``data_digest``, the kind of alpha as ``kind``."""
        if not self.uri:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        self.tag("data_digest", digest)
        if kind:
            self.tag("kind", kind)
        name, uri = utf8(name), utf8(uri)
        where = "local" if "://" not in uri else uri.partition("://")[0]
        data = Dataset(name, digest[:DIGEST_LENGTH], where, json.dumps({"uri": uri}))
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "input")])]

        def log(identifier: str) -> None:
            try:
                self.client.log_inputs(identifier, inputs)
            except MlflowException:
                # Two commands that log one dataset for the first time collide; it is there the second time.
                self.client.log_inputs(identifier, inputs)

        self._log(log)

    def progress(self, counts: Counter, seconds: float, finished: bool = False) -> None:
        """Log the counts so far, now and then and when all is done."""
        if self.uri and (finished or time.monotonic() - self.last >= PROGRESS_EVERY_S):
            self.last = time.monotonic()
            done = sum(counts.values())
            values = {"progress/done": done, "progress/per_minute": 60 * done / max(seconds, 1e-9)}
            self.metrics(values | {f"progress/{name}": counts[name] for name in OUTCOMES}, int(seconds))

    def figure(self, name: str, figure) -> None:
        """Log a matplotlib figure as an artifact."""
        if self.uri:
            self._store(self.client.log_figure, figure, name)

    def picture(self, name: str, png: bytes) -> None:
        """Log the bytes of a PNG as an artifact."""
        if not self.uri:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(png)
            self._store(self.client.log_artifact, str(path), str(Path(name).parent) if "/" in name else None)

    def text(self, name: str, text: str) -> None:
        """Log text as an artifact."""
        if self.uri:
            self._store(self.client.log_text, utf8(text), name)

    def table(self, name: str, rows: list[dict], columns: list[str]) -> None:
        """Log rows as a table that MLflow's page can show."""
        if self.uri:
            self._store(self.client.log_table, {c: [str(row[c] or "") for row in rows] for c in columns}, name)

    def model(self, weights: str, window: tuple[int, int, int], kind: str = ANY, channels: int = 1) -> None:
        """Log the network of a weights file and register it, ready for ``mlflow.pyfunc`` and ``mlflow models serve``.

        Its metadata say of which kind its alpha is. The model is a copy of raymat's code and the weights: loading it
        unpickles nothing.
        """
        if self.uri:
            self._store(_log_model, self.uri, weights, window, kind, channels)

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        if self.uri:
            self._log(self.client.set_tag, name, utf8(value))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        self.series([(step, values)])

    def series(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log the numbers of several steps at once; those that a server did not take go with the next ones."""
        if not self.uri:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.unsent.extend(
            Metric(name, float(value), now, step) for step, values in steps for name, value in values.items()
        )
        while self.unsent:
            some = list(itertools.islice(self.unsent, METRICS_A_BATCH))
            if not self._server.call(self.client.log_batch, self.id, metrics=some):
                return
            for _ in some:
                self.unsent.popleft()

    # How it ends ------------------------------------------------------------------------------------------------------

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        if self.uri:
            self._server.silent_until = 0.0  # the last that is asked of the server is asked in any case
            self.series(())
            self._log(self.client.set_terminated, status)

    def end_if_open(self, identifier: str) -> None:
        """End another run of the store as FINISHED where its driver was killed before that."""

        def end() -> None:
            if self.client.get_run(identifier).info.status in ("RUNNING", "SCHEDULED"):
                self.client.set_terminated(identifier, "FINISHED")

        if self.uri:
            self._server.call(end)


def _log_model(identifier: str, uri: str, weights: str, window: tuple[int, int, int], kind: str, channels: int) -> None:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_tracking_uri(uri)
    several = (channels,) if channels > 1 else ()
    example = np.full([*several, *(max(1, side // 4) for side in window)], -900.0, np.float32)
    tensor = TensorSpec(np.dtype(np.float32), (-1, -1, -1))
    image = TensorSpec(np.dtype(np.float32), (*several, -1, -1, -1))
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=identifier):
        code = Path(folder) / "model.py"
        code.write_text(SERVED)
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={"weights": weights},
            signature=ModelSignature(inputs=Schema([image]), outputs=Schema([tensor])),
            input_example=example,
            registered_model_name=REGISTERED,
            metadata={"kind": kind},
            # The code itself: raymat is on no package index, where a stranger could register its name.
            code_paths=[str(Path(__file__).parent)],
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in SERVED_WITH],
        )
