"""A sweep on a real local Ray Tune, killed in its midst and taken up again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ray.util.placement_group import placement_group, remove_placement_group

from raymat.commands.training_options import read_loss_weights
from raymat.experiment import Output
from raymat.learning import Data
from raymat.methods import CALIBRATED, MEMBERSHIP
from raymat.nodule import InputError
from raymat.pipelines.train import TrainJob
from raymat.pipelines.tune import TuneJob, tune_loss_weights, tuning_split
from raymat.splits import REPETITIONS
from raymat.tracking import TRAININGS
from tests.support import quiet
from tests.support.drivers import in_cluster, kill_at
from tests.support.kinds import write_nodules_of_kind
from tests.support.networks import learning_recipe, options_of
from tests.support.nodules import write_small_nodules

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = learning_recipe(side=8)
ALPHAS, BETAS = (1.0, 10.0), (10.0,)


def test_a_killed_sweep_resumes_and_leaves_the_best_pair(ray_cluster, new_runs, tmp_path, monkeypatch):
    # Named relative to where the command runs, as a user would; Ray Tune's trials run elsewhere.
    monkeypatch.chdir(tmp_path)
    data, out, uri = write_nodules_of_kind("data", CALIBRATED, 5), Path("out"), new_runs(tmp_path)
    command = ["tune", data, "-o", str(out), *options_of(RECIPE), "--alphas", "1,10", "--betas", "10"]
    command += ["--kind", MEMBERSHIP]

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("trials/*/result.json")}

    # With one CPU left the trials come one after the other: the kill falls between them.
    other = placement_group([{"CPU": 1}])
    try:
        assert other.wait(60)
        kill_at(in_cluster(*command, "--tracking-uri", uri, folder=tmp_path), lambda: bool(finished()))
    finally:
        remove_placement_group(other)
    stood = finished()
    assert len(stood) == 1, "the sweep was over before it was killed"

    training = TrainJob(data, Output(str(out), uri), RECIPE, MEMBERSHIP, splits=(0,), threads=1)
    said = []
    best = tune_loss_weights(TuneJob(training, ALPHAS, BETAS), said.append)
    results = {path.parent.name: json.loads(path.read_text())["sad"] for path in out.glob("trials/*/result.json")}
    assert set(results) == {f"alpha-{alpha}-beta-10" for alpha in (1, 10)}
    assert finished().items() >= stood.items()
    assert min(results, key=results.get) == f"alpha-{best[0]:g}-beta-{best[1]:g}"
    assert read_loss_weights(str(out / "best.json")) == {"alpha_weight": best[0], "gradient_weight": best[1]}
    assert (out / "heat_map.png").read_bytes().startswith(b"\x89PNG")

    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = {run.info.run_name: run for run in runs if run is not parent}
    assert set(trials) == {f"alpha {alpha}, beta 10" for alpha in (1, 10)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert trials["alpha 1, beta 10"].data.params["gradient_weight"] == "10.0"
    assert {run.data.params["kind"] for run in runs} == {MEMBERSHIP}
    assert trials["alpha 1, beta 10"].data.metrics["validation/sad"] == pytest.approx(results["alpha-1-beta-10"])
    assert parent.data.metrics["best/alpha_weight"] == best[0]

    with pytest.raises(InputError, match="another recipe"):
        tune_loss_weights(TuneJob(replace(training, recipe=replace(RECIPE, epochs=2)), ALPHAS, BETAS), quiet)
    with pytest.raises(InputError, match="another recipe"):
        tune_loss_weights(TuneJob(replace(training, kind=None), ALPHAS, BETAS), quiet)


def test_weights_are_chosen_on_patients_whom_no_split_tests(tmp_path):
    data = Data.open(write_small_nodules(tmp_path / "many", 40))
    said = []
    split = tuning_split(data, 1, said.append)
    for number in range(REPETITIONS):
        assert not set(data.split(number).test) & {*split.training, *split.validation}
    assert "to choose by" in said[0]
    few = Data.open(write_small_nodules(tmp_path / "few", 4))
    assert tuning_split(few, 0, said.append) == few.split(0)
    assert "on the test part of split 0 alone" in said[1]


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    (tmp_path / "best.json").write_text('{"alpha_weight": 3}')
    with pytest.raises(InputError, match=r"best\.json: contains no alpha_weight"):
        read_loss_weights(str(tmp_path / "best.json"))
