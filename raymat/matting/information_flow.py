"""IF, information-flow matting: Y. Aksoy, T. O. Aydin, M. Pollefeys, "Designing effective inter-pixel information flow
for natural image matting", CVPR 2017; carried to three dimensions as in the paper's section 4.1."""

from __future__ import annotations

import numpy as np

from raymat.arrays import BACKGROUND, FOREGROUND, Float64Array, Int32Array, Int64Array, IntArray
from raymat.compiled import compiled
from raymat.matting import closed_form, knn
from raymat.matting.region import Region
from raymat.matting.solve import GraphLaplacian, System
from raymat.matting.windows import WindowLaplacian

TOLERANCE = 2e-6  # of the solve; alpha is then within about 2e-5
MIXTURE_NEIGHBORS = 20
KNOWN_NEIGHBORS, KNOWN_SPATIAL_WEIGHT = 7, 10.0
INTRA_NEIGHBORS, INTRA_SPATIAL_WEIGHTS = (5, 1), (0.05, 0.0005)
INTRA_WEIGHT = 0.01
KNOWN_TO_UNKNOWN_WEIGHT = 0.05


def system(region: Region, known_to_unknown: bool, regularization: float, epsilon: float) -> System:
    """`L = L_cm + L_local + 0.01 L_iu` and, if asked for, the known-to-unknown term.

    `L_local` is built from the affinity A of the windows with rows normalised to sum 1. Since a window's affinities
    sum to 1 in every row, row i of A sums to the number n_i of windows that hold i, and `L_local = diag(1/n) (diag(n) -
    A)`: the closed-form Laplacian with its rows divided by n, slightly unsymmetric where n varies. It is solved as it
    stands: to divide by m everywhere, which would be symmetric, moves alpha by up to 7e-3 in small volumes.

    Parameters
    ----------
    region: the region of interest.
    known_to_unknown: whether to add that term.
    regularization: of the local-linear-embedding weights.
    epsilon: of the local affinity.
    """
    voxels, windows = region.voxels, region.windows
    values = voxels.values
    u = np.flatnonzero(region.unknown)
    spatial = np.where(region.step > 0, region.step, 1.0)

    mixture = voxels.nearest(spatial, MIXTURE_NEIGHBORS, u)
    # The voxels of the windows come first, in their order: the window sums then work on a stretch of every vector.
    others = np.zeros(len(values), dtype=bool)
    others[u] = True
    others[mixture[mixture >= 0]] = True
    others[windows.voxels] = False
    variables = np.concatenate([windows.voxels, np.flatnonzero(others)])
    rank = np.full(len(values), -1, dtype=np.int64)
    rank[variables] = np.arange(len(variables))
    local = len(windows.voxels)

    weight = _embedding(values, u, mixture, regularization)
    # Where there is no further neighbour the weight is 0, and the voxel itself stands in.
    mixture = np.where(mixture >= 0, mixture, u[:, None])
    L_cm = MixtureLaplacian(rank[u], rank[mixture], weight, len(variables))
    L_local = WindowLaplacian(windows, closed_form.projection(windows, epsilon), region.threads)
    normalise = 1 / windows.count
    i, j, intra = knn.edges(
        region,
        INTRA_NEIGHBORS,
        INTRA_SPATIAL_WEIGHTS,
        within_unknown=True,
        kernel_weight=INTRA_SPATIAL_WEIGHTS[-1],
    )
    L_iu = GraphLaplacian(rank[i], rank[j], INTRA_WEIGHT * intra, len(variables), region.threads)

    diagonal = L_cm.diagonal + L_iu.diagonal
    diagonal[:local] += normalise * L_local.diagonal
    trust, pull = np.zeros(len(variables)), np.zeros(len(variables))
    if known_to_unknown:
        a_hat, confidence = _known_to_unknown(region, spatial, u, regularization)
        trust[rank[u]] = KNOWN_TO_UNKNOWN_WEIGHT * confidence
        pull[rank[u]] = KNOWN_TO_UNKNOWN_WEIGHT * confidence * a_hat
        diagonal += trust

    def laplacian(p: Float64Array) -> Float64Array:
        y = L_cm(p)
        y += L_iu(p)
        y += trust * p
        y[:, :local] += normalise * L_local(p[:, :local])
        return y

    return System(variables, laplacian, diagonal, pull, symmetric=False, tolerance=TOLERANCE)


class MixtureLaplacian:
    """`L_cm = (I_u - W)^T (I_u - W)` with one row of weights for each unknown voxel, applied as two sparse products.

    Parameters
    ----------
    i: (u,) the unknown voxels' places among the variables.
    j: (u, k) their neighbours' places.
    weight: (u, k) their weights, summing to 1.
    n: number of variables.
    """

    def __init__(self, i: IntArray, j: IntArray, weight: Float64Array, n: int) -> None:
        self._i, self._j, self._weight = i.astype(np.uint32), j.astype(np.uint32), weight
        self.diagonal = _mixture_diagonal(self._i, self._j, weight, n)

    def __call__(self, p: Float64Array) -> Float64Array:
        """L_cm p for each row of p, (k, n)."""
        return _mixture_apply(p, self._i, self._j, self._weight)


