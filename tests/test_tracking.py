"""The MLflow run, in a real SQLite store."""

import json
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from raymat.network.augmentation import Augmentation
from raymat.network.inference import Ensemble
from raymat.network.model import ModelConfig
from raymat.network.recipe import Recipe
from raymat.network.training import begin, save_weights
from raymat.nodule import InputError
from raymat.store import OUTCOME, outcome_row
from raymat.tracking import EXPERIMENT, REGISTERED, TRAININGS, Run, how_to_look, tracking_uri, without_credentials
from tests.test_store import a_failure, a_nodule


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_a_build_is_one_run_with_all_that_came_out(uri, tmp_path):
    run = Run(uri, "build x", {"prepare.spacing_mm": 0.5, "min_readers": 4})
    run.progress(Counter(accepted=1), 2.0)
    rows = [outcome_row(n) | {"shard": "s"} for n in (a_nodule("a"), a_nodule("b"), a_failure("c", "no such file"))]
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


def test_a_logged_network_predicts_the_same_alpha(uri, tmp_path):
    torch.set_num_threads(1)
    recipe = Recipe(ModelConfig(width=4, levels=2, blocks=1), Augmentation((8, 8, 8)), epochs=1, batch=1)
    save_weights(begin(recipe, 1, torch.device("cpu")), tmp_path / "weights.pt")
    run = Run(uri, "split 0", {}, TRAININGS)
    run.model(str(tmp_path / "weights.pt"), (8, 8, 8))
    loaded = mlflow.pyfunc.load_model(f"models:/{REGISTERED}/1")
    image = np.random.default_rng(0).normal(-500, 300, (8, 9, 10)).astype(np.float32)
    expected = Ensemble([str(tmp_path / "weights.pt")]).predict(image).alpha
    np.testing.assert_allclose(loaded.predict(image), expected, atol=1e-5)
    assert loaded.metadata.signature is not None
    assert loaded.metadata.saved_input_example_info is not None
    files = [path.name for path in Path(uri.removeprefix("sqlite:///")).parent.rglob("*") if path.is_file()]
    assert "weights.pt" in files
    assert not any(name.endswith(".pkl") for name in files), "loading the model would unpickle"


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
    assert tracking_uri("out", given="sqlite:///x.db") == "sqlite:///x.db"
