"""Two nodes of which only the driver's reaches MLflow, as where its server listens on the head's loopback."""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow.tracking import MlflowClient

from tests.support import REPOSITORY
from tests.support.clusters import ray_head
from tests.support.networks import learning_recipe, options_of
from tests.support.nodules import rated_nodules, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = learning_recipe(side=8)
HEAD, NODE = "10.213.7.1", "10.213.7.2"
SMALL = ["--inputs", "chosen", "--networks", "resnet10-small", "--seeds", "0", "--side", "8", "--spacing-mm", "1"]
COMMANDS = {
    "train": ["--splits", "0", *options_of(RECIPE)],
    "tune": [*options_of(RECIPE), "--alphas", "10", "--betas", "10"],
    "classify": [*SMALL, "--epochs", "1", "--batch", "8"],
}


class Nodes(NamedTuple):
    """The network of the head and its driver, Ray's address in it, and the MLflow store."""

    namespace: str
    address: str
    database: Path
    uri: str


def inside(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


@contextlib.contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Two networks joined by a wire, each with a loopback of its own."""
    first, second = f"raymat{os.getpid()}a", f"raymat{os.getpid()}b"
    steps = [f"netns add {first}", f"netns add {second}", f"link add {first} type veth peer name {second}"]
    for name, address in ((first, HEAD), (second, NODE)):
        steps += [f"link set {name} netns {name}", f"-n {name} addr add {address}/24 dev {name}"]
        steps += [f"-n {name} link set {name} up", f"-n {name} link set lo up"]
    try:
        for step in steps:
            try:
                subprocess.run(["ip", *step.split()], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no networks can be made here: {getattr(error, 'stderr', error)}")
        yield first, second
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, new_runs) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    new_runs(folder)
    with two_networks() as (first, second), contextlib.ExitStack() as stack:
        server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1"]
        server += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/art"]
        with open(folder / "mlflow.log", "w") as log:
            mlflow = subprocess.Popen(inside(first, *server), stdout=log, stderr=log, start_new_session=True)
        stack.callback(end_session, mlflow)
        options = ["--num-cpus=0", f"--node-ip-address={HEAD}", "--include-dashboard=false"]
        paths = {"PYTHONPATH": str(REPOSITORY)}
        head = stack.enter_context(ray_head(*options, address=f"{HEAD}:6400", prefix=inside(first), **paths))
        node = [f"{sysconfig.get_path('scripts')}/ray", "start", f"--address={head.address}", "--num-cpus=2"]
        node += [f"--node-ip-address={NODE}", "--block", f"--object-store-memory={200 * 2**20}"]
        environment = os.environ | {"RAY_AUTH_MODE": "token", **paths}
        environment.pop("RAY_ADDRESS", None)
        with open(folder / "node.log", "w") as log:
            worker = subprocess.Popen(
                inside(second, *node), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        stack.callback(end_session, worker)
        yield Nodes(first, head.address, folder / "mlflow.db", "http://127.0.0.1:5000")


def end_session(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("rated") / "data"
    write_dataset(folder, rated_nodules(48))
    return str(folder)


# The three report by the same lines: one of them in each run of the suite, the others in the soak lane.
@pytest.mark.parametrize("name", ["train", *(pytest.param(n, marks=pytest.mark.soak) for n in ("tune", "classify"))])
def test_all_is_logged_though_no_worker_reaches_mlflow(nodes, data, tmp_path, name):
    out = tmp_path / name
    command = [sys.executable, "-m", "raymat", name, data, "-o", str(out), *COMMANDS[name]]
    command += ["--address", nodes.address, "--tracking-uri", nodes.uri]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        inside(nodes.namespace, *command), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot log" not in done.stdout + done.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{nodes.database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    (parent,) = [run for run in runs if run.info.run_name == f"{name} {out}"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 2
    (child,) = children
    assert any(name.startswith(("validation/", "test/")) for name in child.data.metrics), child.data.metrics
    assert json.dumps(parent.data.tags["mlflow.note.content"]).count(str(out))
