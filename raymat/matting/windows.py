"""Windows of 3 voxels along every axis, and the quadratic form that closed-form, learning-based and information-flow
matting build on them.

In one window all three are `delta_ij - x_i^T P x_j` with `x = [f, 1]` and a small symmetric P. The sum over windows,
applied to a vector p, therefore needs no matrix:

    (L p)_i = n_i p_i - x_i^T sum over windows w holding i of P_w (sum over j in w of x_j p_j)

Both sums are box sums. A row of the matrix would hold 125 numbers; here a voxel costs two box sums of c + 1 fields,
an order of magnitude less time and memory (K. He, J. Sun, X. Tang, "Fast matting using large kernel matting Laplacian
matrices", CVPR 2010, does the same in 2D for another reason).

Only windows that touch an unknown voxel are built: the others tie known voxels to known voxels alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.sparse import bsr_array, csr_array

from raymat.arrays import BoolArray, Box, Float64Array, Int32Array, Int64Array, box_around
from raymat.compiled import compiled
from raymat.matting.multigrid import Aggregates, Multigrid
from raymat.matting.threads import ONE, Part, Threads

LEAST_VOXELS, LEAST_PLANES = 20_000, 16  # of a thread, in a product
BLOCK_EDGE, BLOCK_EDGE_OF_SLICES = 4, 6  # voxels, of the blocks that multigrid begins with
LEAST_VARIANCE = 1e-12  # of a feature in a block or window
FLAT = 0.01  # share of windows in which the image may vary where it is called flat
# Steps with the diagonal for every voxel of depth, and what multigrid costs in such steps. Flat regions ask for few.
STEPS_OF_DEPTH, STEPS_OF_FLAT_DEPTH, MULTIGRID_STEPS = 6.5, 1.0, 60
AROUND = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
STRETCH = 32  # cells: what a loop in SIMD does at once

Stretches: TypeAlias = tuple[Int64Array, Int64Array]


@dataclass(frozen=True)
class Windows:
    """The windows that touch unknown voxels, with their statistics, in the raster order of their first voxels.

    Attributes
    ----------
    extent: (3,) window length along z, y, x in voxels: 3, or the whole axis where the grid is shorter.
    size: m, the voxels in a window.
    box: three slices, the part of the grid that the windows cover.
    shape: (z, y, x) shape of that box.
    voxels: (n,) flat indices into the whole grid of the voxels inside windows, ascending.
    features: (c, n) their features.
    count: (n,) in how many windows each voxel lies.
    mean, covariance: (w, c) and (w, c, c), the mean and biased covariance of the features in a window.
    place: (z, y, x) of the box, position of a voxel in `voxels`, -1 elsewhere.
    voxel_runs, window_runs: (r, 4), unbroken stretches along x as (row z * ny + y, first x, end x, position of the
        first in the list); a window stands at its first voxel.
    """

    extent: Int64Array
    size: int
    box: Box
    shape: tuple[int, int, int]
    voxels: Int64Array
    features: Float64Array
    count: Float64Array
    mean: Float64Array
    covariance: Float64Array
    place: Int64Array
    voxel_runs: Int64Array
    window_runs: Int64Array

    @cached_property
    def cells(self) -> Cells:
        """Where voxels and windows are in the planes that the sums work on."""
        return Cells(self)

    @cached_property
    def are_flat(self) -> bool:
        """Whether the image varies in hardly any window."""
        varying = np.count_nonzero(np.trace(self.covariance, axis1=1, axis2=2) > LEAST_VARIANCE)
        return bool(varying < FLAT * len(self.covariance))


class Cells:
    """Planes of cells with the voxels and windows in them, and the stretches of a plane on which anything is summed.

    The rows of a plane lie one after the other, with a margin of two cells after each, and of two rows and a stretch at
    both ends: sums reach two cells and two rows away. A stretch is a multiple of `STRETCH` cells, over rows' ends where
    these are near: loops along the short runs of a shell of unknown voxels would never reach their SIMD part. Cells of
    a stretch that hold no voxel or window take part with weight 0.

    Parameters
    ----------
    windows: Windows

    Attributes
    ----------
    row: cells from one row to the next.
    size: cells of a plane.
    cell: (n,) cell of each voxel in its plane.
    packed: (n,) place of each voxel among the cells of all stretches of voxels.
    plane: (z + 1,) voxels before each plane.
    of_voxels, of_windows, reached: stretches (s, 3) as first cell, length, cells of all stretches before; and (z + 1,)
        stretches before each plane. Those of windows' first voxels, and of what windows reach along x.
    features: (c, m) in the stretches of voxels.
    """

    def __init__(self, windows: Windows) -> None:
        _, ny, nx = windows.shape
        ex = int(windows.extent[2])
        self.row = nx + 2
        self._lead = 2 * self.row + STRETCH
        self.size = STRETCH * -(-(2 * self._lead + ny * self.row) // STRETCH)
        covered = self._dense(windows.place >= 0)
        first_voxels = np.zeros(windows.shape, dtype=np.bool_)
        for row, first, end, _ in windows.window_runs:
            first_voxels[row // ny, row % ny, first:end] = True
        active = self._dense(first_voxels)
        reached = active.copy()
        for step in range(1, ex):
            reached[:, step:] |= active[:, :-step]
        self.of_voxels, self.of_windows, self.reached = (self._stretches(mask) for mask in (covered, active, reached))
        z, self.cell = np.nonzero(covered)
        self.plane = np.searchsorted(z, np.arange(len(covered) + 1))
        self.packed = self._packed(*self.of_voxels, covered)
        self._windows = self._packed(*self.of_windows, active)
        self.features = np.zeros((len(windows.features), self.of_voxels[0][:, 1].sum()))
        self.features[:, self.packed] = windows.features

    def _dense(self, mask: BoolArray) -> BoolArray:
        nz, ny, nx = mask.shape
        dense = np.zeros((nz, self.size), dtype=np.bool_)
        rows = dense[:, self._lead : self._lead + ny * self.row].reshape(nz, ny, self.row)
        rows[..., :nx] = mask
        dense[:, self._lead : self._lead + ny * self.row] = rows.reshape(nz, -1)
        return dense

    def _stretches(self, dense: BoolArray) -> Stretches:
        """The stretches that hold all that is set, and how many there are before each plane."""
        half = STRETCH // 2
        count = dense.shape[1] // half
        held: BoolArray = np.any(dense[:, : count * half].reshape(len(dense), count, half), axis=2)
        stretches, plane = _stretches(held)
        stretches[:, :2] *= half
        stretches[:, 2] = np.cumsum(stretches[:, 1]) - stretches[:, 1]
        return stretches, plane

    def _packed(self, stretches: Int64Array, plane: Int64Array, dense: BoolArray) -> Int64Array:
        """Place, among the cells of all stretches, of every cell that is set."""
        z, cell = np.nonzero(dense)
        first = np.repeat(np.arange(len(plane) - 1), np.diff(plane)) * self.size + stretches[:, 0]
        at = z * self.size + cell
        of = np.searchsorted(first, at, side="right") - 1
        packed: Int64Array = at - first[of] + stretches[of, 2]
        return packed

    def put_windows(self, values: Float64Array) -> Float64Array:
        """Values (k, w) of windows in the stretches of windows, 0 elsewhere."""
        packed = np.zeros((len(values), self.of_windows[0][:, 1].sum()))
        packed[:, self._windows] = values
        return packed


@compiled
def _stretches(held: BoolArray) -> Stretches:
    """First half stretch and number of half stretches, even, that hold all that are held, plane by plane."""
    planes, count = held.shape
    found = np.zeros((planes * (count // 2 + 1), 3), dtype=np.int64)
    plane = np.zeros(planes + 1, dtype=np.int64)
    n = 0
    for z in range(planes):
        g = 0
        while g < count:
            if not held[z, g]:
                g += 1
                continue
            end = g + 2
            while end < count and (held[z, end] or (end + 1 < count and held[z, end + 1])):
                end += 2
            found[n, 0], found[n, 1] = g, end - g
            n += 1
            g = end
        plane[z + 1] = n
    return found[:n].copy(), plane


def windows_around(features: Float64Array, unknown: BoolArray) -> Windows:
    """The windows of 3 voxels along every axis, wholly inside the grid, that hold at least one unknown voxel.

    An axis of fewer than 3 voxels holds no such window; there a window spans the whole axis, so that a single slice is
    matted as a 2D image and two slices as a slab two voxels thick.

    Parameters
    ----------
    features: float64 array (z, y, x, c)
    unknown: bool array (z, y, x) with at least one voxel set
    """
    shape = np.array(unknown.shape)
    extent = np.minimum(3, shape)
    box = box_around(unknown, (extent - 1).tolist())
    low = np.array([part.start for part in box])
    inside = unknown[box]
    f = np.ascontiguousarray(features[box])

    active = _spread(inside, extent, forward=False)  # by first voxel
    for axis in range(3):
        end = [slice(None)] * 3
        end[axis] = slice(inside.shape[axis] - int(extent[axis]) + 1, None)
        active[tuple(end)] = False
    covered = _spread(active, extent, forward=True)

    place = np.full(inside.shape, -1, dtype=np.int64)
    n = int(np.count_nonzero(covered))
    place[covered] = np.arange(n)
    z, y, x = np.nonzero(covered)
    voxels = np.ravel_multi_index((z + low[0], y + low[1], x + low[2]), tuple(shape))
    mean, covariance, count = _statistics(f, np.argwhere(active), extent, place, n)
    return Windows(
        extent=extent,
        size=int(np.prod(extent)),
        box=box,
        shape=inside.shape,
        voxels=voxels,
        features=np.ascontiguousarray(f[covered].T),
        count=count,
        mean=mean,
        covariance=covariance,
        place=place,
        voxel_runs=_runs(covered),
        window_runs=_runs(active),
    )


def _spread(mask: BoolArray, extent: Int64Array, forward: bool) -> BoolArray:
    """Set every voxel up to extent - 1 steps after (forward) or before a set one, along each axis in turn."""
    for axis in range(3):
        grown = mask.copy()
        for step in range(1, int(extent[axis])):
            ahead, behind = [slice(None)] * 3, [slice(None)] * 3
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            if forward:
                grown[tuple(ahead)] |= mask[tuple(behind)]
            else:
                grown[tuple(behind)] |= mask[tuple(ahead)]
        mask = grown
    return mask


def _runs(mask: BoolArray) -> Int64Array:
    """Unbroken stretches of a (z, y, x) mask along x: (row, first x, end x, rank of the first set voxel)."""
    rows = mask.reshape(-1, mask.shape[2])
    edge = np.diff(np.pad(rows, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, first = np.nonzero(edge == 1)
    _, end = np.nonzero(edge == -1)
    length = end - first
    return np.stack([row, first, end, np.cumsum(length) - length], axis=1).astype(np.int64)


@compiled
def _statistics(
    f: Float64Array, corners: Int64Array, extent: Int64Array, place: Int64Array, n: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Mean and biased covariance of the features in each window, and the windows that each voxel lies in."""
    c = f.shape[3]
    m = extent[0] * extent[1] * extent[2]
    mean = np.zeros((len(corners), c))
    covariance = np.zeros((len(corners), c, c))
    count = np.zeros(n)
    for w in range(len(corners)):
        z0, y0, x0 = corners[w]
        for z in range(z0, z0 + extent[0]):
            for y in range(y0, y0 + extent[1]):
                for x in range(x0, x0 + extent[2]):
                    count[place[z, y, x]] += 1.0
                    for a in range(c):
                        mean[w, a] += f[z, y, x, a]
        for a in range(c):
            mean[w, a] /= m
        for z in range(z0, z0 + extent[0]):
            for y in range(y0, y0 + extent[1]):
                for x in range(x0, x0 + extent[2]):
                    for a in range(c):
                        for b in range(a + 1):
                            covariance[w, a, b] += (f[z, y, x, a] - mean[w, a]) * (f[z, y, x, b] - mean[w, b])
        for a in range(c):
            for b in range(a + 1):
                covariance[w, a, b] /= m
                covariance[w, b, a] = covariance[w, a, b]
    return mean, covariance, count


