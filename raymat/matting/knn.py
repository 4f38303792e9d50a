"""KNN matting: Q. Chen, D. Li, C.-K. Tang, "KNN matting", TPAMI 2013; carried to three dimensions as in the paper's
section 4.1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

from raymat.arrays import BoolArray, Float64Array, Int32Array, Int64Array
from raymat.compiled import compiled
from raymat.matting.region import Region
from raymat.matting.solve import GraphLaplacian, System, TurnTo

TOLERANCE = 1e-5  # of the solve; alpha is then within about 2e-5
STEPS_OF_DEPTH = 5.0  # that the diagonal takes for every voxel of depth, about
MULTIGRID_STEPS = 45  # what multigrid costs in steps with the diagonal
RINGS_WEIGHT = 100.0  # lambda from which one ring of known voxels is enough


def edges(
    region: Region,
    neighbors: Sequence[int],
    spatial_weights: Sequence[float],
    kernel: str = "soft",
    rings: int = 1,
    within_unknown: bool = False,
    kernel_weight: float | None = None,
) -> tuple[Int32Array, Int32Array, Float64Array]:
    """The edges of the graph of the k nearest neighbours in `g = [f, w x]`, pass by pass.

    The weight of an edge is `max(0, 1 - |g_i - g_j|_1 / dim g)`, or 1 for the binary kernel. Passes add up.

    Known voxels hold near their S by lambda, so what they hand on fades by a factor of about w / lambda with every
    edge. Only the edges of unknown voxels, and of those that can be reached from one over `rings` edges, are returned.
    With one ring and lambda = 100 alpha moves by about 1e-5, at most 1e-4, and a system ten times smaller is left.

    Parameters
    ----------
    region: the region of interest. An axis that the image lacks does not count in `dim g`.
    neighbors, spatial_weights: k and w of every pass.
    kernel: "soft" or "binary".
    rings: how far from an unknown voxel a known one may be, in edges, whose own edges count.
    within_unknown: whether only unknown voxels are joined.
    kernel_weight: the w of `g` in the soft kernel where it differs from the pass's own.

    Returns
    -------
    (e,) flat index of a voxel, (e,) of a neighbour of it, (e,) the weight. An edge can come more than once.
    """
    voxels, step, unknown = region.voxels, region.step, region.unknown
    spatial = np.where(step > 0, step, 1.0)
    passes = list(zip(neighbors, spatial_weights, strict=True))
    u = unknown.ravel()
    Rows = list[tuple[Int64Array, Int32Array]]  # voxels and their neighbours, pass by pass

    def search(members: Int64Array) -> Rows:
        among = unknown if within_unknown else None
        return [(members, voxels.nearest(w * spatial, k, members, among)) for k, w in passes]

    found = search(np.flatnonzero(u))
    near = u
    for _ in range(0 if within_unknown else rings):
        joined = near.copy()
        for members, j in found:
            _mark_joined(members, j, near, joined)
        # Most other voxels have no neighbour in the ring before. They are found without a search.
        others = np.flatnonzero(~joined)
        far = distance_transform_edt(~near.reshape(unknown.shape), sampling=spatial).ravel()[others]
        for k, w in passes:
            some = others[voxels.within_reach(w * spatial, k, others, w * far)]
            _mark_joined(some, voxels.nearest(w * spatial, k, some), near, joined)
        found += search(np.flatnonzero(joined & ~near))
        near = joined

    c = voxels.values.shape[1]
    shape = np.array(unknown.shape)
    dimensions = c + int(np.count_nonzero(step))
    parts = []
    for part, (members, j) in enumerate(found):
        v = step * (spatial_weights[part % len(passes)] if kernel_weight is None else kernel_weight)
        parts.append(_edges(members, j, voxels.values, shape, v, dimensions, kernel == "soft"))
    i, j, weight = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return i, j, weight


def system(region: Region, neighbors: Sequence[int], spatial_weights: Sequence[float], kernel: str) -> System:
    """`L = diag(W 1) - W` with `W = (W + W^T) / 2` over the edges, with the parameters of `edges`.

    Raises
    ------
    ValueError
        `neighbors` and `spatial_weights` differ in length.
    """
    if len(neighbors) != len(spatial_weights):
        raise ValueError(
            f"knn: neighbors and spatial_weights need one entry per pass each, not {neighbors!r} and "
            f"{spatial_weights!r}"
        )
    # A smaller lambda lets more through known voxels.
    rings = 1 if region.constraint_weight >= RINGS_WEIGHT else 2
    i, j, weight = edges(region, neighbors, spatial_weights, kernel, rings)
    size = region.unknown.size
    joined = np.zeros(size, dtype=bool)
    joined[i] = joined[j] = True
    vertices = np.flatnonzero(joined)
    rank = np.full(size, -1, dtype=np.int32)
    rank[vertices] = np.arange(len(vertices))
    L = GraphLaplacian(rank[i], rank[j], weight, len(vertices), region.threads)
    multigrid = TurnTo(L.multigrid, MULTIGRID_STEPS, STEPS_OF_DEPTH * region.depth)
    return System(vertices, L, L.diagonal, tolerance=TOLERANCE, multigrid=multigrid)


@compiled
def _mark_joined(i: Int64Array, neighbors: Int32Array, near: BoolArray, joined: BoolArray) -> None:
    """Set `joined` for the voxels that share an edge with one in `near`."""
    for r in range(len(i)):
        for s in range(neighbors.shape[1]):
            j = neighbors[r, s]
            if j >= 0:
                if near[j]:
                    joined[i[r]] = True
                if near[i[r]]:
                    joined[j] = True


@compiled
def _edges(
    i: Int64Array,
    neighbors: Int32Array,
    values: Float64Array,
    shape: Int64Array,
    step: Float64Array,
    dimensions: int,
    soft: bool,
) -> tuple[Int32Array, Int32Array, Float64Array]:
    """Ends and weights of the edges i -> neighbors."""
    kept = 0
    for r in range(len(i)):
        for s in range(neighbors.shape[1]):
            j = neighbors[r, s]
            if j >= 0:
                kept += 1
    head = np.empty(kept, dtype=np.int32)
    tail = np.empty(kept, dtype=np.int32)
    weight = np.ones(kept)
    ny, nx = shape[1], shape[2]
    e = 0
    for r in range(len(i)):
        for s in range(neighbors.shape[1]):
            j = neighbors[r, s]
            if j >= 0:
                head[e], tail[e] = i[r], j
                if soft:
                    gap = abs(i[r] // (nx * ny) - j // (nx * ny)) * step[0]
                    gap += abs((i[r] // nx) % ny - (j // nx) % ny) * step[1]
                    gap += abs(i[r] % nx - j % nx) * step[2]
                    for a in range(values.shape[1]):
                        gap += abs(values[i[r], a] - values[j, a])
                    weight[e] = max(0.0, 1.0 - gap / dimensions)
                e += 1
    return head, tail, weight
