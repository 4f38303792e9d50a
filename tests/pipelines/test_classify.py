"""The experiment on a real local Ray Tune: a part of it, then more, then figures that agree with MLflow."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from sklearn.metrics import roc_auc_score

from raymat.classification.inputs import CropConfig
from raymat.classification.recipe import Recipe
from raymat.experiment import Output
from raymat.learning import Data
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP
from raymat.nodule import InputError
from raymat.pipelines.classify import ClassifyJob, classify
from raymat.tracking import EVIDENCE
from tests.support import quiet
from tests.support.drivers import in_cluster, kill_at
from tests.support.kinds import write_nodules_of_kind
from tests.support.nodules import rated_nodules, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = Recipe(crop=CropConfig(side=8, spacing_mm=1.0, margin=2), epochs=2, batch=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset of 16 patients, each with a benign and a malignant nodule."""
    folder = tmp_path_factory.mktemp("rated") / "data"
    write_dataset(folder, rated_nodules(32))
    return folder


def test_a_part_of_the_trials_then_more_and_all_agree_with_mlflow(ray_cluster, data, new_runs, tmp_path, monkeypatch):
    # Named relative to where the command runs, as a user would; Ray Tune's trials run elsewhere.
    monkeypatch.chdir(tmp_path)
    out, uri = Path("out"), new_runs(tmp_path)
    Path("data").symlink_to(data)
    part = ClassifyJob(
        "data",
        Output(str(out), uri, ("raymat", "x")),
        RECIPE,
        ("image", "chosen"),
        ("resnet10-small",),
        (0,),
        cpus=2,  # one trial at once, by one process: to start a second takes longer
    )
    table, _ = classify(part, quiet)
    # One trial has no spread, and nothing to be compared with.
    assert table["spread"].isna().all()
    stood = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/*")}
    assert len(list(out.glob("trials/*/result.json"))) == 2

    # A trial that was cut off before its result is one that was never finished.
    (cut,) = out.glob("trials/*-image-*/result.json")
    cut.unlink()
    said = []
    table, errors = classify(
        replace(part, seeds=(0, 1), output=Output(str(out), uri, ("raymat", "x", "--seeds", "0,1"))), said.append
    )
    assert not errors
    assert "4 trials, 1 finished already" in said
    assert not any("cutting" in line for line in said)
    for path, when in stood.items():
        assert "-image-" in str(path) or path.stat().st_mtime_ns == when, path

    trials = pd.read_csv(out / "trials.csv")
    assert len(trials) == 4
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(EVIDENCE).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run is not parent]
    assert len(nested) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    for run in nested:
        setting = {name: run.data.params[name] for name in ("network", "input", "seed", "split")}
        mine = trials[(trials["input"] == setting["input"]) & (trials["seed"] == int(setting["seed"]))]
        assert run.data.metrics["test/auroc"] == pytest.approx(mine["auroc"].item())
    assert parent.data.metrics["resnet10-small/chosen/auroc_mean"] == pytest.approx(
        trials[trials["input"] == "chosen"]["auroc"].mean()
    )
    assert table["trials"].to_list() == [2, 2]

    predictions = pd.read_parquet(out / "predictions.parquet")
    one = predictions[(predictions["input"] == "chosen") & (predictions["seed"] == 1)]
    stands = trials[(trials["input"] == "chosen") & (trials["seed"] == 1)]["auroc"].item()
    assert stands == pytest.approx(roc_auc_score(one["label"], one["probability"]))
    split = Data.open(data).split(0)
    assert set(predictions["patient_id"]) <= set(split.test)
    assert len(one) == predictions["nodule_id"].nunique() == len(set(one["nodule_id"]))
    learnt = pd.read_parquet(out / "nodules.parquet").set_index("nodule_id")["split_0"]
    assert set(learnt[one["nodule_id"]]) == {"test"}
    for name in ("figure5.png", "figure5.pdf", "calibration.png", "table.md"):
        assert (out / name).stat().st_size > 200, name
    assert pd.read_csv(out / "comparisons.csv")[["first", "second"]].to_numpy().tolist() == [["chosen", "image"]]

    # Nothing left to do needs no training and gives the same table.
    before = (out / "table.csv").read_bytes()
    classify(replace(part, inputs=("image",), output=Output(str(out), uri, ("raymat", "y"))), quiet)
    assert (out / "table.csv").read_bytes() == before
    note = json.loads((out / "classify.json").read_text())
    assert note["commands"] == ["raymat x", "raymat x --seeds 0,1"]
    assert note["recipe"]["crop"]["side"] == 8
    assert note["seconds"] > 0
    with pytest.raises(InputError, match="another recipe"):
        classify(replace(part, recipe=replace(RECIPE, epochs=3)), quiet)

    # What an earlier version cut, without the best matte of each kind, is cut again; its trials stay.
    for path in out.glob("samples/*.parquet"):
        samples = pd.read_parquet(path).drop(columns=["inputs", "membership", "calibrated"])
        samples.assign(methods=[["cf"]] * len(samples)).to_parquet(path)
    said = []
    table, _ = classify(replace(part, inputs=("membership",), output=Output(str(out), uri)), said.append)
    assert "cutting the crops of 32 nodules" in said
    assert table["input"].to_list() == ["image", "chosen", "membership"]
    assert pd.read_csv(out / "kinds.csv")["kind"].to_list() == ["image", "chosen", "membership"]


