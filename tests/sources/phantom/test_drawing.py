"""What is drawn: the boundary, the lesion, the scanner."""

import numpy as np
import pytest
from scipy import ndimage

from raymat.nodule import InputError
from raymat.sources.phantom import draw_phantom, phantom_of
from raymat.sources.phantom.boundary import signed_distance, true_surface
from raymat.sources.phantom.fields import generator, smooth_field
from raymat.sources.phantom.lesion import Lesion, alpha
from raymat.sources.phantom.scanner import Scanner, noise, profile, show
from tests.support.nodules import distances

SPACING = (1.25, 0.7, 0.7)
RATINGS = {
    "subtlety": 5,
    "internalStructure": 1,
    "calcification": 6,
    "sphericity": 4,
    "margin": 5,
    "lobulation": 1,
    "spiculation": 1,
    "texture": 5,
    "malignancy": 3,
}


def ball(radius, shape=(21, 100, 100), spacing=SPACING):
    return distances(shape, spacing=spacing) < radius


def four_readers(radius=8.0):
    return np.stack([ball(radius + step) for step in (-1.0, -0.3, 0.4, 1.1)])


def drawn(**changed):
    ratings = [{**RATINGS, **changed}] * 4
    return draw_phantom(four_readers(), SPACING, ratings, thickness_mm=1.25, seed=3, name="ball")


