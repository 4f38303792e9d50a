"""Networks of several channels: what they take in, what they learn from, and what of one channel stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raymat.network.inference import Ensemble
from raymat.network.model import MattingNetwork, ModelConfig
from raymat.network.recipe import Recipe
from raymat.network.samples import (
    ALPHA,
    SCANNED,
    UNION,
    images_of,
    record_of,
    training_volume,
    validation_volume,
    volume_of,
)
from raymat.network.training import begin, load_model, train_step
from raymat.nodule import InputError
from tests.support.channels import CHANNELS, two_channel_nodule
from tests.support.networks import small_recipe, write_weights
from tests.support.nodules import small_nodule


def recipe(crop: tuple[int, int, int] = (8, 8, 8), **changes) -> Recipe:
    made = small_recipe(crop, **changes)
    return replace(made, model=replace(made.model, channels=CHANNELS))


def test_one_channel_is_not_in_the_recipe_and_has_the_same_weights():
    assert "channels" not in small_recipe().model.to_dict()
    assert ModelConfig.from_dict(recipe().model.to_dict()) == recipe().model
    networks = []
    for config in (small_recipe().model, recipe().model):
        torch.manual_seed(0)
        networks.append(MattingNetwork(config).state_dict())
    shapes = [[value.shape for value in network.values()] for network in networks]
    assert [a for a, b in zip(*shapes, strict=True) if a != b] == [(4, 1, 3, 3, 3)]  # the first convolution alone


@pytest.mark.parametrize("channels", [CHANNELS[:1], (CHANNELS[0], ("PET", 5.0, 5.0))])
def test_a_list_of_one_channel_and_a_range_that_does_not_rise_are_refused(channels):
    with pytest.raises(InputError, match="several whose ranges rise"):
        ModelConfig(channels=channels)


def test_a_record_has_both_images_in_their_ranges():
    nodule = two_channel_nodule()
    record = record_of(nodule, recipe())
    assert record["image"].shape == (2, *nodule.image.shape)
    np.testing.assert_allclose(record["image"][1], nodule.true_membership, atol=1e-3)
    np.testing.assert_array_equal(record["image"][0], record_of(nodule, small_recipe())["image"])
    volume = volume_of(record)
    assert volume.shape == (6, *nodule.image.shape)
    np.testing.assert_array_equal(volume[ALPHA].numpy(), record["alpha"])
    np.testing.assert_array_equal(volume[UNION].numpy(), record["union"])
    assert torch.all(volume[SCANNED] == 1)
    of_one = volume_of(record_of(nodule, small_recipe()))
    assert of_one.shape == (5, *nodule.image.shape)
    assert torch.equal(of_one[ALPHA], volume[ALPHA])


def test_image_and_alpha_are_turned_together():
    nodule = two_channel_nodule()
    how = recipe((16, 16, 16))
    crop = training_volume(record_of(nodule, how), how, epoch=3, place=2)
    of_one = training_volume(record_of(nodule, small_recipe((16, 16, 16))), small_recipe((16, 16, 16)), 3, 2)
    np.testing.assert_array_equal(crop[[0, *range(2, 6)]], of_one)
    # The uptake is that of the alpha that was turned, whatever its angle.
    chosen = replace(nodule.candidates[0], alpha=nodule.true_membership)
    crop = training_volume(record_of(replace(nodule, candidates=[chosen]), how), how, 3, 2)
    np.testing.assert_allclose(crop[1], crop[ALPHA], atol=2e-3)


def test_a_network_learns_from_the_second_channel():
    how = recipe((8, 8, 8))
    volume = validation_volume(record_of(two_channel_nodule(), how), (8, 8, 8))[None]
    state = begin(how, 1, torch.device("cpu"))
    train_step(state, state.model, volume)
    gradient = state.model.unet.down[0].first[0].weight.grad
    assert gradient[:, 1].abs().max() > 0


def test_an_ensemble_predicts_from_both_channels_at_any_size_and_turns_mirror_images_back(tmp_path):
    nodule = two_channel_nodule()
    ensemble = Ensemble([write_weights(tmp_path, recipe=recipe((16, 16, 16)))])
    image = images_of(nodule, ensemble.recipe.model)
    found = ensemble.predict(image)
    assert found.alpha.shape == nodule.image.shape
    other = image.copy()
    other[1] = 0
    assert np.abs(ensemble.predict(other).alpha - found.alpha).max() > 0
    assert ensemble.predict_finer(image, 2).alpha.shape == nodule.image.shape
    assert load_model(tmp_path / "0.pt")[1].model.channels == CHANNELS
    small = image[:, :, :16, :16]
    turned = ensemble.predict(small[:, ::-1, :, ::-1], flips=True).alpha[::-1, :, ::-1]
    np.testing.assert_allclose(turned, ensemble.predict(small, flips=True).alpha, atol=1e-5)


def test_other_channels_than_the_network_takes_are_refused(tmp_path):
    ensemble = Ensemble([write_weights(tmp_path, recipe=recipe())])
    with pytest.raises(InputError, match=r"these networks take 2 channels \(CT, PET\), not shape \(16, 24, 24\)"):
        ensemble.predict(small_nodule(0).image)
    with pytest.raises(InputError, match="case-000: has the channels image, the network takes CT, PET; build it"):
        record_of(small_nodule(0), recipe())
    of_one = write_weights(tmp_path, seed=1)
    with pytest.raises(InputError, match="an ensemble shares crop, spacing and range of intensities"):
        Ensemble([write_weights(tmp_path, recipe=recipe()), of_one])
