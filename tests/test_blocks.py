"""Coarser grids of whole blocks."""

import numpy as np
import pytest

from raymat.blocks import block_means, factor_of
from raymat.nodule import InputError, Nodule


def test_each_voxel_is_the_mean_of_its_block_and_a_rest_is_left_out_at_both_ends():
    array = np.random.default_rng(0).normal(size=(4, 7, 8)).astype(np.float32)
    found = block_means(array, 3)
    assert found.shape == (1, 2, 2)
    np.testing.assert_allclose(found[0, 1, 0], array[0:3, 3:6, 1:4].mean(), rtol=1e-5)
    assert block_means(array, 1) is array


def test_a_grid_is_coarser_by_a_whole_number_or_not_at_all():
    nodule = Nodule("n1", "p1", "test", spacing=(0.5, 0.5, 0.5))
    assert [factor_of(nodule, spacing) for spacing in (0.5, 1.0, 1.5)] == [1, 2, 3]
    for spacing in (0.25, 0.75):
        with pytest.raises(InputError, match=r"n1: on a grid of 0.5 x 0.5 x 0.5 mm .* no whole multiple"):
            factor_of(nodule, spacing)
    with pytest.raises(InputError, match="n1"):
        factor_of(Nodule("n1", "p1", "test", spacing=(1.0, 0.5, 0.5)), 1.0)
