"""The solvers against the dense reference, voxel by voxel."""

import numpy as np
import pytest

from raymat.matting import METHODS, HUWindow, estimate_all, estimate_alpha
from tests.support import dense
from tests.support.nodules import bumpy_ball

GRIDS = [
    ((10, 10, 10), (0.5, 0.5, 0.5)),
    ((11, 9, 10), (0.7, 0.7, 1.25)),
    ((7, 11, 12), (2.5, 0.6, 0.6)),
    ((22, 24), (0.5, 0.6)),
]
# Asked for are 1e-3 at most for CF and LB, on average 1e-3 for KNN and 2e-3 (5e-3 with known-to-unknown) for IF.
# CF and LB differ by the windows without unknown voxels, which the package leaves out; KNN by edges among known voxels.
LARGEST = {"cf": 3e-4, "lb": 3e-4, "knn": 3e-4, "if": 3e-4}


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
def test_all_eight_agree_with_a_dense_direct_solve(shape, spacing):
    image, trimap = bumpy_ball(len(shape), shape)
    mattes = estimate_all(image, trimap, spacing=spacing)
    for base, largest in LARGEST.items():
        for name, expected in zip((base, base + "+"), dense.pair(image, trimap, base, spacing), strict=True):
            alpha, info = mattes[name]
            assert info.converged
            assert np.abs(alpha - expected).max() < largest, name


@pytest.mark.parametrize("method", ["cf", "lb", "knn", "if", "if+"])
def test_three_channels_agree_with_a_dense_direct_solve(method):
    first, trimap = bumpy_ball(1, (9, 9, 9))
    image = np.stack([first, bumpy_ball(2, (9, 9, 9))[0], bumpy_ball(3, (9, 9, 9))[0]])
    alpha, _ = estimate_alpha(image, trimap, method, spacing=(1, 1, 1), channel_axis=0)
    expected = dense.alpha(image, trimap, method, (1, 1, 1), channel_axis=0)
    assert np.abs(alpha - expected).max() < LARGEST[method.removesuffix("+")]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("cf", {"epsilon": 1e-3}),
        ("lb", {"epsilon": 1e-2}),
        ("knn", {"neighbors": (7,), "spatial_weights": (1.0,), "kernel": "binary"}),
        ("knn", {"neighbors": (5, 4, 3), "spatial_weights": (1.0, 0.3, 3.0)}),
    ],
)
def test_method_parameters_do_what_they_say(method, parameters):
    image, trimap = bumpy_ball(4, (9, 10, 9))
    alpha, _ = estimate_alpha(image, trimap, method, spacing=(1, 1, 1), **parameters)
    expected = dense.alpha(image, trimap, method, (1, 1, 1), **parameters)
    assert np.abs(alpha - expected).max() < LARGEST[method]
    assert np.abs(alpha - estimate_alpha(image, trimap, method, spacing=(1, 1, 1))[0]).max() > 1e-3


@pytest.mark.parametrize(
    "given", [{"known_to_unknown": False}, {"known_to_unknown": False, "reg": 1e-3, "epsilon": 1e-4}]
)
def test_information_flow_parameters_do_what_they_say(given):
    image, trimap = bumpy_ball(5, (10, 9, 10))
    own = {{"reg": "regularization"}.get(name, name): value for name, value in given.items()}
    alpha, _ = estimate_alpha(image, trimap, "if", spacing=(1, 1, 1), **own)
    assert np.abs(alpha - dense.alpha(image, trimap, "if", (1, 1, 1), **given)).max() < LARGEST["if"]


def test_weight_range_and_window_do_what_they_say():
    image, trimap = bumpy_ball(6, (10, 10, 10))
    window = HUWindow(-300.0, 800.0)
    limits = (-900.0, 90.0)
    for method in ("cf+", "knn+"):
        alpha, _ = estimate_alpha(
            image, trimap, method, spacing=(1, 1, 1), calibration=window, constraint_weight=7.0, intensity_range=limits
        )
        expected = dense.alpha(
            image, trimap, method, (1, 1, 1), window=(-300.0, 800.0), weight=7.0, intensity_range=limits
        )
        assert np.abs(alpha - expected).max() < 3e-4


def test_one_and_all_return_the_same_bits():
    image, trimap = bumpy_ball(7, (14, 13, 12))
    together = estimate_all(image, trimap, spacing=(0.5, 0.5, 0.5))
    assert tuple(together) == METHODS
    for name in METHODS:
        alone, info = estimate_alpha(image, trimap, name, spacing=(0.5, 0.5, 0.5))
        assert alone.tobytes() == together[name][0].tobytes()
        assert info.iterations == together[name][1].iterations
