"""The MLflow run, in a real SQLite store."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from raymat.network.inference import Ensemble
from raymat.nodule import InputError
from raymat.places import without_credentials
from raymat.tracking import BUILDS, REGISTERED, SERVED_WITH, TRAININGS, Run, how_to_look, store_trouble, tracking_uri
from tests.support.networks import write_weights
from tests.support.servers import free_port


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """A store that the first run in it makes."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_a_run_holds_parameters_metrics_artifacts_and_what_it_is_of(uri):
    run = Run(uri, "build x", {"prepare.spacing_mm": 0.5, "min_readers": 4})
    run.progress(Counter(accepted=1), 2.0)
    run.describe("A dataset.")
    run.dataset("cases.csv", "s3://bucket/cases.csv", "d" * 64, "membership")
    run.figure("sheet.png", Figure())
    run.picture("validation/one.png", b"png")
    run.table("rows.json", [{"a": 1}], ["a"])
    run.end()

    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name(BUILDS).experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"prepare.spacing_mm": "0.5", "min_readers": "4"}
    assert found.data.metrics["progress/accepted"] == 1
    assert found.data.tags["mlflow.note.content"] == "A dataset."
    assert (found.data.tags["data_digest"], found.data.tags["kind"]) == ("d" * 64, "membership")
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.source_type, data.dataset.digest) == ("cases.csv", "s3", "d" * 36)
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert names == {"rows.json", "sheet.png", "validation"}


class Refusing(BaseHTTPRequestHandler):
    """A tracking server that answers until it is asked to stop, and then refuses everything."""

    def do_POST(self) -> None:
        status, body = (503, {}) if self.server.refuses else (200, self.server.answers(self.path))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_server_that_goes_away_costs_one_warning_and_no_work(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    info = {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "file:///nowhere"}
    answers = {"get-by-name": {"experiment": {"experiment_id": "1", "name": "x"}}, "create": {"run": {"info": info}}}
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.refuses, server.answers = False, lambda path: answers.get(path.split("?")[0].split("/")[-1], {})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = Run(f"http://127.0.0.1:{server.server_port}", "work", {"a": 1})
        run.metrics({"before": 1})
        server.refuses = True
        run.metrics({"lost": 1})
        run.text("a.txt", "text")
        run.figure("a.png", Figure())
        run.table("a.json", [{"a": 1}], ["a"])
        run.model("none.pt", (8, 8, 8))
        run.tag("a", "b")
        run.dataset("d", "d", "d")
        child = run.child("child", {})
        child.metrics({"lost": 2})
        child.end()
        run.end()
        server.refuses = False
        run.end()  # the server is back: what it did not take is sent
        assert not run.unsent
        server.shutdown()
    (warning,) = [record for record in caplog.records if record.name == "raymat.tracking"]
    assert "the work continues" in warning.getMessage()


def test_without_a_store_nothing_is_logged(tmp_path):
    run = Run(None, "work", {})
    run.metrics({"a": 1})
    run.picture("a.png", b"")
    run.child("child", {}).end()
    run.end_if_open("x")
    run.end()


def test_a_run_resumes_as_itself_under_its_parent_and_takes_any_number_of_steps(uri):
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
    Run(uri, "split 0", {}, TRAININGS).model(weights, (8, 8, 8), "calibrated")
    return weights


def test_a_logged_network_predicts_the_same_alpha(uri, network):
    loaded = mlflow.pyfunc.load_model(f"models:/{REGISTERED}/1")
    image = np.random.default_rng(0).normal(-500, 300, (8, 9, 10)).astype(np.float32)
    np.testing.assert_allclose(loaded.predict(image), Ensemble([network]).predict(image).alpha, atol=1e-5)
    assert loaded.metadata.signature is not None
    assert loaded.metadata.metadata == {"kind": "calibrated"}
    assert loaded.metadata.saved_input_example_info is not None
    files = [path.name for path in Path(uri.removeprefix("sqlite:///")).parent.rglob("*") if path.is_file()]
    assert Path(network).name in files
    assert not any(name.endswith(".pkl") for name in files), "loading the model would unpickle"


@pytest.mark.slow
def test_a_logged_network_brings_its_code_and_asks_an_index_for_nothing_else(uri, network, tmp_path):
    model = Path(mlflow.artifacts.download_artifacts(f"models:/{REGISTERED}/1", dst_path=str(tmp_path)))
    asked = (model / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in asked} == set(SERVED_WITH)
    assert not list(model.rglob("*.pyc"))
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(sys.argv[2].split(',')))\n"
        "import mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "import raymat; print(raymat.__file__)\n"
        "print(model.predict(np.full((8, 8, 8), -500.0, np.float32)).shape)"
    )
    # The rest of what raymat needs, which a server of this model need not have.
    others = "ray,numba,pyamg,nibabel,pydicom,highdicom,pylidc,monai,SimpleITK"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(model), others],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.stdout.split() == [str(model / "code" / "raymat" / "__init__.py"), "(8,", "8,", "8)"], done.stderr


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


def test_a_store_that_cannot_be_reached_is_said_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="cannot be used") as error:
        Run("http://someone:secret@127.0.0.1:9", "build", {})
    assert "secret" not in str(error.value)


def test_a_sqlite_file_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        Run(f"sqlite:///{tmp_path}/file/mlflow.db", "build", {})


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_first_commands_at_once_in_one_folder_all_have_their_runs(tmp_path, count):
    code = "import sys; from raymat.tracking import Run; Run(sys.argv[1], 'first', {'a': 1}).end()"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    commands = [subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.PIPE) for _ in range(count)]
    for command in commands:
        complained = command.communicate(timeout=120)[1]
        assert command.returncode == 0, complained.decode()
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(BUILDS).experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * count


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


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_artifact_root_that_cannot_be_written_is_said_before_the_work_and_costs_no_numbers(
    tmp_path, new_runs, caplog, scheme
):
    uri = new_runs(tmp_path)
    (tmp_path / "file").touch()
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment(BUILDS, f"{scheme}{tmp_path}/file/artifacts")
    run = Run(uri, "work", {"a": 1})
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "raymat.tracking"]
    assert f"{tmp_path}/file/artifacts" in warning
    assert "the work continues" in warning
    run.text("a.txt", "text")
    run.figure("a.png", Figure())
    run.tag("a", "b")
    run.metrics({"kept": 1})
    run.end()
    assert len([record for record in caplog.records if record.name == "raymat.tracking"]) == 1
    found = client.get_run(run.id)
    assert (found.info.status, found.data.metrics, found.data.tags["a"]) == ("FINISHED", {"kept": 1}, "b")


def test_a_client_without_the_package_of_the_artifact_store_is_told_before_the_work(
    tmp_path, new_runs, caplog, monkeypatch
):
    uri = new_runs(tmp_path)
    MlflowClient(tracking_uri=uri).create_experiment(BUILDS, "s3://bucket/artifacts")
    monkeypatch.setitem(sys.modules, "boto3", None)
    run = Run(uri, "work", {})
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "raymat.tracking"]
    assert "boto3" in warning
    run.text("a.txt", "text")
    run.metrics({"kept": 1})
    run.end()
    assert run.client.get_run(run.id).info.status == "FINISHED"


def test_whether_a_store_can_be_used_is_known_without_making_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert store_trouble(f"sqlite:///{tmp_path}/mlflow.db") == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "cannot be written" in store_trouble(f"sqlite:///{tmp_path}/file/mlflow.db")
    assert store_trouble("http://127.0.0.1:9") == "nothing answers there"
