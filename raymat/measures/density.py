"""Mass, and the solid and ground-glass parts. Arrays (z, y, x), HU, spacing (z, y, x) in mm.

Membership m says how much of a voxel is lesion, calibrated alpha c that share times the share q of pure lesion tissue
that the lesion's density stands for (``docs/explanation/alpha.md``). So c / m is q, and q gives the density of the
lesion's own tissue in a voxel, without what lies beside it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raymat.arrays import BoolArray
from raymat.calibration import HUWindow

SOLID_HU = -300.0  # tissue that is denser is solid


def mass_mg(membership: np.ndarray, image: np.ndarray, spacing: Sequence[float]) -> float:
    """The sum of membership times density, g/cm3 = (HU + 1000) / 1000, which is 0 for what is less dense than air."""
    density = np.maximum(np.asarray(image, dtype=np.float64) + 1000.0, 0.0) / 1000.0
    return float((membership * density).sum()) * math.prod(spacing)


def tissue_mass_mg(membership: np.ndarray, calibrated: np.ndarray, window: HUWindow, spacing: Sequence[float]) -> float:
    """The mass of the lesion's own tissue, from both mattes; density as in ``mass_mg``.

    Tissue beyond either end of the window counts as if it had the density of that end.
    """
    empty_hu = window.level - window.width / 2
    whole, pure = (float(alpha.sum(dtype=np.float64)) for alpha in (membership, calibrated))
    density = window.width * min(pure, whole) + (empty_hu + 1000.0) * whole
    return max(density, 0.0) / 1000.0 * math.prod(spacing)


def solid_by_mattes(
    membership: np.ndarray, calibrated: np.ndarray, window: HUWindow, solid_hu: float = SOLID_HU
) -> BoolArray:
    """Where the lesion's own tissue is at least as dense as ``solid_hu``; (z, y, x)."""
    share = float(window.alpha(np.array(solid_hu)))
    solid: BoolArray = (membership > 0) & (calibrated >= share * membership)
    return solid


def solid_by_hu(image: np.ndarray, solid_hu: float = SOLID_HU) -> BoolArray:
    """Where the image is at least as dense as ``solid_hu``; (z, y, x)."""
    return np.asarray(image) >= solid_hu
