"""Coarser grids whose voxels are whole blocks of a nodule's own."""

from __future__ import annotations

import numpy as np

from raymat.nodule import InputError, Nodule, required


def factor_of(nodule: Nodule, spacing_mm: float) -> int:
    """How many voxels of the nodule make one of ``spacing_mm``, along every axis.

    Raises
    ------
    InputError
        It is no whole number, or not the same along every axis.
    """
    own = required(nodule.spacing, nodule, "spacing")
    factors = [spacing_mm / spacing for spacing in own]
    factor = round(factors[0])
    if factor < 1 or any(abs(f - factor) > 1e-3 for f in factors):
        raise InputError(
            f"{nodule.nodule_id}: on a grid of {' x '.join(f'{s:g}' for s in own)} mm (z, y, x), of which "
            f"{spacing_mm:g} mm is no whole multiple; build the dataset with another --spacing-mm"
        )
    return factor


def block_means(array: np.ndarray, factor: int) -> np.ndarray:
    """The mean of each block of ``factor`` voxels along every axis.

    Parameters
    ----------
    array : (z, y, x); what its sides have beyond a multiple of ``factor`` is left out at both ends

    Returns
    -------
    float32, ``factor`` times smaller; the array itself where that is 1
    """
    if factor == 1:
        return array
    starts = [size % factor // 2 for size in array.shape]
    z, y, x = (size // factor for size in array.shape)
    part = array[tuple(slice(s, s + n * factor) for s, n in zip(starts, (z, y, x), strict=True))]
    return part.reshape(z, factor, y, factor, x, factor).mean(axis=(1, 3, 5), dtype=np.float32)
