"""Shape of the surface where alpha is 0.5, and the width of the border across it. Arrays (z, y, x), mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes

from raymat.arrays import Float64Array
from raymat.measures.intensity import weighted_percentiles

NAN = math.nan
LEVELS = (0.9, 0.1)  # of alpha, where the border begins and ends
REACH_MM = 6.0  # how far from the surface a border may begin or end
STEP_MM = 0.1
MOST_PLACES = 2_000  # on the surface at which the border is measured


@dataclass(frozen=True)
class Surface:
    """A closed surface of triangles.

    Attributes
    ----------
    places : float64 (n, 3), mm from the centre of voxel [0, 0, 0]
    normals : float64 (n, 3), outward unit vectors
    areas : float64 (n,), mm2, a third of the triangles about each place
    volume_mm3 : inside
    """

    places: Float64Array
    normals: Float64Array
    areas: Float64Array
    volume_mm3: float

    @property
    def area_mm2(self) -> float:
        """The area."""
        return float(self.areas.sum())

    @property
    def sphericity(self) -> float:
        """The surface of the ball of this volume over this surface (IBSI QCFX)."""
        return float((36.0 * math.pi * self.volume_mm3**2) ** (1.0 / 3.0) / self.area_mm2)


def surface_of(alpha: np.ndarray, spacing: Sequence[float], level: float = 0.5) -> Surface | None:
    """The surface where alpha is ``level``, by marching cubes; None where alpha nowhere exceeds it.

    Beyond the array alpha is 0, so that the surface is closed.
    """
    if not alpha.max() > level:
        return None
    padded = np.pad(np.asarray(alpha, dtype=np.float32), 1)
    places, faces, _, _ = marching_cubes(padded, level, spacing=tuple(spacing), allow_degenerate=False)
    places = places.astype(np.float64) - np.asarray(spacing)
    corners = places[faces]
    # Twice the area of each triangle along its normal.
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = float(np.einsum("ij,ij->", corners[:, 0], across)) / 6.0
    across *= math.copysign(1.0, volume)
    about = np.stack([np.bincount(faces.ravel(), np.repeat(across[:, a], 3), len(places)) for a in range(3)], axis=1)
    areas = np.bincount(faces.ravel(), np.repeat(np.linalg.norm(across, axis=1), 3), len(places)) / 6.0
    length = np.linalg.norm(about, axis=1, keepdims=True)
    return Surface(places, about / np.maximum(length, 1e-12), areas, abs(volume))


@dataclass(frozen=True)
class Border:
    """Width of the border over a surface.

    Attributes
    ----------
    width_mm : median distance along the normal over which alpha falls from 0.9 to 0.1
    spread_mm : interquartile range of it
    measured : share of the surface on which alpha reaches both within 6 mm; width and spread are NaN where that is 0
    """

    width_mm: float = NAN
    spread_mm: float = NAN
    measured: float = 0.0


def border_of(alpha: np.ndarray, spacing: Sequence[float], surface: Surface) -> Border:
    """The width of the border at places spread over a surface of this alpha, each weighted by its area."""
    chosen = slice(None, None, max(1, -(-len(surface.places) // MOST_PLACES)))
    places, normals, areas = surface.places[chosen], surface.normals[chosen], surface.areas[chosen]
    inward, outward = (
        _first_reached(alpha, spacing, places, sign * normals, level)
        for sign, level in zip((-1.0, 1.0), LEVELS, strict=True)
    )
    width = inward + outward
    known = np.isfinite(width)
    if not areas[known].sum() > 0:
        return Border()
    low, middle, high = weighted_percentiles(width[known], areas[known], (25.0, 50.0, 75.0))
    return Border(middle, high - low, float(areas[known].sum() / areas.sum()))


def _first_reached(
    alpha: np.ndarray, spacing: Sequence[float], places: Float64Array, directions: Float64Array, level: float
) -> Float64Array:
    """How far from each place on the surface alpha first reaches a level, mm, (n,); NaN where it does not."""
    steps = np.arange(0.0, REACH_MM + STEP_MM / 2, STEP_MM)
    points = (places[:, :, None] + directions[:, :, None] * steps) / np.asarray(spacing)[:, None]
    along = map_coordinates(np.asarray(alpha, np.float32), points.transpose(1, 0, 2), order=1, mode="constant")
    reached = along >= level if level > 0.5 else along <= level
    reached[:, 0] = False
    first = reached.argmax(axis=1)
    found = first > 0
    at = np.arange(len(places))[found]
    before, after = (along[at, k].astype(np.float64) for k in (first[found] - 1, first[found]))
    out: Float64Array = np.full(len(places), np.nan)
    share = np.clip((level - before) / np.where(after == before, 1.0, after - before), 0.0, 1.0)
    out[found] = steps[first[found] - 1] + share * STEP_MM
    return out
