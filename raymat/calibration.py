"""The calibrated foreground of the "+" methods (paper, section 4.2, Eq. 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raymat.arrays import AnyArray, Float64Array


@dataclass(frozen=True)
class HUWindow:
    """The share of lesion tissue that an intensity inside the foreground stands for (paper, Eq. 4).

    Pure lesion (alpha 1) lies between `l_low = level + width / 2`, the upper limit of the observation window, and
    `l_high`. Below it `q` rises linearly from 0 at `level - width / 2`; above it `p` falls linearly to 0 over `fall`.

    Parameters
    ----------
    level, width: float
        Observation window in HU (or in the unit of the image where it is no CT). The lung window is `LUNG_WINDOW`.
    l_high: float
        Where pure lesion ends, in HU. Infinite by default: nothing is too dense to be lesion.
    fall: float, optional
        Width in HU over which `p` falls from 1 at `l_high` to 0; `width` by default.

    Raises
    ------
    ValueError
        A number that is not finite, a width or fall that is not positive, or `l_high` below `l_low`.
    """

    level: float
    width: float
    l_high: float = math.inf
    fall: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.level) and math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"HUWindow needs a finite level and a width above 0, not {self.level} and {self.width}")
        if not self.l_high >= self.l_low:
            raise ValueError(f"HUWindow: l_high {self.l_high} lies below l_low = level + width / 2 = {self.l_low}")
        if self.fall is not None and not (math.isfinite(self.fall) and self.fall > 0):
            raise ValueError(f"HUWindow: fall must be a width above 0 in HU, not {self.fall}")

    @property
    def l_low(self) -> float:
        """The intensity from which a foreground voxel is pure lesion, in HU."""
        return self.level + self.width / 2

    def alpha(self, intensity: AnyArray) -> Float64Array:
        """Calibrated alpha of foreground voxels.

        Parameters
        ----------
        intensity: array of any shape
            Raw intensities in HU, never the clipped and scaled feature.

        Returns
        -------
        float64 array of the same shape, in [0, 1].
        """
        hu = np.asarray(intensity, dtype=np.float64)
        q: Float64Array = np.clip((hu - (self.level - self.width / 2)) / self.width, 0.0, 1.0)
        if math.isinf(self.l_high):
            return q
        p: Float64Array = np.clip(1.0 - (hu - self.l_high) / (self.fall or self.width), 0.0, 1.0)
        both: Float64Array = np.minimum(p, q)
        return both


LUNG_WINDOW = HUWindow(-600.0, 1500.0)
