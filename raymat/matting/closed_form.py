"""CF, closed-form matting: A. Levin, D. Lischinski, Y. Weiss, "A closed-form solution to natural image matting",
TPAMI 2008; carried to three dimensions in the paper's section 4.1, Eq. 3."""

from __future__ import annotations

import numpy as np

from raymat.arrays import Float64Array
from raymat.matting.region import Region
from raymat.matting.solve import System, TurnTo
from raymat.matting.windows import MULTIGRID_STEPS, WindowLaplacian, Windows, invert


def system(region: Region, epsilon: float) -> System:
    """The matting Laplacian of the windows around unknown voxels; `epsilon` as in `projection`."""
    L = WindowLaplacian(region.windows, projection(region.windows, epsilon), region.threads)
    multigrid = TurnTo(L.multigrid, MULTIGRID_STEPS, L.steps(region.depth))
    return System(region.windows.voxels, L, L.diagonal, multigrid=multigrid)


def projection(windows: Windows, epsilon: float) -> Float64Array:
    """P of every window, so that its part of the Laplacian is `delta_ij - x_i^T P x_j` with `x = [f - mu, 1]`.

    Eq. 3: `delta_ij - (1/m) (1 + (f_i - mu)^T (Sigma + (epsilon/m) I)^-1 (f_j - mu))`.

    Parameters
    ----------
    windows: Windows
        w windows of m voxels and c channels, with their biased covariances.
    epsilon: float
        Regularisation of the covariance.

    Returns
    -------
    float64 array (w, c + 1, c + 1)
    """
    m, Sigma = windows.size, windows.covariance
    count, c, _ = Sigma.shape
    P = np.zeros((count, c + 1, c + 1))
    P[:, :c, :c] = invert(Sigma + (epsilon / m) * np.eye(c)) / m
    P[:, c, c] = 1 / m
    return P
