"""Against pymatting, an independent 2D implementation, on grey and colour images."""

import numpy as np
import pytest
from scipy.sparse import diags
from scipy.sparse.linalg import spsolve

from raymat.matting import estimate_alpha
from tests.support.nodules import bumpy_ball

pymatting = pytest.importorskip("pymatting")


def photograph(colours, shape=(26, 24)):
    grey, trimap = bumpy_ball(11, shape, 20.0)
    image = np.stack([bumpy_ball(11 + c, shape, 20.0)[0] if c else grey for c in range(colours)], axis=-1)
    return np.clip((image + 1000) / 1400, 0, 1), trimap


def solved(L, trimap, weight=100.0):
    known = (trimap.ravel() != 128).astype(float)
    return spsolve((L + weight * diags(known)).tocsc(), weight * (trimap.ravel() == 255)).reshape(trimap.shape)


@pytest.mark.parametrize("colours", [1, 3])
def test_closed_form(colours):
    image, trimap = photograph(colours)
    # A grey image as three equal channels has three times the variance, and so a third of the epsilon.
    rgb = np.repeat(image, 3 // colours, axis=2)
    L = pymatting.cf_laplacian(rgb, epsilon=1e-4 * 3 / colours)
    expected = np.clip(solved(L, trimap), 0, 1)
    alpha, _ = estimate_alpha(image, trimap, "cf", intensity_range=(0, 1), channel_axis=2, epsilon=1e-4)
    assert np.abs(alpha - expected)[trimap == 128].max() < 1e-4


@pytest.mark.parametrize("colours", [1, 3])
def test_learning_based(colours):
    image, trimap = photograph(colours)
    rgb = np.repeat(image, 3 // colours, axis=2)
    expected = np.clip(solved(pymatting.lbdm_laplacian(rgb, epsilon=1e-5), trimap), 0, 1)
    alpha, _ = estimate_alpha(image, trimap, "lb", intensity_range=(0, 1), channel_axis=2, epsilon=1e-5)
    assert np.abs(alpha - expected)[trimap == 128].max() < 2e-3


@pytest.mark.parametrize("colours", [1, 3])
def test_knn(colours):
    image, trimap = photograph(colours, (24, 24))
    rgb = np.repeat(image, 3 // colours, axis=2)
    # pymatting takes places as parts of each side, so the image is square. It counts a voxel among its own neighbours
    # and divides rows by their sums: with known voxels held fast, by a large lambda here and there, that changes
    # nothing. Three equal channels lengthen the way in intensity.
    spatial = np.array([2.0, 0.1]) * np.sqrt(3 / colours)
    L = pymatting.knn_laplacian(rgb, n_neighbors=[21, 11], distance_weights=list(spatial), kernel="binary")
    expected = np.clip(solved(L, trimap, 1e6), 0, 1)
    alpha, _ = estimate_alpha(
        image, trimap, "knn", intensity_range=(0, 1), channel_axis=2, kernel="binary", constraint_weight=1e6
    )
    assert np.abs(alpha - expected)[trimap == 128].mean() < 2e-3
