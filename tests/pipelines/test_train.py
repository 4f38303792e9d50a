"""Training on a real local Ray with a real MLflow store: the same weights whatever is killed, one run for each."""

import contextlib
import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from raymat.experiment import TRAIN, Output, experiment
from raymat.learning import Data
from raymat.lock import held
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP
from raymat.network.recipe import Recipe
from raymat.network.samples import epoch_order, record_of, training_volume
from raymat.network.training import begin, load_model, losses_of, predict, read_checkpoint
from raymat.nodule import Channel, InputError
from raymat.pipelines.evaluate import EvaluateJob, evaluate
from raymat.pipelines.train import TrainJob, train
from raymat.release.freeze import ReleaseRequest, release
from raymat.splits import REPETITIONS
from raymat.store import Store
from raymat.tracking import TRAININGS
from tests.support import quiet
from tests.support.drivers import in_cluster, kill_at
from tests.support.kinds import nodule_of_kind, write_nodules_of_kind
from tests.support.networks import learning_recipe, options_of
from tests.support.nodules import failed_nodule, small_nodule, write_dataset, write_small_nodules

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Ray Train takes note of two epochs a second at most: a kill behind the first falls into the midst of the others.
RECIPE = learning_recipe(epochs=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_small_nodules(tmp_path_factory.mktemp("balls") / "data", 8)


def job(data: str, out, uri: str | None = None, **more) -> TrainJob:
    how = {"recipe": RECIPE, "splits": (0,), "threads": 1} | more
    return TrainJob(data, Output(str(out), uri), **how)


class Trained(NamedTuple):
    """A finished training: its output, its MLflow store, what it said, and what it returned."""

    out: Path
    uri: str
    said: list[str]
    results: dict


@pytest.fixture(scope="module")
def trained(ray_cluster, data, new_runs, tmp_path_factory) -> Trained:
    """An undisturbed training of two repeated splits."""
    folder, said = tmp_path_factory.mktemp("train"), []
    out, uri = folder / "out", new_runs(folder)
    return Trained(out, uri, said, train(job(data, out, uri, splits=(0, 1)), say=said.append))


def weights(out: Path, split: int = 0) -> list[torch.Tensor]:
    return list(load_model(out / f"split-{split}" / "weights.pt")[0].state_dict().values())


def runs(uri: str) -> list:
    client = MlflowClient(tracking_uri=uri)
    return client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id])


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_each_split_is_a_run_under_one_parent(trained, data):
    _, uri, said, results = trained
    children = {run.info.run_name: run for run in runs(uri) if "mlflow.parentRunId" in run.data.tags}
    (parent,) = [run for run in runs(uri) if "mlflow.parentRunId" not in run.data.tags]
    assert set(children) == {"split 0", "split 1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    sads = [results[split]["sad"] for split in (0, 1)]
    assert parent.data.metrics["validation/sad_mean"] == pytest.approx(np.mean(sads))
    assert parent.data.metrics["validation/sad_std"] == pytest.approx(np.std(sads, ddof=1))
    assert parent.data.tags["data_digest"] == Data.open(data).digest
    assert sum("epoch 4/4" in line for line in said) == 2


def test_a_run_holds_losses_and_rate_of_each_step_validation_of_each_epoch_and_pictures(trained):
    client = MlflowClient(tracking_uri=trained.uri)
    run = next(run for run in runs(trained.uri) if run.info.run_name == "split 0")
    split = json.loads((trained.out / "split-0" / "split.json").read_text())
    steps = 4 * -(-len(split["training"]) // 2)
    for name in ("loss/total", "loss/mask", "loss/alpha", "loss/gradient", "rate"):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted(m.step for m in history) == list(range(steps)), name
    rates = [m.value for m in sorted(client.get_metric_history(run.info.run_id, "rate"), key=lambda m: m.step)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1e-2)
    assert len(client.get_metric_history(run.info.run_id, "validation/sad")) == 4
    assert run.data.params["alpha_weight"] == "10.0"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "validation")}
    assert "validation/epoch-0004.png" in names
    assert any(name.startswith("system/") for name in run.data.metrics)


def test_the_same_command_again_trains_nothing(trained, data):
    out, uri, _, results = trained
    said = []
    before = (out / "split-0" / "weights.pt").stat().st_mtime_ns
    assert train(job(data, out, uri, splits=(0, 1)), say=said.append) == results
    assert said[:2] == ["split 0: finished already", "split 1: finished already"]
    assert (out / "split-0" / "weights.pt").stat().st_mtime_ns == before
    assert len(runs(uri)) == 3


