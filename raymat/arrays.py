"""Names for arrays by what their elements are (axes and units are said where an array is used), and for boxes."""

from __future__ import annotations

from collections.abc import Iterable
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

T = TypeVar("T")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Three values, one for each axis."""
    z, y, x = values
    return z, y, x
