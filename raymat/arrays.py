"""Names for arrays by their elements (axes and units are said where an array is used), boxes, values of a trimap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Float32Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
UInt8Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Int64Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Int32Array = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.integer]]
AnyArray = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

# A part of a grid: from which voxel to before which, along each axis.
Box: TypeAlias = "tuple[slice[int, int, None], ...]"

# The values of a trimap, uint8.
BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255

T = TypeVar("T")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Three values, one for each axis."""
    z, y, x = values
    return z, y, x


def box_around(mask: AnyArray, margin: Sequence[int] = (0, 0, 0)) -> Box:
    """The smallest box with all that is not 0 in a mask, wider by a margin as far as the grid reaches; empty for none.

    Parameters
    ----------
    mask : (z, y, x)
    margin : voxels along each axis, on both sides
    """
    box = []
    for axis, more in enumerate(margin):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ends = (max(int(hit[0]) - more, 0), min(int(hit[-1]) + 1 + more, mask.shape[axis])) if hit.size else (0, 0)
        box.append(slice(*ends))
    return tuple(box)