@compiled
def invert(A: Float64Array) -> Float64Array:
    """Inverses of a stack (n, k, k) of small symmetric positive definite matrices, by Gauss-Jordan elimination.

    Positive definite matrices need no pivoting; LAPACK spends more time on the call than on a 2 x 2 matrix.
    """
    n, k, _ = A.shape
    inverse = A.copy()
    for i in range(n):
        B = inverse[i]
        for p in range(k):
            pivot = 1.0 / B[p, p]
            B[p, p] = 1.0
            for b in range(k):
                B[p, b] *= pivot
            for a in range(k):
                if a != p:
                    factor = B[a, p]
                    B[a, p] = 0.0
                    for b in range(k):
                        B[a, b] -= factor * B[p, b]
    return inverse


class WindowLaplacian:
    """`L = sum over windows of delta_ij - x_i^T P x_j`, `x = [f - mu, 1]`, as an operator on the voxels of `windows`.

    Parameters
    ----------
    windows: Windows
    P: float64 array (w, c + 1, c + 1), one symmetric matrix a window, in the coordinates centred on the window's mean.
    threads: what products may use
    """

    def __init__(self, windows: Windows, P: Float64Array, threads: Threads = ONE) -> None:
        self.windows, self._threads = windows, threads
        k = P.shape[1]
        # One contiguous stretch a field.
        self._P = np.ascontiguousarray(P.reshape(len(P), k * k).T)
        self.diagonal = _diagonal(
            windows.features, windows.place, windows.mean, P, windows.window_runs, windows.extent, windows.shape[1]
        )
        self._packed_mean = windows.cells.put_windows(windows.mean.T)
        self._packed_P = windows.cells.put_windows(self._P)

    def __call__(self, p: Float64Array) -> Float64Array:
        """L p for each row of p, (k, n) over `windows.voxels`."""
        w = self.windows
        y = np.empty_like(p)
        fields = (w.features, w.count, self._packed_mean, self._packed_P)
        places = (w.cells.cell, w.cells.packed, w.cells.plane, w.cells.features)
        stretches = (*w.cells.of_voxels, *w.cells.of_windows, *w.cells.reached)
        sizes = (w.cells.row, w.cells.size, w.extent)

        def apply(planes: Part) -> None:
            _apply(p, y, *fields, *places, *stretches, *sizes, planes.start, planes.stop)

        # A part gathers the planes next to it once more: too thin a part is not worth a thread.
        self._threads.each(apply, w.shape[0], max(LEAST_PLANES, w.shape[0] * LEAST_VOXELS // len(w.voxels)))
        return y

    def multigrid(self, penalty: Float64Array) -> Multigrid:
        """A preconditioner of L plus a diagonal (n,). Aggregates are blocks of voxels; what L maps to almost nothing is
        linear in the features."""
        return Multigrid(self.diagonal + penalty, self.aggregates(penalty))

    def steps(self, depth: int) -> float:
        """What the diagonal takes, about, where the deepest unknown voxel is that far from known ones."""
        return depth * (STEPS_OF_FLAT_DEPTH if self.windows.are_flat else STEPS_OF_DEPTH)

    def aggregates(self, penalty: Float64Array) -> Aggregates:
        """Blocks of voxels with the functions 1 and f - mean of f, and their system for L plus a diagonal (n,)."""
        w = self.windows
        edge = BLOCK_EDGE if w.size == 27 else BLOCK_EDGE_OF_SLICES
        shape = [-(-n // edge) for n in w.shape]
        z, y, x = np.nonzero(w.place >= 0)
        block = ((z // edge) * shape[1] + y // edge) * shape[2] + x // edge
        filled, of = np.unique(block, return_inverse=True)
        size = np.bincount(of)
        means = np.stack([np.bincount(of, f) / size for f in w.features], axis=1)
        basis = np.ones((len(of), 1 + len(w.features)))
        basis[:, 1:] = w.features.T - means[of]
        for s in range(1, basis.shape[1]):  # where a feature does not vary it gives no function
            basis[np.bincount(of, basis[:, s] ** 2)[of] < LEAST_VARIANCE * size[of], s] = 0.0
        rank = np.full(int(np.prod(shape)), -1, dtype=np.int32)
        rank[filled] = np.arange(len(filled))
        rank = rank.reshape(shape)

        k = basis.shape[1]
        # Windows reach no further than the next block.
        entries = np.zeros((len(filled), 27, k, k))
        _of_blocks(w.features, w.place, w.mean, self._P, w.window_runs, w.extent, edge, rank, basis, entries)
        weighted = (w.count + penalty)[:, None] * basis
        for s in range(k):
            for t in range(k):
                entries[:, 13, s, t] += np.bincount(of, weighted[:, s] * basis[:, t])
        there = np.pad(rank, 1, constant_values=-1)
        other = np.stack([there[a : a + shape[0], b : b + shape[1], c : c + shape[2]][rank >= 0] for a, b, c in AROUND])
        exists = other.T >= 0
        start = np.concatenate([[0], np.cumsum(exists.sum(axis=1))])
        blocks = bsr_array((entries[exists], other.T[exists], start), shape=(len(filled) * k,) * 2)
        system = blocks.tocsr()
        system.eliminate_zeros()
        candidates = np.zeros((len(filled), k, k))
        candidates[:, 0, 0], candidates[:, 0, 1:] = 1.0, means
        for s in range(1, k):
            candidates[:, s, s] = 1.0
        return Aggregates(of.astype(np.int32), basis, csr_array(system), candidates.reshape(-1, k))


@compiled
def _of_blocks(
    f: Float64Array,
    place: Int64Array,
    mean: Float64Array,
    P: Float64Array,
    window_runs: Int64Array,
    extent: Int64Array,
    edge: int,
    rank: Int32Array,
    basis: Float64Array,
    entries: Float64Array,
) -> None:
    """Subtract the windows' `X_a^T P X_b` from the entries of the blocks a and b, with `X_a` the sum over the voxels of
    a in the window of `x_i basis_i^T`."""
    c = len(f)
    k = c + 1
    ny = place.shape[1]
    X = np.zeros((8, k, k))
    PX = np.empty((k, k))
    x_i = np.ones(k)
    of_z, of_y, of_x = np.arange(place.shape[0]) // edge, np.arange(ny) // edge, np.arange(place.shape[2]) // edge
    for r in range(len(window_runs)):
        row, first, end, number = window_runs[r]
        z0, y0 = row // ny, row % ny
        z1, y1 = z0 + extent[0], y0 + extent[1]
        bz, by = of_z[z0], of_y[y0]
        parts_z, parts_y = of_z[z1 - 1] - bz + 1, of_y[y1 - 1] - by + 1
        for x0 in range(first, end):
            w = number + x0 - first
            x1 = x0 + extent[2]
            bx = of_x[x0]
            parts_x = of_x[x1 - 1] - bx + 1
            X[:] = 0.0
            for z in range(z0, z1):
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        i = place[z, y, x]
                        part = 4 * (of_z[z] - bz) + 2 * (of_y[y] - by) + of_x[x] - bx
                        if k == 2:
                            x_f, g = f[0, i] - mean[w, 0], basis[i, 1]
                            X[part, 0, 0] += x_f
                            X[part, 0, 1] += x_f * g
                            X[part, 1, 0] += 1.0
                            X[part, 1, 1] += g
                            continue
                        for a in range(c):
                            x_i[a] = f[a, i] - mean[w, a]
                        for a in range(k):
                            for s in range(k):
                                X[part, a, s] += x_i[a] * basis[i, s]
            for cz in range(parts_z):
                for cy in range(parts_y):
                    for cx in range(parts_x):
                        b = 4 * cz + 2 * cy + cx
                        for a in range(k):
                            for s in range(k):
                                total = 0.0
                                for d in range(k):
                                    total += P[a * k + d, w] * X[b, d, s]
                                PX[a, s] = total
                        for az in range(parts_z):
                            for ay in range(parts_y):
                                for ax in range(parts_x):
                                    a = 4 * az + 2 * ay + ax
                                    block = rank[bz + az, by + ay, bx + ax]
                                    other = 9 * (cz - az + 1) + 3 * (cy - ay + 1) + cx - ax + 1
                                    for s in range(k):
                                        for t in range(k):
                                            for d in range(k):
                                                entries[block, other, s, t] -= X[a, d, s] * PX[d, t]


@compiled
def _diagonal(
    f: Float64Array,
    place: Int64Array,
    mean: Float64Array,
    P: Float64Array,
    window_runs: Int64Array,
    extent: Int64Array,
    ny: int,
) -> Float64Array:
    c, n = f.shape
    diagonal = np.zeros(n)
    x_i = np.ones(c + 1)
    for r in range(len(window_runs)):
        row, first, end, rank = window_runs[r]
        for x0 in range(first, end):
            w = rank + x0 - first
            for z in range(row // ny, row // ny + extent[0]):
                for y in range(row % ny, row % ny + extent[1]):
                    for x in range(x0, x0 + extent[2]):
                        i = place[z, y, x]
                        for a in range(c):
                            x_i[a] = f[a, i] - mean[w, a]
                        form = 0.0
                        for a in range(c + 1):
                            for b in range(c + 1):
                                form += x_i[a] * P[w, a, b] * x_i[b]
                        diagonal[i] += 1.0 - form
    return diagonal


@compiled
def _apply(
    p: Float64Array,
    y: Float64Array,
    f: Float64Array,
    count: Float64Array,
    mean: Float64Array,
    P: Float64Array,
    cell: Int64Array,
    packed: Int64Array,
    plane: Int64Array,
    features: Float64Array,
    of_voxels: Int64Array,
    voxel_plane: Int64Array,
    of_windows: Int64Array,
    window_plane: Int64Array,
    reached: Int64Array,
    reached_plane: Int64Array,
    row: int,
    size: int,
    extent: Int64Array,
    begin: int,
    end: int,
) -> None:
    """y = L p on the planes from `begin` to before `end`.

    Plane by plane, so that what is being summed stays in the processor's cache: a plane of voxels is gathered, the
    windows whose last plane it is are done, then the voxels of these windows' first plane, which no later one holds.
    """
    c = f.shape[0]
    k = c + 1
    ez, ey, ex = extent
    nz = len(plane) - 1
    cells, weighted, projected = np.zeros(size), np.zeros(size), np.zeros(size)
    gathered, spread = np.zeros((k, ez, size)), np.zeros((k, ez, size))
    most = max(_longest(of_voxels, voxel_plane), _longest(of_windows, window_plane))
    U, V = np.empty((k, most)), np.empty((k, most))

    low = max(0, begin - ez + 1)
    for q in range(len(p)):
        spread[:] = 0.0
        for z in range(low, end + ez - 1):
            w = z - ez + 1
            if z < nz:
                for r in range(plane[z], plane[z + 1]):
                    cells[cell[r]] = p[q, r]
                here = of_voxels[voxel_plane[z] : voxel_plane[z + 1]]
                for a in range(c):
                    _weigh(features[a], cells, here, weighted)
                    _sum_along_x(weighted, here, ex, 0, gathered[a, z % ez])
                _sum_along_x(cells, here, ex, 0, gathered[c, z % ez])
            if w < low:
                continue
            if w - ez >= low:
                for a in range(k):
                    _clear(spread[a, w % ez], reached[reached_plane[w - ez] : reached_plane[w - ez + 1]])
            if z < nz:
                here = of_windows[window_plane[w] : window_plane[w + 1]]
                for a in range(k):
                    _sum_of_rows(gathered[a], here, 0, row, ey, U[a])
                if len(here):
                    first, length = here[0, 2], here[-1, 2] + here[-1, 1] - here[0, 2]
                    _project(U, V, mean[:, first : first + length], P[:, first : first + length], length)
                onto = reached[reached_plane[w] : reached_plane[w + 1]]
                for a in range(k):
                    _put(V[a], here, projected)
                    _sum_along_x(projected, onto, ex, ex - 1, spread[a, w % ez])
                    _clear(projected, here)
            if w >= begin:
                here = of_voxels[voxel_plane[w] : voxel_plane[w + 1]]
                for a in range(k):
                    _sum_of_rows(spread[a], here, (ey - 1) * row, row, ey, U[a])
                base = here[0, 2] if len(here) else 0
                for r in range(plane[w], plane[w + 1]):
                    i = packed[r] - base
                    total = count[r] * p[q, r] - U[c, i]
                    for a in range(c):
                        total -= f[a, r] * U[a, i]
                    y[q, r] = total


@compiled
def _longest(stretches: Int64Array, plane: Int64Array) -> int:
    """Cells in the stretches of a plane, at most."""
    longest = 0
    for z in range(len(plane) - 1):
        longest = max(longest, stretches[plane[z] : plane[z + 1], 1].sum())
    return longest


@compiled
def _weigh(f: Float64Array, cells: Float64Array, stretches: Int64Array, out: Float64Array) -> None:
    for r in range(len(stretches)):
        o, length, i = stretches[r]
        values, from_, onto = f[i : i + length], cells[o : o + length], out[o : o + length]
        for t in range(length):
            onto[t] = values[t] * from_[t]


@compiled
def _put(values: Float64Array, stretches: Int64Array, out: Float64Array) -> None:
    for r in range(len(stretches)):
        o, length, i = stretches[r]
        i -= stretches[0, 2]
        out[o : o + length] = values[i : i + length]


@compiled
def _clear(out: Float64Array, stretches: Int64Array) -> None:
    for r in range(len(stretches)):
        out[stretches[r, 0] : stretches[r, 0] + stretches[r, 1]] = 0.0


@compiled
def _project(U: Float64Array, V: Float64Array, mean: Float64Array, P: Float64Array, length: int) -> None:
    """u = sum of [f - mu, 1]_j p_j and v = P u, then back from centred to plain features: x_i^T v = f_i v_f + v_1."""
    k = len(U)
    c = k - 1
    one, v_one = U[c, :length], V[c, :length]
    for a in range(c):
        u, mu = U[a, :length], mean[a]
        for t in range(length):
            u[t] -= mu[t] * one[t]
    for a in range(k):
        v = V[a, :length]
        for b in range(k):
            u, entry = U[b, :length], P[a * k + b]
            if b == 0:
                for t in range(length):
                    v[t] = entry[t] * u[t]
            else:
                for t in range(length):
                    v[t] += entry[t] * u[t]
    for a in range(c):
        v, mu = V[a, :length], mean[a]
        for t in range(length):
            v_one[t] -= mu[t] * v[t]


@compiled
def _sum_along_x(cells: Float64Array, stretches: Int64Array, ex: int, back: int, out: Float64Array) -> None:
    """out[x] = the sum of ex cells from x - back on."""
    for r in range(len(stretches)):
        o, length = stretches[r, 0], stretches[r, 1]
        onto, i = out[o : o + length], o - back
        one, two, three = cells[i : i + length], cells[i + 1 : i + 1 + length], cells[i + 2 : i + 2 + length]
        if ex == 3:
            for t in range(length):
                onto[t] = one[t] + two[t] + three[t]
        elif ex == 2:
            for t in range(length):
                onto[t] = one[t] + two[t]
        else:
            for t in range(length):
                onto[t] = one[t]


@compiled
def _sum_of_rows(cells: Float64Array, stretches: Int64Array, back: int, row: int, ey: int, out: Float64Array) -> None:
    """Cells summed over all planes and over ey rows from `back` cells before them on, packed."""
    for r in range(len(stretches)):
        o, length, i = stretches[r]
        o -= back
        i -= stretches[0, 2]
        onto = out[i : i + length]
        if len(cells) == 3 and ey == 3:
            n = o + row
            m = n + row
            a, b, c = cells[0, o : o + length], cells[0, n : n + length], cells[0, m : m + length]
            d, e, f = cells[1, o : o + length], cells[1, n : n + length], cells[1, m : m + length]
            g, h, j = cells[2, o : o + length], cells[2, n : n + length], cells[2, m : m + length]
            for t in range(length):
                onto[t] = (a[t] + b[t] + c[t]) + (d[t] + e[t] + f[t]) + (g[t] + h[t] + j[t])
        else:
            onto[:] = 0.0
            for z in range(len(cells)):
                for y in range(ey):
                    line = cells[z, o + y * row : o + y * row + length]
                    for t in range(length):
                        onto[t] += line[t]
