"""What is known of unknown voxels beside the image: a data term for where the image cannot tell lesion from what lies
beside it.

Next to chest wall, mediastinum or a vessel of the lesion's own density the matting energy (paper, Eq. 3) says nothing
of where the lesion ends, and alpha runs along them. There the readers know more. A `Prior` adds to the energy, over the
unknown voxels, `sum of t_i (a_i - p_i)^2` with the readers' mean mask as p and a trust t that is 0 where the lesion
stands out against all known background near by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from raymat.arrays import BACKGROUND, FOREGROUND, AnyArray, BoolArray, Float32Array, Float64Array, box_around

PRIOR_VERSION = 1  # raised by every change that moves a prior; part of the keys of mattes that have one
NEAR_MM = 2.5  # half width of the windows in which background as dense as the lesion counts
REACH_MM = 10.0  # background looked at around the lesion
SOFT_MM = 0.5  # standard deviation by which the readers' mean mask is smoothed; trust by twice as much
STANDS_OUT = 0.5  # share of the lesion's contrast to lung that sets it apart from background
LEVEL_MM = 1.5  # standard deviation of the means in which calibrated foreground is continued into the unknown region


@dataclass(frozen=True)
class Prior:
    """What unknown voxels are expected to be.

    Attributes
    ----------
    alpha : float32 (z, y, x), the expected membership, 0 to 1
    trust : float32 (z, y, x), 0 for none; in units of a solver's own `prior_weight`
    """

    alpha: Float32Array
    trust: Float32Array


def readers_prior(
    image: AnyArray, trimap: AnyArray, readers: Sequence[AnyArray], spacing: Sequence[float]
) -> Prior | None:
    """``expected_prior`` of the readers' mean mask.

    Parameters
    ----------
    image, trimap, spacing : as there
    readers : masks (z, y, x), 1 inside; one or more
    """
    mean = np.asarray(np.mean([mask != 0 for mask in readers], axis=0, dtype=np.float32))
    return expected_prior(image, trimap, mean, spacing)


def expected_prior(image: AnyArray, trimap: AnyArray, expected: AnyArray, spacing: Sequence[float]) -> Prior | None:
    """What is expected of every voxel, trusted beside background that is as dense as the lesion.

    None without foreground or background, and for a lesion that is darker than most of what surrounds it.

    Parameters
    ----------
    image : float (z, y, x), HU or another unit in which the lesion is brighter than most of its surroundings
    trimap : uint8 (z, y, x), 0 background, 128 unknown, 255 foreground
    expected : float (z, y, x), 0 to 1, the mean of the readers' masks or a network's probability of lesion
    spacing : (z, y, x) mm
    """
    if not (trimap == FOREGROUND).any() or not (trimap == BACKGROUND).any():
        return None
    box = box_around(trimap != BACKGROUND, [math.ceil(REACH_MM / step) for step in spacing])
    values = np.asarray(image[box], np.float32)
    background, foreground = trimap[box] == BACKGROUND, trimap[box] == FOREGROUND
    smooth = ndimage.uniform_filter(values, 3)
    lesion = float(np.percentile(smooth[foreground], 75))
    contrast = lesion - float(np.percentile(values[background], 25))
    if contrast <= 0:
        return None
    windows = [2 * max(1, round(NEAR_MM / step)) + 1 for step in spacing]
    densest = ndimage.maximum_filter(np.where(background, smooth, -np.inf), windows)
    alike = np.clip(1.0 - (lesion - densest) / (STANDS_OUT * contrast), 0.0, 1.0).astype(np.float32)
    prior = Prior(np.zeros(trimap.shape, np.float32), np.zeros(trimap.shape, np.float32))
    prior.alpha[box] = ndimage.gaussian_filter(
        np.asarray(expected[box], np.float32), [SOFT_MM / step for step in spacing]
    )
    prior.trust[box] = ndimage.gaussian_filter(alike, [2 * SOFT_MM / step for step in spacing])
    return prior


def continued(S: Float64Array, foreground: BoolArray, spacing: Sequence[float]) -> Float64Array:
    """The calibrated foreground S (z, y, x) continued into its surroundings by means of what is near, 0 to 1."""
    sigma = [LEVEL_MM / step for step in spacing]
    whole = float(S[foreground].mean())
    weight = ndimage.gaussian_filter(foreground.astype(float), sigma, truncate=6)
    above = ndimage.gaussian_filter(np.where(foreground, S - whole, 0.0), sigma, truncate=6)
    return np.asarray(np.clip(above / (weight + 1e-9) + whole, 0.0, 1.0))
