"""Errors between two alpha mattes: SAD, MSE, Grad and Conn.

C. Rhemann et al., "A perceptually motivated online benchmark for image matting", CVPR 2009, carried to three
dimensions as in the paper's section 6. All values are returned as defined, unscaled; `REPORT_SCALE` holds the factors
that the paper's tables are printed with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

REPORT_SCALE = {"sad": 1e-2, "mse": 1e3, "gradient": 1e-2, "connectivity": 1e-2}

GRADIENT_SIGMA = 1.4  # voxels
CONNECTIVITY_LEVELS = 10  # levels 0.1 apart
CONNECTIVITY_THETA = 0.15


def sad(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Sum of absolute differences.

    Parameters
    ----------
    a, b: arrays (z, y, x) or (y, x)
        Two mattes on one grid, in [0, 1].
    region: bool array of the same shape, optional
        The voxels that count, such as `trimap == 128`; all by default.

    Raises
    ------
    ValueError
        Shapes that differ, values that are not finite, or a region that is not boolean or holds no voxel.
    """
    a, b, region = _checked(a, b, region)
    return float(np.abs(a - b)[region].sum())


def mse(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Mean of squared differences. Parameters and errors as in `sad`."""
    a, b, region = _checked(a, b, region)
    return float(((a - b) ** 2)[region].mean())


def gradient(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Sum of squared differences of gradient magnitudes, by first-order Gaussian derivatives of sigma 1.4 voxels.

    Derivatives are taken on the whole grid, continued by its outermost voxels; the region restricts the sum alone.
    Parameters and errors as in `sad`.
    """
    a, b, region = _checked(a, b, region)
    return float(((gradient_magnitude(a) - gradient_magnitude(b)) ** 2)[region].sum())


def connectivity(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Sum of |phi(a) - phi(b)|, phi the degree to which a voxel is connected to what both mattes hold for solid.

    For levels 0.1 apart, Omega is the largest 26-connected (in 2D 8-connected) component of the voxels where both
    mattes reach the level. l_i is the highest level up to which voxel i stays in Omega, d_i = a_i - l_i, and
    phi_i = 1 - d_i where d_i >= theta = 0.15, else 1 (p = 1). As in the source's code a voxel that has left Omega does
    not come back at a higher level. Of components of one size the first in raster order counts.

    Omega is found on the whole grid; the region restricts the sum alone. Parameters and errors as in `sad`.
    """
    a, b, region = _checked(a, b, region)
    structure = np.ones((3,) * a.ndim)
    highest = np.zeros(a.shape)
    staying = np.ones(a.shape, dtype=bool)
    for step in range(1, CONNECTIVITY_LEVELS + 1):
        level = step / CONNECTIVITY_LEVELS
        components, count = ndimage.label((a >= level) & (b >= level), structure)
        if count == 0:
            break
        sizes = np.bincount(components.ravel())
        staying &= components == 1 + np.argmax(sizes[1:])
        highest[staying] = level
    return float(np.abs(_phi(a, highest) - _phi(b, highest))[region].sum())


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two bool masks: twice what they share over what they hold; 1 where both are empty."""
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / both if both else 1.0


def soft_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two mattes: twice the sum of the smaller alpha over the sum of both; 1 where both are 0.

    It is 1 for equal mattes, and that of their masks where all values are 0 or 1 (Crum, Camara and Hill, IEEE
    Transactions on Medical Imaging 25:1451-1461, 2006). Parameters and errors as in `sad`.
    """
    a, b, _ = _checked(a, b, None)
    both = float(a.sum() + b.sum())
    return 2 * float(np.minimum(a, b).sum()) / both if both else 1.0


def spread(values: npt.ArrayLike) -> float:
    """Standard deviation of what was measured again and again, on other splits or from other seeds.

    That of a sample (divided by n - 1), as four splits stand for all that could be drawn; NaN for one value. Splits of
    the same patients overlap, so that even this is smaller than the deviation between new datasets.
    """
    values = np.asarray(values, float)
    return float(values.std(ddof=1)) if values.size > 1 else float("nan")


def _phi(alpha: np.ndarray, highest: np.ndarray) -> np.ndarray:
    d = alpha - highest
    return np.where(d >= CONNECTIVITY_THETA, 1.0 - d, 1.0)


def gradient_magnitude(alpha: np.ndarray) -> np.ndarray:
    """The length of the gradient by Gaussian derivatives of sigma 1.4 voxels, float64; what `gradient` compares."""
    squares = np.zeros(alpha.shape)
    for axis in range(alpha.ndim):
        order = [int(axis == other) for other in range(alpha.ndim)]
        squares += ndimage.gaussian_filter(alpha, GRADIENT_SIGMA, order=order, mode="nearest") ** 2
    return np.sqrt(squares)


def _checked(a: np.ndarray, b: np.ndarray, region: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"the two mattes differ in shape: {a.shape} and {b.shape}")
    if a.ndim not in (2, 3):
        raise ValueError(f"mattes have 2 or 3 axes, not {a.ndim}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a matte holds NaN or infinite values")
    if region is None:
        region = np.ones(a.shape, dtype=bool)
    region = np.asarray(region)
    if region.shape != a.shape or region.dtype != bool:
        raise ValueError(f"region must be a bool array of shape {a.shape}, not {region.dtype} of shape {region.shape}")
    if not region.any():
        raise ValueError("region holds no voxel")
    return a, b, region
