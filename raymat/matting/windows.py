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

import numpy as np
from scipy.sparse import csr_array

from raymat.arrays import BoolArray, Box, Float64Array, Int64Array, IntArray, box_around
from raymat.compiled import compiled
from raymat.matting.multigrid import Multigrid, Sparse


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
    """

    def __init__(self, windows: Windows, P: Float64Array) -> None:
        self.windows = windows
        k = P.shape[1]
        # One contiguous stretch a field: the sums then run along x with unit stride.
        self._P = np.ascontiguousarray(P.reshape(len(P), k * k).T)
        self._mean = np.ascontiguousarray(windows.mean.T)
        planes = np.arange(windows.shape[0] + 1) * windows.shape[1]
        self._planes = np.stack([np.searchsorted(r[:, 0], planes) for r in (windows.voxel_runs, windows.window_runs)])
        self.diagonal = _diagonal(
            windows.features, windows.place, windows.mean, P, windows.window_runs, windows.extent, windows.shape[1]
        )

    def __call__(self, p: Float64Array) -> Float64Array:
        """L p for each row of p, (k, n) over `windows.voxels`."""
        w = self.windows
        runs = (w.voxel_runs, w.window_runs, self._planes)
        return _apply(p, w.features, w.count, self._mean, self._P, *runs, w.extent, w.shape[1], w.shape[2])

    @property
    def multigrid_steps(self) -> int:
        """What multigrid costs in steps with the diagonal: less in two dimensions, where the rows are shorter."""
        return 1200 if self.windows.size == 27 else 450

    def multigrid(self, penalty: Float64Array) -> Multigrid:
        """A preconditioner of L plus a diagonal (n,). What L maps to almost nothing is linear in the features."""
        candidates = np.column_stack([np.ones(len(penalty)), self.windows.features.T])
        return Multigrid(self.matrix(penalty), candidates, lambda p: self(p) + penalty * p)

    def matrix(self, penalty: Float64Array) -> Sparse:
        """L plus a diagonal (n,) in compressed sparse rows, of up to 125 entries each."""
        w = self.windows
        at = np.full(w.shape, -1, dtype=np.int64)
        for row, first, end, rank in w.window_runs:
            at.reshape(-1, w.shape[2])[row, first:end] = np.arange(rank, rank + end - first)
        start = np.zeros(len(w.voxels) + 1, dtype=np.int64)
        np.cumsum(_entries(w.place, at, w.extent, len(w.voxels)), out=start[1:])
        column, value = np.empty(start[-1], dtype=np.int32), np.empty(start[-1])
        _fill(w.features, w.place, at, w.mean, self._P, w.extent, penalty, start, column, value)
        return csr_array((value, column, start.astype(np.int32)), shape=(len(w.voxels),) * 2)


@compiled
def _entries(place: Int64Array, at: Int64Array, extent: Int64Array, n: int) -> Int64Array:
    """In how many voxels' windows each voxel lies."""
    nz, ny, nx = place.shape
    ez, ey, ex = extent
    entries = np.zeros(n, dtype=np.int64)
    shared = np.empty((2 * ez - 1, 2 * ey - 1, 2 * ex - 1), dtype=np.bool_)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                i = place[z, y, x]
                if i < 0:
                    continue
                shared[:] = False
                for wz in range(max(0, z - ez + 1), z + 1):
                    for wy in range(max(0, y - ey + 1), y + 1):
                        for wx in range(max(0, x - ex + 1), x + 1):
                            if at[wz, wy, wx] >= 0:
                                a, b, c = wz - z + ez - 1, wy - y + ey - 1, wx - x + ex - 1
                                shared[a : a + ez, b : b + ey, c : c + ex] = True
                entries[i] = shared.sum()
    return entries


