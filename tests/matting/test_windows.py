"""The window Laplacian without a matrix against the sum over windows."""

import numpy as np
import pytest

from raymat.matting import closed_form, learning_based
from raymat.matting.windows import WindowLaplacian, windows_around
from tests.support import dense


@pytest.mark.parametrize(("name", "build"), [("cf", closed_form.projection), ("lb", learning_based.projection)])
@pytest.mark.parametrize(("shape", "c"), [((6, 7, 8), 1), ((5, 6, 5), 3)])
@pytest.mark.parametrize("contrast", [1.0, 1e-4, 0.0])
def test_it_is_the_dense_laplacian(name, build, shape, c, contrast):
    f = 0.5 + contrast * (np.random.default_rng(0).random((*shape, c)) - 0.5)
    windows = windows_around(f, np.ones(shape, dtype=bool))
    L = WindowLaplacian(windows, build(windows, epsilon=1e-7))
    expected = {"cf": dense.cf_laplacian, "lb": dense.lb_laplacian}[name](f, 1e-7)
    rows = L(np.eye(len(windows.voxels)))
    # The reference inverts m x m matrices with a condition of 1e9: it is the less exact of the two.
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(L.diagonal, np.diag(rows), atol=1e-6)
    np.testing.assert_allclose(rows, rows.T, atol=1e-7)


def test_rows_sum_to_nothing_and_linear_images_cost_nothing():
    f = np.random.default_rng(1).random((7, 7, 7, 1))
    windows = windows_around(f, np.ones((7, 7, 7), dtype=bool))
    L = WindowLaplacian(windows, closed_form.projection(windows, 1e-7))
    assert np.abs(L(np.ones((1, len(windows.voxels))))).max() < 1e-10
    assert np.abs(L(3 * f.reshape(1, -1) - 1)).max() < 1e-5


def test_only_windows_that_touch_unknown_voxels_are_built():
    unknown = np.zeros((12, 12, 12), dtype=bool)
    unknown[5, 6, 7] = True
    windows = windows_around(np.random.default_rng(2).random((12, 12, 12, 1)), unknown)
    assert len(windows.mean) == 27
    assert len(windows.voxels) == 125
    assert windows.count.max() == 27
    assert windows.count.sum() == 27 * 27