def test_a_network_learns_the_datasets_kind_or_the_one_asked_for(ray_cluster, new_runs, tmp_path):
    data = write_nodules_of_kind(tmp_path / "data", CALIBRATED, 5)
    uri, said = new_runs(tmp_path), []
    of_dataset = job(data, tmp_path / "out", uri, recipe=replace(RECIPE, epochs=1))
    asked_for = replace(of_dataset, kind=MEMBERSHIP)
    found = Data.open(data)
    recipes = [of_kind.learning(found).recipe for of_kind in (of_dataset, asked_for)]
    assert [recipe.kind for recipe in recipes] == [CALIBRATED, MEMBERSHIP]
    first, second = (record_of(found.nodules[0], recipe)["alpha"] for recipe in recipes)
    assert not np.array_equal(first, second), "both learn the same mattes"

    train(asked_for, say=said.append)
    assert load_model(tmp_path / "out" / "split-0" / "weights.pt")[1].kind == MEMBERSHIP
    assert "split 0: 3 nodules to learn membership alpha from, 1 to validate, 1 worker" in said
    logged = [(run.data.params["kind"], run.data.tags["kind"]) for run in runs(uri)]
    assert logged == [(MEMBERSHIP, MEMBERSHIP)] * 2
    with pytest.raises(InputError, match="holds a training with another recipe"):
        train(of_dataset, say=quiet)
    with pytest.raises(InputError, match=r"case-\d*: has no matte of the kind membership"):
        train(job(write_small_nodules(tmp_path / "one", 5), tmp_path / "none", kind=MEMBERSHIP), say=quiet)


def test_a_training_of_before_there_were_kinds_is_resumed_on_a_dataset_of_no_kind_alone(tmp_path):
    """Its note and checkpoints name none: its networks learnt whatever was chosen."""
    for kind in (ANY, CALIBRATED):
        data, out = Data.open(write_nodules_of_kind(tmp_path / kind, kind, 5)), Store.create(tmp_path / f"{kind}-out")
        note = {"data_digest": data.digest, "recipe": RECIPE.to_dict(), "order_of_nodules": data.order}
        out.write("training.json", json.dumps(note).encode())
        facts = job(data.path, out.root).learning(data).facts(data)
        if kind == ANY:
            with experiment(TRAIN, Output(out.root), facts, quiet) as work:
                assert not work.is_new
        else:
            with pytest.raises(InputError, match="another recipe"), experiment(TRAIN, Output(out.root), facts, quiet):
                pass


def test_the_data_know_the_kind_of_their_mattes_whatever_failed(tmp_path):
    nodules = [nodule_of_kind(number, MEMBERSHIP) for number in range(4)]
    store = write_dataset(tmp_path / "data", [*nodules, failed_nodule("crashed", "its worker died")])
    assert Data.open(store.root).kind == MEMBERSHIP
    release(ReleaseRequest(store.root, str(tmp_path / "release"), "1.0"), say=quiet)
    assert Data.open(str(tmp_path / "release")).kind == MEMBERSHIP
    assert Data.open(write_small_nodules(tmp_path / "small", 2)).kind == ANY


