"""The classifiers and their training, on cubes that are bright or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raymat.classification.inputs import CropConfig
from raymat.classification.networks import NETWORKS, PAPER_NETWORKS, make_network, refuse_small_crop
from raymat.classification.recipe import PRESETS, Recipe
from raymat.classification.training import Samples, SplitSamples, augmented, train_classifier
from raymat.nodule import InputError

RECIPE = Recipe(crop=CropConfig(side=8, margin=2), epochs=4, patience=2, batch=8)


def cubes(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 4 == 0).astype(int)
    crops = rng.random((count, 12, 12, 12)).astype(np.float16) * 0.3
    crops[labels == 1, 4:8, 4:8, 4:8] += 0.6
    return Samples(crops, labels)


def trained(seed: int, recipe: Recipe = RECIPE, validation: Samples | None = None):
    torch.set_num_threads(1)
    test = cubes(12, 3).crops
    return train_classifier(
        "resnet10-small",
        seed,
        SplitSamples(cubes(32, 1), validation or cubes(16, 2), test),
        recipe,
        torch.device("cpu"),
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stem", ["full", "small"])
def test_every_network_gives_one_logit_and_takes_a_width(name, stem):
    with torch.device("meta"):
        for width in (0.5, 1.0):
            assert make_network(name, width, stem).eval()(torch.empty(2, 1, 64, 64, 64)).shape == (2, 1)


def test_the_papers_networks_have_the_weights_of_their_names():
    weights = {}
    for name in PAPER_NETWORKS:
        with torch.device("meta"):
            weights[name] = sum(p.numel() for p in make_network(name, stem="full").parameters())
    assert {name: round(count / 1e6, 1) for name, count in weights.items()} == {
        "densenet121": 11.2,
        "resnet34": 63.5,
        "resnet50": 46.2,
    }


def test_equal_seeds_train_equal_classifiers_and_others_others():
    one, again, other = trained(0), trained(0), trained(1)
    np.testing.assert_array_equal(one.test, again.test)
    assert one.history == again.history
    assert not np.array_equal(one.test, other.test)


def test_it_learns_and_keeps_the_best_epoch():
    found = trained(0, replace(RECIPE, epochs=12, patience=12))
    areas = [entry["validation_auroc"] for entry in found.history]
    assert max(areas) == areas[found.best_epoch - 1] > 0.95
    labels = cubes(12, 3).labels
    assert found.test[labels == 1].mean() > found.test[labels == 0].mean()


def test_it_stops_when_validation_no_longer_gains():
    found = trained(0, replace(RECIPE, epochs=40, patience=1))
    areas = [entry["validation_auroc"] for entry in found.history]
    assert len(areas) == found.best_epoch + 1 < 40
    assert areas[-1] <= areas[-2]


def test_augmentation_hangs_on_seed_epoch_and_place_and_not_on_the_input():
    marked = np.zeros((12, 12, 12), np.float16)
    marked[3:9, 4:8, 5:7] = 1
    first = augmented(marked, RECIPE, 0, 2, 5)
    assert first.shape == (1, 8, 8, 8)
    torch.testing.assert_close(first / 2, augmented(marked / 2, RECIPE, 0, 2, 5))
    assert not torch.equal(first, augmented(marked, RECIPE, 0, 3, 5))


def test_a_crop_that_a_network_uses_up_is_refused():
    with pytest.raises(InputError, match="a crop of 8 voxels is too small for densenet-small"):
        refuse_small_crop("densenet-small", 1.0, "small", 8)
    for preset in PRESETS.values():
        for name in NETWORKS:
            refuse_small_crop(name, preset.width, preset.stem, preset.crop.side)
