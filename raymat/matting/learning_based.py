"""LB, learning-based matting with a linear kernel: Y. Zheng, C. Kambhamettu, "Learning based digital matting",
ICCV 2009; carried to three dimensions as in the paper's section 4.1."""

from __future__ import annotations

import numpy as np

from raymat.arrays import Float64Array
from raymat.matting.region import Region
from raymat.matting.solve import System, TurnTo
from raymat.matting.windows import MULTIGRID_STEPS, WindowLaplacian, Windows, invert


def system(region: Region, epsilon: float) -> System:
    """The Laplacian of the regressions in the windows around unknown voxels; `epsilon` as in `projection`."""
    L = WindowLaplacian(region.windows, projection(region.windows, epsilon), region.threads)
    multigrid = TurnTo(L.multigrid, MULTIGRID_STEPS, L.steps(region.depth))
    return System(region.windows.voxels, L, L.diagonal, multigrid=multigrid)


def projection(windows: Windows, epsilon: float) -> Float64Array:
    """P of every window, so that `(I - F)(I - F)^T = delta_ij - x_i^T P x_j` with `x = [f - mu, 1]`.

    With `X = [f, 1]`, `G = X^T X` and `M = (G + epsilon I)^-1`, `F = X M X^T` and

        (I - F)(I - F)^T = I - X (2 M - M G M) X^T = I - X (M + epsilon M^2) X^T.

    The last form has no difference of large numbers. Neither does `[f - mu, 1] = B^-1 [f, 1]` with `B = [I mu; 0 1]`,
    in which G is block diagonal, `m diag(Sigma, 1)`, and the identity becomes `E = B^-1 B^-T`: a window without
    contrast is where both matter, since there G is singular and M of the order of 1 / epsilon.

    Parameters
    ----------
    windows: Windows
        w windows of m voxels and c channels, with their means and biased covariances.
    epsilon: float
        Ridge of the local regression.

    Returns
    -------
    float64 array (w, c + 1, c + 1)
    """
    m, mu, Sigma = windows.size, windows.mean, windows.covariance
    count, c, _ = Sigma.shape
    G = np.zeros((count, c + 1, c + 1))
    G[:, :c, :c] = m * Sigma
    G[:, c, c] = m
    E = np.empty_like(G)
    E[:, :c, :c] = np.eye(c) + mu[:, :, None] * mu[:, None, :]
    E[:, :c, c] = E[:, c, :c] = -mu
    E[:, c, c] = 1.0
    M = invert(G + epsilon * E)
    return M + epsilon * (M @ E @ M)