def test_two_workers_have_the_gradient_of_one_on_the_same_batch(ray_cluster, data, tmp_path):
    found = Data.open(data)
    recipe = Recipe(RECIPE.model, RECIPE.augmentation, epochs=1, batch=2 * -(-len(found.split(0).training) // 2))
    train(job(data, tmp_path / "out", recipe=recipe, workers=2), say=quiet)
    (checkpoint,) = (tmp_path / "out" / "split-0" / "ray").glob("checkpoint_*/state.pt")
    moments = read_checkpoint(checkpoint)["optimizer"]["state"]

    records = [record_of(found.nodules[place], recipe) for place in found.of(found.split(0).training)]
    order = epoch_order(len(records), recipe.batch, recipe.seed, 0)
    volumes = [training_volume(records[nodule], recipe, 0, place) for place, nodule in enumerate(order)]
    batch = torch.from_numpy(np.stack(volumes))
    state = begin(recipe, 1, torch.device("cpu"))
    losses_of(predict(state.model, batch[:, :1], recipe.precision), batch, recipe).total.backward()
    for number, parameter in enumerate(state.model.parameters()):
        # ADAM's first moment after one step is a tenth of the gradient, weight decay included.
        gradient = parameter.grad + recipe.weight_decay * parameter.detach()
        torch.testing.assert_close(10 * moments[number]["exp_avg"], gradient, rtol=0, atol=1e-5)


def has_checkpoint(out: Path) -> bool:
    # Ray Train's own note: what it does not name is not yet a checkpoint.
    note = out / "split-0" / "ray" / "checkpoint_manager_snapshot.json"
    return note.is_file() and "checkpoint_20" in note.read_text()


def train_workers() -> dict[int, psutil.Process]:
    """Ray Train's workers below this process, by process id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found[process.pid] = process
    return found


def test_a_training_whose_worker_and_then_whose_driver_is_killed_ends_the_same_and_as_one_run(
    trained, data, new_runs, tmp_path
):
    out, uri = tmp_path / "out", new_runs(tmp_path)
    process = in_cluster(
        "train", data, "-o", str(out), "--splits", "0", *options_of(RECIPE), "--tracking-uri", uri, folder=tmp_path
    )
    killed: dict[int, psutil.Process] = {}
    new: set[int] = set()

    def replaced() -> bool:
        """Kills the worker behind its first checkpoint; whether another has come since."""
        if not killed and has_checkpoint(out):
            killed.update(train_workers())
            for worker in killed.values():
                worker.kill()
        elif killed:
            new.update(set(train_workers()) - set(killed))
        return bool(new)

    kill_at(process, replaced)
    assert not (out / "split-0" / "weights.pt").exists(), "the training was over before its driver was killed"
    said = []
    train(job(data, out, uri), say=said.append)
    assert not any(f"epoch 1/{RECIPE.epochs}" in line for line in said), "the first epoch was trained again"
    assert_same(weights(out), weights(trained.out))
    assert [run.info.status for run in runs(uri)] == ["FINISHED"] * 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_training_that_is_killed_at_random_moments_ends_the_same(trained, data, new_runs, tmp_path, seed, soaked):
    out, uri, moments = tmp_path / "out", new_runs(tmp_path), random.Random(f"training {seed}")
    command = ["train", data, "-o", str(out), "--splits", "0", *options_of(RECIPE), "--tracking-uri", uri]
    for _ in range(soaked(4)):
        process = in_cluster(*command, folder=tmp_path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(5, 30))
        process.kill()
        process.communicate()
    train(job(data, out, uri), say=quiet)
    assert_same(weights(out), weights(trained.out))
    # A driver that dies before it has written down its run leaves that behind.
    assert [run.info.status for run in runs(uri)].count("FINISHED") == 2


def test_a_second_training_on_one_output_is_refused(data, tmp_path):
    store = Store.create(tmp_path / "out")
    with held(store, "the first"), pytest.raises(InputError, match="another command is at work here"):
        train(job(data, tmp_path / "out"), say=quiet)
    assert not store.exists("training.json")


def test_what_cannot_be_trained_is_refused(trained, data, tmp_path):
    with pytest.raises(InputError, match="2 patients cannot be split"):
        train(job(write_small_nodules(tmp_path / "few", 2), tmp_path / "out"))
    with pytest.raises(InputError, match="cannot be shared by 3 workers"):
        train(job(data, tmp_path / "out", workers=3))
    with pytest.raises(InputError, match="another recipe"):
        train(job(data, trained.out, recipe=Recipe(RECIPE.model, RECIPE.augmentation, epochs=5)))
    with pytest.raises(InputError, match="has 0 GPUs"):
        train(job(data, tmp_path / "gpu", gpu=True))
    with pytest.raises(InputError, match=r"on a grid of 1 x 1 x 1 mm"):
        train(job(write_small_nodules(tmp_path / "coarse", 5, spacing=1.0), tmp_path / "grid"), say=quiet)


def test_a_corrupt_checkpoint_is_named(trained, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained.out, out)
    (out / "split-0" / "weights.pt").unlink()
    for state in out.glob("split-0/ray/checkpoint_*/state.pt"):
        state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"state.pt: no checkpoint of 3DMM, or a damaged one"):
        train(job(data, out), say=quiet)


def test_a_training_is_not_resumed_on_the_same_nodules_in_another_order(tmp_path):
    """Their batches would be others."""
    nodules, place = [small_nodule(number) for number in range(4)], Store.create(tmp_path / "out")
    write_dataset(tmp_path / "data", nodules)
    write_dataset(tmp_path / "turned", nodules[::-1])
    found, turned = Data.open(str(tmp_path / "data")), Data.open(str(tmp_path / "turned"))
    assert found.digest == turned.digest
    note = {"data_digest": found.digest, "recipe": RECIPE.to_dict(), "order_of_nodules": found.order}
    place.write("training.json", json.dumps(note).encode())
    with pytest.raises(InputError, match="a training with another order of nodules"):
        train(job(turned.path, tmp_path / "out"), say=quiet)


def test_a_release_is_learned_from_with_the_splits_it_was_published_with(data, tmp_path):
    release(ReleaseRequest(data, str(tmp_path / "release"), "1.0"), say=quiet)
    found, of_dataset = Data.open(str(tmp_path / "release")), Data.open(data)
    assert sorted(found.nodules.ids) == sorted(of_dataset.nodules.ids)
    for number in range(REPETITIONS):
        assert found.split(number) == of_dataset.split(number)
    with pytest.raises(InputError, match="no split 4; a release has those it was published with, 0 to 3"):
        found.split(REPETITIONS)
    assert of_dataset.split(REPETITIONS).test
    recorded = [dict.fromkeys(found.patients, "training") | {found.patients[0]: "test"}] * REPETITIONS
    assert replace(found, recorded=recorded).split(0).test == (found.patients[0],)
    assert record_of(found.nodules[0], RECIPE)["alpha"].any()


def test_more_data_and_initial_weights_are_learnt_from_but_for_those_held_out(ray_cluster, data, tmp_path):
    """Phantoms first, then both: nobody whom the dataset's split validates or tests on is in any training."""
    phantoms = write_nodules_of_kind(tmp_path / "phantoms", CALIBRATED, 8)
    split = Data.open(data).split(0)
    held = {*split.validation, *split.test}
    extra = set(Data.open(phantoms).patients)
    assert held & extra, "phantoms of held out patients are what this test is about"
    recipe = replace(RECIPE, epochs=1, average=0.9)
    first, both = tmp_path / "first", tmp_path / "both"
    train(job(phantoms, first, recipe=recipe, kind=CALIBRATED, splits_of=data), say=quiet)
    learnt = read_checkpoint(first / "split-0" / "weights.pt")["patients"]
    assert set(learnt) == extra - set(split.test)

    said: list[str] = []
    how = {"recipe": recipe, "kind": CALIBRATED, "also": (phantoms,), "initial": str(first)}
    train(job(data, both, **how), say=said.append)
    seen = set(read_checkpoint(both / "split-0" / "weights.pt")["patients"])
    assert seen == {*split.training, *split.validation, *(extra - set(split.test))}
    more = len(Data.open(phantoms).of(extra - held))
    count = len(Data.open(data).of(split.training)) + more
    assert any(f"{count} nodules to learn" in line for line in said)
    with pytest.raises(InputError, match="also"):
        train(job(data, both, **{**how, "also": ()}), say=quiet)

    weights = first / "split-0" / "weights.pt"
    with pytest.raises(InputError, match=r"weights.pt: has seen .* whom split 1 .* --splits-of"):
        train(job(data, tmp_path / "leak", **{**how, "initial": str(weights), "splits": (1,)}), say=quiet)


def test_a_dataset_of_two_channels_trains_a_network_of_two(ray_cluster, tmp_path):
    about = {"image_channel": {"name": "CT", "intensity_range": [-1000.0, 400.0]}}
    nodules = [
        replace(n, channels=[Channel("PET", 10 * n.true_membership, 0.0, 10.0)], metadata=n.metadata | about)
        for n in map(small_nodule, range(8))
    ]
    dataset = write_dataset(tmp_path / "data", nodules).root
    train(job(dataset, tmp_path / "out", recipe=learning_recipe(epochs=1)), say=quiet)
    _, recipe = load_model(tmp_path / "out" / "split-0" / "weights.pt")
    assert recipe.model.channels == (("CT", -1000.0, 400.0), ("PET", 0.0, 10.0))
    evaluated, said = tmp_path / "evaluated", []
    evaluate(EvaluateJob(dataset, (str(tmp_path / "out"),), Output(str(evaluated))), say=said.append)
    assert "3DMM" in (evaluated / "table.md").read_text()
