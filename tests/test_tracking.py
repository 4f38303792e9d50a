"""The MLflow run, in a real SQLite store."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from raymat.network.inference import Ensemble
from raymat.nodule import InputError
from raymat.store import OUTCOME, outcome_row
from raymat.tracking import EXPERIMENT, REGISTERED, TRAININGS, Run, how_to_look, tracking_uri, without_credentials
from tests.support.networks import write_weights
from tests.support.nodules import failed_nodule, random_nodule
from tests.support.servers import free_port


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """A store that the first run in it makes."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_a_build_is_one_run_with_all_that_came_out(uri, tmp_path):
    run = Run(uri, "build x", {"prepare.spacing_mm": 0.5, "min_readers": 4})
    run.progress(Counter(accepted=1), 2.0)
    rows = [
        outcome_row(n) | {"shard": "s"}
        for n in (random_nodule("a"), random_nodule("b"), failed_nodule("c", "no such file"))
    ]
    table = pa.Table.from_pylist(rows, schema=OUTCOME)
    solves = [pa.Table.from_struct_array(part["solves"].combine_chunks().flatten()) for part in (table[:1], table[1:])]
    run.outcomes(table, solves, 12.5, "digest")
    run.figure("sheet.png", Figure())
    run.end()

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"prepare.spacing_mm": "0.5", "min_readers": "4"}
    metrics = found.data.metrics
    assert (metrics["nodules/accepted"], metrics["nodules/failed"], metrics["nodules/total"]) == (2, 1, 3)
    assert metrics["method/cf_plus/chosen"] == 2
    assert metrics["method/cf_plus/iterations_mean"] == 7
    assert found.data.tags["source_digest"] == "digest"
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert names == {"outcomes.csv", "not_accepted.json", "sheet.png"}
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "not_accepted.json", tmp_path)).read_text())
    assert table["columns"].index("reason") == 4
    assert [row[4] for row in table["data"]] == ["no such file"]


def test_a_run_goes_on_as_itself_under_its_parent_and_takes_any_number_of_steps(uri):
    parent = Run(uri, "train", {}, TRAININGS)
    child = Run(uri, "split 0", {"seed": 1}, TRAININGS, parent.id)
    child.end("FAILED")
    again = Run(uri, "split 0", {"seed": 1}, TRAININGS, parent.id, continues=child.id)
    again.series((step, {"loss": step / 2}) for step in range(1500))
    assert again.id == child.id
    found = again.client.get_run(child.id)
    assert found.info.status == "RUNNING"
    assert found.data.tags["mlflow.parentRunId"] == parent.id
    history = again.client.get_metric_history(child.id, "loss")
    assert {m.step: m.value for m in history} == {step: step / 2 for step in range(1500)}
    again.client.delete_run(child.id)
    assert Run(uri, "split 0", {}, TRAININGS, parent.id, continues=child.id).id != child.id


@pytest.fixture(scope="module")
def network(uri, tmp_path_factory) -> str:
    """Weights of a tiny network that is registered in the store."""
    torch.set_num_threads(1)
    weights = write_weights(tmp_path_factory.mktemp("network"))
    Run(uri, "split 0", {}, TRAININGS).model(weights, (8, 8, 8))
    return weights


def test_a_logged_network_predicts_the_same_alpha(uri, network):
    loaded = mlflow.pyfunc.load_model(f"models:/{REGISTERED}/1")
    image = np.random.default_rng(0).normal(-500, 300, (8, 9, 10)).astype(np.float32)
    np.testing.assert_allclose(loaded.predict(image), Ensemble([network]).predict(image).alpha, atol=1e-5)
    assert loaded.metadata.signature is not None
    assert loaded.metadata.saved_input_example_info is not None
    files = [path.name for path in Path(uri.removeprefix("sqlite:///")).parent.rglob("*") if path.is_file()]
    assert Path(network).name in files
    assert not any(name.endswith(".pkl") for name in files), "loading the model would unpickle"


@pytest.mark.slow
def test_a_registered_network_is_served_over_http(uri, network, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{REGISTERED}/1", "-h", "127.0.0.1"]
    command += ["-p", str(port), "--env-manager", "local", "--workers", "1"]
    with open(tmp_path / "server.log", "w") as log:
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": uri,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        image = np.random.default_rng(0).normal(-500, 300, (8, 9, 10)).astype(np.float32)
        body = json.dumps({"inputs": image.tolist()}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    alpha = np.array(json.load(answer)["predictions"])
                break
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read().decode()) from error
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        np.testing.assert_allclose(alpha, Ensemble([network]).predict(image).alpha, atol=1e-5)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_store_that_cannot_be_reached_is_said_at_once():
    with pytest.raises(InputError, match="cannot be used") as error:
        Run("http://someone:secret@127.0.0.1:9", "build", {})
    assert "secret" not in str(error.value)


def test_a_sqlite_file_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        Run(f"sqlite:///{tmp_path}/file/mlflow.db", "build", {})


def test_credentials_are_left_out():
    assert without_credentials("https://me:secret@host/path") == "https://host/path"
    assert "secret" not in how_to_look("postgresql://me:secret@host/db")


def test_where_the_run_goes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert tracking_uri("out") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert tracking_uri("/data/out") == "sqlite:////data/out/mlflow.db"
    with pytest.raises(InputError, match="would be lost"):
        tracking_uri("s3://bucket/out")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking_uri("s3://bucket/out") == "http://server"
    assert tracking_uri("out", given="sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