@pytest.mark.parametrize(
    ("kind", "trials"),
    [(MEMBERSHIP, 15), *(pytest.param(*other, marks=pytest.mark.soak) for other in ((CALIBRATED, 15), (ANY, 16)))],
)
def test_the_best_matte_of_the_datasets_own_kind_is_the_chosen_one_and_no_input_of_its_own(
    ray_cluster, tmp_path, kind, trials
):
    data, said = write_nodules_of_kind(tmp_path / "data", kind, 5), []
    job = ClassifyJob(data, Output(str(tmp_path / "out")), RECIPE, networks=("resnet10-small",), seeds=(0,))
    with pytest.raises(InputError, match="too few patients"):
        classify(job, said.append)
    assert said[0] == f"{trials} trials, 0 finished already"


# The loss weights' sweep is killed in plain pytest; both sweeps share their lines.
@pytest.mark.soak
def test_a_killed_sweep_resumes_and_repeats_nothing(ray_cluster, data, new_runs, tmp_path):
    out, uri, inputs = tmp_path / "out", new_runs(tmp_path), ("mean", "random", "image")
    command = ["classify", str(data), "-o", str(out), "--inputs", ",".join(inputs), "--networks", "resnet10-small"]
    command += ["--seeds", "0", "--side", "8", "--spacing-mm", "1", "--epochs", "2", "--batch", "8"]

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("trials/*/result.json")}

    kill_at(in_cluster(*command, "--tracking-uri", uri, folder=tmp_path), lambda: bool(finished()))
    stood = finished()
    assert len(stood) < 3, "the sweep was over before it was killed"

    recipe = replace(RECIPE, crop=CropConfig(side=8, spacing_mm=1.0))
    job = ClassifyJob(str(data), Output(str(out), uri), recipe, inputs, ("resnet10-small",), seeds=(0,))
    table, errors = classify(job, quiet)
    assert not errors
    assert table["trials"].to_list() == [1, 1, 1]
    assert finished().items() >= stood.items()
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(EVIDENCE).experiment_id])
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_trial_of_nothing_is_refused(tmp_path):
    for cpus, gpus in ((0.0, 0.0), (-1.0, 1.0)):
        job = ClassifyJob(str(tmp_path), str(tmp_path / "out"), RECIPE, cpus=cpus, gpus=gpus)
        with pytest.raises(InputError, match="give it some of one or the other"):
            classify(job, quiet)


@pytest.mark.parametrize(
    ("nodules", "inputs", "words"),
    [
        (rated_nodules(12, lambda n: "5;4" if n % 3 == 0 else "1;2"), ("image",), "too few patients"),
        (rated_nodules(12, patient=lambda n: n % 2), ("image",), "at least 3 are needed"),
        (rated_nodules(12), ("alpha",), "no input alpha"),
    ],
)
def test_what_no_experiment_can_be_made_of_is_refused(ray_cluster, tmp_path, nodules, inputs, words):
    write_dataset(tmp_path / "data", nodules)
    job = ClassifyJob(str(tmp_path / "data"), Output(str(tmp_path / "out")), RECIPE, inputs, ("resnet10-small",))
    with pytest.raises(InputError, match=words):
        classify(job, quiet)
    assert not (tmp_path / "out" / "trials").exists()
