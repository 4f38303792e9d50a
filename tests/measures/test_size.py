"""Volume and diameters against what geometry says of a ball, an ellipsoid and an L, and against scikit-image."""

import math

import numpy as np
import pytest
from skimage.measure import label, regionprops

from raymat.measures import size_classes
from raymat.measures.size import axial_diameters, equivalent_diameter_mm, volume_mm3
from tests.support.nodules import distances


def soft_ball(radius_mm: float, spacing: tuple[float, float, float], width_mm: float = 1.0, off=(0.2, -0.3, 0.1)):
    """A ball whose alpha falls from 1 to 0 over a width, (z, y, x)."""
    shape = [2 * math.ceil((radius_mm + width_mm) / step) + 5 for step in spacing]
    distance = distances(shape, [(n - 1) / 2 + o for n, o in zip(shape, off, strict=True)], spacing)
    return np.clip(0.5 + (radius_mm - distance) / width_mm, 0, 1).astype(np.float32)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (1.25, 0.7, 0.7)])
def test_a_soft_ball_has_the_volume_and_diameters_of_the_ball(spacing):
    radius = 7.3
    alpha = soft_ball(radius, spacing, 2.0)
    # The mean over a linear ramp of width w adds pi w^2 r / 3 to 4/3 pi r^3.
    by_hand = 4 / 3 * math.pi * radius**3 + math.pi * 2.0**2 * radius / 3
    assert volume_mm3(alpha, spacing) == pytest.approx(by_hand, rel=0.01)
    assert equivalent_diameter_mm(4 / 3 * math.pi * radius**3) == pytest.approx(2 * radius)
    found = axial_diameters(alpha, spacing)
    # No slice need run through the middle.
    lowest = 2 * math.sqrt(radius**2 - (spacing[0] / 2) ** 2)
    assert lowest - 0.1 <= found.longest_mm <= 2 * radius + 0.1
    assert found.perpendicular_mm == pytest.approx(found.longest_mm, abs=0.25)


def test_an_ellipse_turned_in_its_slice_has_its_own_axes():
    y, x = np.mgrid[:121, :121] - 60
    turned = np.deg2rad(33)
    u, v = x * np.cos(turned) + y * np.sin(turned), -x * np.sin(turned) + y * np.cos(turned)
    level = np.hypot(u / 40, v / 22)
    alpha = np.zeros((5, 121, 121), np.float32)
    alpha[1] = np.clip(0.5 + (1 - level) * 11, 0, 1)
    alpha[3] = alpha[1] * (np.hypot(u, v) < 15)
    found = axial_diameters(alpha, (2.0, 0.5, 0.5))
    assert found.slice == 1
    assert found.longest_mm == pytest.approx(40, abs=0.1)
    assert found.perpendicular_mm == pytest.approx(22, abs=0.1)
    assert found.mean_mm == pytest.approx(31, abs=0.1)
    (region,) = regionprops(label(alpha[1] >= 0.5))
    assert found.longest_mm == pytest.approx(0.5 * region.axis_major_length, rel=0.01)
    assert found.perpendicular_mm == pytest.approx(0.5 * region.axis_minor_length, rel=0.01)


def test_a_chord_lies_inside_the_outline_and_pieces_are_measured_apart():
    alpha = np.zeros((1, 60, 60), np.float32)
    alpha[0, 10:50, 10:14] = 1
    alpha[0, 46:50, 10:50] = 1  # an L: from corner to corner 40 pixels each way
    alpha[0, 5:8, 55:58] = 1  # another piece, beyond the longest diameter
    found = axial_diameters(alpha, (1.0, 1.0, 1.0))
    # The outline of a mask runs half-way between pixels and cuts their corners.
    assert found.longest_mm == pytest.approx(40 * math.sqrt(2), abs=1)
    # At a right angle to the diagonal the L is as wide as its corner alone, not as the air between its arms.
    assert found.perpendicular_mm < 9
    alone = alpha.copy()
    alone[0, 5:8, 55:58] = 0
    assert axial_diameters(alone, (1.0, 1.0, 1.0)) == found


def test_alpha_that_nowhere_reaches_a_half_has_no_diameter():
    found = axial_diameters(np.full((3, 8, 8), 0.4, np.float32), (1.0, 1.0, 1.0))
    assert math.isnan(found.longest_mm)
    assert math.isnan(found.mean_mm)
    assert found.slice == -1


def test_size_classes_have_the_thresholds_of_the_guidelines():
    assert [size_classes.fleischner_by_diameter(mm) for mm in (5.49, 5.5, 8.49, 8.5)] == [
        "<6 mm",
        "6-8 mm",
        "6-8 mm",
        ">8 mm",
    ]
    assert [size_classes.fleischner_by_volume(mm3) for mm3 in (99.9, 100, 250, 250.1)] == [
        "<100 mm3",
        "100-250 mm3",
        "100-250 mm3",
        ">250 mm3",
    ]
    by_mm = [size_classes.lung_rads_by_diameter(mm) for mm in (5.94, 5.96, 8.0, 14.9, 30)]
    assert by_mm == ["<6 mm", ">=6 to <8 mm", ">=8 to <15 mm", ">=8 to <15 mm", ">=30 mm"]
    by_mm3 = [size_classes.lung_rads_by_volume(mm3) for mm3 in (112, 113, 268, 1767, 14137)]
    assert by_mm3 == ["<113 mm3", ">=113 to <268 mm3", ">=268 to <1767 mm3", ">=1767 to <14137 mm3", ">=14137 mm3"]
    # Lung-RADS gives the volumes of balls of its diameters.
    balls = [math.pi / 6 * mm**3 for mm in size_classes.LUNG_RADS_MM]
    assert balls == pytest.approx(size_classes.LUNG_RADS_MM3, rel=2e-3)
    assert size_classes.fleischner_by_diameter(math.nan) is size_classes.lung_rads_by_volume(math.nan) is None
