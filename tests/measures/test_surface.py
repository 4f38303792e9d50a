"""Surface, sphericity and border against geometry, and against the published values of IBSI's digital phantom."""

import math

import numpy as np
import pytest
from skimage.measure import marching_cubes, mesh_surface_area

from raymat.measures.surface import Border, border_of, surface_of
from tests.support.ibsi import MASK, SPACING_MM
from tests.support.nodules import distances

STEP = (0.5, 0.5, 0.5)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 - distance / width, 0, 1).astype(np.float32)


def test_a_ball_has_its_surface_a_sphericity_of_one_and_the_border_it_was_drawn_with():
    radius, width = 8.0, 2.5
    alpha = ramp(distances((45, 45, 45), (22.3, 21.8, 22.1), 0.5) - radius, width)
    surface = surface_of(alpha, STEP)
    assert surface.volume_mm3 == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert surface.area_mm2 == pytest.approx(4 * math.pi * radius**2, rel=0.01)
    assert surface.sphericity == pytest.approx(1, abs=0.01)
    border = border_of(alpha, STEP, surface)
    assert border.width_mm == pytest.approx(0.8 * width, abs=0.05)
    assert border.spread_mm < 0.15
    assert border.measured == pytest.approx(1)


def test_an_ellipsoid_has_knud_thomsens_surface():
    z, y, x = np.mgrid[:41, :61, :81] * 0.5 - np.array([10, 15, 20]).reshape(3, 1, 1, 1)
    a, b, c = 6.0, 9.0, 15.0
    level = np.sqrt((z / a) ** 2 + (y / b) ** 2 + (x / c) ** 2)
    surface = surface_of(np.clip(0.5 + (1 - level) * 5, 0, 1), STEP)
    p = 1.6075
    area = 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    assert surface.area_mm2 == pytest.approx(area, rel=0.015)
    assert surface.volume_mm3 == pytest.approx(4 / 3 * math.pi * a * b * c, rel=0.01)


def test_a_border_that_is_sharp_on_one_side_has_a_spread():
    off = distances((45, 45, 45), None, 0.5) - 8.0
    side = (np.arange(45) - 22) > 0
    alpha = np.where(side, ramp(off, 4.0), ramp(off, 1.0))
    border = border_of(alpha, STEP, surface_of(alpha, STEP))
    assert border.spread_mm == pytest.approx(0.8 * (4.0 - 1.0), abs=0.3)
    everywhere = ramp(off, 4.0)
    assert border_of(everywhere, STEP, surface_of(everywhere, STEP)).spread_mm < 0.2


def test_places_and_areas_are_those_of_scikit_image_on_any_grid():
    rng = np.random.default_rng(3)
    alpha = np.clip(ramp(distances((12, 20, 16)) - 5, 3.0) + rng.normal(0, 0.05, (12, 20, 16)), 0, 1)
    spacing = (2.0, 0.7, 0.9)
    surface = surface_of(alpha, spacing)
    places, faces, _, _ = marching_cubes(np.pad(alpha, 1), 0.5, spacing=spacing)
    assert surface.area_mm2 == pytest.approx(mesh_surface_area(places, faces), rel=1e-4)
    assert np.einsum("ij,ij->i", surface.normals, surface.places - surface.places.mean(0)).mean() > 0


def test_the_surface_of_ibsis_digital_phantom_has_the_published_values():
    """Zwanenburg et al., IBSI reference manual: mesh volume 556 mm3, area 388 mm2, sphericity 0.843."""
    surface = surface_of(MASK.astype(np.float32), SPACING_MM)
    assert surface.volume_mm3 == pytest.approx(556, abs=0.5)
    assert surface.area_mm2 == pytest.approx(388, abs=0.5)
    assert surface.sphericity == pytest.approx(0.843, abs=5e-4)


def test_where_alpha_stays_low_there_is_no_surface_and_where_it_never_rises_no_border():
    assert surface_of(np.full((4, 4, 4), 0.5, np.float32), STEP) is None
    faint = 0.6 * ramp(distances((25, 25, 25), None, 0.5) - 4, 1.0)
    border = border_of(faint, STEP, surface_of(faint, STEP))
    assert border.measured == 0
    assert math.isnan(border.width_mm)
    assert border_of(faint, STEP, surface_of(faint, STEP)).measured == Border().measured