@compiled
def _fill(
    f: Float64Array,
    place: Int64Array,
    at: Int64Array,
    mean: Float64Array,
    P: Float64Array,
    extent: Int64Array,
    penalty: Float64Array,
    start: Int64Array,
    column: IntArray,
    value: Float64Array,
) -> None:
    """Columns, ascending, and values of the rows of L."""
    nz, ny, nx = place.shape
    ez, ey, ex = extent
    c = len(f)
    k = c + 1
    total = np.empty((2 * ez - 1, 2 * ey - 1, 2 * ex - 1))
    count = np.empty((2 * ez - 1, 2 * ey - 1, 2 * ex - 1), dtype=np.int64)
    x_i = np.ones(k)
    v = np.empty(k)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                i = place[z, y, x]
                if i < 0:
                    continue
                total[:] = 0.0
                count[:] = 0
                for wz in range(max(0, z - ez + 1), z + 1):
                    for wy in range(max(0, y - ey + 1), y + 1):
                        for wx in range(max(0, x - ex + 1), x + 1):
                            w = at[wz, wy, wx]
                            if w < 0:
                                continue
                            for a in range(c):
                                x_i[a] = f[a, i] - mean[w, a]
                            for a in range(k):
                                v[a] = 0.0
                                for b in range(k):
                                    v[a] += P[a * k + b, w] * x_i[b]
                            for jz in range(wz, wz + ez):
                                for jy in range(wy, wy + ey):
                                    for jx in range(wx, wx + ex):
                                        j = place[jz, jy, jx]
                                        form = v[c]
                                        for a in range(c):
                                            form += v[a] * (f[a, j] - mean[w, a])
                                        total[jz - z + ez - 1, jy - y + ey - 1, jx - x + ex - 1] -= form
                                        count[jz - z + ez - 1, jy - y + ey - 1, jx - x + ex - 1] += 1
                total[ez - 1, ey - 1, ex - 1] += count[ez - 1, ey - 1, ex - 1] + penalty[i]
                e = start[i]
                for a in range(2 * ez - 1):
                    for b in range(2 * ey - 1):
                        for d in range(2 * ex - 1):
                            if count[a, b, d] > 0:
                                column[e] = place[z + a - ez + 1, y + b - ey + 1, x + d - ex + 1]
                                value[e] = total[a, b, d]
                                e += 1


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
    f: Float64Array,
    count: Float64Array,
    mean: Float64Array,
    P: Float64Array,
    voxel_runs: Int64Array,
    window_runs: Int64Array,
    planes: Int64Array,
    extent: Int64Array,
    ny: int,
    nx: int,
) -> Float64Array:
    """Plane by plane, so that what is being summed stays in the processor's cache: a plane of voxels is gathered, the
    windows whose last plane it is are done, then the voxels of these windows' first plane, which no later one holds."""
    c = f.shape[0]
    k = c + 1
    ez, ey, ex = extent
    nz = planes.shape[1] - 1
    y_out = np.empty_like(p)
    # Two empty cells before and after each row, two empty rows before the first: the sums then need no case.
    gather = np.zeros((k, nx + 4))
    spread = np.zeros((k, nx + 4))
    gathered = np.zeros((len(p), k, ez, ny + 2, nx + 4))
    spread_rows = np.zeros((len(p), k, ez, ny + 2, nx + 4))
    U = np.empty((k, nx + 4))

    # Slices are taken before the loops along x: an index that starts at 0 needs no check, and the loop becomes SIMD.
    for z in range(nz + ez - 1):
        w = z - ez + 1
        for q in range(len(p)):
            if z < nz:
                # x_j p_j along x. What an earlier row left beyond a run is read into sums that no window uses.
                into = gathered[q, :, z % ez]
                for r in range(planes[0, z], planes[0, z + 1]):
                    row, first, end, rank = voxel_runs[r]
                    y = row - z * ny
                    p_run = p[q, rank : rank + end - first]
                    for a in range(c):
                        cells, f_run = gather[a, first + 2 : end + 2], f[a, rank : rank + end - first]
                        for t in range(len(p_run)):
                            cells[t] = f_run[t] * p_run[t]
                    gather[c, first + 2 : end + 2] = p_run
                    for a in range(k):
                        _sum_along_x(gather[a, first + 2 :], into[a, y, first + 2 :], end - first, ex, 1)
            if w < 0:
                continue
            onto = spread_rows[q, :, w % ez]
            onto[:] = 0.0
            if z < nz:
                r = planes[1, w]
                while r < planes[1, w + 1]:
                    y = window_runs[r, 0] - w * ny
                    spread[:] = 0.0
                    first_of_row = r
                    while r < planes[1, w + 1] and window_runs[r, 0] - w * ny == y:
                        _, first, end, rank = window_runs[r]
                        _window_run(gathered[q], y, ey, first, end, rank, mean, P, U, spread)
                        r += 1
                    for s in range(first_of_row, r):
                        first, end = window_runs[s, 1], window_runs[s, 2]
                        for a in range(k):
                            _sum_along_x(spread[a, first:], onto[a, y + 2, first + 2 :], end - first + ex - 1, ex, -1)
            for r in range(planes[0, w], planes[0, w + 1]):
                row, first, end, rank = voxel_runs[r]
                y = row - w * ny
                length = end - first
                for a in range(k):
                    _sum_of_rows(spread_rows[q, a], y + 3 - ey, ey, first + 2, U[a, :length])
                y_run, p_run = y_out[q, rank : rank + length], p[q, rank : rank + length]
                n_run, one = count[rank : rank + length], U[c]
                for t in range(length):
                    y_run[t] = n_run[t] * p_run[t] - one[t]
                for a in range(c):
                    u, f_run = U[a], f[a, rank : rank + length]
                    for t in range(length):
                        y_run[t] -= f_run[t] * u[t]
    return y_out


