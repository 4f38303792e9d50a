"""Volume and diameters. Arrays (z, y, x), spacing (z, y, x) in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from skimage.measure import find_contours

from raymat.arrays import Float64Array

HALF = 0.5  # the level of alpha at which a border lies
CHORDS_PER_PIXEL = 4
NAN = math.nan


def volume_mm3(alpha: np.ndarray, spacing: Sequence[float]) -> float:
    """The sum of an alpha or a mask of 0 and 1, times the volume of a voxel."""
    return float(alpha.sum(dtype=np.float64)) * math.prod(spacing)


def equivalent_diameter_mm(volume: float) -> float:
    """The diameter of the ball of a volume in mm3."""
    return (6.0 * volume / math.pi) ** (1.0 / 3.0)


@dataclass(frozen=True)
class AxialDiameters:
    """The two diameters of a lesion in one axial slice, mm; NaN and slice -1 where alpha nowhere reaches the level."""

    longest_mm: float = NAN
    perpendicular_mm: float = NAN
    slice: int = -1

    @property
    def mean_mm(self) -> float:
        """The mean of the two."""
        return (self.longest_mm + self.perpendicular_mm) / 2


def axial_diameters(alpha: np.ndarray, spacing: Sequence[float], level: float = HALF) -> AxialDiameters:
    """The longest diameter of an outline in any axial slice, and the longest chord at a right angle to it.

    Outlines are those of marching squares, finer than a pixel. Each piece of the lesion in a slice has its own. As in
    RECIST 1.1 both diameters are taken in the same slice; a chord lies inside the outline.

    Parameters
    ----------
    alpha : (z, y, x), 0 to 1
    spacing : (z, y, x) mm
    level : alpha on the outline
    """
    pixel = np.asarray(spacing[1:], dtype=np.float64)
    best, outline, direction, best_slice = 0.0, None, np.zeros(2), -1
    for diagonal, number in _longest_first(alpha >= level, pixel):
        if diagonal <= best:
            break
        padded = np.pad(np.asarray(alpha[number], dtype=np.float64), 1)
        for contour in find_contours(padded, level):
            points = contour * pixel
            distance = cdist(points, points)
            i, j = np.unravel_index(int(distance.argmax()), distance.shape)
            if distance[i, j] > best:
                best, best_slice = float(distance[i, j]), number
                outline, direction = points, (points[j] - points[i]) / distance[i, j]
    if outline is None:
        return AxialDiameters()
    return AxialDiameters(best, _longest_chord(outline, direction, float(pixel.min()) / CHORDS_PER_PIXEL), best_slice)


def _longest_first(inside: np.ndarray, pixel: Float64Array) -> list[tuple[float, int]]:
    """Slices that are not empty with a length in mm that no diameter in them exceeds, the longest first."""
    found = []
    for number in np.flatnonzero(inside.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(inside[number].any(axis=axis)) for axis in (1, 0))
        # An outline reaches at most one pixel beyond the voxels inside it, at either end.
        sides = np.array([np.ptp(rows) + 2, np.ptp(columns) + 2]) * pixel
        found.append((float(np.hypot(*sides)), int(number)))
    return sorted(found, reverse=True)


def _longest_chord(outline: Float64Array, direction: Float64Array, step: float) -> float:
    """The longest chord in mm inside a closed outline, float (n, 2), at a right angle to a unit vector."""
    along, across = outline @ direction, outline @ np.array([-direction[1], direction[0]])
    longest = 0.0
    for place in np.arange(along.min() + step / 2, along.max(), step):
        crossed = np.flatnonzero((along[:-1] < place) != (along[1:] < place))
        share = (place - along[crossed]) / (along[crossed + 1] - along[crossed])
        ends = np.sort(across[crossed] + share * (across[crossed + 1] - across[crossed]))
        # A closed outline is entered and left in turn.
        longest = max(longest, float((ends[1::2] - ends[::2]).max(initial=0.0)))
    return longest
