"""Windows, mirror images and ensembles."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from raymat.network.augmentation import Augmentation
from raymat.network.inference import Ensemble, Predicted, _tent, window_starts
from raymat.network.model import normalised
from raymat.nodule import InputError
from tests.support.networks import small_recipe, write_weights

RECIPE = small_recipe()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("weights")
    return [write_weights(folder, seed) for seed in (0, 1)]


def an_image(shape) -> np.ndarray:
    return np.random.default_rng(0).normal(-500, 400, shape).astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 14, 15, 40, 101])
def test_windows_cover_every_voxel_and_share_a_quarter(size):
    starts = window_starts(size, 8)
    covered = {voxel for start in starts for voxel in range(start, start + 8)}
    assert set(range(size)) <= covered
    if size > 8:
        assert starts[0] == 0
        assert starts[-1] == size - 8
        assert all(b - a <= 6 for a, b in itertools.pairwise(starts))


def test_a_window_has_weight_everywhere_and_most_in_its_middle():
    weight = _tent((8, 8, 7))
    assert weight.min() > 0
    assert weight.argmax() == np.ravel_multi_index((3, 3, 3), (8, 8, 7))
    assert torch.allclose(weight, weight.flip((0, 1, 2)))


def test_an_image_of_the_networks_own_size_is_one_pass(two):
    ensemble, image = Ensemble(two[:1]), an_image((8, 8, 8))
    volume = normalised(torch.from_numpy(image), RECIPE.model)
    with torch.no_grad():
        straight = ensemble.models[0](volume[None, None])
    found = ensemble.predict(image)
    np.testing.assert_allclose(found.alpha, straight.alpha[0, 0], atol=1e-6)
    np.testing.assert_allclose(found.union, straight.union.sigmoid()[0, 0], atol=1e-6)
    assert not found.spread.any()


@pytest.mark.parametrize("shape", [(3, 20, 9), (8, 1, 17), (5, 6, 7)])
def test_an_image_of_any_size_is_predicted_on_its_own_grid(two, shape):
    found = Ensemble(two).predict(an_image(shape))
    for array in (found.alpha, found.union, found.overlap, found.spread):
        assert array.shape == shape
        assert np.isfinite(array).all()
        assert 0 <= array.min() <= array.max() <= 1


def test_an_ensemble_is_the_mean_of_its_networks_and_its_spread_their_deviation(two):
    image = an_image((8, 12, 10))
    both = Ensemble(two).predict(image)
    each = np.stack([Ensemble([path]).predict(image).alpha for path in two])
    np.testing.assert_allclose(both.alpha, each.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(both.spread, each.std(axis=0), atol=1e-6)
    assert both.spread.max() > 0


def test_with_mirror_images_a_mirrored_scan_gives_the_mirrored_matte(two):
    ensemble, image = Ensemble(two[:1]), an_image((8, 8, 8))
    found = ensemble.predict(image, flips=True)
    for axis in range(3):
        mirrored = ensemble.predict(np.flip(image, axis), flips=True)
        np.testing.assert_allclose(mirrored.alpha, np.flip(found.alpha, axis), atol=1e-5)
    assert found.spread.max() > 0


def test_on_a_finer_grid_a_prediction_is_interpolated_between_the_middles_of_its_voxels(two, monkeypatch):
    ensemble, image = Ensemble(two[:1]), an_image((13, 16, 18))
    found = ensemble.predict_finer(image, 2)
    assert all(part.shape == image.shape for part in vars(found).values())
    seen = []

    def ramp(coarse, flips):
        seen.append(coarse)
        depth = np.broadcast_to(np.arange(coarse.shape[0], dtype=np.float32)[:, None, None], coarse.shape)
        return Predicted(depth.copy(), depth.copy(), depth.copy(), depth.copy())

    monkeypatch.setattr(ensemble, "predict", ramp)
    depth = ensemble.predict_finer(image, 2).alpha[:, 5, 5]
    np.testing.assert_allclose(depth[1:12], (np.arange(1, 12) + 0.5) / 2 - 0.5, atol=1e-5)
    assert seen[0].shape == (7, 8, 9)
    np.testing.assert_allclose(seen[0][2, 3, 4], image[4:6, 6:8, 8:10].mean(), rtol=1e-5)
    np.testing.assert_array_equal(
        Ensemble(two[:1]).predict_finer(image, 1).alpha, Ensemble(two[:1]).predict(image).alpha
    )


def test_what_cannot_be_predicted_is_refused(two, tmp_path):
    other = write_weights(tmp_path, 0, replace(RECIPE, augmentation=Augmentation((4, 4, 4))))
    with pytest.raises(InputError, match="takes another input"):
        Ensemble([*two, other])
    with pytest.raises(InputError, match="one network at least"):
        Ensemble([])
    with pytest.raises(InputError, match="NaN"):
        Ensemble(two[:1]).predict(np.full((8, 8, 8), np.nan, np.float32))


def test_on_a_cpu_what_was_trained_in_half_precision_predicts_in_float32(two, tmp_path):
    """Many CPUs have no half precision, and there torch computes a convolution number by number."""
    image = an_image((11, 9, 10))
    half = write_weights(tmp_path, 0, replace(RECIPE, precision="bfloat16"))
    np.testing.assert_array_equal(Ensemble([half]).predict(image).alpha, Ensemble(two[:1]).predict(image).alpha)
