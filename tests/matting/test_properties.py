"""Facts of the methods that hold for every image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymat.matting import METHODS, HUWindow, estimate_all, estimate_alpha
from tests.support.nodules import bumpy_ball

seeds = st.integers(0, 10_000)
few = settings(max_examples=6, deadline=None, derandomize=True)
SPACING = (0.5, 0.5, 0.5)


@given(seed=seeds, axes=st.permutations([0, 1, 2]), mirrored=st.sets(st.sampled_from([0, 1, 2])))
@few
def test_mirrored_and_rotated_input_gives_the_mirrored_and_rotated_matte(seed, axes, mirrored):
    image, trimap = bumpy_ball(seed, (10, 12, 11))
    spacing = np.array([1.0, 0.6, 0.8])

    def moved(a):
        return np.flip(np.transpose(a, axes), tuple(mirrored))

    before = estimate_all(image, trimap, spacing=spacing)
    after = estimate_all(moved(image), moved(trimap), spacing=spacing[list(axes)])
    for name in METHODS:
        assert np.abs(moved(before[name][0]) - after[name][0]).max() < 2e-4, name


@given(seed=seeds)
@few
def test_alpha_of_an_exact_local_mixture_comes_back(seed):
    """Where the image is F alpha + B (1 - alpha) with one F and one B, alpha is linear in it and CF and LB find it."""
    rng = np.random.default_rng(seed)
    truth = np.clip(1.4 * (np.indices((10, 11, 12))[2] / 11) - 0.2 + 0.02 * rng.normal(size=(10, 11, 12)), 0, 1)
    image = -850 + 900 * truth
    trimap = np.where(truth == 0, 0, np.where(truth == 1, 255, 128)).astype(np.uint8)
    for method in ("cf", "lb"):
        alpha, info = estimate_alpha(image, trimap, method, spacing=SPACING)
        assert info.converged
        assert np.abs(alpha - truth).max() < 2e-3


@given(seed=seeds, scale=st.floats(0.3, 3.0), shift=st.floats(-300, 300))
@few
def test_cf_and_lb_do_not_see_brightness_and_contrast(seed, scale, shift):
    """The regularisation aside, which acts on the scaled image: epsilon must be small against the noise."""
    image, trimap = bumpy_ball(seed, (11, 10, 12))
    wide = (-6000.0, 6000.0)
    for method in ("cf", "lb"):
        plain, _ = estimate_alpha(image, trimap, method, intensity_range=wide, epsilon=1e-9)
        changed, _ = estimate_alpha(scale * image + shift, trimap, method, intensity_range=wide, epsilon=1e-9)
        assert np.abs(plain - changed).max() < 1e-3


@given(seed=seeds)
@few
def test_intensity_range_and_image_scale_together_change_nothing(seed):
    image, trimap = bumpy_ball(seed, (9, 10, 9))
    plain = estimate_all(image, trimap, ("cf", "lb", "knn", "if"))
    scaled = estimate_all(2 * image + 64, trimap, ("cf", "lb", "knn", "if"), intensity_range=(-1936, 864))
    for name in plain:
        assert np.abs(plain[name][0] - scaled[name][0]).max() < 1e-4


@given(seed=seeds)
@few
def test_the_pair_agrees_where_the_calibrated_foreground_is_1(seed):
    image, trimap = bumpy_ball(seed, (10, 10, 10))
    mattes = estimate_all(image, trimap, spacing=SPACING, calibration=HUWindow(-2000.0, 100.0))
    for base in ("cf", "knn", "lb", "if"):
        assert mattes[base][0].tobytes() == mattes[base + "+"][0].tobytes()


@given(seed=seeds)
@few
def test_the_calibrated_foreground_is_returned_as_it_is(seed):
    image, trimap = bumpy_ball(seed, (10, 10, 10))
    alpha, _ = estimate_alpha(image, trimap, "cf+", spacing=SPACING)
    foreground = trimap == 255
    expected = np.clip((image[foreground] + 1350) / 1500, 0, 1)
    np.testing.assert_allclose(alpha[foreground], expected, atol=1e-6)
    assert (alpha[trimap == 0] == 0).all()


@pytest.mark.parametrize("shape", [(40, 42, 38), (60, 64)])
def test_the_region_of_interest_does_not_move_the_matte(shape):
    inner, inner_trimap = bumpy_ball(3, tuple(n // 3 for n in shape))
    pad = [(n // 3, n - 2 * (n // 3)) for n in shape]
    image = np.pad(inner, pad, constant_values=-850.0) + 20 * np.random.default_rng(0).normal(size=shape)
    trimap = np.pad(inner_trimap, pad)
    for method in ("cf", "lb", "cf+"):
        mattes = [estimate_alpha(image, trimap, method, roi_margin=margin)[0] for margin in (0.0, 3.0, 8.0, None)]
        assert all(np.abs(matte - mattes[-1]).max() < 1e-4 for matte in mattes)
    for method in ("knn", "if"):
        near, far = (estimate_alpha(image, trimap, method, roi_margin=margin)[0] for margin in (8.0, None))
        assert np.abs(near - far)[trimap == 128].mean() < 2e-2


def test_the_same_input_gives_the_same_bits():
    image, trimap = bumpy_ball(5, (13, 13, 13))
    first, second = (estimate_all(image, trimap, spacing=SPACING) for _ in range(2))
    for name in METHODS:
        assert first[name][0].tobytes() == second[name][0].tobytes()


def test_memory_order_and_number_type_of_the_image_change_nothing():
    image, trimap = bumpy_ball(6, (11, 12, 13))
    image = np.rint(image)
    plain = estimate_all(image, trimap, spacing=SPACING)
    other = estimate_all(np.asfortranarray(image.astype(np.int16)), np.asfortranarray(trimap), spacing=SPACING)
    for name in METHODS:
        assert plain[name][0].tobytes() == other[name][0].tobytes()


def test_the_input_is_not_written_to():
    image, trimap = bumpy_ball(8, (10, 10, 10))
    image.flags.writeable = trimap.flags.writeable = False
    before = image.copy()
    estimate_all(image, trimap, spacing=SPACING)
    assert (image == before).all()