@compiled
def _window_run(
    gathered: Float64Array,
    y: int,
    ey: int,
    first: int,
    end: int,
    rank: int,
    mean: Float64Array,
    P: Float64Array,
    U: Float64Array,
    spread: Float64Array,
) -> None:
    """u = sum of [f - mu, 1]_j p_j and v = P u, then back from centred to plain features: x_i^T v = f_i v_f + v_1."""
    k = len(U)
    c = k - 1
    length = end - first
    one = U[c, :length]
    for a in range(k):
        _sum_of_rows(gathered[a], y, ey, first + 2, U[a, :length])
    for a in range(c):
        u, mu = U[a, :length], mean[a, rank : rank + length]
        for t in range(length):
            u[t] -= mu[t] * one[t]
    for a in range(k):
        v = spread[a, first + 2 : end + 2]
        for b in range(k):
            u, entry = U[b, :length], P[a * k + b, rank : rank + length]
            if b == 0:
                for t in range(length):
                    v[t] = entry[t] * u[t]
            else:
                for t in range(length):
                    v[t] += entry[t] * u[t]
    v_one = spread[c, first + 2 : end + 2]
    for a in range(c):
        v, mu = spread[a, first + 2 : end + 2], mean[a, rank : rank + length]
        for t in range(length):
            v_one[t] -= mu[t] * v[t]


@compiled
def _sum_along_x(cells: Float64Array, out: Float64Array, length: int, ex: int, direction: int) -> None:
    """out[t] = the sum of ex cells from t on; towards lower x `cells` starts two cells before `out`."""
    first = 0 if direction > 0 else 3 - ex
    if ex == 3:
        for t in range(length):
            out[t] = cells[t] + cells[t + 1] + cells[t + 2]
    elif ex == 2:
        for t in range(length):
            out[t] = cells[first + t] + cells[first + t + 1]
    else:
        for t in range(length):
            out[t] = cells[first + t]


@compiled
def _sum_of_rows(cells: Float64Array, row: int, ey: int, first: int, out: Float64Array) -> None:
    """out[t] = cell first + t summed over all planes and over ey rows from `row` on."""
    end = first + len(out)
    if len(cells) == 3 and ey == 3:
        a, b, c = cells[0, row, first:end], cells[0, row + 1, first:end], cells[0, row + 2, first:end]
        d, e, f = cells[1, row, first:end], cells[1, row + 1, first:end], cells[1, row + 2, first:end]
        g, h, i = cells[2, row, first:end], cells[2, row + 1, first:end], cells[2, row + 2, first:end]
        for t in range(len(out)):
            out[t] = (a[t] + b[t] + c[t]) + (d[t] + e[t] + f[t]) + (g[t] + h[t] + i[t])
        return
    out[:] = 0.0
    for z in range(len(cells)):
        for y in range(row, row + ey):
            line = cells[z, y, first:end]
            for t in range(len(out)):
                out[t] += line[t]
