"""The region of interest that the systems of all methods are built on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from scipy.ndimage import distance_transform_cdt

from raymat.arrays import UNKNOWN, AnyArray, BoolArray, Float64Array, box_around
from raymat.matting.neighbors import Voxels
from raymat.matting.threads import ONE, Threads
from raymat.matting.windows import Windows, windows_around


@dataclass(frozen=True)
class Region:
    """A part of an image with its trimap; what several methods need of it is computed once.

    Attributes
    ----------
    features: float64 array (z, y, x, c), scaled to 0 to 1.
    trimap: array (z, y, x) of `BACKGROUND`, `UNKNOWN` and `FOREGROUND`.
    step: (3,) distance of neighbouring voxels along each axis, as a part of the grid's longest side; 0 for an axis
        that the image lacks.
    constraint_weight: lambda of Eq. 2 and 3.
    threads: what its systems may use.
    """

    features: Float64Array
    trimap: AnyArray
    step: Float64Array
    constraint_weight: float = 100.0
    threads: Threads = ONE

    @cached_property
    def unknown(self) -> BoolArray:
        """The voxels to solve for, (z, y, x)."""
        unknown: BoolArray = self.trimap == UNKNOWN
        return unknown

    @cached_property
    def depth(self) -> int:
        """Voxels from the deepest unknown voxel to the nearest known one, diagonals counted as one."""
        return int(distance_transform_cdt(self.unknown[box_around(self.unknown, (1, 1, 1))], "chessboard").max())

    @cached_property
    def voxels(self) -> Voxels:
        """The voxels as points of feature and place."""
        return Voxels(self.features, self.threads)

    @cached_property
    def windows(self) -> Windows:
        """The windows that touch unknown voxels."""
        return windows_around(self.features, self.unknown)
