"""Exact nearest neighbours in `[f, w x]`: c features and the weighted place in the grid.

The points lie on a grid, and that is worth more than a tree. There are three ways, each exact:

- in the order of space: voxels are looked at by growing distance in space; the search is over as soon as the next
  voxel, were its features equal, would be farther than the worst neighbour found. With noise in the image a few hundred
  voxels are looked at.
- in the order of intensity, for voxels of rare intensity and where the place weighs little: the same, with the next
  voxel taken to be at the same place.
- by blocks, where neighbours must come from a part of the grid: blocks of some 200 voxels with their ranges of place
  and intensity, of which those that may hold a nearer voxel are compared whole.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.ndimage import distance_transform_edt

from raymat.arrays import BoolArray, Float64Array, Int32Array, Int64Array
from raymat.compiled import compiled
from raymat.matting.threads import ONE, Part, Threads

BALL = 12_000  # voxels looked at in the order of space before a voxel is looked up in another way
BATCH = 8  # looks at once
EXPECTED = 2.0  # squared distance of the last neighbour wanted, over that of the query before
BLOCK = 200  # voxels in a block
# What the others cost in looks in the order of space, as measured: a look in the order of intensity, a query by blocks,
# a candidate put into its block.
SWEEP, BLOCK_QUERY, BLOCK_POINT = 2, 900, 10
NEVER = np.iinfo(np.int64).max
LEAST_QUERIES = 2000  # of a thread

# Offsets, squared distances, whether they reach all of the grid, how many are safe.
Ball: TypeAlias = tuple[Int64Array, Float64Array, bool, Int64Array]


class Voxels:
    """The voxels of an image as points `[f, w x]`, for any weight of the place.

    Parameters
    ----------
    features: float64 array (z, y, x, c)
    threads: what searches may use
    """

    def __init__(self, features: Float64Array, threads: Threads = ONE) -> None:
        self.shape = np.array(features.shape[:3])
        self.values = np.ascontiguousarray(features.reshape(-1, features.shape[3]))
        self._threads = threads
        self._balls: dict[bytes, Ball] = {}

    @cached_property
    def _by_intensity(self) -> Int64Array:
        """Flat indices in the order of the first feature."""
        return np.argsort(self.values[:, 0], kind="stable")

    def nearest(
        self, step: Float64Array, k: int, queries: Int64Array, candidates: BoolArray | None = None
    ) -> Int32Array:
        """The k nearest voxels of each query, itself left out, by Euclidean distance in `[f, step * index]`.

        Where candidates lie at the same distance the choice is always the same for the same input, but not symmetric.

        Parameters
        ----------
        step: (3,) weighted distance from one voxel to the next along each axis, above 0.
        k: neighbours wanted; fewer are found where there are not as many candidates.
        queries: (q,) flat voxel indices.
        candidates: bool array (z, y, x), the voxels that may be neighbours; all by default.

        Returns
        -------
        int32 array (q, k) of flat voxel indices, nearest first; -1 where there was no further candidate.
        """
        step = np.asarray(step, dtype=np.float64)
        queries = np.asarray(queries, dtype=np.int64)
        found = np.full((len(queries), k), -1, dtype=np.int32)
        among = len(self.values) if candidates is None else int(np.count_nonzero(candidates))
        if among == 0 or len(queries) == 0:
            return found

        if candidates is not None:
            return self._nearest_far(step, k, queries, np.ascontiguousarray(candidates.ravel()))
        offsets, squared, complete, safe = self._ball(step)

        def search(part: Part) -> BoolArray:
            return _search(self.values, self.shape, offsets, squared, safe, queries[part], found[part])

        done = np.concatenate(self._threads.each(search, len(queries), LEAST_QUERIES))
        left = np.flatnonzero(~done)
        if not complete and len(left):
            found[left] = self._nearest_far(step, k, queries[left], None)
        return found

    def _nearest_far(self, step: Float64Array, k: int, queries: Int64Array, mask: BoolArray | None) -> Int32Array:
        """`nearest` in the order of intensity or by blocks, whichever some of the queries show to be cheaper."""
        order = self._by_intensity if mask is None else self._by_intensity[mask[self._by_intensity]]
        found = np.full((len(queries), k), -1, dtype=np.int32)
        sample = np.arange(0, len(queries), max(1, len(queries) // 32))
        by_blocks = (BLOCK_QUERY + BLOCK_POINT * len(order) / len(queries)) * len(sample)
        in_intensity = (self.values, self.shape, step, order, *_in_order(self.values, self.shape, step, order))
        looks = _sweep(*in_intensity, queries[sample], found[sample], int(by_blocks / SWEEP))
        if SWEEP * looks < by_blocks:

            def sweep(part: Part) -> int:
                return _sweep(*in_intensity, queries[part], found[part], NEVER)

            self._threads.each(sweep, len(queries), LEAST_QUERIES)
        else:
            among = np.arange(len(self.values)) if mask is None else np.flatnonzero(mask)
            _by_blocks(self.values, self.shape, step, among, queries, found, self._threads)
        return found

    def within_reach(self, step: Float64Array, k: int, queries: Int64Array, reach: Float64Array) -> BoolArray:
        """The queries that may have a voxel of some set among their k nearest; the others surely have not.

        Parameters
        ----------
        step, k, queries: as in `nearest`.
        reach: (q,) distance in `step * index` from each query to the nearest voxel of the set.

        Returns
        -------
        bool array (q,), False where k voxels are nearer than `reach`.
        """
        offsets, squared, _, safe = self._ball(step)
        within = reach**2 * (1 - 1e-9)

        def uncrowded(part: Part) -> BoolArray:
            return _uncrowded(self.values, self.shape, offsets, squared, safe, queries[part], k, within[part])

        return np.concatenate(self._threads.each(uncrowded, len(queries), LEAST_QUERIES))

    def _ball(self, step: Float64Array) -> Ball:
        """What `_ball` and `_safe` return for a step, kept for the next search with it."""
        key = step.tobytes()
        if key not in self._balls:
            offsets, squared, complete = _ball(self.shape, step, BALL)
            self._balls[key] = offsets, squared, complete, _safe(self.shape, offsets)
        return self._balls[key]


def _safe(shape: Int64Array, offsets: Int64Array) -> Int64Array:
    """How many offsets, from the first on, stay inside the grid for a voxel that many voxels from its border."""
    border = np.abs(offsets[:, shape > 1]).max(axis=1, initial=0)
    return np.searchsorted(np.maximum.accumulate(border), np.arange(shape.max() + 1), side="right").astype(np.int64)


def _ball(shape: Int64Array, step: Float64Array, limit: int) -> tuple[Int64Array, Float64Array, bool]:
    """Offsets (n, 3) by growing distance, their squared distances, and whether they reach all of the grid.

    The radius is chosen for about `limit` offsets.
    """
    most = shape - 1
    farthest = float(np.sqrt(((most * step) ** 2).sum()))
    low, high = 0.0, farthest * 1.000001
    if np.prod(2 * most + 1) > limit:
        for _ in range(40):
            radius = (low + high) / 2
            inside = np.prod(2.0 * np.minimum(most, radius / step) + 1) * (np.pi / 6 if np.all(shape > 1) else 0.8)
            low, high = (radius, high) if inside < limit else (low, radius)
    radius = high
    reach = np.minimum(most, np.floor(radius / step)).astype(np.int64)
    axes = np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij")
    offsets = np.stack([a.ravel() for a in axes], axis=1)
    squared = ((offsets * step) ** 2).sum(axis=1)
    kept = (squared <= radius**2) & (offsets != 0).any(axis=1)
    offsets, squared = offsets[kept], squared[kept]
    order = np.argsort(squared, kind="stable")
    return np.ascontiguousarray(offsets[order]), squared[order], bool(radius >= farthest)


@compiled
def _search(
    values: Float64Array,
    shape: Int64Array,
    offsets: Int64Array,
    squared: Float64Array,
    safe: Int64Array,
    queries: Int64Array,
    found: Int32Array,
) -> BoolArray:
    nz, ny, nx = shape
    c = values.shape[1]
    k = found.shape[1]
    total = len(offsets)
    jumps = np.empty(total, dtype=np.int64)
    for t in range(total):
        jumps[t] = (offsets[t, 0] * ny + offsets[t, 1]) * nx + offsets[t, 2]
    first = values[:, 0].copy()
    done = np.zeros(len(queries), dtype=np.bool_)
    best = np.empty(k)
    expected = np.inf
    for q in range(len(queries)):
        i = queries[q]
        z, y, x, border = _border(i, nz, ny, nx)
        unchecked = safe[min(border, len(safe) - 1)]
        f = values[i, 0]
        chosen = found[q]
        while True:
            count = 0
            worst = expected
            t = 0
            alone = 0
            while t < total:
                if squared[t] >= worst:
                    break
                if worst < np.inf and t >= alone and t + BATCH <= unchecked:
                    # Hardly any is near enough: eight at once, without a branch.
                    jump, away = jumps[t : t + BATCH], squared[t : t + BATCH]
                    hits = 0
                    for s in range(BATCH):
                        gap = first[np.uint64(i + jump[s])] - f
                        hits += away[s] + gap * gap < worst
                    if hits == 0:
                        t += BATCH
                        continue
                    alone = t + BATCH
                if t >= unchecked:
                    zz = z + offsets[t, 0]
                    yy = y + offsets[t, 1]
                    xx = x + offsets[t, 2]
                    if zz < 0 or zz >= nz or yy < 0 or yy >= ny or xx < 0 or xx >= nx:
                        t += 1
                        continue
                j = np.uint64(i + jumps[t])
                gap = first[j] - f
                distance = squared[t] + gap * gap
                for a in range(1, c):
                    gap = values[j, a] - values[i, a]
                    distance += gap * gap
                if distance < worst:
                    if count < k:
                        count += 1
                    s = count - 1
                    while s > 0 and best[s - 1] > distance:
                        best[s] = best[s - 1]
                        chosen[s] = chosen[s - 1]
                        s -= 1
                    best[s] = distance
                    chosen[s] = j
                    if count == k:
                        worst = best[k - 1]
                t += 1
            if count == k or expected == np.inf:
                break
            expected = np.inf  # too little was expected
        done[q] = t < total
        # The next query is mostly the next voxel: its neighbours are about as far away, which spares many that are near
        # only until nearer ones are found.
        expected = EXPECTED * worst
    return done


@compiled
def _border(i: int, nz: int, ny: int, nx: int) -> tuple[int, int, int, int]:
    """Voxel i as (z, y, x), and its voxels to the nearest border along the axes longer than 1."""
    x = i % nx
    y = (i // nx) % ny
    z = i // (nx * ny)
    border = nx + ny + nz
    if nz > 1:
        border = min(border, z, nz - 1 - z)
    if ny > 1:
        border = min(border, y, ny - 1 - y)
    if nx > 1:
        border = min(border, x, nx - 1 - x)
    return z, y, x, border


@compiled
def _uncrowded(
    values: Float64Array,
    shape: Int64Array,
    offsets: Int64Array,
    squared: Float64Array,
    safe: Int64Array,
    queries: Int64Array,
    k: int,
    enough: Float64Array,
) -> BoolArray:
    nz, ny, nx = shape
    c = values.shape[1]
    total = len(offsets)
    jumps = np.empty(total, dtype=np.int64)
    for t in range(total):
        jumps[t] = (offsets[t, 0] * ny + offsets[t, 1]) * nx + offsets[t, 2]
    possible = np.ones(len(queries), dtype=np.bool_)
    for q in range(len(queries)):
        i = queries[q]
        z, y, x, border = _border(i, nz, ny, nx)
        unchecked = safe[min(border, len(safe) - 1)]
        f = values[i, 0]
        room = enough[q]
        count = 0
        for t in range(total):
            if squared[t] >= room:
                break
            if t >= unchecked:
                zz = z + offsets[t, 0]
                yy = y + offsets[t, 1]
                xx = x + offsets[t, 2]
                if zz < 0 or zz >= nz or yy < 0 or yy >= ny or xx < 0 or xx >= nx:
                    continue
            gap = values[i + jumps[t], 0] - f
            distance = squared[t] + gap * gap
            for a in range(1, c):
                gap = values[i + jumps[t], a] - values[i, a]
                distance += gap * gap
            count += distance < room
            if count == k:
                possible[q] = False
                break
    return possible


@compiled
def _in_order(
    values: Float64Array, shape: Int64Array, step: Float64Array, order: Int64Array
) -> tuple[Float64Array, Float64Array]:
    """First features in the order of intensity, with an infinite one at both ends, and the weighted places."""
    ny, nx = shape[1], shape[2]
    n = len(order)
    intensity = np.empty(n + 2)
    intensity[0], intensity[n + 1] = -np.inf, np.inf
    place = np.empty((n + 2, 3))
    for r in range(n):
        j = order[r]
        intensity[r + 1] = values[j, 0]
        place[r + 1, 0], place[r + 1, 1] = j // (nx * ny) * step[0], (j // nx) % ny * step[1]
        place[r + 1, 2] = j % nx * step[2]
    return intensity, place


@compiled
def _sweep(
    values: Float64Array,
    shape: Int64Array,
    step: Float64Array,
    order: Int64Array,
    intensity: Float64Array,
    place: Float64Array,
    queries: Int64Array,
    found: Int32Array,
    limit: int,
) -> int:
    """The same in the order of intensity. Ends early, with what it looked at so far, beyond `limit` looks."""
    ny, nx = shape[1], shape[2]
    c = values.shape[1]
    k = found.shape[1]
    best = np.empty(k)
    looked = 0
    for q in range(len(queries)):
        i = queries[q]
        z, y, x = i // (nx * ny) * step[0], (i // nx) % ny * step[1], i % nx * step[2]
        f = values[i, 0]
        above = np.searchsorted(intensity, f)
        below = above - 1
        chosen = found[q]
        count = 0
        worst = np.inf
        while True:
            down, up = f - intensity[below], intensity[above] - f
            # Which of them is as good as random: without a branch there is nothing to predict.
            lower = np.int64(down < up)
            r = above + lower * (below - above)
            gap = min(down, up)
            distance = gap * gap
            if distance >= worst or gap == np.inf:
                break
            below -= lower
            above += 1 - lower
            looked += 1
            dz, dy, dx = z - place[r, 0], y - place[r, 1], x - place[r, 2]
            distance += dz * dz + dy * dy + dx * dx
            if distance >= worst:
                continue
            j = order[r - 1]
            if j == i:
                continue
            for a in range(1, c):
                other = values[j, a] - values[i, a]
                distance += other * other
            if distance < worst:
                if count < k:
                    count += 1
                s = count - 1
                while s > 0 and best[s - 1] > distance:
                    best[s] = best[s - 1]
                    chosen[s] = chosen[s - 1]
                    s -= 1
                best[s] = distance
                chosen[s] = j
                if count == k:
                    worst = best[k - 1]
        if looked > limit:
            break
    return looked


def _by_blocks(
    values: Float64Array,
    shape: Int64Array,
    step: Float64Array,
    among: Int64Array,
    queries: Int64Array,
    found: Int32Array,
    threads: Threads,
) -> None:
    """The same among the voxels `among`, ascending flat indices, block by block."""
    long = shape > 1
    length = (BLOCK * np.prod(step[long])) ** (1 / max(1, int(np.count_nonzero(long))))
    edge = np.clip(np.rint(length / step), 1, shape).astype(np.int64)
    blocks = -(-shape // edge)
    start, voxels, points, low, high = _fill_blocks(values, shape, step, edge, blocks, among)

    axes = np.meshgrid(*[np.arange(1 - n, n) for n in blocks], indexing="ij")
    offsets = np.stack([a.ravel() for a in axes], axis=1)
    distance = np.sqrt(((offsets * edge * step) ** 2).sum(axis=1))  # from centre to centre
    order = np.argsort(distance, kind="stable")
    offsets, distance = np.ascontiguousarray(offsets[order]), distance[order]
    slack = np.sqrt(((edge * step) ** 2).sum())  # by which two voxels may be nearer than their blocks' centres
    # Nothing is found before the nearest block that holds a voxel.
    empty = (np.diff(start) == 0).reshape(blocks)
    gap = distance_transform_edt(empty, sampling=edge * step) if empty.any() else np.zeros(blocks)
    begin = np.searchsorted(distance, gap.ravel() * (1 - 1e-9))
    least = np.maximum(distance - slack, 0.0) ** 2
    filled = (offsets, least, begin, start, voxels, points, low, high)

    def search(part: Part) -> None:
        _search_blocks(values, shape, step, edge, blocks, *filled, queries[part], found[part])

    threads.each(search, len(queries), LEAST_QUERIES)


@compiled
def _fill_blocks(
    values: Float64Array,
    shape: Int64Array,
    step: Float64Array,
    edge: Int64Array,
    blocks: Int64Array,
    among: Int64Array,
) -> tuple[Int64Array, Int64Array, Float64Array, Float64Array, Float64Array]:
    """Voxels block by block, their points (first feature, z, y, x) and each block's least and greatest of these."""
    ny, nx = shape[1], shape[2]
    n = len(among)
    count = blocks[0] * blocks[1] * blocks[2]
    start = np.zeros(count + 1, dtype=np.int64)
    block = np.empty(n, dtype=np.int64)
    for r in range(n):
        i = among[r]
        z, y, x = i // (nx * ny) // edge[0], (i // nx) % ny // edge[1], i % nx // edge[2]
        block[r] = (z * blocks[1] + y) * blocks[2] + x
        start[block[r] + 1] += 1
    for b in range(count):
        start[b + 1] += start[b]
    place = start[:-1].copy()
    voxels = np.empty(n, dtype=np.int64)
    points = np.empty((4, n))
    low, high = np.full((count, 4), np.inf), np.full((count, 4), -np.inf)
    for r in range(n):
        i, b = among[r], block[r]
        e = place[b]
        place[b] += 1
        voxels[e] = i
        points[0, e] = values[i, 0]
        points[1, e] = i // (nx * ny) * step[0]
        points[2, e] = (i // nx) % ny * step[1]
        points[3, e] = i % nx * step[2]
        for a in range(4):
            low[b, a] = min(low[b, a], points[a, e])
            high[b, a] = max(high[b, a], points[a, e])
    return start, voxels, points, low, high


@compiled
def _search_blocks(
    values: Float64Array,
    shape: Int64Array,
    step: Float64Array,
    edge: Int64Array,
    blocks: Int64Array,
    offsets: Int64Array,
    least: Float64Array,
    begin: Int64Array,
    start: Int64Array,
    voxels: Int64Array,
    points: Float64Array,
    low: Float64Array,
    high: Float64Array,
    queries: Int64Array,
    found: Int32Array,
) -> None:
    ny, nx = shape[1], shape[2]
    c = values.shape[1]
    k = found.shape[1]
    best = np.empty(k)
    point = np.empty(4)
    for q in range(len(queries)):
        i = queries[q]
        z, y, x = i // (nx * ny), (i // nx) % ny, i % nx
        block_z, block_y, block_x = z // edge[0], y // edge[1], x // edge[2]
        point[0], point[1], point[2], point[3] = values[i, 0], z * step[0], y * step[1], x * step[2]
        chosen = found[q]
        count = 0
        worst = np.inf
        if q > 0 and found[q - 1, k - 1] >= 0:
            # The neighbours of the query before, mostly the next voxel, are candidates too: none is needed beyond them.
            farthest = 0.0
            for s in range(k):
                j = found[q - 1, s]
                distance = np.inf if j == i else 0.0
                for a in range(c):
                    distance += (values[j, a] - values[i, a]) ** 2
                distance += (j // (nx * ny) * step[0] - point[1]) ** 2
                distance += ((j // nx) % ny * step[1] - point[2]) ** 2 + (j % nx * step[2] - point[3]) ** 2
                farthest = max(farthest, distance)
            worst = farthest * (1 + 1e-9) + 1e-300
        for t in range(begin[(block_z * blocks[1] + block_y) * blocks[2] + block_x], len(offsets)):
            if least[t] >= worst:
                break
            bz, by, bx = block_z + offsets[t, 0], block_y + offsets[t, 1], block_x + offsets[t, 2]
            if bz < 0 or bz >= blocks[0] or by < 0 or by >= blocks[1] or bx < 0 or bx >= blocks[2]:
                continue
            b = (bz * blocks[1] + by) * blocks[2] + bx
            if start[b] == start[b + 1]:
                continue
            nearest = 0.0
            for a in range(4):
                gap = max(low[b, a] - point[a], point[a] - high[b, a], 0.0)
                nearest += gap * gap
            if nearest >= worst:
                continue
            F, Z = points[0, start[b] : start[b + 1]], points[1, start[b] : start[b + 1]]
            Y, X = points[2, start[b] : start[b + 1]], points[3, start[b] : start[b + 1]]
            hits = 0
            for s in range(len(F)):
                f, dz, dy, dx = F[s] - point[0], Z[s] - point[1], Y[s] - point[2], X[s] - point[3]
                hits += f * f + dz * dz + dy * dy + dx * dx < worst
            if hits == 0:
                continue
            for s in range(len(F)):
                f, dz, dy, dx = F[s] - point[0], Z[s] - point[1], Y[s] - point[2], X[s] - point[3]
                distance = f * f + dz * dz + dy * dy + dx * dx
                j = voxels[start[b] + s]
                if distance >= worst or j == i:
                    continue
                for a in range(1, c):
                    gap = values[j, a] - values[i, a]
                    distance += gap * gap
                if distance < worst:
                    if count < k:
                        count += 1
                    r = count - 1
                    while r > 0 and best[r - 1] > distance:
                        best[r] = best[r - 1]
                        chosen[r] = chosen[r - 1]
                        r -= 1
                    best[r] = distance
                    chosen[r] = j
                    if count == k:
                        worst = best[k - 1]
