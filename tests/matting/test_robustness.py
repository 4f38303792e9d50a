"""Images at the edge of what occurs: every matte is finite, inside 0..1, and says whether it converged."""

import warnings

import numpy as np
import pytest

from raymat.matting import estimate_all
from raymat.matting import solve as solve_module
from tests.support.nodules import bumpy_ball


def checked(image, trimap, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mattes = estimate_all(image, trimap, **arguments)
    for name, (alpha, info) in mattes.items():
        assert alpha.shape == trimap.shape, name
        assert alpha.dtype == np.float32
        assert np.isfinite(alpha).all()
        assert alpha.min() >= 0
        assert alpha.max() <= 1
        assert info.converged, (name, info)
        assert info.unknowns == np.count_nonzero(trimap == 128)
    return mattes


def between_two_sides(shape, axis=0, side=3):
    trimap = np.full(shape, 128, dtype=np.uint8)
    ends = np.moveaxis(trimap, axis, 0)
    ends[:side], ends[-side:] = 0, 255
    return trimap


def noise(shape, level=-500.0, width=150.0):
    return level + width * np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("value", [-600.0, -5000.0, 5000.0])
def test_a_constant_image(value):
    trimap = between_two_sides((16, 14, 15))
    mattes = checked(np.full(trimap.shape, value), trimap)
    for name in ("cf", "knn", "lb"):
        assert (np.diff(mattes[name][0].mean(axis=(1, 2))) > -1e-3).all()


def test_an_image_of_two_values():
    trimap = between_two_sides((16, 14, 15))
    checked(np.where(noise(trimap.shape) < -500, -800.0, 0.0), trimap)


def test_a_foreground_of_one_voxel():
    trimap = np.zeros((17, 17, 17), dtype=np.uint8)
    trimap[2:-2, 2:-2, 2:-2] = 128
    trimap[8, 8, 8] = 255
    checked(noise(trimap.shape), trimap)
    checked(np.full(trimap.shape, -700.0), trimap, spacing=(5.0, 0.5, 0.5))


def test_thick_slices():
    checked(noise((12, 20, 20)), between_two_sides((12, 20, 20), axis=1), spacing=(5.0, 0.5, 0.5))


@pytest.mark.slow
def test_an_unknown_region_of_300_voxels():
    trimap = between_two_sides((306, 4, 5))
    slope = np.linspace(-900, 50, 306)[:, None, None] + noise(trimap.shape, 0.0, 30.0)
    mattes = checked(slope, trimap)
    assert mattes["cf"][0][150:156].mean() == pytest.approx(0.5, abs=0.02)
    checked(np.full(trimap.shape, -500.0), trimap)


@pytest.mark.parametrize("shape", [(1, 20, 20), (2, 20, 20), (20, 2, 2), (1, 1, 30), (2, 1, 30), (1, 20)])
def test_axes_shorter_than_a_window(shape):
    checked(noise(shape), between_two_sides(shape, axis=int(np.argmax(shape))))


def test_one_slice_is_matted_by_cf_and_lb_as_a_2d_image():
    trimap = between_two_sides((20, 20))
    image = noise(trimap.shape)
    flat = checked(image, trimap)
    slab = checked(image[None], trimap[None])
    for name in ("cf", "lb", "cf+", "lb+"):
        assert flat[name][0].tobytes() == slab[name][0].tobytes()


def test_an_unknown_region_at_the_grids_edge_and_in_pieces():
    trimap = np.zeros((14, 15, 16), dtype=np.uint8)
    trimap[:4, :4, :4] = 128
    trimap[1, 1, 1] = 255
    trimap[-3:, -3:, -3:] = 128
    trimap[6:9, 6:9, 5] = 128
    trimap[6:9, 6:9, 8] = 128
    checked(noise(trimap.shape), trimap, roi_margin=0.0)


def test_a_solve_that_stops_early_says_so(monkeypatch):
    monkeypatch.setattr(solve_module, "MAX_ITERATIONS", 2)
    image, trimap = bumpy_ball(0, (12, 12, 12))
    for alpha, info in estimate_all(image, trimap, preconditioner="jacobi").values():
        assert not info.converged
        assert info.iterations == 2
        assert info.residual > 1e-6
        assert np.isfinite(alpha).all()
        assert 0 <= alpha.min() <= alpha.max() <= 1


@pytest.mark.parametrize("weight", [1e-6, 1e8])
def test_extreme_constraint_weights(weight):
    image, trimap = bumpy_ball(1, (10, 10, 10))
    for alpha, _ in estimate_all(image, trimap, constraint_weight=weight).values():
        assert np.isfinite(alpha).all()
        assert 0 <= alpha.min() <= alpha.max() <= 1