@compiled
def _mixture_diagonal(i: IntArray, j: IntArray, weight: Float64Array, n: int) -> Float64Array:
    diagonal = np.zeros(n)
    for r in range(len(i)):
        diagonal[i[r]] += 1.0
        for s in range(j.shape[1]):
            diagonal[j[r, s]] += weight[r, s] * weight[r, s]
    return diagonal


@compiled
def _mixture_apply(p: Float64Array, i: IntArray, j: IntArray, weight: Float64Array) -> Float64Array:
    y = np.zeros_like(p)
    k, n = p.shape
    if k == 2:  # a method and its "+": one walk over the weights serves both
        both, out = np.empty((n, 2)), np.zeros((n, 2))
        for v in range(n):
            both[v, 0], both[v, 1] = p[0, v], p[1, v]
        for r in range(len(i)):
            one, two = both[i[r], 0], both[i[r], 1]
            for s in range(j.shape[1]):
                w = weight[r, s]
                one -= w * both[j[r, s], 0]
                two -= w * both[j[r, s], 1]
            out[i[r], 0] += one
            out[i[r], 1] += two
            for s in range(j.shape[1]):
                w = weight[r, s]
                out[j[r, s], 0] -= w * one
                out[j[r, s], 1] -= w * two
        for v in range(n):
            y[0, v], y[1, v] = out[v, 0], out[v, 1]
        return y
    for q in range(k):
        for r in range(len(i)):
            gap = p[q, i[r]]
            for s in range(j.shape[1]):
                gap -= weight[r, s] * p[q, j[r, s]]
            y[q, i[r]] += gap
            for s in range(j.shape[1]):
                y[q, j[r, s]] -= weight[r, s] * gap
    return y


@compiled
def _embedding(values: Float64Array, voxels: Int64Array, neighbors: Int32Array, regularization: float) -> Float64Array:
    """Local-linear-embedding weights: w minimises `|f_i - sum w_j f_j|^2 + reg |w|^2` with sum 1.

    `w ~ (N N^T + reg I)^-1 1` with the k rows `N_j = f_j - f_i`. N has only c columns, so by the Woodbury identity
    `(N N^T + reg I)^-1 1 ~ 1 - N (N^T N + reg I)^-1 N^T 1`: a system of c unknowns instead of k.
    """
    c = values.shape[1]
    k = neighbors.shape[1]
    weight = np.zeros((len(voxels), k))
    N = np.zeros((k, c))
    A = np.zeros((c, c + 1))
    for r in range(len(voxels)):
        A[:] = 0.0
        for a in range(c):
            A[a, a] = regularization
        for s in range(k):
            if neighbors[r, s] >= 0:
                for a in range(c):
                    N[s, a] = values[neighbors[r, s], a] - values[voxels[r], a]
                for a in range(c):
                    A[a, c] += N[s, a]
                    for b in range(c):
                        A[a, b] += N[s, a] * N[s, b]
        for a in range(c):
            for d in range(a + 1, c):
                factor = A[d, a] / A[a, a]
                for b in range(a, c + 1):
                    A[d, b] -= factor * A[a, b]
        for a in range(c - 1, -1, -1):
            for b in range(a + 1, c):
                A[a, c] -= A[a, b] * A[b, c]
            A[a, c] /= A[a, a]
        total = 0.0
        for s in range(k):
            if neighbors[r, s] >= 0:
                w = 1.0
                for a in range(c):
                    w -= N[s, a] * A[a, c]
                weight[r, s] = w
                total += w
        for s in range(k):
            weight[r, s] /= total
    return weight


def _known_to_unknown(
    region: Region, step: Float64Array, u: Int64Array, regularization: float
) -> tuple[Float64Array, Float64Array]:
    """The colour mixture of the nearest known voxels: alpha as they see it, and how much to trust it."""
    values, apart = region.voxels.values, KNOWN_SPATIAL_WEIGHT * step
    near_foreground = region.voxels.nearest(apart, KNOWN_NEIGHBORS, u, region.trimap == FOREGROUND)
    near_background = region.voxels.nearest(apart, KNOWN_NEIGHBORS, u, region.trimap == BACKGROUND)
    weight = _embedding(values, u, np.hstack([near_foreground, near_background]), regularization)
    in_foreground, in_background = weight[:, :KNOWN_NEIGHBORS], weight[:, KNOWN_NEIGHBORS:]
    # A missing neighbour has weight 0, so whichever voxel its -1 stands for adds nothing.
    F = (in_foreground[:, :, None] * values[near_foreground]).sum(axis=1)
    B = (in_background[:, :, None] * values[near_background]).sum(axis=1)
    return in_foreground.sum(axis=1), ((F - B) ** 2).mean(axis=1)
