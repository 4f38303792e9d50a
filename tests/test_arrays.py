"""The box around a mask."""

import numpy as np
import pytest

from raymat.arrays import box_around


@pytest.mark.parametrize("seed", range(20))
def test_the_box_has_every_marked_voxel_and_its_faces_touch_some(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros(rng.integers(1, 9, 3), np.uint8)
    mask.ravel()[rng.integers(0, mask.size, 3)] = 255
    box = box_around(mask)
    part = mask[box]
    assert np.count_nonzero(part) == np.count_nonzero(mask)
    for axis in range(3):
        assert part.take(0, axis).any()
        assert part.take(-1, axis).any()


def test_a_margin_is_voxels_along_each_axis_and_ends_at_the_grid():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 1, 7:] = True
    assert box_around(mask, (2, 3, 1)) == (slice(2, 7), slice(0, 5), slice(6, 9))


def test_nothing_marked_gives_an_empty_box():
    mask = np.zeros((3, 4, 5), bool)
    assert mask[box_around(mask, (1, 1, 1))].size == 0