def test_signed_distance_of_a_ball():
    distance = signed_distance(ball(8.0), SPACING, planes=3)
    fine = (SPACING[0] / 3, *SPACING[1:])
    shape = distance.shape
    exact = distances(shape, spacing=fine) - 8.0
    # At the poles a reader's last slice stands for the whole slice.
    equator = slice(shape[0] // 2 - 6, shape[0] // 2 + 7)
    near = np.abs(exact[equator]) < 3
    assert np.abs(distance[equator] - exact[equator])[near].max() < 0.9
    assert abs((distance[equator] - exact[equator])[near].mean()) < 0.15


def test_a_slice_left_out_is_bridged():
    mask = ball(8.0)
    mask[10] = False
    assert (signed_distance(mask, SPACING, planes=2)[20] < 0).sum() > 0.9 * ball(8.0)[10].sum()


def test_surface_lies_between_the_outermost_and_innermost_outline():
    distances = np.stack([signed_distance(mask, SPACING, 2) for mask in four_readers()])
    fine = (SPACING[0] / 2, *SPACING[1:])
    surface = true_surface(distances, fine, generator(0, "test"), displacement=0.0)
    outer, inner = distances.min(0) < -0.3, distances.max(0) < 0.3
    assert not ((surface < -0.3) & ~(distances.min(0) < 0.3)).any()
    assert ((surface < 0.3) | ~(distances.max(0) < -0.3)).all()
    # It is nobody's outline: neither the innermost, nor the outermost, nor the readers' average.
    volume = (surface < 0).sum()
    assert inner.sum() * 0.8 < volume < outer.sum() * 1.3
    assert ((surface < 0) != (np.median(distances, axis=0) < 0)).sum() > 0.02 * volume
    assert ndimage.label(surface < 0)[1] == 1


def test_unanimous_readers_were_not_exactly_right():
    distances = np.stack([signed_distance(ball(8.0), SPACING, 1)] * 4)
    surface = true_surface(distances, SPACING, generator(0, "test"), displacement=0.3)
    on_it = np.abs(distances[0]) < 0.5
    moved = (surface - distances[0])[on_it]
    assert 0.1 < moved.std() < 0.6


def test_readers_without_a_common_voxel_are_refused():
    apart = np.stack([np.roll(ball(4.0), shift, axis=2) for shift in (-8, -8, 8, 8)])
    with pytest.raises(InputError, match="no voxel in common"):
        draw_phantom(apart, SPACING, [RATINGS] * 4, thickness_mm=1.25)


def test_alpha_is_one_inside_zero_outside_and_half_on_the_surface():
    phantom = drawn()
    readers = four_readers()
    deep = ball(4.0)
    far = ~ndimage.binary_dilation(readers.any(0), iterations=4)
    assert phantom.membership[deep].min() > 0.99
    assert phantom.membership[far].max() < 1e-3
    assert abs(phantom.membership.sum() / readers.mean(0).sum() - 1) < 0.35


@pytest.mark.parametrize(("wide", "voxels"), [(0.5, 1), (3.0, 4)])
def test_margin_sets_the_width_of_the_transition(wide, voxels):
    spacing = (0.25, 0.25, 0.25)
    ramp = np.broadcast_to(np.linspace(-10, 10, 81, dtype=np.float32), (5, 5, 81)).copy()
    solid = Lesion(25.0, 0.0, 0.0, wide, "absent", 10.0, False)
    line = alpha(ramp, spacing, solid, generator(1, "x"))
    widths = 0.25 * ((line > 0.1) & (line < 0.9)).sum(axis=2)
    assert np.abs(widths - wide).max() <= 0.4 * wide + 0.25
    assert line[:, :, 40] == pytest.approx(0.5)


def test_texture_rating_sets_the_hounsfield_units():
    deep = ndimage.binary_erosion(four_readers().all(0), iterations=2)
    means = [drawn(texture=texture).image[deep].mean() for texture in (1, 2, 5)]
    assert -720 < means[0] < -480
    # Rating 2 has a denser core.
    assert means[0] < means[1] < -250
    assert -80 < means[2] < 150


def test_calcified_nodules_are_bright():
    deep = ndimage.binary_erosion(four_readers().all(0), iterations=3)
    assert np.median(drawn(calcification=3).image[deep]) > 350


def test_poorly_defined_margins_are_wider_in_alpha():
    def soft(phantom):
        return ((phantom.membership > 0.1) & (phantom.membership < 0.9)).sum()

    assert soft(drawn(margin=1)) > 1.6 * soft(drawn(margin=5))


def test_image_is_blurred_as_its_alpha():
    """Without noise and texture the image is an affine map of alpha: one kernel went over both."""
    scanner = Scanner(blur_mm=1.2, thickness_mm=2.5, noise_hu=20.0)
    fine = (0.5, 0.7, 0.7)
    share = ball(8.0, (61, 60, 60), fine).astype(np.float32)
    reach = len(profile(scanner, fine[0])) // 2
    slices = (61 - 1 - 2 * reach) // 2 + 1
    seen = show(share, fine, 2, reach, slices, scanner)
    image = show(-850 + 880 * share, fine, 2, reach, slices, scanner)
    assert image == pytest.approx(-850 + 880 * seen, abs=0.01)
    assert seen.max() == pytest.approx(1, abs=1e-5)
    assert ((seen > 0.05) & (seen < 0.95)).sum() > 500


def test_noise_has_its_strength_and_the_grain_of_a_reconstruction():
    scanner = Scanner(blur_mm=1.0, thickness_mm=1.25, noise_hu=30.0)
    field = noise((8, 128, 128), (1.25, 0.7, 0.7), scanner, generator(0, "noise"))
    assert field.std() == pytest.approx(30, rel=1e-3)
    spectrum = (np.abs(np.fft.fft2(field)) ** 2).mean(0)
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128, 0.7)] * 2, indexing="ij"))
    power = [spectrum[(radius >= a) & (radius < a + 0.1)].mean() for a in (0.0, 0.25, 0.6)]
    assert power[0] < power[1] > power[2]


def test_smooth_field_is_standard_normal():
    field = smooth_field((60, 120, 120), (1.0, 1.0, 1.0), 4.0, generator(0, "field"))
    assert abs(field.mean()) < 0.1
    assert field.std() == pytest.approx(1, abs=0.08)


def test_real_cases_stay_within_the_disagreement(cases):
    for case in cases:
        phantom = phantom_of(case, 0)
        union = ndimage.binary_dilation(case.readers.any(0), iterations=2)
        assert phantom.membership[~union].sum() < 0.1 * phantom.membership.sum()
        mean = case.readers.mean(0)
        assert np.abs(phantom.membership - mean)[mean > 0].mean() > 0.02
        assert phantom.image.dtype == np.int16
        assert phantom.image.min() >= -1024
        assert phantom.image.max() <= 3071
