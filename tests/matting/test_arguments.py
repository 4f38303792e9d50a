"""What is refused, and with which words; trimaps that leave nothing to solve."""

import math

import numpy as np
import pytest

from raymat.matting import METHODS, HUWindow, SolveInfo, estimate_all, estimate_alpha
from raymat.methods import in_order
from tests.support.nodules import bumpy_ball


@pytest.fixture
def case():
    return bumpy_ball(0, (8, 9, 10))


def test_the_names_of_the_methods():
    assert METHODS == ("cf", "knn", "lb", "if", "cf+", "knn+", "lb+", "if+")


def test_methods_come_in_their_order_and_names_that_are_none_last():
    names = ("if+", "lb", "3dmm", "cf+", "cf", "lb", "3dmm-union", "average+")
    assert in_order(names) == ("cf", "lb", "cf+", "if+", "3dmm", "3dmm-union", "average+")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "closed-form"}, "unknown matting method 'closed-form'"),
        ({"spacing": (0.5, 0.5)}, "spacing must be 3 lengths"),
        ({"spacing": (0.5, 0.5, 0.0)}, "spacing must be"),
        ({"spacing": (0.5, 0.5, math.nan)}, "spacing must be"),
        ({"intensity_range": (400, -1000)}, "intensity_range must be"),
        ({"intensity_range": (0, 0)}, "intensity_range must be"),
        ({"intensity_range": (-math.inf, 0)}, "intensity_range must be"),
        ({"intensity_range": "lung"}, "intensity_range must be"),
        ({"constraint_weight": 0.0}, "constraint_weight must be"),
        ({"constraint_weight": -1.0}, "constraint_weight must be"),
        ({"constraint_weight": math.nan}, "constraint_weight must be"),
        ({"roi_margin": -1.0}, "roi_margin must be"),
        ({"preconditioner": "ilu"}, "preconditioner must be one of auto, jacobi, amg"),
        ({"channel_axis": 5}, "channel_axis 5 is no axis"),
        ({"channel_axis": 0}, "differ in spatial shape"),
        ({"method": "cf+", "calibration": None}, "need calibration"),
        ({"method": "cf+", "calibration": (-600, 1500)}, "need calibration"),
        ({"radius": 2}, "cf has no parameter 'radius'"),
        ({"neighbors": (20,)}, "cf has no parameter 'neighbors'"),
        ({"epsilon": 0.0}, "epsilon must be"),
        ({"method": "if", "regularization": -1e-6}, "regularization must be"),
        ({"method": "if", "known_to_unknown": "yes"}, "known_to_unknown must be"),
        ({"method": "knn", "neighbors": (20,)}, "one entry per pass each"),
        ({"method": "knn", "neighbors": (0, 10)}, "neighbors must be whole numbers above 0"),
        ({"method": "knn", "neighbors": (2.5, 10)}, "neighbors must be whole numbers above 0"),
        ({"method": "knn", "spatial_weights": (0.0, 1.0)}, "spatial_weights must be"),
        ({"method": "knn", "kernel": "rbf"}, "kernel must be"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(case, arguments, words):
    image, trimap = case
    with pytest.raises(ValueError, match=words):
        estimate_alpha(image, trimap, **{"method": "cf", **arguments})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_with_holes_is_refused(case, value):
    image, trimap = case
    image[0, 0, 0] = value
    with pytest.raises(ValueError, match="1 NaN or infinite value"):
        estimate_alpha(image, trimap, "cf")


def test_stray_values_and_shapes_are_refused(case):
    image, trimap = case
    with pytest.raises(ValueError, match="differ in spatial shape"):
        estimate_alpha(image, trimap[1:], "cf")
    with pytest.raises(ValueError, match="2 or 3 spatial axes"):
        estimate_alpha(image[0, 0], trimap[0, 0], "cf")
    with pytest.raises(ValueError, match="real numbers"):
        estimate_alpha(image.astype(complex), trimap, "cf")
    trimap[1, 1, 1] = 127
    with pytest.raises(ValueError, match=r"holds 127: only 0 .* 128 .* 255"):
        estimate_alpha(image, trimap, "cf")


def test_estimate_all_refuses_what_it_does_not_know(case):
    with pytest.raises(ValueError, match="no matting method"):
        estimate_all(*case, methods=())
    with pytest.raises(ValueError, match="unknown matting method 'cg'"):
        estimate_all(*case, methods=("cf", "cg"))
    with pytest.raises(ValueError, match="without \\+"):
        estimate_all(*case, parameters={"cf+": {"epsilon": 1e-5}})


def test_a_trimap_without_unknown_voxels_returns_its_constraint(case):
    image, trimap = case
    trimap[trimap == 128] = 0
    alpha, info = estimate_alpha(image, trimap, "knn")
    assert (alpha == (trimap == 255)).all()
    assert alpha.dtype == np.float32
    assert info == SolveInfo(0, 0.0, True, 0.0, 0, "none")
    plus, _ = estimate_alpha(image, trimap, "knn+")
    assert (plus[trimap == 255] < 1).any()


@pytest.mark.parametrize(("value", "words"), [(255, "no foreground"), (0, "no background")])
def test_a_trimap_without_one_side_is_refused(case, value, words):
    image, trimap = case
    trimap[trimap == value] = 128
    with pytest.raises(ValueError, match=words):
        estimate_alpha(image, trimap, "cf")


def test_the_window_of_equation_4():
    window = HUWindow(-600, 1500)
    assert window.l_low == 150
    np.testing.assert_allclose(window.alpha(np.array([-2000, -1350, -600, 150, 3000])), [0, 0, 0.5, 1, 1])
    falling = HUWindow(-600, 1500, l_high=300, fall=400)
    np.testing.assert_allclose(falling.alpha(np.array([150, 300, 400, 700, 900])), [1, 1, 0.75, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-600, 0), "width above 0"),
        ((math.nan, 1), "finite level"),
        ((-600, 1500, 0), "l_high"),
        ((0, 1, 9, -1), "fall"),
    ],
)
def test_an_impossible_window_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        HUWindow(*arguments)
