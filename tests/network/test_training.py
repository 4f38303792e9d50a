"""Learning rate, steps and checkpoints, without Ray."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from raymat.methods import ALPHA_KINDS, ANY, CALIBRATED, MEMBERSHIP
from raymat.network.recipe import Recipe, preset
from raymat.network.samples import epoch_order, record_of, steps_per_epoch, training_volume, validation_volume
from raymat.network.training import (
    begin,
    load_model,
    losses_of,
    predict,
    rate_factor,
    read_checkpoint,
    restore,
    save,
    save_weights,
    train_step,
)
from raymat.nodule import InputError
from tests.support.kinds import nodule_of_kind
from tests.support.networks import small_recipe
from tests.support.nodules import small_nodule

CPU = torch.device("cpu")
RECIPE = small_recipe(epochs=3, batch=2, warm_up=0.5)


def batches(count: int, recipe=RECIPE) -> list[torch.Tensor]:
    record = record_of(small_nodule(0), recipe)
    volumes = [training_volume(record, recipe, 0, place) for place in range(count * recipe.batch)]
    return list(torch.from_numpy(np.stack(volumes)).split(recipe.batch))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_rate_rises_from_0_over_the_first_epoch_and_falls_along_a_cosine():
    factors = [rate_factor(step, steps=110, warm_up=10) for step in range(111)]
    assert factors[0] == 0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == max(factors) == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0)


def test_the_paper_preset_is_the_papers_recipe():
    recipe = preset("paper")
    assert recipe.augmentation.crop == (96, 96, 96)
    assert (recipe.epochs, recipe.batch, recipe.learning_rate, recipe.weight_decay) == (300, 16, 3e-4, 5e-5)
    assert (recipe.alpha_weight, recipe.gradient_weight, recipe.warm_up) == (10, 10, 1)
    assert recipe.augmentation.flips
    assert recipe.augmentation.rotation > 0
    assert not preset("paper", auxiliary=False).model.auxiliary


def test_a_recipe_survives_a_checkpoint():
    for recipe in (preset("paper"), preset("small", auxiliary=False), preset("light"), RECIPE):
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(InputError, match="momentum"):
        Recipe.from_dict({**RECIPE.to_dict(), "momentum": 0.9})


def test_every_nodule_is_seen_once_an_epoch_in_full_batches():
    for count, batch in ((10, 4), (8, 4), (3, 16)):
        order = epoch_order(count, batch, seed=0, epoch=2)
        assert len(order) == steps_per_epoch(count, batch) * batch
        assert sorted(order[:count]) == list(range(count))
    assert epoch_order(10, 4, 0, 0) != epoch_order(10, 4, 0, 1)


def test_a_step_lowers_the_loss_it_is_taken_on():
    state = begin(replace(RECIPE, learning_rate=1e-2, warm_up=0.0), 10, CPU)
    (batch,) = batches(1)
    losses = [train_step(state, state.model, batch).total.item() for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_training_ends_with_the_same_weights(precision, tmp_path):
    recipe = replace(RECIPE, precision=precision)
    first, second, third = batches(3)
    through = begin(recipe, 2, CPU)
    for batch in (first, second):
        train_step(through, through.model, batch)
    through.epoch = 1
    save(through, tmp_path / "state.pt")
    train_step(through, through.model, third)

    resumed = begin(recipe, 2, CPU)
    restore(resumed, tmp_path / "state.pt")
    assert resumed.epoch == 1
    train_step(resumed, resumed.model, third)
    assert same(resumed.model, through.model)
    assert resumed.scheduler.get_last_lr() == through.scheduler.get_last_lr()


def test_the_average_of_the_weights_is_what_a_training_ends_with(tmp_path):
    recipe = replace(RECIPE, average=0.75)
    first, second, third = batches(3)
    through = begin(recipe, 2, CPU)
    expected = None
    for batch in (first, second):
        train_step(through, through.model, batch)
        weights = next(iter(through.model.parameters())).detach().clone()
        expected = weights if expected is None else 0.75 * expected + 0.25 * weights
    torch.testing.assert_close(next(iter(through.result.parameters())), expected)
    assert not same(through.result, through.model)
    save(through, tmp_path / "state.pt")
    train_step(through, through.model, third)

    resumed = begin(recipe, 2, CPU)
    restore(resumed, tmp_path / "state.pt")
    train_step(resumed, resumed.model, third)
    assert same(resumed.result, through.result)
    save_weights(resumed, tmp_path / "weights.pt", ["p1", "p2"])
    assert same(load_model(tmp_path / "weights.pt")[0], through.result)
    assert read_checkpoint(tmp_path / "weights.pt")["patients"] == ["p1", "p2"]
    with pytest.raises(InputError, match="decay"):
        replace(RECIPE, average=1.0)


def test_a_recipe_without_an_average_is_written_as_before_there_was_one():
    assert "average" not in RECIPE.to_dict()
    assert Recipe.from_dict(RECIPE.to_dict()).average == 0


def test_a_training_begins_with_the_weights_it_is_given(tmp_path):
    save_weights(begin(replace(RECIPE, seed=5), 1, CPU), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    state = begin(replace(RECIPE, average=0.9), 1, CPU, content)
    assert same(state.model, load_model(tmp_path / "weights.pt")[0])
    assert same(state.result, state.model)
    wider = replace(RECIPE, model=replace(RECIPE.model, width=8))
    with pytest.raises(InputError, match=r"initial weights: its weights are not those of the network"):
        begin(wider, 1, CPU, content)


def test_the_same_seed_gives_the_same_network_and_another_another():
    assert same(begin(RECIPE, 1, CPU).model, begin(RECIPE, 1, CPU).model)
    assert not same(begin(RECIPE, 1, CPU).model, begin(replace(RECIPE, seed=1), 1, CPU).model)


def test_channels_last_and_compilation_do_not_change_the_gradient():
    (batch,) = batches(1)
    gradients = []
    for recipe in (RECIPE, replace(RECIPE, channels_last=True)):
        state = begin(recipe, 1, CPU)
        losses_of(predict(state.model, batch[:, :1], recipe.precision), batch, recipe).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in state.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    save(begin(RECIPE, 2, CPU), tmp_path / "state.pt")
    other = begin(replace(RECIPE, batch=4), 2, CPU)
    with pytest.raises(InputError, match=r"state\.pt: a checkpoint of another recipe \(batch differ"):
        restore(other, tmp_path / "state.pt")


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    state = begin(RECIPE, 2, CPU)
    path = tmp_path / "weights.pt"
    save_weights(state, path)
    assert same(load_model(path)[0], state.model)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"weights", whole[:200] + b"\0" * 400 + whole[600:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"weights\.pt"):
            load_model(path)
    torch.save({"format": "another"}, path)
    with pytest.raises(InputError, match="no checkpoint of 3DMM that this raymat knows"):
        load_model(path)
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "none.pt")
    found = {"format": "raymat 3DMM", "format_version": 1, "recipe": RECIPE.to_dict()}
    torch.save({**found, "model": {name: tensor[:1] for name, tensor in state.model.state_dict().items()}}, path)
    with pytest.raises(InputError, match="not those of the network"):
        load_model(path)


class Harm:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_no_code_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Harm()))
    torch.save({"format": "raymat 3DMM", "model": Harm()}, tmp_path / "zip.pt")
    for name in ("weights.pt", "zip.pt"):
        with pytest.raises(InputError, match=name):
            load_model(name)
    assert not (tmp_path / "harm").exists()


def test_a_record_holds_the_masks_of_the_readers_and_the_chosen_matte():
    nodule = small_nodule(1)
    volume = validation_volume(record_of(nodule, RECIPE), nodule.image.shape).numpy()
    np.testing.assert_allclose(volume[0], np.clip((nodule.image + 1000) / 1400, 0, 1), atol=1e-3)
    np.testing.assert_allclose(volume[1], nodule.alpha, atol=1e-3)
    np.testing.assert_array_equal(volume[2], nodule.readers[0] | nodule.readers[1])
    np.testing.assert_array_equal(volume[3], nodule.readers[0] & nodule.readers[1])
    assert (volume[4] == 1).all()


def test_a_record_on_a_coarser_grid_holds_means_and_the_masks_that_have_half_of_a_voxel():
    nodule = small_nodule(1)
    record = record_of(nodule, replace(RECIPE, model=replace(RECIPE.model, spacing_mm=2 * nodule.spacing[0])))
    sides = [side // 2 for side in nodule.image.shape]
    assert all(part.shape == tuple(sides) for part in record.values())

    def blocks(array: np.ndarray) -> np.ndarray:
        return np.stack([array[z::2, y::2, x::2] for z in (0, 1) for y in (0, 1) for x in (0, 1)]).mean(axis=0)

    np.testing.assert_allclose(record["alpha"], blocks(nodule.alpha), atol=1e-3)
    np.testing.assert_allclose(record["image"], np.clip((blocks(nodule.image) + 1000) / 1400, 0, 1), atol=1e-3)
    np.testing.assert_array_equal(record["union"], blocks(nodule.readers[0] | nodule.readers[1]) >= 0.5)


def test_of_a_phantom_the_true_alpha_is_learnt():
    nodule = nodule_of_kind(0, CALIBRATED)
    nodule.true_calibrated = nodule.true_calibrated / 3
    nodule.true_membership = nodule.true_membership / 5
    for kind, truth in ((CALIBRATED, nodule.true_calibrated), (MEMBERSHIP, nodule.true_membership)):
        np.testing.assert_allclose(record_of(nodule, replace(RECIPE, kind=kind))["alpha"], truth, atol=1e-3)
    np.testing.assert_allclose(record_of(nodule, RECIPE)["alpha"], nodule.alpha, atol=1e-3)


def test_nodules_that_cannot_be_learnt_from_are_refused_by_name():
    with pytest.raises(InputError, match=r"case-002: on a grid of 1 x 1 x 1 mm"):
        record_of(small_nodule(2, spacing=1.0), RECIPE)
    with pytest.raises(InputError, match="case-003: no matte was chosen"):
        record_of(replace(small_nodule(3), method=None), RECIPE)
    with pytest.raises(InputError, match=r"case-004: has no matte of the kind membership, only cf\+, knn\+; .*--kind"):
        record_of(small_nodule(4), replace(RECIPE, kind=MEMBERSHIP))
    spoiled = small_nodule(5)
    spoiled.candidates[0].alpha[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"case-005: its best matte of the kind calibrated, cf\+, is not finite"):
        record_of(spoiled, replace(RECIPE, kind=CALIBRATED))


@pytest.mark.parametrize("of_dataset", ALPHA_KINDS)
def test_a_network_learns_the_best_matte_of_its_kind_whatever_the_dataset_chose(of_dataset):
    nodule = nodule_of_kind(0, of_dataset)
    mattes = {kind: record_of(nodule, replace(RECIPE, kind=kind))["alpha"] for kind in ALPHA_KINDS}
    np.testing.assert_allclose(mattes[MEMBERSHIP], nodule.mattes["cf"], atol=1e-3)
    np.testing.assert_allclose(mattes[CALIBRATED], nodule.mattes["cf+"], atol=1e-3)
    np.testing.assert_allclose(mattes[ANY], nodule.alpha, atol=1e-3)
    assert np.abs(mattes[MEMBERSHIP] - mattes[CALIBRATED]).max() > 0.1


def test_a_checkpoint_keeps_the_kind_and_one_of_before_there_were_kinds_is_of_any(tmp_path):
    assert "kind" not in RECIPE.to_dict()
    states = {kind: begin(replace(RECIPE, kind=kind), 2, CPU) for kind in ALPHA_KINDS}
    for kind, state in states.items():
        save(state, tmp_path / f"{kind}.pt")
        assert load_model(tmp_path / f"{kind}.pt")[1].kind == kind
    for kind, state in states.items():
        for other in set(ALPHA_KINDS) - {kind}:
            with pytest.raises(InputError, match=r"a checkpoint of another recipe \(kind differ"):
                restore(state, tmp_path / f"{other}.pt")
        restore(state, tmp_path / f"{kind}.pt")
    with pytest.raises(InputError, match="the kind of alpha must be one of"):
        replace(RECIPE, kind="solid")
