"""The linear systems: the matting Laplacians as operators, and conjugate gradients for
`(L + lambda D) a = lambda D S` (paper, Eq. 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from raymat.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, IntArray
from raymat.compiled import compiled
from raymat.matting.multigrid import Aggregates, Multigrid, inverted
from raymat.matting.threads import ONE, Part, Threads

# The relative residual at which a solve ends: |b - A a| / |b|, rows divided by their diagonal entries. That is what a
# voxel is off by, the same for any lambda. Closed-form systems need more of it than well-conditioned graphs.
TOLERANCE = 5e-7
MAX_ITERATIONS, MAX_MULTIGRID_ITERATIONS = 5000, 2000
LEAST_ROWS = 10_000  # of a thread, in a product
SPEEDS_UP = 2.0  # how many times as fast as before the steps with the diagonal are expected to become

Preconditioner = Callable[[Float64Array], Float64Array]


@dataclass(frozen=True)
class TurnTo:
    """Another preconditioner than the diagonal.

    Attributes
    ----------
    make: a preconditioner r -> z from the penalty (n,), the diagonal T of `solve`.
    price: what making and using it costs, about, in steps with the diagonal.
    instead_of: the steps that the diagonal takes, about.
    """

    make: Callable[[Float64Array], Preconditioner]
    price: float
    instead_of: float


@dataclass(frozen=True)
class System:
    """A matting energy `a^T L a - 2 a^T pull` over the voxels that it couples.

    Attributes
    ----------
    variables: (n,) flat indices of those voxels in the region of interest. Every other known voxel stands
        alone and keeps its S.
    laplacian: p -> L p for each row of p, (k, n).
    diagonal: (n,) diagonal of L.
    pull: (n,) what the data terms add to the right-hand side, or None.
    symmetric: whether L is. Conjugate gradients need it, stabilised biconjugate gradients do not.
    tolerance: the relative residual at which a solve ends.
    multigrid: what else than the diagonal may be taken, or None.
    """

    variables: Int64Array
    laplacian: Callable[[Float64Array], Float64Array]
    diagonal: Float64Array
    pull: Float64Array | None = None
    symmetric: bool = True
    tolerance: float = TOLERANCE
    multigrid: TurnTo | None = None


class GraphLaplacian:
    """`L = diag(W 1) - W`, `W = (W + W^T) / 2`, from the directed edges i -> j of a neighbourhood graph.

    Parameters
    ----------
    i, j: (e,) ends of the edges, in 0 .. n - 1. An edge may occur more than once; weights add up.
    weight: (e,) weights, not negative.
    n: number of vertices.
    threads: what products may use.

    Attributes
    ----------
    start, column, weight: W in compressed sparse rows.
    diagonal: (n,) row sums of W.
    """

    def __init__(self, i: IntArray, j: IntArray, weight: Float64Array, n: int, threads: Threads = ONE) -> None:
        self.start, self.column, self.weight, self.diagonal = _both_ways(i, j, weight, n)
        self._threads = threads

    def __call__(self, p: Float64Array) -> Float64Array:
        """L p for each row of p, (k, n)."""
        y = np.empty_like(p)
        both = np.ascontiguousarray(p.T) if len(p) == 2 else np.empty((0, 2))

        def apply(rows: Part) -> None:
            _graph_apply(p, both, self.start, self.column, self.weight, self.diagonal, y, rows.start, rows.stop)

        self._threads.each(apply, len(self.diagonal), LEAST_ROWS)
        return y

    def multigrid(self, penalty: Float64Array) -> Multigrid:
        """A preconditioner of L plus a diagonal (n,)."""
        return Multigrid(self.diagonal + penalty, self.aggregates(penalty))

    def aggregates(self, penalty: Float64Array) -> Aggregates:
        """Vertices with all or most of their neighbours, and their system for L plus a diagonal (n,)."""
        from pyamg.aggregation.aggregate import standard_aggregation

        n = len(penalty)
        whole = csr_array((self.weight, self.column.view(np.int32), self.start.astype(np.int32)), shape=(n, n))
        rows, _ = standard_aggregation(csr_matrix(whole))
        of = np.full(n, -1, dtype=np.int32)
        of[np.diff(rows.indptr) > 0] = rows.indices
        m = rows.shape[1]
        start, column, value = _of_aggregates(self.start, self.column, self.weight, self.diagonal + penalty, of, m)
        system = csr_array((value, column, start), shape=(m, m))
        return Aggregates(of, np.ones((n, 1)), system, np.ones((m, 1)))


@compiled
def _of_aggregates(
    start: Int64Array, column: IntArray, weight: Float32Array, diagonal: Float64Array, of: Int32Array, m: int
) -> tuple[Int32Array, Int32Array, Float64Array]:
    """Compressed rows of T^T (diag(diagonal) - W) T for m aggregates."""
    n = len(of)
    first = np.zeros(m + 1, dtype=np.int64)
    for v in range(n):
        if of[v] >= 0:
            first[of[v] + 1] += 1
    for a in range(m):
        first[a + 1] += first[a]
    member = np.empty(first[m], dtype=np.int64)
    place = first[:-1].copy()
    for v in range(n):
        if of[v] >= 0:
            member[place[of[v]]] = v
            place[of[v]] += 1
    rows = np.zeros(m + 1, dtype=np.int32)
    size = 0
    columns, values = np.empty(size, dtype=np.int32), np.empty(size)
    sums, touched, row = np.zeros(m), np.zeros(m, dtype=np.bool_), np.empty(m, dtype=np.int64)
    for a in range(m):
        entries = 0
        own = 0.0
        for s in range(first[a], first[a + 1]):
            v = member[s]
            own += diagonal[v]
            for t in range(start[v], start[v + 1]):
                b = of[column[t]]
                if b == a:
                    own -= weight[t]
                elif b >= 0:
                    if not touched[b]:
                        touched[b] = True
                        row[entries] = b
                        entries += 1
                    sums[b] -= weight[t]
        e = rows[a]
        rows[a + 1] = e + entries + 1
        if e + entries + 1 > size:
            size = 2 * (e + entries + 1)
            more_columns, more_values = np.empty(size, dtype=np.int32), np.empty(size)
            more_columns[:e], more_values[:e] = columns[:e], values[:e]
            columns, values = more_columns, more_values
        columns[e], values[e] = a, own
        for s in range(entries):
            b = row[s]
            columns[e + 1 + s], values[e + 1 + s] = b, sums[b]
            sums[b], touched[b] = 0.0, False
    e = rows[m]
    return rows, columns[:e].copy(), values[:e].copy()


@compiled
def _both_ways(
    i: IntArray, j: IntArray, weight: Float64Array, n: int
) -> tuple[Int64Array, IntArray, Float32Array, Float64Array]:
    """Compressed rows of (W + W^T) / 2, columns ascending, and its row sums.

    Weights are kept in single precision, which halves what a product reads; both directions hold the same number, and
    the row sums are those of what is kept.
    """
    start = np.zeros(n + 1, dtype=np.int64)
    for e in range(len(i)):
        start[i[e] + 1] += 1
        start[j[e] + 1] += 1
    for v in range(n):
        start[v + 1] += start[v]
    place = start[:-1].copy()
    unsorted = np.empty(2 * len(i), dtype=np.uint32)
    half = np.empty(2 * len(i), dtype=np.float32)
    degree = np.zeros(n)
    for e in range(len(i)):
        a, b, w = i[e], j[e], np.float32(0.5 * weight[e])
        unsorted[place[a]], half[place[a]] = b, w
        place[a] += 1
        unsorted[place[b]], half[place[b]] = a, w
        place[b] += 1
    # A symmetric matrix is its own transpose, and transposing sorts the rows. What occurs twice is merged on the way.
    column = np.empty(2 * len(i), dtype=np.uint32)
    value = np.empty(2 * len(i), dtype=np.float32)
    place = start[:-1].copy()
    for v in range(n):
        for e in range(start[v], start[v + 1]):
            a = unsorted[e]
            last = place[a] - 1
            if last >= start[a] and column[last] == v:
                value[last] += half[e]
            else:
                column[place[a]], value[place[a]] = v, half[e]
                place[a] += 1
    merged = np.zeros(n + 1, dtype=np.int64)
    for v in range(n):
        length = place[v] - start[v]
        merged[v + 1] = merged[v] + length
        for s in range(length):
            column[merged[v] + s], value[merged[v] + s] = column[start[v] + s], value[start[v] + s]
            degree[v] += value[merged[v] + s]
    return merged, column[: merged[n]].copy(), value[: merged[n]].copy(), degree


@compiled
def _graph_apply(
    p: Float64Array,
    both: Float64Array,
    start: Int64Array,
    column: IntArray,
    weight: Float32Array,
    degree: Float64Array,
    y: Float64Array,
    begin: int,
    end: int,
) -> None:
    """y = L p in the rows from `begin` to before `end`; `both` (n, 2) is p where that has two rows."""
    k = len(p)
    if k == 2:  # a method and its "+": one walk over the edges serves both
        for v in range(begin, end):
            one, two = degree[v] * both[v, 0], degree[v] * both[v, 1]
            for e in range(start[v], start[v + 1]):
                j, w = column[e], weight[e]
                one -= w * both[j, 0]
                two -= w * both[j, 1]
            y[0, v], y[1, v] = one, two
        return
    for q in range(k):
        for v in range(begin, end):
            one = degree[v] * p[q, v]
            for e in range(start[v], start[v + 1]):
                one -= weight[e] * p[q, column[e]]
            y[q, v] = one


@dataclass(frozen=True)
class Solution:
    """What a solver returns: a (n,), its steps, the relative residual of a, whether that is small enough, and how."""

    a: Float64Array
    iterations: int
    residual: float
    converged: bool
    solver: str = ""


def solve(
    system: System,
    known: BoolArray,
    S: Sequence[Float64Array],
    penalty: Float64Array,
    preconditioner: str = "auto",
) -> list[Solution]:
    """Solve `(L + T) a = T S + pull` by a Krylov method.

    Several S are solved side by side: every product with L serves all of them. Each takes the steps it would take
    alone, to the bit.

    Parameters
    ----------
    system: System over n variables.
    known: bool array (n,), D.
    S: float64 arrays (n,), alpha of the known voxels and what is expected of others, one for each solution.
    penalty: (n,), the diagonal T: lambda for known voxels, for others how much what is expected counts; not negative.
    preconditioner: "jacobi" for the diagonal, "amg" for multigrid; "auto" for multigrid where the depth of the unknown
        region says that it costs less, else for the diagonal and, where after as many steps those that are left would
        still cost more, or stall, for multigrid. A system without multigrid always takes the diagonal.

    Returns
    -------
    list of Solution, not clipped.
    """
    # A voxel that nothing ties (edges of weight 0, say) has an empty row: it keeps its start.
    inverse = inverted(system.diagonal + penalty)

    @cache
    def multigrid() -> Preconditioner | None:
        return system.multigrid.make(penalty) if system.multigrid else None

    running = {}
    for which, s in enumerate(S):
        b = penalty * s if system.pull is None else penalty * s + system.pull
        running[which] = _steps(system, b, np.where(known, s, 0.5), inverse, preconditioner, multigrid)
    asked = {which: next(steps) for which, steps in running.items()}
    solutions: dict[int, Solution] = {}
    while asked:
        p = np.stack(list(asked.values()))
        Ap = system.laplacian(p)
        following = {}
        for which, p_q, Ap_q in zip(asked, p, Ap, strict=True):
            _add_product(Ap_q, penalty, p_q)
            try:
                following[which] = running[which].send(Ap_q)
            except StopIteration as end:
                solutions[which] = end.value
        asked = following
    return [solutions[which] for which in range(len(S))]


Steps = Generator[Float64Array, Float64Array, Solution]


def _steps(
    system: System,
    b: Float64Array,
    x: Float64Array,
    inverse: Float64Array,
    preconditioner: str,
    multigrid: Callable[[], Preconditioner | None],
) -> Steps:
    """One solution, with the diagonal, multigrid, or the one and then the other."""
    name, method = ("cg", conjugate_gradients) if system.symmetric else ("bicgstab", stabilised_biconjugate_gradients)
    other, steps, how = system.multigrid, 0, "amg"
    if preconditioner == "jacobi" or other is None or (preconditioner == "auto" and other.instead_of <= other.price):
        may_turn = preconditioner == "auto" and other is not None
        dear = Dear(system.tolerance, other.price) if may_turn and other else None
        solution = yield from method(b, x, inverse, system.tolerance, MAX_ITERATIONS, None, dear)
        if solution.converged or not may_turn:
            return replace(solution, solver=f"{name}, jacobi")
        x, steps, how = solution.a, solution.iterations, "jacobi, then amg"
    solution = yield from method(b, x, inverse, system.tolerance, MAX_MULTIGRID_ITERATIONS, multigrid())
    return replace(solution, iterations=steps + solution.iterations, solver=f"{name}, {how}")


class Dear:
    """Whether the steps with the diagonal that are left cost more than multigrid.

    Decided by counts and residuals alone, never by the clock: the same input gives the same bits.

    Parameters
    ----------
    tolerance: the relative residual at which the solve ends.
    price: what multigrid costs in steps with the diagonal.
    """

    def __init__(self, tolerance: float, price: float) -> None:
        self._goal, self._price = math.log(tolerance), price
        self._lowest: list[float] = []  # log of the least residual, after each step

    def __call__(self, residual: float) -> bool:
        """Count one more step, which ended with this relative residual."""
        now = math.log(max(residual, 1e-300))
        self._lowest.append(min(now, self._lowest[-1]) if self._lowest else now)
        steps = len(self._lowest)
        if steps < self._price:
            return False
        # Conjugate gradients become faster on the way: what the last two thirds of the steps predict is too much.
        third = steps // 3
        rate = (self._lowest[third] - self._lowest[-1]) / (steps - third)
        return self._lowest[-1] - self._goal > rate * SPEEDS_UP * self._price


def conjugate_gradients(
    b: Float64Array,
    x: Float64Array,
    inverse_diagonal: Float64Array,
    tolerance: float,
    max_iterations: int,
    preconditioner: Preconditioner | None = None,
    dear: Dear | None = None,
) -> Steps:
    """Preconditioned conjugate gradients (Y. Saad, "Iterative methods for sparse linear systems", 2003, algorithm 9.1).

    A generator: it yields vectors p, takes A p in return, and ends with the solution. So whoever holds A can serve
    several right-hand sides with one product.

    Parameters
    ----------
    b, x: (n,) right-hand side and start; x is overwritten.
    inverse_diagonal: (n,) inverse of the diagonal of A, which is symmetric and positive (semi)definite.
    tolerance: of |b - A x| / |b|, rows divided by their diagonal entries.
    max_iterations: bound on the steps.
    preconditioner: r -> z, about A^-1 r; the diagonal where there is none.
    dear: ends the solve early when it says so.
    """
    scale = _norm(b, inverse_diagonal)
    if scale == 0.0:
        yield x
        return Solution(np.zeros_like(x), 0, 0.0, True)
    iterations = 0
    residual = np.inf
    while True:
        r = b - (yield x)
        last, residual = residual, _norm(r, inverse_diagonal) / scale
        # Where rounding has parted the running r from b - A x, restart from x while that helps.
        if residual <= tolerance or iterations >= max_iterations or not residual < 0.5 * last:
            return Solution(x, iterations, float(residual), bool(residual <= tolerance))
        p = inverse_diagonal * r if preconditioner is None else preconditioner(r)
        rz = _dot(r, p)
        while iterations < max_iterations:
            Ap = yield p
            pAp = _dot(p, Ap)
            if not pAp > 0.0:  # no step along p lowers the energy
                break
            zz, rz_new = _step(rz / pAp, x, r, p, Ap, inverse_diagonal)
            iterations += 1
            if np.sqrt(zz) <= 0.99 * tolerance * scale:
                break
            if dear is not None and dear(np.sqrt(zz) / scale):
                return Solution(x, iterations, float(np.sqrt(zz) / scale), False)
            if preconditioner is None:
                _turn(rz_new / rz, p, r, inverse_diagonal)
            else:
                z = preconditioner(r)
                rz_new = _dot(r, z)
                p = z + (rz_new / rz) * p
            rz = rz_new


def stabilised_biconjugate_gradients(
    b: Float64Array,
    x: Float64Array,
    inverse_diagonal: Float64Array,
    tolerance: float,
    max_iterations: int,
    preconditioner: Preconditioner | None = None,
    dear: Dear | None = None,
) -> Steps:
    """BiCGSTAB (H. A. van der Vorst, 1992; Y. Saad, "Iterative methods for sparse linear systems", algorithm 7.7),
    preconditioned from the right, for matrices that are not quite symmetric. Two products per step.

    A generator with the parameters of `conjugate_gradients`.
    """
    scale = _norm(b, inverse_diagonal)
    if scale == 0.0:
        yield x
        return Solution(np.zeros_like(x), 0, 0.0, True)
    iterations = 0
    residual = np.inf
    while True:
        r = b - (yield x)
        last, residual = residual, _norm(r, inverse_diagonal) / scale
        # A breakdown, or rounding that has parted r from b - A x, is met with a new start from x while that helps.
        if residual <= tolerance or iterations >= max_iterations or not residual < 0.5 * last:
            return Solution(x, iterations, float(residual), bool(residual <= tolerance))
        shadow, p = r.copy(), r.copy()
        rho = _dot(shadow, r)
        while iterations < max_iterations:
            p_hat = inverse_diagonal * p if preconditioner is None else preconditioner(p)
            v = yield p_hat
            turned = _dot(shadow, v)
            if turned == 0.0:
                break
            alpha = rho / turned
            s = r - alpha * v
            s_hat = inverse_diagonal * s if preconditioner is None else preconditioner(s)
            t = yield s_hat
            tt = _dot(t, t)
            omega = _dot(t, s) / tt if tt > 0.0 else 0.0
            x += alpha * p_hat + omega * s_hat
            r = s - omega * t
            iterations += 1
            rho_new = _dot(shadow, r)
            size = _norm(r, inverse_diagonal)
            if size <= 0.9 * tolerance * scale or rho_new == 0.0 or omega == 0.0:
                break
            if dear is not None and dear(size / scale):
                return Solution(x, iterations, float(size / scale), False)
            p = r + (rho_new / rho) * (alpha / omega) * (p - omega * v)
            rho = rho_new


# Sums in eight interleaved parts: fast without fastmath, in the same order on every machine and for any number of
# threads, which a BLAS does not promise.
@compiled
def _dot(a: Float64Array, b: Float64Array) -> float:
    part = np.zeros(8)
    whole = len(a) - len(a) % 8
    for i in range(0, whole, 8):
        for s in range(8):
            part[s] += a[i + s] * b[i + s]
    for i in range(whole, len(a)):
        part[0] += a[i] * b[i]
    total: float = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]))
    return total


def _norm(r: Float64Array, inverse_diagonal: Float64Array) -> float:
    z = inverse_diagonal * r
    norm: float = np.sqrt(_dot(z, z))
    return norm


@compiled
def _step(
    length: float, x: Float64Array, r: Float64Array, p: Float64Array, Ap: Float64Array, inverse_diagonal: Float64Array
) -> tuple[float, float]:
    for i in range(len(x)):
        x[i] += length * p[i]
        r[i] -= length * Ap[i]
    zz = np.zeros(8)
    rz = np.zeros(8)
    whole = len(r) - len(r) % 8
    for i in range(0, whole, 8):
        for s in range(8):
            z = inverse_diagonal[i + s] * r[i + s]
            zz[s] += z * z
            rz[s] += z * r[i + s]
    for i in range(whole, len(r)):
        z = inverse_diagonal[i] * r[i]
        zz[0] += z * z
        rz[0] += z * r[i]
    return (
        ((zz[0] + zz[1]) + (zz[2] + zz[3])) + ((zz[4] + zz[5]) + (zz[6] + zz[7])),
        ((rz[0] + rz[1]) + (rz[2] + rz[3])) + ((rz[4] + rz[5]) + (rz[6] + rz[7])),
    )


@compiled
def _turn(beta: float, p: Float64Array, r: Float64Array, inverse_diagonal: Float64Array) -> None:
    for i in range(len(p)):
        p[i] = inverse_diagonal[i] * r[i] + beta * p[i]


@compiled
def _add_product(y: Float64Array, a: Float64Array, b: Float64Array) -> None:
    for i in range(len(y)):
        y[i] += a[i] * b[i]
